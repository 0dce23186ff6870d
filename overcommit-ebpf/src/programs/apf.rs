//! Asynchronous page faults of a guest: KVM's tracepoints, on the vCPU's own thread, and on the worker
//! that reads its page.

use crate::atomic::{add, get, set};
use crate::calls::goes_on;
use crate::exits::current_vcpu;
use crate::latency::record;
use crate::maps::{APFS, histogram, lose};
use crate::threads::known_thread;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use overcommit_ebpf::exit::{aged, by_age, without_one};
use overcommit_ebpf::layout::{Loss, Metric, READY, Vm, Window};

/// The token that tells a guest that all its pages are ready.
const APF_BROADCAST: u32 = u32::MAX;

/// Forgets asynchronous page faults that will not come any more. Gives what is open.
#[inline(always)]
pub(crate) fn age(vm: &Vm, window: &Window, now: u64) -> u64 {
    let open = get(&window.apf_open);
    let Some((open, dropped)) = aged(open, now.saturating_sub(get(&window.apf_since_ns))) else {
        return open;
    };
    set(&window.apf_open, open);
    set(&window.apf_since_ns, now);
    add(&vm.lost[Loss::ApfUnfinished as usize], dropped);
    open
}

/// One that is open has come; of one whose start is not known the oldest.
#[inline(always)]
fn came(window: &Window, since: u64) {
    let is_older = since < get(&window.apf_since_ns);
    set(&window.apf_open, without_one(get(&window.apf_open), is_older));
}

#[raw_tracepoint]
pub(crate) fn kvm_apf_not_present(ctx: RawTracePointContext) -> i32 {
    let Some((vm, thread)) = current_vcpu() else { return 0 };
    let window = &thread.window;
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    let key = apf_key(token(&ctx));
    // SAFETY: entries are only read and written as whole words.
    if let Some(since) = unsafe { APFS.get(key) }.copied() {
        // The guest's numbers have come round.
        lose(vm, Loss::ApfUnfinished);
        came(window, since);
    }
    let open = age(vm, window, now);
    if open == 0 {
        set(&window.apf_since_ns, now);
    }
    set(&window.apf_open, open + 1);
    let _ = APFS.insert(key, now, 0);
    0
}

#[raw_tracepoint]
pub(crate) fn kvm_apf_ready(ctx: RawTracePointContext) -> i32 {
    let Some((vm, thread)) = current_vcpu() else { return 0 };
    let window = &thread.window;
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    let token = token(&ctx);
    set(&window.reason, get(&window.reason) | READY);
    if token == APF_BROADCAST {
        let (younger, older) = by_age(get(&window.apf_open));
        set(&window.apf_open, 0);
        add(&vm.lost[Loss::ApfUnfinished as usize], younger + older);
        return 0;
    }
    let key = apf_key(token);
    // SAFETY: entries are only read and written as whole words.
    let Some(since) = (unsafe { APFS.get(key) }).copied() else {
        lose(vm, Loss::ApfWithoutStart);
        came(window, 0);
        return 0;
    };
    let _ = APFS.remove(key);
    came(window, since);
    match now.checked_sub(since) {
        Some(latency) => {
            if let Some(histogram) = histogram(get(&thread.vm) as u32, Metric::Apf) {
                record(vm, histogram, latency);
            }
        }
        None => lose(vm, Loss::ClockBehind),
    }
    0
}

/// A worker has brought the page of an asynchronous fault (`async_pf_execute`, virt/kvm/async_pf.c).
/// Where it waited and then found the page there, it does not call again, and goes on with something
/// else.
#[raw_tracepoint]
pub(crate) fn kvm_apf_completed(_ctx: RawTracePointContext) -> i32 {
    if let Some(thread) = known_thread()
        && get(&thread.since_ns) != 0
    {
        goes_on(thread, false);
    }
    0
}

/// The number by which the guest is told of the page: the first argument of both tracepoints
/// (`kvm_async_pf_nopresent_ready`, include/trace/events/kvm.h, 6.1 to 7.3).
#[inline(always)]
fn token(ctx: &RawTracePointContext) -> u32 {
    ctx.arg::<u64>(0) as u32
}

#[inline(always)]
fn apf_key(token: u32) -> u64 {
    bpf_get_current_pid_tgid() << 32 | u64::from(token)
}
