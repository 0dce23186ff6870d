//! What was changed on the host is put back: at the end of its guard, in a panic,
//! and on a signal.

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use std::process::{Child, ChildStdin, ChildStdout, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Action = Box<dyn FnOnce() -> Result<()> + Send>;

/// Everything that is still to be put back, in the order of the changes.
static CHANGES: Mutex<Changes> = Mutex::new(Changes { next: 0, actions: Vec::new(), over: false });

struct Changes {
    next: u64,
    actions: Vec<(u64, &'static str, Action)>,
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
    /// Call it before the change: the action must cope with a change that was not
    /// made.
    pub fn with(what: &'static str, action: impl FnOnce() -> Result<()> + Send + 'static) -> Self {
        let mut changes = changes();
        while changes.over {
            drop(changes);
            // The signal's thread is about to end this process.
            std::thread::park();
            changes = self::changes();
        }
        let id = changes.next;
        changes.next += 1;
        changes.actions.push((id, what, Box::new(action)));
        Self(id)
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let mut changes = changes();
        let place = changes.actions.iter().position(|(id, ..)| *id == self.0);
        // The lock is held until it is done: a signal meanwhile waits for it.
        if let Some(place) = place {
            let (_, what, action) = changes.actions.remove(place);
            put_back(what, action);
        }
    }
}

/// A process that runs until it is dropped.
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
        let undo = Undo::with(what, {
            let child = Arc::clone(&child);
            move || {
                let child = child.lock().unwrap_or_else(PoisonError::into_inner).take();
                let Some(mut child) = child else { return Ok(()) };
                end(&mut child)?;
                child.wait()?;
                Ok(())
            }
        });
        let mut started = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let (id, input, output) = (started.id(), started.stdin.take(), started.stdout.take());
        *child.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
        Ok(Self { id, input, output, _undo: undo })
    }
}

fn put_back(what: &str, action: Action) {
    if let Err(error) = action() {
        eprintln!("cannot put back {what}: {error:#}");
    }
}

/// From now on the signals that end a process by hand put everything back, last change first, before
/// they end the process.
///
/// # Errors
/// The signals cannot be caught.
pub fn on_signals() -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            eprintln!("\nputting the host back as it was");
            let mut changes = changes();
            changes.over = true;
            let actions = std::mem::take(&mut changes.actions);
            for (_, what, action) in actions.into_iter().rev() {
                put_back(what, action);
            }
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}
