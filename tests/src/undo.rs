//! What was changed on the host is put back: at the end of its guard, in a panic, on a signal,
//! when whoever started this process is gone, and after SIGKILL by whoever comes next.
//!
//! A change of the host is put back by a shell script that is written down before the change is
//! made. What a killed process has left behind is found there and run.

use crate::{IS_CHILD, as_child, run};
use anyhow::{Context, Result};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where the scripts are, in a folder for each process.
const JOURNAL: &str = "/run/overcommit-testbed";

type Call = Box<dyn FnOnce() -> Result<()> + Send>;

/// How a change is put back.
enum Action {
    /// In memory: it ends with this process anyway.
    Call(Call),
    /// A script in the journal.
    Script(PathBuf),
}

/// Everything that is still to be put back, in the order of the changes.
static CHANGES: Mutex<Changes> = Mutex::new(Changes { next: 0, actions: Vec::new(), over: false });

struct Changes {
    next: u64,
    actions: Vec<(u64, String, Action)>,
    /// A signal has come: nothing more may be changed.
    over: bool,
}

fn changes() -> MutexGuard<'static, Changes> {
    CHANGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts a change back when it is dropped.
#[must_use]
pub struct Undo(u64);

impl Undo {
    /// Puts a change of the host back by a shell script, which is on disk until it has run.
    /// Call it before the change: the script must cope with a change that was not made.
    ///
    /// # Errors
    /// The script cannot be written down.
    pub fn script(what: &str, script: &str) -> Result<Self> {
        let dir = own_journal()?;
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let id = next_id();
        let file = dir.join(format!("{id:06}"));
        let text = format!("# puts back: {what}\n{script}\n");
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Self::add(id, what, Action::Script(file)))
    }

    /// Ends what would end with this process anyway.
    pub fn call(what: &str, call: impl FnOnce() -> Result<()> + Send + 'static) -> Self {
        Self::add(next_id(), what, Action::Call(Box::new(call)))
    }

    fn add(id: u64, what: &str, action: Action) -> Self {
        changes().actions.push((id, what.to_owned(), action));
        Self(id)
    }
}

/// A number for the next change; waits for the end of the process after a signal.
fn next_id() -> u64 {
    let mut changes = changes();
    while changes.over {
        drop(changes);
        // The signal's thread is about to end this process.
        std::thread::park();
        changes = self::changes();
    }
    changes.next += 1;
    changes.next
}

impl Drop for Undo {
    fn drop(&mut self) {
        let mut changes = changes();
        let place = changes.actions.iter().position(|(id, ..)| *id == self.0);
        // The lock is held until it is done: a signal meanwhile waits for it.
        if let Some(place) = place {
            let (_, what, action) = changes.actions.remove(place);
            put_back(&what, action);
        }
    }
}

fn put_back(what: &str, action: Action) {
    let done = match action {
        Action::Call(call) => call(),
        Action::Script(file) => run_script(&file),
    };
    if let Err(error) = done {
        say(&format!("cannot put back {what}: {error:#}"));
    }
}

/// Tells on stderr, if anybody still reads it: where nobody does, `eprintln!` panics, and nothing
/// more is put back.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Runs a script, and takes it away if it ended well.
fn run_script(file: &Path) -> Result<()> {
    run(Command::new("sh").arg("-eu").arg(file))?;
    fs::remove_file(file)?;
    // Empty after the last one.
    if let Some(dir) = file.parent() {
        let _ = fs::remove_dir(dir);
    }
    Ok(())
}

/// Where this process writes its scripts: a process id alone may be used again.
fn own_journal() -> Result<PathBuf> {
    let id = std::process::id();
    let started = started(id).context("no start time in /proc/self/stat")?;
    Ok(Path::new(JOURNAL).join(format!("{id}-{started}")))
}

/// When a process started, in clock ticks since boot.
fn started(pid: u32) -> Option<u64> {
    crate::qemu::stat_field(pid, 22).ok()
}

/// Whether only its parent has not asked yet how it ended.
fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// Puts back what processes that were killed have left, the last change first.
///
/// # Errors
/// The journal cannot be read.
pub fn sweep() -> Result<()> {
    let Ok(entries) = fs::read_dir(JOURNAL) else { return Ok(()) };
    for entry in entries {
        let dir = entry?.path();
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some((pid, start)) = name.split_once('-') else { continue };
        let pid: u32 = pid.parse().unwrap_or_default();
        let runs = started(pid).is_some_and(|now| now.to_string() == start) && !has_ended(pid);
        if runs {
            continue;
        }
        let mut scripts: Vec<PathBuf> = Vec::new();
        for script in fs::read_dir(&dir).into_iter().flatten() {
            scripts.push(script?.path());
        }
        scripts.sort();
        for script in scripts.iter().rev() {
            let text = fs::read_to_string(script).unwrap_or_default();
            println!("left by a killed process: {}", text.lines().next().unwrap_or_default());
            put_back("what a killed process left", Action::Script(script.clone()));
        }
        // What cannot be put back has been said; it would be said again each time.
        let _ = fs::remove_dir_all(&dir);
    }
    Ok(())
}

/// A process that runs until it is dropped, and no longer than this one.
pub struct Running {
    /// Its process id.
    pub id: u32,
    /// If the command says that it is piped.
    pub input: Option<ChildStdin>,
    /// The same.
    pub output: Option<ChildStdout>,
    _undo: Undo,
}

impl Running {
    /// Runs the command; `end` ends what then is waited for.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(
        what: &'static str,
        command: &mut Command,
        end: impl FnOnce(&mut Child) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let child: Arc<Mutex<Option<Child>>> = Arc::default();
        let undo = Undo::call(what, {
            let child = Arc::clone(&child);
            move || {
                let child = child.lock().unwrap_or_else(PoisonError::into_inner).take();
                let Some(mut child) = child else { return Ok(()) };
                end(&mut child)?;
                child.wait()?;
                Ok(())
            }
        });
        let mut started = as_child(command, Signal::SIGKILL)
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        let (id, input, output) = (started.id(), started.stdin.take(), started.stdout.take());
        *child.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
        Ok(Self { id, input, output, _undo: undo })
    }
}

/// From now on the signals that end a process by hand put everything back, last change first,
/// before they end the process; so does the end of whoever started it. What was left behind
/// before is put back now.
///
/// # Errors
/// The signals cannot be caught, or the journal cannot be read.
pub fn on_signals() -> Result<()> {
    let stays = is_to_stay()?;
    let by_hand = [SIGINT, SIGQUIT, SIGTERM, SIGHUP];
    let mut signals = Signals::new(&by_hand[..if stays { 3 } else { 4 }])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            say("\nputting the host back as it was");
            let mut changes = changes();
            changes.over = true;
            let actions = std::mem::take(&mut changes.actions);
            for (_, what, action) in actions.into_iter().rev() {
                put_back(&what, action);
            }
            std::process::exit(128 + signal);
        }
    });
    if !stays {
        end_with_starter()?;
    }
    sweep()
}

/// Whether it was started to go on without whoever started it: `nohup` ignores SIGHUP, and what
/// it started starts others, which are not to stay.
fn is_to_stay() -> Result<bool> {
    if std::env::var_os(IS_CHILD).is_some() {
        return Ok(false);
    }
    let status = fs::read_to_string("/proc/self/status")?;
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = u64::from_str_radix(ignored.unwrap_or("0").trim(), 16)?;
    Ok(ignored >> (SIGHUP - 1) & 1 == 1)
}

/// Has the kernel send SIGTERM when whoever started this process is gone.
fn end_with_starter() -> Result<()> {
    let starter = getppid();
    set_pdeathsig(Signal::SIGTERM)?;
    // It may have gone before that.
    if getppid() != starter {
        nix::sys::signal::raise(Signal::SIGTERM)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_put_back_by_the_next() {
        let dir = std::env::temp_dir().join(format!("overcommit-undo-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let changed = dir.join("changed");
        fs::write(&changed, "now").unwrap();
        // As it lies there after SIGKILL: of a process id that cannot be.
        let left = Path::new(JOURNAL).join("999999999-1");
        fs::create_dir_all(&left).unwrap();
        let say = |name: &str, text: &str| {
            let script = format!("printf %s '{text}' >> '{}'", changed.display());
            fs::write(left.join(name), script).unwrap();
        };
        say("000001", "-first");
        say("000002", "-second");
        sweep().unwrap();
        assert_eq!(fs::read_to_string(&changed).unwrap(), "now-second-first");
        assert!(!left.exists());
        let undo =
            Undo::script("a file", &format!("printf before > '{}'", changed.display())).unwrap();
        drop(undo);
        assert_eq!(fs::read_to_string(&changed).unwrap(), "before");
        fs::remove_dir_all(dir).unwrap();
    }
}
