//! Where does the time of a fault go?
//!
//! A turn is a moment at which a part begins or ends. The time since the last turn belongs
//! to the innermost part; what of it the thread waited for a CPU, by the kernel's own
//! account (`sched_info::run_delay`, kernel/sched/stats.h), to [`Part::Runq`]. So parts
//! never overlap, and with the rest they make up the whole.

use crate::atomic::{add, get, set};
use crate::exits::is_open;
use crate::kernel::current_run_delay;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use core::sync::atomic::AtomicU64;
use overcommit_ebpf::layout::{Part, Thread, Vm};

/// A fault begins now, which waited so long before it for the lock, and for a CPU.
#[inline(always)]
pub(crate) fn open(thread: &Thread, now: u64, lock_before: u64, runq_before: u64) {
    empty(&thread.has_parts, &thread.parts_ns);
    set(&thread.parts_open, 0);
    set(&thread.sleeps, 0);
    set(&thread.longest_sleep_ns, 0);
    set(&thread.longest_stack, 0);
    set(&thread.turned_ns, now);
    set(&thread.run_delay_ns, current_run_delay());
    give(thread, Part::Lock as u64 + 1, lock_before);
    give(thread, Part::Runq as u64 + 1, runq_before);
}

/// Empties parts in which there may be something.
#[inline(always)]
pub(crate) fn empty(has_parts: &AtomicU64, parts: &[AtomicU64; Part::COUNT]) {
    if get(has_parts) != 0 {
        set(has_parts, 0);
        for part in parts {
            set(part, 0);
        }
    }
}

/// The fault that the current thread is in, if it is in one, comes to a part.
#[inline(always)]
pub(crate) fn enter(thread: &Thread, part: Part) {
    if get(&thread.since_ns) != 0 {
        // SAFETY: the helper has no precondition.
        turn(thread, unsafe { bpf_ktime_get_ns() });
        set(&thread.parts_open, get(&thread.parts_open) << 8 | (part as u64 + 1));
    }
}

/// The part ends, if it is the innermost.
#[inline(always)]
pub(crate) fn leave(thread: &Thread, part: Part) {
    let open = get(&thread.parts_open);
    if get(&thread.since_ns) != 0 && open & 0xff == part as u64 + 1 {
        // SAFETY: the helper has no precondition.
        turn(thread, unsafe { bpf_ktime_get_ns() });
        set(&thread.parts_open, open >> 8);
    }
}

/// The fault has completed; counts its parts.
#[inline(always)]
pub(crate) fn close(vm: Option<&Vm>, thread: &Thread, now: u64) {
    turn(thread, now);
    hand_on(thread, vm);
}

/// The call came back without waiting for its page: what it did belongs to the window that it was
/// for. Its wait for the lock is that of the next call ([`crate::threads::keep_wait_before`]).
#[inline(always)]
pub(crate) fn close_attempt(thread: &Thread, now: u64) {
    turn(thread, now);
    let lock = &thread.parts_ns[Part::Lock as usize];
    let length = now.saturating_sub(get(&thread.since_ns)).saturating_sub(get(lock));
    set(lock, 0);
    let window = &thread.window;
    if is_open(window) {
        set(&window.attempts_ns, get(&window.attempts_ns) + length);
        hand_on(thread, None);
    }
}

/// Adds the parts to the VM's, where it was a fault that counts, and to those of the window that the thread is
/// in.
#[inline(always)]
fn hand_on(thread: &Thread, vm: Option<&Vm>) {
    if get(&thread.has_parts) == 0 {
        return;
    }
    let window = &thread.window;
    let in_window = is_open(window);
    for (at, (part, of_window)) in thread.parts_ns.iter().zip(&window.parts_ns).enumerate() {
        let time = get(part);
        if time == 0 {
            continue;
        }
        if let Some(sum) = vm.and_then(|vm| vm.parts_ns.get(at)) {
            add(sum, time);
        }
        if in_window {
            set(of_window, get(of_window) + time);
            set(&window.has_parts, 1);
        }
    }
}

/// The innermost part; `None` is the rest.
#[inline(always)]
pub(crate) fn is_in(thread: &Thread, part: Option<Part>) -> bool {
    get(&thread.parts_open) & 0xff == part.map_or(0, |part| part as u64 + 1)
}

/// A turn of the current thread, after which the same part goes on.
#[inline(always)]
pub(crate) fn turn(thread: &Thread, now: u64) {
    let length = now.saturating_sub(get(&thread.turned_ns));
    let delay = current_run_delay();
    let waited = delay.saturating_sub(get(&thread.run_delay_ns)).min(length);
    set(&thread.turned_ns, now);
    set(&thread.run_delay_ns, delay);
    give(thread, Part::Runq as u64 + 1, waited);
    give(thread, get(&thread.parts_open) & 0xff, length - waited);
}

/// Gives time to a part by its number in [`Thread::parts_open`]; 0 is the rest.
#[inline(always)]
fn give(thread: &Thread, number: u64, time: u64) {
    if time == 0 || number == 0 {
        return;
    }
    if let Some(part) = thread.parts_ns.get((number - 1) as usize) {
        set(part, get(part) + time);
        set(&thread.has_parts, 1);
    }
}

/// A thread that fell asleep in a fault is woken up, by whoever runs; gives how long it
/// slept. The kernel adds to its `run_delay` only when it has a CPU again.
#[inline(always)]
pub(crate) fn wake(thread: &Thread, now: u64) -> u64 {
    let slept = now.saturating_sub(get(&thread.turned_ns));
    let open = get(&thread.parts_open);
    set(&thread.turned_ns, now);
    give(thread, open & 0xff, slept);
    let is_sleep = [Part::Io, Part::Sleep, Part::SwapinIo];
    if is_sleep.iter().any(|part| open & 0xff == *part as u64 + 1) {
        set(&thread.parts_open, open >> 8);
    }
    slept
}
