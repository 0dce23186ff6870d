//! What a recording waits for.

use crate::probes::rings::Events;
use crate::session::load::Load;
use anyhow::{Context, Result};
use nix::sys::signal::Signal as SignalNumber;
use procfs::process::Process;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until};

/// Time between two scans of /proc.
pub const SCAN: Duration = Duration::from_secs(1);
/// Time between two looks into the ring buffer of slow faults.
const POLL: Duration = Duration::from_millis(50);

/// Why the wait is over.
#[derive(Debug)]
pub enum Woken {
    /// The time asked for has come.
    Time,
    /// The user has enough.
    Signal(SignalNumber),
    /// The command has ended.
    LoadEnded(ExitStatus),
    /// A VM has started or ended, or histograms need memory.
    Event,
    /// It is time to scan /proc.
    Scan,
    /// It is time to look into the ring buffers.
    Poll,
}

/// Says that the user has enough when it is dropped, however that comes about; see
/// [`Waiter::enough`].
pub struct Over(pub Arc<Notify>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// Waits for whatever comes first.
pub struct Waiter {
    interrupt: Signal,
    terminate: Signal,
    /// `None` where it is ignored, as under nohup.
    hangup: Option<Signal>,
    scan: Interval,
    poll: Interval,
    polls: bool,
    events: Option<AsyncFd<OwnedFd>>,
    enough: Arc<Notify>,
}

impl Waiter {
    /// From now on SIGINT, SIGTERM and SIGHUP are reported instead of ending the process.
    ///
    /// # Errors
    /// The signals cannot be caught.
    pub fn new() -> Result<Self> {
        let catch = |kind| signal(kind).context("cannot catch signals");
        let every = |period| {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hangup: if ignores_hangup()? { None } else { Some(catch(SignalKind::hangup())?) },
            scan: every(SCAN),
            poll: every(POLL),
            polls: false,
            events: None,
            enough: Arc::default(),
        })
    }

    /// By this the user says on a screen of ours what SIGINT says elsewhere.
    pub fn enough(&self) -> Arc<Notify> {
        Arc::clone(&self.enough)
    }

    /// Whether to report [`Woken::Poll`].
    pub fn poll(&mut self, polls: bool) {
        self.polls = polls;
    }

    /// Reports [`Woken::Event`] from now on.
    ///
    /// # Errors
    /// The kernel refuses to wait on the ring buffer.
    pub fn watch(&mut self, events: &Events) -> Result<()> {
        let failed = "cannot wait for VMs that start and end";
        let fd = events.as_fd().try_clone_to_owned().context(failed)?;
        // SAFETY: the descriptor is owned by what it is registered with.
        self.events = Some(unsafe { AsyncFd::register(fd) }.context(failed)?);
        Ok(())
    }

    /// Waits that long, or for a signal.
    pub async fn rest(&mut self, time: Duration) -> Woken {
        tokio::select! {
            biased;
            signal = self.signal() => Woken::Signal(signal),
            () = sleep(time) => Woken::Time,
        }
    }

    /// Waits for a signal.
    pub async fn signal(&mut self) -> SignalNumber {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => SignalNumber::SIGINT,
            _ = self.terminate.recv() => SignalNumber::SIGTERM,
            () = comes(&mut self.hangup) => SignalNumber::SIGHUP,
        }
    }

    /// Waits until then, or for anything before.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub async fn until(&mut self, time: Instant, load: &mut Option<Load>) -> Result<Woken> {
        let events = &self.events;
        let event = async {
            match events {
                // Ready again only when the next one comes: all are read at once.
                Some(events) => events.readable().await.map(|mut ready| ready.clear_ready()),
                None => std::future::pending().await,
            }
        };
        let load_ends = async {
            match load {
                Some(load) => load.wait().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // What ends a recording comes first, the end of an interval next.
            biased;
            _ = self.interrupt.recv() => Ok(Woken::Signal(SignalNumber::SIGINT)),
            _ = self.terminate.recv() => Ok(Woken::Signal(SignalNumber::SIGTERM)),
            () = comes(&mut self.hangup) => Ok(Woken::Signal(SignalNumber::SIGHUP)),
            () = self.enough.notified() => Ok(Woken::Signal(SignalNumber::SIGINT)),
            status = load_ends => status.map(Woken::LoadEnded),
            () = sleep_until(time) => Ok(Woken::Time),
            ready = event => ready.map(|()| Woken::Event).context("cannot wait for events"),
            _ = self.scan.tick() => Ok(Woken::Scan),
            _ = self.poll.tick(), if self.polls => Ok(Woken::Poll),
        }
    }
}

/// Whether whoever started this process wants it to outlive its terminal.
fn ignores_hangup() -> Result<bool> {
    let status = Process::myself().and_then(|process| process.status());
    let ignored = status.context("cannot read /proc/self/status")?.sigign;
    Ok(ignored >> (SignalNumber::SIGHUP as i32 - 1) & 1 == 1)
}

async fn comes(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}
