//! A vCPU back into its guest: the window that began at its exit ends.

use crate::atomic::{InKernel, add, get, set};
use crate::calls::goes_on;
use crate::exits::{come_back, is_passed_over, read_qualification};
use crate::kernel::{current_run_delay, current_sleeps};
use crate::latency::{record, record_at};
use crate::maps::{BEGINS_AT_CALL, ONLY_MEMORY_EXITS, VMS, histogram, lose};
use crate::parts;
use crate::pool;
use crate::threads::known_thread;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use core::sync::atomic::AtomicU64;
use overcommit_ebpf::layout::{
    APF, HALT, IN_BACKGROUND, Loss, MEMORY, MMIO, Metric, OUTSIDE_FAULTS, PAUSED, PROTECTED, Part,
    READY, REASON_MMIO, SLEEPS_AT, Thread, Vm, Window, exit_key,
};
use overcommit_ebpf::{bucket, order};

#[raw_tracepoint]
pub(crate) fn kvm_entry(_ctx: RawTracePointContext) -> i32 {
    let Some(thread) = known_thread() else { return 0 };
    let window = &thread.window;
    let slot = get(&thread.vm) as u32;
    let Some(vm) = VMS.get(slot) else { return 0 };
    count_wait_for_cpu(vm, slot, window);
    if get(&thread.since_ns) != 0 {
        goes_on(thread, false);
    }
    let exit_ns = get(&window.exit_ns);
    if exit_ns == 0 {
        if is_passed_over(window) {
            end_passed_over(thread);
        } else if get(&window.exits) != 0 {
            lose(vm, Loss::EntryWithoutExit);
        }
        // The first entry of a vCPU is no loss.
        return 0;
    }
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(length) = now.checked_sub(exit_ns) else {
        set(&window.exit_ns, 0);
        lose(vm, Loss::ClockBehind);
        return 0;
    };
    come_back(window, now);
    end_window(vm, slot, thread, length);
    if ONLY_MEMORY_EXITS.load() != 0 {
        order::change(&InKernel(&thread.sequence), || begin_count(thread));
    }
    0
}

/// Only the faults in it were waits for memory, as those in any window that is not for memory.
#[inline(always)]
fn end_passed_over(thread: &Thread) {
    let window = &thread.window;
    let within = get(&thread.waited_ns).saturating_sub(get(&window.waited_before_ns));
    let within = within + get(&window.attempts_ns);
    count(&window.exits, 1);
    if within == 0 {
        set(&window.reason, 0);
        return;
    }
    let for_cpu = get(&window.parts_ns[Part::Runq as usize]);
    let was_held = get(&window.reason) & PAUSED != 0;
    let stall = if was_held { 0 } else { within.saturating_sub(for_cpu) };
    order::change(&InKernel(&thread.sequence), || {
        set(&window.stall_ns, get(&window.stall_ns) + stall);
        set(&window.reason, 0);
        begin_count(thread);
    });
}

/// From now on faults of the thread are those of its next window, if that is passed over.
#[inline(always)]
fn begin_count(thread: &Thread) {
    let window = &thread.window;
    set(&window.waited_before_ns, get(&thread.waited_ns));
    set(&window.attempts_ns, 0);
    parts::empty(&window.has_parts, &window.parts_ns);
}

/// What the vCPU waited for a CPU since its last entry: KVM tells its guest the same
/// number as steal (`record_steal_time`, arch/x86/kvm/x86.c).
#[inline(always)]
fn count_wait_for_cpu(vm: &Vm, slot: u32, window: &Window) {
    let delay = current_run_delay();
    let before = get(&window.run_delay_ns);
    set(&window.run_delay_ns, delay);
    if before != 0
        && delay > before
        && let Some(histogram) = histogram(slot, Metric::Runq)
    {
        record(vm, histogram, delay - before);
    }
}

#[inline(always)]
fn end_window(vm: &Vm, slot: u32, thread: &Thread, length: u64) {
    let window = &thread.window;
    let reason = read_qualification(window);
    let (user, paused) = (get(&window.user_ns), get(&window.paused_ns));
    let active = length.saturating_sub(paused);
    let within = get(&thread.waited_ns).saturating_sub(get(&window.waited_before_ns));
    let within = within + get(&window.attempts_ns);
    // KVM mends such an entry by itself, and without sleep, as when it logs what a migrating guest
    // writes, or for a guest of the guest; where faults are not seen by calls it may have been one.
    let is_mended =
        reason & PROTECTED != 0 && within == 0 && BEGINS_AT_CALL.load() != 0 && !slept(window);
    let is_memory = reason & (MEMORY | MMIO) == MEMORY && !is_mended;
    let waits = is_memory || reason & APF != 0;
    let kernel = active.saturating_sub(user);
    // Of any other window its faults alone are waits for memory: of KVM, which reads the guest's
    // memory in many exits, and of a device model whose own memory is on swap. What they waited
    // for a CPU is not, nor is what the thread did while it was held.
    let for_cpu = get(&window.parts_ns[Part::Runq as usize]);
    let stall = match (waits, paused) {
        (true, _) => kernel,
        (false, 0) => within.saturating_sub(for_cpu).min(active),
        (false, _) => 0,
    };
    order::change(&InKernel(&thread.sequence), || {
        if stall != 0 {
            set(&window.stall_ns, get(&window.stall_ns) + stall);
        }
        set(&window.exit_ns, 0);
    });
    count(&window.exits, 1);
    count(&window.user_total_ns, user);
    count(&window.paused_total_ns, paused);
    // Read back, so that the verifier does not go on from each that it can be: that took it 0.3 s.
    set(&window.bucket, bucket::index(active) as u64);
    let index = get(&window.bucket) as usize;
    if is_memory {
        // Most such windows were in the kernel alone.
        let index = if kernel == active { index } else { bucket::index(kernel) };
        let is_counted = histogram(slot, Metric::StallMemory)
            .is_some_and(|histogram| record_at(vm, histogram, kernel, index));
        count(&window.stalls, 1);
        count(&window.stalls_inverted, u64::from(kernel < within));
        if is_counted {
            split(vm, window, kernel.saturating_sub(within), user + paused == 0);
        }
    }
    if reason & APF != 0 {
        count(&window.stall_halted_ns, kernel);
    } else if reason & HALT != 0 {
        count(&window.idle_total_ns, active);
        if let Some(histogram) = histogram(slot, Metric::Idle) {
            record_at(vm, histogram, active, index);
        }
    } else {
        count(&window.kernel_total_ns, kernel);
    }
    let device = reason & (MEMORY | MMIO) == MEMORY | MMIO;
    let key = if device { exit_key(0, REASON_MMIO) } else { reason as u32 };
    match pool::place_near(&window.vcpu, slot, key).and_then(pool::histogram) {
        Some(histogram) => {
            record_at(vm, histogram, active, index);
        }
        None => lose(vm, Loss::ExitsFull),
    }
}

/// Adds up what a memory window went into: the parts of the faults in it, and what passed
/// outside them, in which the thread may have waited for a CPU too.
#[inline(always)]
fn split(vm: &Vm, window: &Window, outside: u64, was_in_kernel: bool) {
    // As `count_wait_for_cpu` has just read it.
    let delay = get(&window.run_delay_ns).saturating_sub(get(&window.exit_run_delay_ns));
    let in_faults = get(&window.parts_ns[Part::Runq as usize]);
    // In user space it waited for a CPU too.
    let delay = if was_in_kernel { delay.saturating_sub(in_faults).min(outside) } else { 0 };
    if delay != 0 {
        add(&vm.stall_ns[Part::Runq as usize], delay);
    }
    if get(&window.has_parts) != 0 {
        for (part, sum) in window.parts_ns.iter().zip(&vm.stall_ns) {
            let time = get(part);
            if time != 0 {
                add(sum, time);
            }
        }
    }
    let place = if slept_for_page(window) { IN_BACKGROUND } else { OUTSIDE_FAULTS };
    add(&vm.stall_ns[place], outside - delay);
}

/// Whether the vCPU slept in a memory window while a worker read its page: where the guest cannot
/// be told of it, KVM halts the vCPU (`KVM_REQ_APF_HALT`, arch/x86/kvm/x86.c).
#[inline(always)]
fn slept_for_page(window: &Window) -> bool {
    (get(&window.apf_open) != 0 || get(&window.reason) & READY != 0) && slept(window)
}

/// Whether the vCPU slept in a memory window.
#[inline(always)]
fn slept(window: &Window) -> bool {
    current_sleeps() << SLEEPS_AT != get(&window.reason) >> SLEEPS_AT << SLEEPS_AT
}

/// Adds to a total of the thread's own.
#[inline(always)]
fn count(total: &AtomicU64, n: u64) {
    set(total, get(total) + n);
}
