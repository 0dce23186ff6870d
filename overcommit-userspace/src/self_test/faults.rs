//! The process that takes faults of known number, kind and length.

use crate::kernel::userfault::Faultable;
use crate::terminal::print;
use anyhow::{Context, Result, anyhow};
use memmap2::{Advice, MmapMut, MmapOptions};
use procfs::{Current, Meminfo};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::hint::black_box;
use std::io::stdin;
use std::sync::atomic::AtomicPtr;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
/// Pages that are written for the first time, and pages of a file that are copied by a write.
const TOUCHED: usize = 10_000;
const COPIED: usize = 5_000;
/// Pages that are swapped out and read back, and bytes of swap that must be free for that.
const SWAPPED: usize = 2_000;
const FREE_SWAP: u64 = 64 << 20;
/// How long a fault is held.
const HELD: Duration = Duration::from_millis(50);

/// What was done, by this process's own clock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Made {
    /// Pages of its memory that were written for the first time.
    pub touched: u64,
    /// Pages of a file that were copied by a write.
    pub copied: u64,
    /// The fault that was held; `None` where userfaultfd is refused.
    pub held: Option<Held>,
    /// Time of all of it, in nanoseconds.
    pub took_ns: u64,
}

/// A fault that waited for another thread.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Held {
    /// From when it was seen to wait until it got its page, in nanoseconds.
    pub least_ns: u64,
    /// What it took by the clock of the thread that waited.
    pub most_ns: u64,
}

/// Takes them when a line comes in, says what it did, and goes when the input ends.
///
/// # Errors
/// There is no memory.
pub fn run() -> Result<()> {
    let file = File::from(memfd_create("self-test", MemfdFlags::CLOEXEC)?);
    file.set_len((COPIED * PAGE) as u64)?;
    print("ready\n")?;
    let mut line = String::new();
    stdin().read_line(&mut line)?;
    let start = Instant::now();
    let mut touched = memory(TOUCHED)?;
    write_each_page(&mut touched);
    // SAFETY: nobody else has the file, which stays as long as it is.
    let mut copied = unsafe { MmapOptions::new().map_copy(&file) }?;
    write_each_page(&mut copied);
    let swapped = if free_swap() < FREE_SWAP { 0 } else { swap_out_and_in()? };
    let mut page = memory(1)?;
    let held = Faultable::new(page.as_mut_ptr(), page.len());
    let held = held.ok().map(|page| hold(&page)).transpose()?;
    let took_ns = start.elapsed().as_nanos() as u64;
    let touched = (TOUCHED + swapped) as u64;
    let made = Made { touched, copied: COPIED as u64, held, took_ns };
    print(&format!("{}\n", serde_json::to_string(&made)?))?;
    stdin().read_line(&mut line)?;
    Ok(())
}

/// Fresh memory of small pages.
fn memory(pages: usize) -> Result<MmapMut> {
    let memory = MmapMut::map_anon(pages * PAGE)?;
    // A kernel without huge pages knows no such advice, and needs none.
    let _ = memory.advise(Advice::NoHugePage);
    Ok(memory)
}

fn write_each_page(memory: &mut MmapMut) {
    memory.iter_mut().step_by(PAGE).for_each(|byte| *black_box(byte) = 1);
}

fn free_swap() -> u64 {
    Meminfo::current().map_or(0, |memory| memory.swap_free)
}

/// Gives the number of pages. How many of them come back from swap the kernel's own count says: it
/// may keep some.
fn swap_out_and_in() -> Result<usize> {
    let mut swapped = memory(SWAPPED)?;
    write_each_page(&mut swapped);
    // SAFETY: what the pages hold stays, wherever they are.
    let done = unsafe {
        nix::libc::madvise(swapped.as_mut_ptr().cast(), swapped.len(), nix::libc::MADV_PAGEOUT)
    };
    nix::errno::Errno::result(done).context("MADV_PAGEOUT")?;
    write_each_page(&mut swapped);
    Ok(SWAPPED)
}

/// Has a thread fault, and wait for its page.
fn hold(page: &Faultable) -> Result<Held> {
    let address = AtomicPtr::new(page.memory as *mut u8);
    let waiting = std::thread::spawn(move || {
        let start = Instant::now();
        // SAFETY: the page is mapped until this thread has ended, and nobody else has it.
        unsafe { address.into_inner().write_volatile(1) };
        start.elapsed()
    });
    page.await_fault()?;
    let start = Instant::now();
    std::thread::sleep(HELD);
    let least_ns = start.elapsed().as_nanos() as u64;
    page.resolve()?;
    let stood = waiting.join().map_err(|_| anyhow!("the thread that faults failed"))?;
    Ok(Held { least_ns, most_ns: stood.as_nanos() as u64 })
}
