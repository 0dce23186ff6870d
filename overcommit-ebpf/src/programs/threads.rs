//! The entry of the current thread, which holds the fault that it is in.

use crate::atomic::{get, replace, set};
use crate::cpu::this_cpu;
use crate::free::{self, FreeList};
use crate::kernel::in_kvm_run;
use crate::maps::{THREADS, TIDS};
use crate::parts;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use overcommit_ebpf::layout::{Cpu, HotProgram, Part, Thread};

#[inline(always)]
pub(crate) fn known_thread() -> Option<&'static Thread> {
    known_on(this_cpu()?)
}

/// The same where the CPU is known.
#[inline(always)]
pub(crate) fn known_on(cpu: &Cpu) -> Option<&'static Thread> {
    let id = bpf_get_current_pid_tgid();
    // Most programs run where the last one of their thread did.
    if let Some(thread) = THREADS.get(get(&cpu.thread) as u32)
        && get(&thread.id) == id
        && id != 0
    {
        return Some(thread);
    }
    // SAFETY: entries are only read and written as whole words.
    let index = *unsafe { TIDS.get(id as u32) }?;
    set(&cpu.thread, u64::from(index));
    THREADS.get(index)
}

/// The entry of the current thread; its first fault takes a free one.
#[inline(always)]
pub(crate) fn thread_entry(slot: u32) -> Option<&'static Thread> {
    entry_on(this_cpu()?, slot)
}

/// The same where the CPU is known.
#[inline(always)]
pub(crate) fn entry_on(cpu: &Cpu, slot: u32) -> Option<&'static Thread> {
    if let Some(thread) = known_on(cpu) {
        return Some(thread);
    }
    let index = free::take(FreeList::Threads)?;
    let id = bpf_get_current_pid_tgid();
    let thread = THREADS.get(index)?;
    set(&thread.vm, u64::from(slot));
    // After it, in any CPU's eyes: the entry is taken from then on.
    let _ = replace(&thread.id, 0, id);
    if TIDS.insert(id as u32, index, 0).is_err() {
        set(&thread.id, 0);
        free::give_back(FreeList::Threads, index);
        return None;
    }
    Some(thread)
}

/// How long before a fault a wait for the lock may have ended that was for it, in
/// nanoseconds.
const JUST_BEFORE_NS: u64 = 1_000_000;

/// What the thread has waited just now for the lock, and within that for a CPU, and has
/// not begun a fault since.
#[inline(always)]
pub(crate) fn waited_before(thread: &Thread, now: u64) -> (u64, u64) {
    // A wait after which the page was there is no fault's.
    if now.saturating_sub(get(&thread.lock_until_ns)) < JUST_BEFORE_NS {
        (get(&thread.lock_before_ns), get(&thread.runq_before_ns))
    } else {
        (0, 0)
    }
}

/// The fault was no more than an attempt: the wait for the lock before it is that of the
/// next.
#[inline(always)]
pub(crate) fn keep_wait_before(thread: &Thread, now: u64) {
    set(&thread.lock_before_ns, get(&thread.parts_ns[Part::Lock as usize]));
    set(&thread.lock_until_ns, now);
}

/// Starts the clock of a fault; a wait for the lock just before is part of it.
#[inline(always)]
pub(crate) fn start(thread: &Thread, slot: u32, address: u64) {
    if get(&thread.is_vcpu) == 0 && in_kvm_run() {
        set(&thread.is_vcpu, 1);
    }
    set(&thread.vm, u64::from(slot));
    set(&thread.address, address);
    set(&thread.swap_device, 0);
    set(&thread.aggressor, 0);
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    let (lock, runq) = waited_before(thread, now);
    set(&thread.lock_before_ns, 0);
    set(&thread.runq_before_ns, 0);
    parts::open(thread, now, lock, runq);
    set(&thread.since_ns, now - lock - runq);
}

/// Counts the run, so that the loader can tell how often the kernel skipped the
/// program (`bpf_prog_active` held on this CPU).
#[inline(always)]
pub(crate) fn ran(cpu: &Cpu, program: HotProgram) {
    let runs = &cpu.runs[program as usize];
    // No other program of ours can run on this CPU meanwhile.
    set(runs, get(runs) + 1);
}
