//! The loop of a session: waits, looks for VMs, ends interval after interval and hands each on.

use crate::kernel::clock;
use crate::session::boundary::Boundary;
use crate::session::load::Load;
use crate::session::wait::{SCAN, Waiter, Woken};
use crate::session::{RunningSession, Session};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use overcommit_recording::model::interval::Interval;
use overcommit_recording::model::run::{Run, StoppedBy};
use overcommit_recording::model::slow_fault::SlowFault;
use std::ops::ControlFlow;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::time::Instant;

/// How long a session goes on, and in which steps.
pub struct Until {
    /// Length of an interval.
    pub interval: Duration,
    /// For how long; until the user or the load ends it if not given.
    pub duration: Option<Duration>,
    /// Whether slow faults are wanted.
    pub slow_faults: bool,
}

/// What a session hands on.
pub enum Told<'a> {
    /// An interval is over.
    Interval(&'a Interval),
    /// Slow faults have come.
    SlowFaults(&'a [SlowFault]),
    /// A VM has ended, by its index in the recording.
    Ended(usize),
}

/// Why a session is over.
pub enum End {
    /// The load has ended.
    Load(ExitStatus),
    /// The user has enough.
    Signal(Signal),
    /// The time is over.
    Time,
    /// Whoever takes the intervals has no room for more.
    Full(StoppedBy),
}

/// What whoever takes what a session hands on makes of it: it may be enough.
pub type Taken = Result<ControlFlow<StoppedBy>>;

/// It goes on.
pub const GO_ON: Taken = Ok(ControlFlow::Continue(()));

/// Why a session was over before it began.
pub enum Early {
    /// The user has enough. The load has been ended.
    Signal(Signal),
    /// The load has ended.
    LoadEnded(ExitStatus),
}

/// Lets the load warm up.
///
/// # Errors
/// The probes cannot be kept in step with the host.
pub async fn warm_up(
    delay: Duration,
    session: &mut Session,
    waiter: &mut Waiter,
    load: &mut Option<Load>,
) -> Result<Option<Early>> {
    let end = Instant::now() + delay;
    while Instant::now() < end {
        match waiter.until(end, load).await? {
            Woken::Signal(signal) => {
                if let Some(load) = load {
                    load.end(signal).await?;
                }
                return Ok(Some(Early::Signal(signal)));
            }
            Woken::LoadEnded(status) => return Ok(Some(Early::LoadEnded(status))),
            Woken::Event => session.follow_events()?,
            Woken::Scan => session.rescan()?,
            Woken::Time | Woken::Poll => {}
        }
    }
    Ok(None)
}

/// Ends interval after interval until the session is over, the last one included, and hands on
/// each.
///
/// # Errors
/// The probes fail, or `take` does.
pub async fn follow(
    until: &Until,
    session: &mut RunningSession,
    waiter: &mut Waiter,
    load: &mut Option<Load>,
    mut take: impl FnMut(&Run, Told<'_>) -> Taken,
) -> Result<End> {
    let end = until.duration.map(|duration| Instant::now() + duration);
    let mut boundary = Boundary::after(&clock::now()?, until.interval);
    waiter.poll(until.slow_faults);
    let why = loop {
        let next = Instant::now() + boundary.in_time(&clock::now()?);
        let wake = end.map_or(next, |end| end.min(next));
        match waiter.until(wake, load).await? {
            Woken::Signal(signal) => break End::Signal(signal),
            Woken::LoadEnded(status) => break End::Load(status),
            Woken::Event => session.session().follow_events()?,
            Woken::Scan => {
                session.session().rescan()?;
                if until.interval > SCAN {
                    if let ControlFlow::Break(full) = hand_on_slow_faults(session, &mut take)? {
                        break End::Full(full);
                    }
                    session.look()?;
                    tell_of_ends(session, &mut take)?;
                }
            }
            Woken::Poll => {
                if let ControlFlow::Break(full) = hand_on_slow_faults(session, &mut take)? {
                    break End::Full(full);
                }
            }
            Woken::Time => {
                let now = clock::now()?;
                if boundary.reached(&now) {
                    // Whether there is room is seen after the interval.
                    let _ = hand_on_slow_faults(session, &mut take)?;
                    let interval = session.end_interval(Some(boundary.last_us(&now)))?;
                    let taken = take(session.run(), Told::Interval(&interval))?;
                    tell_of_ends(session, &mut take)?;
                    if let ControlFlow::Break(full) = taken {
                        break End::Full(full);
                    }
                    boundary = Boundary::after(&now, until.interval);
                } else if end.is_some_and(|end| Instant::now() >= end) {
                    break End::Time;
                }
            }
        }
    };
    session.stop_counting();
    let _ = hand_on_slow_faults(session, &mut take)?;
    let last = session.close().context("the last interval is lost")?;
    // Nothing comes after it.
    let _ = take(session.run(), Told::Interval(&last)).context("cannot write the last interval")?;
    tell_of_ends(session, &mut take)?;
    Ok(why)
}

fn tell_of_ends(
    session: &mut RunningSession,
    take: &mut impl FnMut(&Run, Told<'_>) -> Taken,
) -> Result<()> {
    for vm in session.ended() {
        let _ = take(session.run(), Told::Ended(vm))?;
    }
    Ok(())
}

fn hand_on_slow_faults(
    session: &mut RunningSession,
    take: &mut impl FnMut(&Run, Told<'_>) -> Taken,
) -> Taken {
    let faults = session.slow_faults()?;
    if faults.is_empty() { GO_ON } else { take(session.run(), Told::SlowFaults(&faults)) }
}
