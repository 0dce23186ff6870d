//! Waits for the lock of a VM's address space, `mmap_lock`: faults take it for reading
//! where the area's own lock does not do, and get_user_pages takes it always. Only waits
//! are seen (`contention_begin` and `contention_end`, kernel/locking/rwsem.c, 5.19 on).

use crate::atomic::{get, set};
use crate::kernel::{current_mm, in_fault_handler, in_kvm_run};
use crate::maps::{BEGINS_AT_CALL, MMS, OFFSETS, VMS};
use crate::parts;
use crate::threads::{known_thread, thread_entry};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use overcommit_ebpf::layout::{Part, Thread};

/// `LCB_F_READ`, include/trace/events/lock.h; the same from 6.1 to 7.3.
const READ: u32 = 2;

#[raw_tracepoint(tracepoint = "contention_begin")]
pub(crate) fn lock_wait_begin(ctx: RawTracePointContext) -> i32 {
    if ctx.arg::<u32>(1) != READ {
        return 0;
    }
    if let Some(thread) = known_thread()
        && get(&thread.since_ns) != 0
    {
        if is_lock_of(thread, ctx.arg(0)) {
            parts::enter(thread, Part::Lock);
        }
    } else if BEGINS_AT_CALL.load() != 0
        && let Some(thread) = waits_before(ctx.arg(0))
    {
        // SAFETY: the helper has no precondition.
        set(&thread.lock_since_ns, unsafe { bpf_ktime_get_ns() });
    }
    0
}

#[raw_tracepoint(tracepoint = "contention_end")]
pub(crate) fn lock_wait_end(ctx: RawTracePointContext) -> i32 {
    let Some(thread) = known_thread() else { return 0 };
    if get(&thread.since_ns) != 0 {
        if is_lock_of(thread, ctx.arg(0)) {
            parts::leave(thread, Part::Lock);
        }
        return 0;
    }
    let since = get(&thread.lock_since_ns);
    // Other locks are waited for on the way, such as that of a run queue.
    let lock = current_mm() + u64::from(OFFSETS.load().mm_mmap_lock);
    if since != 0 && ctx.arg::<u64>(0) == lock {
        set(&thread.lock_since_ns, 0);
        // SAFETY: the helper has no precondition.
        let now = unsafe { bpf_ktime_get_ns() };
        set(&thread.lock_before_ns, now.saturating_sub(since));
        set(&thread.lock_until_ns, now);
    }
    0
}

/// Whether that is the lock of the memory in which the thread has a fault open.
#[inline(always)]
fn is_lock_of(thread: &Thread, lock: u64) -> bool {
    let vm = VMS.get(get(&thread.vm) as u32);
    vm.is_some_and(|vm| lock == get(&vm.mm) + u64::from(OFFSETS.load().mm_mmap_lock))
}

/// The current thread, if it waits for the lock of its VM before a fault: in the handler
/// of the architecture, or to have KVM find a page.
#[inline(always)]
fn waits_before(lock: u64) -> Option<&'static Thread> {
    let mm = current_mm();
    if mm == 0 || lock != mm + u64::from(OFFSETS.load().mm_mmap_lock) {
        return None;
    }
    // SAFETY: entries are only read and written as whole words.
    let slot = *unsafe { MMS.get(mm) }?;
    if in_fault_handler() || in_kvm_run() { thread_entry(slot) } else { None }
}
