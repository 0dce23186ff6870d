//! Faults that wait for the lock of the address space.

use crate::{PAGE, memory, touch};
use anyhow::{Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Pages whose protection changes all the time, under the lock.
const BUSY: usize = 64 << 8;

/// Areas for each fault that has to wait.
const TRIES: usize = 10;

/// Memory to hold the lock for.
pub(crate) fn busy() -> Result<usize> {
    let busy = memory(BUSY)?;
    touch(busy, BUSY);
    Ok(busy as usize)
}

/// Faults until so many have waited.
pub(crate) fn wait(faults: usize, busy: usize) -> Result<String> {
    let areas = (0..faults * TRIES).map(|_| area()).collect::<Result<Vec<_>>>()?;
    let done = Arc::new(AtomicBool::new(false));
    let changes = Arc::new(AtomicU64::new(0));
    let (ends, begun) = (Arc::clone(&done), Arc::clone(&changes));
    let changing = std::thread::spawn(move || {
        while !ends.load(Relaxed) {
            for protection in [libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE] {
                begun.fetch_add(1, Relaxed);
                // SAFETY: nobody touches the mapping meanwhile.
                unsafe { libc::mprotect(busy as *mut _, BUSY * PAGE, protection) };
            }
        }
    });
    let mut waited = 0;
    for area in areas {
        // A change that has just begun: of an older one the thread may have lost its CPU at the end.
        let before = changes.load(Relaxed);
        while changes.load(Relaxed) == before {
            std::thread::yield_now();
        }
        waited += usize::from(sleeps(|| touch(area, 1))?);
        if waited == faults {
            break;
        }
    }
    done.store(true, Relaxed);
    ensure!(changing.join().is_ok(), "a thread failed");
    ensure!(waited == faults, "{waited} faults waited");
    Ok("waited".to_owned())
}

/// Whether the current thread slept meanwhile.
fn sleeps(act: impl FnOnce()) -> Result<bool> {
    let slept =
        || Ok::<_, nix::Error>(getrusage(UsageWho::RUSAGE_THREAD)?.voluntary_context_switches());
    let before = slept()?;
    act();
    Ok(slept()? > before)
}

/// A page in an area of its own, whose first fault has to take the lock.
fn area() -> Result<*mut u8> {
    let pages = memory(3)?;
    // SAFETY: the ranges are pages of the mapping just made.
    unsafe {
        libc::mprotect(pages.cast(), PAGE, libc::PROT_NONE);
        libc::mprotect(pages.add(2 * PAGE).cast(), PAGE, libc::PROT_NONE);
        Ok(pages.add(PAGE))
    }
}
