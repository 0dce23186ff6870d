//! Waits for the lock of a VM's address space, `mmap_lock`: faults take it for reading
//! where the area's own lock does not do, and get_user_pages takes it always. Only waits are
//! seen: by `rwsem_down_read_slowpath` (kernel/locking/rwsem.c, 5.11 on) where functions can be hooked,
//! which no other kind of lock comes to; else by `contention_begin` and `contention_end` (5.19 on),
//! at which the programs run for each lock of the host that is waited for, while it is held.
//! A wait before the fault counts if the thread can only be about to fault; a fault within
//! a system call cannot be told from the call's own use of the lock.

use crate::atomic::{add, get, set};
use crate::cpu::slot_of;
use crate::kernel::{current_mm, current_run_delay, in_fault_handler, in_kvm_run};
use crate::maps::{BEGINS_AT_CALL, LOCK_WAITS, offset};
use crate::parts;
use crate::threads::{known_thread, thread_entry, waited_before};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{fentry, fexit, kprobe, kretprobe, raw_tracepoint};
use aya_ebpf::programs::{
    FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext,
};
use overcommit_ebpf::layout::{Part, Thread};

/// `LCB_F_READ`, and `LCB_F_RT` that comes with it where locks are of PREEMPT_RT
/// (kernel/locking/rwbase_rt.c); include/trace/events/lock.h, the same from 6.1 to 7.3.
const READ: u32 = 2;
const RT: u32 = 8;

#[fentry]
pub(crate) fn fentry_lock(ctx: FEntryContext) -> i32 {
    let _ = begin(ctx.arg(0));
    0
}

#[kprobe]
pub(crate) fn kprobe_lock(ctx: ProbeContext) -> u32 {
    let _ = begin(ctx.arg(0).unwrap_or(0));
    0
}

#[fexit]
pub(crate) fn fexit_lock(_ctx: FExitContext) -> i32 {
    let _ = end(None);
    0
}

#[kretprobe]
pub(crate) fn kretprobe_lock(_ctx: RetProbeContext) -> u32 {
    let _ = end(None);
    0
}

#[raw_tracepoint(tracepoint = "contention_begin")]
pub(crate) fn lock_wait_begin(ctx: RawTracePointContext) -> i32 {
    if ctx.arg::<u32>(1) & !RT == READ
        && let Some(thread) = begin(ctx.arg(0))
    {
        count(thread, 1);
    }
    0
}

#[raw_tracepoint(tracepoint = "contention_end")]
pub(crate) fn lock_wait_end(ctx: RawTracePointContext) -> i32 {
    // Waits for any lock of the host end here: while nobody waits for a VM's, nobody need be looked up.
    if LOCK_WAITS.get(0).is_some_and(|waits| get(&waits.0) != 0)
        && let Some(thread) = end(Some(ctx.arg(0)))
    {
        count(thread, 0);
    }
    0
}

/// Counts the thread among those that wait, once, or no longer. Should an end have been missed, it stays
/// counted until its next one: that costs others a look-up, and loses nothing.
#[inline(always)]
fn count(thread: &Thread, waits: u64) {
    if get(&thread.lock_waits) != waits
        && let Some(all) = LOCK_WAITS.get(0)
    {
        add(&all.0, if waits == 0 { u64::MAX } else { 1 });
        set(&thread.lock_waits, waits);
    }
}

/// The current thread begins to wait for a lock; gives it if that is a VM's.
#[inline(always)]
fn begin(lock: u64) -> Option<&'static Thread> {
    let thread = known_thread();
    if let Some(thread) = thread.filter(|thread| get(&thread.since_ns) != 0) {
        if !is_lock_of(thread, lock) {
            return None;
        }
        parts::enter(thread, Part::Lock);
        return Some(thread);
    }
    if BEGINS_AT_CALL.load() == 0 {
        return None;
    }
    // Should the end of an earlier wait have been missed, the end of this one is not its.
    if let Some(thread) = thread {
        set(&thread.lock_since_ns, 0);
    }
    waits_before(memory_of(lock))
}

/// It waits no longer, and is given; `lock` is given where others than those that [`begin`] is told of
/// end here too, such as that of a run queue on the way. One waits for no second lock of its kind
/// meanwhile.
#[inline(always)]
fn end(lock: Option<u64>) -> Option<&'static Thread> {
    let thread = known_thread()?;
    if get(&thread.since_ns) != 0 {
        if lock.is_some_and(|lock| !is_lock_of(thread, lock)) {
            return None;
        }
        parts::leave(thread, Part::Lock);
        return Some(thread);
    }
    let since = get(&thread.lock_since_ns);
    if since == 0 || lock.is_some_and(|lock| memory_of(lock) != get(&thread.lock_mm)) {
        return None;
    }
    // SAFETY: the helper has no precondition.
    has_waited(thread, since, unsafe { bpf_ktime_get_ns() });
    Some(thread)
}

/// Adds to what the thread waits for the lock before its next fault, which takes it more
/// than once if KVM tries first without waiting.
#[inline(always)]
fn has_waited(thread: &Thread, since: u64, now: u64) {
    let (lock, runq) = waited_before(thread, since);
    let length = now.saturating_sub(since);
    let delay = current_run_delay().saturating_sub(get(&thread.lock_run_delay_ns)).min(length);
    set(&thread.lock_since_ns, 0);
    set(&thread.lock_before_ns, lock + length - delay);
    set(&thread.runq_before_ns, runq + delay);
    set(&thread.lock_until_ns, now);
}

/// The memory whose lock that is, if it is one.
#[inline(always)]
fn memory_of(lock: u64) -> u64 {
    lock.wrapping_sub(u64::from(offset!(mm_mmap_lock)))
}

/// Whether that is the lock of the memory in which the thread has a fault open.
#[inline(always)]
fn is_lock_of(thread: &Thread, lock: u64) -> bool {
    memory_of(lock) == get(&thread.mm)
}

/// The current thread waits for the lock of that memory; if it is a VM's, and the thread is
/// about to fault there: in the handler of the architecture, to have KVM find a page, or as
/// a worker that does so for KVM (`async_pf_execute`, virt/kvm/async_pf.c).
#[inline(always)]
fn waits_before(mm: u64) -> Option<&'static Thread> {
    let slot = slot_of(mm)?;
    let own = current_mm();
    let is_for_fault = own == 0 || own == mm && (in_fault_handler() || in_kvm_run());
    if !is_for_fault {
        return None;
    }
    let thread = thread_entry(slot)?;
    // SAFETY: the helper has no precondition.
    set(&thread.lock_since_ns, unsafe { bpf_ktime_get_ns() });
    set(&thread.lock_run_delay_ns, current_run_delay());
    set(&thread.lock_mm, mm);
    Some(thread)
}
