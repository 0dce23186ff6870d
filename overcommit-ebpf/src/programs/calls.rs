//! Backends `fentry` and `kprobe`: page faults by the calls of `handle_mm_fault`
//! (mm/memory.c).
//!
//! One fault is one or more calls: a call that returns `VM_FAULT_RETRY` has let go
//! of the lock, mostly to wait for the page, and the caller comes back. It comes
//! from the architecture's handler or from get_user_pages, by which KVM resolves a
//! guest's faults; the memory is that of the area's `mm`, whoever runs.

use crate::atomic::{add, get, set};
use crate::backing;
use crate::cpu::{slot_on, this_cpu};
use crate::kernel::{Kernel, Structure, Typed};
use crate::latency::complete;
use crate::maps::{VMS, lose, offset};
use crate::threads::{entry_on, keep_wait_before, known_on, ran, start};
use crate::{parts, swapin};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{fentry, fexit, kprobe, kretprobe};
use aya_ebpf::programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext};
use overcommit_ebpf::layout::{
    Cpu, FaultBacking, HotProgram, IN_CALL, Loss, Metric, TO_BE_RETRIED, Thread,
};

/// `enum fault_flag`, include/linux/mm_types.h; the same from 6.1 to 7.3.
mod flag {
    /// The caller does not wait, and may never call again.
    pub(super) const RETRY_NOWAIT: u64 = 0x8;
    /// The call is not the fault's first.
    pub(super) const TRIED: u64 = 0x20;
    /// The call holds the lock of the area alone (6.4 on).
    pub(super) const VMA_LOCK: u64 = 0x1000;
}

/// `enum vm_fault_reason`, include/linux/mm_types.h; the same from 6.1 to 7.3.
mod reason {
    pub(super) const MAJOR: u64 = 0x4;
    pub(super) const RETRY: u64 = 0x400;
    /// `VM_FAULT_ERROR`: OOM, SIGBUS, HWPOISON, HWPOISON_LARGE, SIGSEGV, FALLBACK.
    pub(super) const ERROR: u64 = 0x1 | 0x2 | 0x10 | 0x20 | 0x40 | 0x800;
}

#[fentry(function = "handle_mm_fault")]
pub(crate) fn fentry_fault(ctx: FEntryContext) -> i32 {
    let Some(cpu) = this_cpu() else { return 0 };
    // SAFETY: the argument is a vm_area_struct.
    let vma = unsafe { Typed::new(ctx.arg(0)) };
    enter(cpu, vma, ctx.arg(1), ctx.arg(2));
    0
}

#[fexit(function = "handle_mm_fault")]
pub(crate) fn fexit_fault(ctx: FExitContext) -> i32 {
    // The value follows the four arguments. The area may be gone by now.
    if let Some(cpu) = this_cpu() {
        leave(cpu, ctx.arg::<u32>(4));
    }
    0
}

#[kprobe]
pub(crate) fn kprobe_fault(ctx: ProbeContext) -> u32 {
    let Some(cpu) = this_cpu() else { return 0 };
    ran(cpu, HotProgram::CallEntry);
    let vma = Kernel(ctx.arg(0).unwrap_or(0));
    enter(cpu, vma, ctx.arg(1).unwrap_or(0), ctx.arg(2).unwrap_or(0));
    0
}

#[kretprobe]
pub(crate) fn kretprobe_fault(ctx: RetProbeContext) -> u32 {
    let Some(cpu) = this_cpu() else { return 0 };
    ran(cpu, HotProgram::CallReturn);
    leave(cpu, ctx.ret());
    0
}

#[inline(always)]
fn enter(cpu: &Cpu, vma: impl Structure, address: u64, flags: u32) {
    let mm = vma.word(offset!(vma_mm));
    let Some(slot) = slot_on(cpu, mm) else { return };
    let Some(vm) = VMS.get(slot) else { return };
    let Some(thread) = entry_on(cpu, slot) else {
        lose(vm, Loss::ThreadsFull);
        return;
    };
    let flags = u64::from(flags);
    if get(&thread.since_ns) != 0 {
        if is_retry(thread, mm, address, flags) {
            set(&thread.call, flags | IN_CALL);
            return;
        }
        goes_on(thread, false);
    }
    swapin::forget(thread);
    set(&thread.backing, backing::of_area(vma, flags) as u64);
    set(&thread.mm, mm);
    set(&thread.call, flags | IN_CALL);
    start(thread, slot, address);
}

/// Whether this call goes on with the fault that the thread is in: of the same page,
/// and marked as tried before, or the pass under the mmap lock that follows a pass
/// under the area's lock (`do_user_addr_fault` marks it only after a major).
#[inline(always)]
fn is_retry(thread: &Thread, mm: u64, address: u64, flags: u64) -> bool {
    let before = get(&thread.call);
    let follows =
        flags & flag::TRIED != 0 || (before & flag::VMA_LOCK != 0 && flags & flag::VMA_LOCK == 0);
    before & TO_BE_RETRIED != 0
        && follows
        && get(&thread.mm) == mm
        && (get(&thread.address) ^ address) >> 12 == 0
}

/// The thread goes on, or exits, and has not completed the fault that it is in: that is lost,
/// but for one case.
///
/// get_user_pages looks for the page itself before it calls again (`__get_user_pages`,
/// mm/gup.c, 6.1 to 7.3): once a userfault has been served the page is there, and the call
/// that waited for it was the last.
#[inline(always)]
pub(crate) fn goes_on(thread: &Thread, exits: bool) {
    let slot = get(&thread.vm) as u32;
    let Some(vm) = VMS.get(slot) else { return };
    let is_retried = get(&thread.call) & TO_BE_RETRIED != 0;
    if is_retried && get(&thread.backing) == FaultBacking::Userfault as u64 {
        complete(vm, slot, thread, Metric::FaultMajor, get(&thread.retried_ns));
    } else {
        set(&thread.since_ns, 0);
        let loss = match (exits, is_retried) {
            (true, _) => Loss::ThreadExit,
            (false, true) => Loss::Abandoned,
            (false, false) => Loss::StartWithoutEnd,
        };
        lose(vm, loss);
    }
}

#[inline(always)]
fn leave(cpu: &Cpu, returned: u32) {
    let Some(thread) = known_on(cpu) else { return };
    let call = get(&thread.call);
    if call & IN_CALL == 0 {
        // Of memory that is no VM's.
        return;
    }
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    let slot = get(&thread.vm) as u32;
    let Some(vm) = VMS.get(slot) else { return };
    let returned = u64::from(returned);
    if returned & reason::RETRY != 0 && call & flag::RETRY_NOWAIT == 0 {
        set(&thread.call, call ^ IN_CALL ^ TO_BE_RETRIED);
        set(&thread.retried_ns, now);
        parts::turn(thread, now);
        return;
    }
    set(&thread.call, call ^ IN_CALL);
    if get(&thread.since_ns) == 0 {
        lose(vm, Loss::EndWithoutStart);
        return;
    }
    if returned & reason::RETRY != 0 {
        keep_wait_before(thread, now);
        parts::close_attempt(thread, now);
        set(&thread.since_ns, 0);
        swapin::keep_attempt(thread);
        add(&vm.not_waited, 1);
        return;
    }
    if returned & reason::ERROR != 0 {
        set(&thread.since_ns, 0);
        swapin::forget(thread);
        lose(vm, Loss::Failed);
        return;
    }
    // The rule of mm_account_fault.
    let is_major = returned & reason::MAJOR != 0 || call & flag::TRIED != 0;
    let metric = if is_major { Metric::FaultMajor } else { Metric::FaultMinor };
    swapin::finish(thread);
    complete(vm, slot, thread, metric, now);
}
