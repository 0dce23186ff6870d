//! `overcommit top` in a real terminal: what is on it, and how it is left.

use crate::Tests;
use anyhow::{Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use testbed::host::quote;
use testbed::qemu::{Config, Vm};
use testbed::results::{json, rows};
use testbed::squeeze::Squeeze;
use testbed::undo::Undo;
use testbed::{PATIENCE, await_some, overcommit, root, run};

pub(crate) const TESTS: Tests = &[
    ("a_recording_is_replayed_in_a_terminal", replay),
    ("a_screen_follows_vms_and_its_terminal_is_left_as_it_was", live),
    ("a_screen_is_printed_for_scripts", once),
];

/// A terminal of tmux with a shell in it.
struct Terminal {
    server: String,
    _undo: Undo,
}

impl Terminal {
    fn start(columns: u32, rows: u32) -> Result<Self> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Relaxed);
        let server = format!("overcommit-{}-{number}", std::process::id());
        let end = format!("tmux -L {server} kill-server 2> /dev/null || true");
        let terminal = Self { _undo: Undo::script("a terminal", &end)?, server };
        let size = [columns.to_string(), rows.to_string()];
        let shell = "LC_ALL=C.UTF-8 PS1='READY$ ' exec sh";
        terminal.tmux(&["new-session", "-d", "-x", &size[0], "-y", &size[1], shell])?;
        terminal.await_line("READY$")?;
        Ok(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        // A terminal of our own, whatever this test runs in.
        let mut tmux = Command::new("tmux");
        tmux.env_remove("TMUX").env("LC_ALL", "C.UTF-8").env("TERM", "xterm");
        run(tmux.args(["-L", &self.server, "-f", "/dev/null"]).args(arguments))
    }

    /// Types a command.
    fn enter(&self, command: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", command])?;
        self.press(&["Enter"])
    }

    fn press(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until the screen is so.
    fn await_screen(&self, what: &str, is_so: impl Fn(&str) -> bool) -> Result<String> {
        let come = await_some(what, PATIENCE, || {
            let screen = self.screen()?;
            Ok(is_so(&screen).then_some(screen))
        });
        let last = self.screen().unwrap_or_default();
        come.map_err(|error| error.context(format!("on the screen:\n{last}")))
    }

    fn await_text(&self, text: &str) -> Result<String> {
        self.await_screen(text, |screen| screen.contains(text))
    }

    /// Waits until the last line is that.
    fn await_line(&self, line: &str) -> Result<String> {
        self.await_screen(line, |screen| screen.trim_end().lines().last() == Some(line))
    }

    /// How its line discipline is set.
    fn settings(&self, dir: &Path) -> Result<String> {
        let file = dir.join("stty");
        let _ = fs::remove_file(&file);
        self.enter(&format!(
            "stty -g > {0}.new; mv {0}.new {0}",
            quote(&file.display().to_string())
        ))?;
        await_some("settings of the terminal", PATIENCE, || Ok(fs::read_to_string(&file).ok()))
    }
}

/// Holds a screen against the one that was committed.
fn compare(name: &str, screen: &str) -> Result<()> {
    let path = root().join("tests/e2e/screens").join(name);
    if std::env::var_os("OVERCOMMIT_BLESS").is_some() {
        fs::write(&path, screen)?;
    }
    ensure!(fs::read_to_string(&path)? == screen, "{} differs; now:\n{screen}", path.display());
    Ok(())
}

/// The recording of which everything is known.
fn known(dir: &Path) -> Result<PathBuf> {
    let known = root().join("overcommit-userspace/recording/golden/now");
    run(Command::new("cp").arg("-r").arg(known).arg(dir.join("known")))?;
    Ok(dir.join("known"))
}

fn replay() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let known = known(dir.path())?;
    let terminal = Terminal::start(80, 24)?;
    let top = format!("NO_COLOR=1 {} top {}", overcommit().display(), known.display());
    terminal.enter(&top)?;
    // Its second and last interval.
    terminal.await_text("01:33:16 UTC")?;
    let is_whole = |screen: &str| screen.contains("q quit") && screen.contains("01:33:16");
    compare("replay-80x24.txt", &terminal.await_screen("a whole screen", is_whole)?)?;
    terminal.tmux(&["resize-window", "-x", "40", "-y", "12"])?;
    let is_small = |screen: &str| screen.starts_with("kvm-01 ") && screen.contains("q quit");
    compare("replay-40x12.txt", &terminal.await_screen("a small screen", is_small)?)?;
    terminal.tmux(&["resize-window", "-x", "120", "-y", "40"])?;
    terminal.press(&["Enter"])?;
    terminal.await_text("fault.major  20 in 2 s")?;
    terminal.press(&["Left"])?;
    terminal.await_text("paused, 1 s back")?;
    terminal.press(&["q"])?;
    terminal.await_line("READY$")?;
    terminal.enter(&top)?;
    terminal.await_text("01:33:16 UTC")?;
    terminal.press(&["C-c"])?;
    terminal.await_line("READY$").map(drop)
}

fn live() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let squeeze = Squeeze::new()?;
    let _vm = Vm::start(&squeeze.config("squeezed"))?;
    let terminal = Terminal::start(100, 36)?;
    let before = terminal.settings(dir.path())?;
    let out = dir.path().join("run");
    let words = format!("top --vm squeezed --slow-faults 10us --out {}", out.display());
    terminal.enter(&format!("{} {words}", overcommit().display()))?;
    terminal.await_screen("a VM that is hurt", |screen| {
        screen.lines().any(|line| line.starts_with("▸ squeezed") && line.contains("ED "))
    })?;
    terminal.press(&["Enter"])?;
    terminal.await_screen("the VM's screen", |screen| {
        ["▸ squeezed", "fault.major", "SLOW FAULTS of 10.0 us", "▲max"]
            .iter()
            .all(|text| screen.contains(text))
    })?;
    terminal.press(&["m"])?;
    terminal.await_text("live [mark 1]")?;
    run(Command::new(overcommit()).args(["mark", "--", &out.display().to_string(), "steady"]))?;
    terminal.await_text("live [steady]")?;
    let marks = rows(&out, "marks.csv")?;
    let marks: Vec<&str> = marks.iter().map(|mark| mark["text"].as_str()).collect();
    ensure!(marks == ["mark 1", "steady"], "{marks:?}");
    terminal.press(&["p", "["])?;
    terminal.await_text("paused")?;
    terminal.press(&["C-z"])?;
    let stopped = terminal.await_line("READY$")?;
    ensure!(!stopped.contains("fault.major"), "it is still there: {stopped}");
    ensure!(terminal.settings(dir.path())? == before, "the terminal is not as it was");
    terminal.enter("fg")?;
    terminal.await_text("▲max")?;
    terminal.press(&["q"])?;
    // The report of what was recorded meanwhile.
    terminal.await_line("READY$")?;
    ensure!(terminal.settings(dir.path())? == before, "the terminal is not as it was");
    let summary = json(&out, "summary.json")?;
    ensure!(summary["vms"][0]["vm"] == "squeezed", "{summary}");
    ensure!(summary["run"]["stopped_by"] == "interrupt", "{}", summary["run"]);

    // A signal from elsewhere.
    let pid = dir.path().join("pid");
    let shell =
        format!("echo $$ > {}; exec {} top --vm squeezed", pid.display(), overcommit().display());
    terminal.enter(&format!("clear; sh -c {}", quote(&shell)))?;
    terminal.await_text("▸ squeezed")?;
    run(Command::new("kill").arg(fs::read_to_string(&pid)?.trim()))?;
    let ended = terminal.await_line("READY$")?;
    ensure!(!ended.contains("▸"), "{ended}");
    ensure!(terminal.settings(dir.path())? == before, "the terminal is not as it was");

    // The terminal itself goes away.
    terminal.enter(&format!("clear; sh -c {}", quote(&shell)))?;
    terminal.await_text("▸ squeezed")?;
    let process = Path::new("/proc").join(fs::read_to_string(&pid)?.trim());
    ensure!(process.exists(), "{} is gone", process.display());
    drop(terminal);
    await_some("end of a screen without a terminal", PATIENCE, || {
        Ok((!process.exists()).then_some(()))
    })
}

fn once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let known = known(dir.path())?;
    // The exit code is that of the objectives.
    let top = |code: i32, arguments: &[&str]| {
        let mut top = Command::new(overcommit());
        let ended = top.env("LC_ALL", "C.UTF-8").arg("top").args(arguments).output()?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.code() == Some(code), "{:?}: {said}", ended.status);
        Ok(String::from_utf8(ended.stdout)?)
    };
    let path = known.display().to_string();
    compare("once.txt", &top(4, &["--once", &path])?)?;
    let board: Value = serde_json::from_str(&top(4, &["--once", "--json", &path])?)?;
    ensure!(
        board["schema"] == "overcommit.top/1" && board["vms"][1]["vm"] == "web, \"01\"",
        "{board}"
    );
    let _vm = Vm::start(&Config::new("shown", 16))?;
    let board: Value = serde_json::from_str(&top(
        0,
        &["--once", "--json", "--vm", "shown", "--interval", "200ms"],
    )?)?;
    let vm = &board["vms"][0];
    ensure!(vm["vm"] == "shown" && vm["major_faults_per_s"].is_number(), "{board}");
    ensure!(
        vm["verdict"]["fared"].is_string() && board["interval_s"].as_f64() > Some(0.15),
        "{board}"
    );
    // There is no terminal to draw on.
    let refused =
        Command::new(overcommit()).arg("top").stdin(std::process::Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(said.contains("--once") && refused.status.code() == Some(1), "{said}");
    Ok(())
}
