//! What guests are told of themselves, see docs/guest-protocol.md: a thread without any capability
//! answers them, so that no guest holds up whoever counts; another one connects to their ports.
//!
//! `ports` finds and connects, `vsock` listens, `request` reads what a guest wants, `answer` gives it.

mod answer;
mod ports;
mod request;
mod vsock;

use crate::kernel::capability::{keep_nothing, keep_what_connects};
use crate::session::wait::Over;
use crate::terminal::say;
use anyhow::{Context, Result, anyhow};
use overcommit_recording::model::interval::Interval;
use overcommit_recording::model::pattern::Pattern;
use overcommit_recording::model::run::Run;
use overcommit_recording::model::vm::Dialect;
use overcommit_recording::recent::slim_of;
use ports::Ports;
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, watch};
use tokio::task::LocalSet;

/// How far the thread that answers stands back behind others.
const LAST: i32 = 5;

/// A VM that is told of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Guest {
    /// Its id in the recording.
    vm_id: String,
    uuid: String,
    pid: i32,
}

/// What the thread that answers is told.
enum Event {
    /// An interval is over.
    Interval(Arc<Run>, Box<Interval>),
    /// A port was connected to. It may be connected to again when the token is dropped.
    Port(Guest, Dialect, UnixStream, Arc<()>),
    /// Who has which CID.
    Cids(BTreeMap<u32, Guest>),
    /// There is no more, though whoever connects may hang and still hold its end of this.
    Over,
}

/// Tells guests until it is ended.
pub struct Channels {
    guests: Vec<Pattern>,
    answering: JoinHandle<Result<()>>,
    connecting: JoinHandle<Result<()>>,
    events: UnboundedSender<Event>,
    /// The last one alone: a socket may hang on its file system.
    run: watch::Sender<Arc<Run>>,
    has_vsock: bool,
}

impl Channels {
    /// Tells the VMs of these patterns from now on. Whoever waits for `failed` is told if it cannot
    /// go on.
    ///
    /// # Errors
    /// There can be no more threads.
    pub fn start(guests: Vec<Pattern>, failed: Arc<Notify>) -> Result<Self> {
        let listener = vsock::is_there().then(vsock::listen).transpose();
        let listener = listener.unwrap_or_else(|error| {
            say(&format!("overcommit: {error:#}; guests are told over virtio-serial only"));
            None
        });
        let has_vsock = listener.is_some();
        let (events, received) = unbounded_channel();
        let (run, runs) = watch::channel(Arc::default());
        let ports = Ports::new("/proc", guests.clone(), events.clone());
        let connecting = spawn("guest-ports", Arc::clone(&failed), move || {
            keep_what_connects()?;
            ports.follow(runs)
        })?;
        let answering = spawn("guests", failed, move || {
            keep_nothing()?;
            // What counts comes first, whatever guests do.
            let _ = rustix::process::nice(LAST);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.context("cannot make a runtime")?;
            LocalSet::new().block_on(&runtime, answer::answer(listener, received))
        })?;
        Ok(Self { guests, answering, connecting, events, run, has_vsock })
    }

    /// Whether guests can ask by vsock.
    pub fn has_vsock(&self) -> bool {
        self.has_vsock
    }

    /// Hands on what an interval holds of those that are told.
    pub fn tell(&self, run: &Arc<Run>, interval: &Interval) {
        let is_told = |place: usize| {
            let vm = run.vms.get(place);
            vm.is_some_and(|vm| self.guests.iter().any(|guests| guests.matches_recorded(vm)))
        };
        let told = slim_of(interval, is_told);
        // The session ends soon after a thread, by its `Over`.
        let _ = self.events.send(Event::Interval(Arc::clone(run), Box::new(told)));
        self.run.send_replace(Arc::clone(run));
    }

    /// Ends it.
    ///
    /// # Errors
    /// It could not go on before.
    pub fn end(self) -> Result<()> {
        let Self { answering, connecting, events, run, .. } = self;
        // One that goes on may hang on a file system.
        let has_failed = connecting.is_finished();
        let _ = events.send(Event::Over);
        drop((events, run));
        let ended = |thread: JoinHandle<Result<()>>| {
            thread.join().map_err(|_| anyhow!("the thread that tells guests failed; see above"))?
        };
        ended(answering)?;
        if has_failed { ended(connecting) } else { Ok(()) }
    }
}

fn spawn(
    name: &str,
    failed: Arc<Notify>,
    run: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<JoinHandle<Result<()>>> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    let thread = thread.spawn(move || {
        let _over = Over(failed);
        run()
    });
    thread.context("cannot start a thread")
}
