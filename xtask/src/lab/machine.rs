//! Boots the lab and watches its console: one line ends it well, a panic, a lockup
//! or the time limit ends it at once.

use crate::lab::image::Image;
use crate::last_test::unsteady_list;
use anyhow::{Context, Result, anyhow, bail};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use testbed::attempt::{UNSTEADY, add};
use testbed::undo::Running;

/// Time in which the kernel must reach its first program. This limit and the next ones are
/// the machine's time, and only there so that a lab that hangs ends.
const BOOT: Duration = Duration::from_secs(600);
/// Time without a sign of life, which a lab gives every ten seconds of its own time, after
/// which it is stuck.
const STUCK: Duration = Duration::from_secs(1500);
/// How the error begins of one that is stuck.
pub(crate) const IS_STUCK: &str = "the lab gives no sign of life";
/// What QEMU's monitor, behind the console, is asked: where its CPUs are, and which
/// interrupts wait.
const ASK: &[u8] = b"\x01cinfo registers -a\ninfo lapic\n";
/// Its sign of life.
const RUNS: &str = "lab: runs";
/// Lines of the console that are shown of a lab that died.
const LAST_LINES: usize = 80;
/// What a kernel prints that is not going to end well.
const DEATH: [&str; 7] = [
    "Kernel panic",
    "BUG: ",
    "Oops: ",
    "soft lockup",
    "hard LOCKUP",
    "self-detected stall",
    "detected stalls on CPUs",
];

/// What a run needs.
pub(crate) struct Run<'a> {
    /// See [`emulator`].
    pub(crate) emulator: &'a Path,
    /// Before each line of its console: others may run meanwhile.
    pub(crate) name: &'a str,
    pub(crate) image: &'a Image,
    pub(crate) initramfs: &'a Path,
    /// Shared with the lab as /run/results; holds `command`.
    pub(crate) results: &'a Path,
    /// A raw file that the lab sees as /dev/vda: a slow disk.
    pub(crate) disk: &'a Path,
    /// Where QEMU complains.
    pub(crate) complaints: &'a Path,
    /// Where its console goes.
    pub(crate) console: &'a Path,
    /// Whether only how scenarios end is printed of it.
    pub(crate) brief: bool,
    pub(crate) cpus: u32,
    /// Their model.
    pub(crate) cpu: &'static str,
    /// More arguments of the kernel.
    pub(crate) arguments: &'static str,
    /// From the first program to the end.
    pub(crate) limit: Duration,
}

/// Boots it, prints what its command prints, and gives the command's exit status.
///
/// # Errors
/// It never boots, dies or takes too long; the last lines of its console are said.
pub(crate) fn run(run: &Run<'_>) -> Result<i32> {
    let mut qemu = Running::start("the lab", &mut command(run)?, |child| Ok(child.kill()?))?;
    let console = qemu.output.take().context("QEMU has no output")?;
    let mut keyboard = qemu.input.take().context("QEMU has no input")?;
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let file = File::create(run.console).context("cannot write the lab's console")?;
    let mut console = Console { name: run.name, file, brief: run.brief, start: Instant::now() };
    let status = watch(&mut console, &lines, run.limit, || Ok(keyboard.write_all(ASK)?));
    status.map_err(|error| match fs::read_to_string(run.complaints) {
        Ok(said) if !said.is_empty() => anyhow!("{error:#}\nQEMU said: {}", said.trim()),
        _ => error,
    })
}

/// QEMU under another name: else overcommit, tried on this machine meanwhile, would take the
/// emulated host for a VM. What QEMU loads it looks for beside the folder that it lies in.
pub(crate) fn emulator() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path);
    let qemu = dirs.map(|dir| dir.join(testbed::qemu::QEMU)).find(|file| file.is_file());
    let qemu = qemu.with_context(|| format!("no {}", testbed::qemu::QEMU))?;
    let prefix = qemu.parent().and_then(Path::parent).context("QEMU lies in no folder")?;
    let place = testbed::target().join("emulator");
    let copy = place.join("bin/emulated-host");
    let modified = |path: &Path| path.metadata().and_then(|data| data.modified());
    if modified(&copy).is_ok_and(|time| modified(&qemu).is_ok_and(|of_qemu| time >= of_qemu)) {
        return Ok(copy);
    }
    let failed = || format!("cannot copy {} to {}", qemu.display(), copy.display());
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(place.join("bin")).with_context(failed)?;
    for beside in ["lib", "share"] {
        symlink(prefix.join(beside), place.join(beside)).with_context(failed)?;
    }
    fs::copy(&qemu, &copy).with_context(failed)?;
    Ok(copy)
}

/// What a lab says: all of it in a file, and printed in part or whole.
struct Console<'a> {
    name: &'a str,
    file: File,
    brief: bool,
    start: Instant,
}

impl Console<'_> {
    fn say(&mut self, line: &str) -> Result<()> {
        // The machine's time; the lab tells its own.
        let passed = self.start.elapsed().as_secs();
        writeln!(self.file, "{passed:>4} {line}").context("cannot write the lab's console")?;
        let ends = ["passed ", "failed ", "lab: started"].iter().any(|word| line.starts_with(word));
        if line.starts_with(UNSTEADY) {
            add(&unsteady_list(), &format!("{line} ({})", self.name))?;
        }
        if ends || !self.brief {
            println!("{:>5} | {line}", self.name);
        }
        Ok(())
    }
}

fn command(run: &Run<'_>) -> Result<Command> {
    let mut command = Command::new(run.emulator);
    command.args(["-nodefaults", "-no-reboot", "-display", "none", "-vga", "none", "-m", "3072"]);
    command.args(["-accel", "tcg,thread=single", "-cpu", run.cpu]);
    // Virtual time: an instruction takes a nanosecond, whatever the machine does meanwhile.
    // While all CPUs wait, time goes with the machine's, so that disks keep their speed.
    command.args(["-icount", "shift=0,sleep=on"]);
    // Its pages are not for the host's KSM, which tests look at.
    command.args(["-machine", "mem-merge=off"]);
    command.args(["-smp", &run.cpus.to_string()]);
    command.arg("-kernel").arg(&run.image.kernel).arg("-initrd").arg(run.initramfs);
    let arguments = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable";
    command.arg("-append").arg(format!("{arguments} {}", run.arguments));
    command.args(["-serial", "mon:stdio"]);
    let share = |path: &Path, id: &str, more: &str| {
        let path = path.display().to_string().replace(',', ",,");
        format!("local,path={path},id={id},security_model=none,multidevs=remap{more}")
    };
    command.arg("-fsdev").arg(share(Path::new("/"), "root", ",readonly=on"));
    command.args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]);
    command.arg("-fsdev").arg(share(run.results, "results", ""));
    command.args(["-device", "virtio-9p-pci,fsdev=results,mount_tag=results"]);
    let disk = run.disk.display().to_string().replace(',', ",,");
    let slow = "format=raw,if=none,id=disk,cache=unsafe,throttling.iops-total=200";
    command.arg("-drive").arg(format!("file={disk},{slow}"));
    command.args(["-device", "virtio-blk-pci,drive=disk"]);
    let complaints = File::create(run.complaints).context("cannot write QEMU's complaints")?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(complaints);
    Ok(command)
}

/// Follows the console to the end.
fn watch(
    console: &mut Console<'_>,
    lines: &Receiver<String>,
    limit: Duration,
    mut ask: impl FnMut() -> Result<()>,
) -> Result<i32> {
    let mut last = VecDeque::new();
    let mut end = Instant::now() + BOOT;
    let mut started = false;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let line = match lines.recv_timeout(left.min(STUCK)) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) if !started => {
                bail!("the lab did not boot within {BOOT:?}; its console:\n{}", text(&last))
            }
            Err(RecvTimeoutError::Timeout) if left > STUCK => {
                ask()?;
                keep_the_rest(&mut last, lines);
                bail!("{IS_STUCK}; its console:\n{}", text(&last))
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!("the lab took longer than {limit:?}; its console:\n{}", text(&last))
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the lab ended by itself; its console:\n{}", text(&last))
            }
        };
        if line == RUNS {
            // Signs of life do not prolong it.
            continue;
        }
        if let Some(status) = line.strip_prefix("lab: ended with ") {
            return status.parse().with_context(|| format!("the lab says {line:?}"));
        }
        if line.starts_with("lab: started") {
            started = true;
            end = Instant::now() + limit;
        }
        if started {
            console.say(&line)?;
        }
        if DEATH.iter().any(|word| line.contains(word)) {
            // The rest of the report comes at once.
            keep_the_rest(&mut last, lines);
            bail!("the lab's kernel died: {line}\n{}", text(&last));
        }
        keep(&mut last, line);
    }
}

/// Keeps what comes at once.
fn keep_the_rest(last: &mut VecDeque<String>, lines: &Receiver<String>) {
    while let Ok(line) = lines.recv_timeout(Duration::from_secs(2)) {
        keep(last, line);
    }
}

fn keep(last: &mut VecDeque<String>, line: String) {
    if last.len() == LAST_LINES {
        last.pop_front();
    }
    last.push_back(line);
}

fn text(lines: &VecDeque<String>) -> String {
    let lines: Vec<String> = lines.iter().map(|line| format!("  | {line}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(lines: &[&str]) -> Result<i32> {
        let (sender, receiver) = channel();
        for line in lines {
            sender.send((*line).to_owned()).unwrap();
        }
        let file = File::create("/dev/null").unwrap();
        let mut console = Console { name: "", file, brief: true, start: Instant::now() };
        watch(&mut console, &receiver, Duration::from_millis(50), || Ok(()))
    }

    #[test]
    fn only_the_explicit_line_is_success() {
        assert_eq!(console(&["lab: started Linux 1", "lab: ended with 0"]).unwrap(), 0);
        assert_eq!(console(&["lab: started Linux 1", "lab: ended with 7"]).unwrap(), 7);
        let late = console(&["lab: started Linux 1", "test a ... ok"]).unwrap_err();
        assert!(format!("{late:#}").contains("longer than"), "{late:#}");
    }

    #[test]
    fn signs_of_life_are_no_end() {
        let lines = ["lab: started Linux 1", RUNS, RUNS, "lab: ended with 0"];
        assert_eq!(console(&lines).unwrap(), 0);
        let late = format!("{:#}", console(&lines[..3]).unwrap_err());
        assert!(late.contains("longer than") && !late.contains(RUNS), "{late}");
    }

    #[test]
    fn a_panic_ends_it_with_the_console() {
        let lines = ["lab: started Linux 1", "Kernel panic - not syncing: x", "Call Trace:"];
        let died = format!("{:#}", console(&lines).unwrap_err());
        assert!(died.contains("Kernel panic") && died.contains("Call Trace"), "{died}");
    }
}
