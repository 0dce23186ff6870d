//! What the kernel's clocks show.

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use overcommit_recording::model::clock::Clocks;
use std::time::Duration;

/// The present moment.
///
/// # Errors
/// The kernel has no such clock.
pub fn now() -> Result<Clocks> {
    let read = |clock| -> Result<u64> {
        let time = clock_gettime(clock).context("cannot read the clock")?;
        Ok(u64::try_from(Duration::from(time).as_nanos())?)
    };
    Ok(Clocks {
        realtime_ns: read(ClockId::CLOCK_REALTIME)?,
        monotonic_ns: read(ClockId::CLOCK_MONOTONIC)?,
        boottime_ns: read(ClockId::CLOCK_BOOTTIME)?,
    })
}

/// CPU time that this thread has taken.
pub fn of_thread() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
