//! What has been measured goes into the VM's histograms.

use crate::atomic::{InKernel, add, get, set};
use crate::maps::{SLOW, SLOW_NS, lose};
use crate::{backing, chunks, parts};
use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::bpf_get_current_comm;
use overcommit_ebpf::layout::{
    Histogram, Loss, Metric, NEVER_RAN, PHASES_NS, SLOW_PER_SECOND, SlowFault, Taker, Thread, Vm,
};
use overcommit_ebpf::{bucket, order};

/// Counts a fault of that latency, which ends now. Gives its end to the thread.
#[inline(always)]
pub(crate) fn complete(vm: &Vm, slot: u32, thread: &Thread, metric: Metric, now: u64) {
    // The clock that programs may read is not strictly monotonic across CPUs
    // (ktime_get_mono_fast_ns, kernel/time/timekeeping.c).
    let Some(latency) = now.checked_sub(get(&thread.since_ns)) else {
        set(&thread.since_ns, 0);
        lose(vm, Loss::ClockBehind);
        return;
    };
    close(thread, latency);
    let is_counted = backing::histogram_of(vm, slot, thread, metric)
        .is_some_and(|histogram| record(vm, histogram, latency));
    parts::close(is_counted.then_some(vm), thread, now);
    let taker = if get(&thread.id) >> 32 != get(&vm.tgid) {
        Taker::Outside
    } else if get(&thread.is_vcpu) != 0 {
        Taker::Vcpu
    } else {
        Taker::VmThread
    };
    if is_counted {
        add(&vm.taken_by[taker as usize], 1);
        count_start(vm, thread, now, latency);
    }
    if latency >= SLOW_NS.load() && has_room(vm, now) {
        send(vm, slot, metric, thread, now, latency);
    }
}

/// Counts a fault of a VM that has just started.
#[inline(always)]
fn count_start(vm: &Vm, thread: &Thread, now: u64, latency: u64) {
    let first_run = get(&vm.first_run_ns);
    if first_run <= NEVER_RAN {
        return;
    }
    let age = now.saturating_sub(first_run);
    for (phase, length) in vm.starts.iter().zip(PHASES_NS) {
        if age < length {
            if let Some([count, time]) = phase.get(get(&thread.backing) as usize) {
                add(count, 1);
                add(time, latency);
            }
            return;
        }
    }
}

/// Ends the thread's wait, so that a reader never sees it both open and added.
#[inline(always)]
fn close(thread: &Thread, latency: u64) {
    order::change(&InKernel(&thread.sequence), || {
        set(&thread.since_ns, 0);
        set(&thread.waited_ns, get(&thread.waited_ns) + latency);
    });
}

/// Counts a latency of a VM; whether there was memory for it.
#[inline(always)]
pub(crate) fn record(vm: &Vm, histogram: &Histogram, latency: u64) -> bool {
    record_at(vm, histogram, latency, bucket::index(latency))
}

/// The same of one whose bucket is known.
#[inline(always)]
pub(crate) fn record_at(vm: &Vm, histogram: &Histogram, latency: u64, index: usize) -> bool {
    let Some(bucket) = chunks::bucket(vm, histogram, index) else {
        lose(vm, Loss::BucketsFull);
        return false;
    };
    if latency > bucket::MAX_NS {
        add(&histogram.over_range, 1);
    }
    let [sum_ns, max_ns, bucket] = [&histogram.sum_ns, &histogram.max_ns, bucket].map(InKernel);
    order::count(&sum_ns, &max_ns, &bucket, latency);
    true
}

/// Whether one more slow fault of the VM may be sent in this second.
#[inline(always)]
fn has_room(vm: &Vm, now: u64) -> bool {
    if SLOW_NS.load() == 0 {
        return true;
    }
    let second = now / 1_000_000_000;
    // Two threads may both begin a second; that lets a few more through.
    if get(&vm.slow_second) != second {
        set(&vm.slow_second, second);
        set(&vm.slow_in_second, 0);
    }
    if get(&vm.slow_in_second) >= SLOW_PER_SECOND {
        lose(vm, Loss::SlowLimited);
        return false;
    }
    add(&vm.slow_in_second, 1);
    true
}

#[inline(always)]
fn send(vm: &Vm, slot: u32, metric: Metric, thread: &Thread, end_ns: u64, latency_ns: u64) {
    let Some(mut entry) = SLOW.reserve::<SlowFault>(0) else {
        lose(vm, Loss::SlowDropped);
        return;
    };
    entry.write(SlowFault {
        end_ns,
        latency_ns,
        address: get(&thread.address),
        vm_tgid: get(&vm.tgid) as u32,
        vm: slot,
        tid: get(&thread.id) as u32,
        metric: metric as u32,
        comm: bpf_get_current_comm().unwrap_or_default(),
        parts_ns: thread.parts_ns.each_ref().map(get),
        backing: get(&thread.backing) as u32,
        swap_device: get(&thread.swap_device) as u32,
        stack: get(&thread.longest_stack) as u32,
        reserved: 0,
        aggressor: get(&thread.aggressor),
    });
    // The loader looks in by itself; a wake-up a fault would cost it more.
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}
