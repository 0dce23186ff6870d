//! Sleep inside a fault, and where: `sched_switch` and `sched_wakeup` (kernel/sched/core.c).
//! They run at every switch of the host, so they are attached on request.

use crate::atomic::{get, set};
use crate::kernel::{Kernel, current_waits_for_io};
use crate::maps::{STACKS, TAKES_STACKS, THREADS, TIDS, offset};
use crate::parts;
use crate::threads::known_thread;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use aya_ebpf::programs::tracing::StackIdContext;
use overcommit_ebpf::layout::{Part, Thread};

/// The current thread leaves the CPU.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub(crate) fn switch(ctx: RawTracePointContext) -> i32 {
    // (preempt, prev, next, prev_state); the state is 0 of one that wants to run.
    if ctx.arg::<u64>(0) as u8 != 0 || ctx.arg::<u32>(3) == 0 {
        return 0;
    }
    let Some(thread) = known_thread() else { return 0 };
    if get(&thread.since_ns) == 0 {
        return 0;
    }
    let io = current_waits_for_io();
    // Sleep within another part is that part's.
    if parts::is_in(thread, None) {
        parts::enter(thread, if io { Part::Io } else { Part::Sleep });
    } else if io && parts::is_in(thread, Some(Part::Swapin)) {
        parts::enter(thread, Part::SwapinIo);
    } else {
        // SAFETY: the helper has no precondition.
        parts::turn(thread, unsafe { bpf_ktime_get_ns() });
    }
    set(&thread.sleeps, 1);
    if TAKES_STACKS.load() != 0 {
        let stack = ctx.get_stackid(&STACKS, 0);
        set(&thread.stack, stack.map_or(0, |stack| stack as u64 + 1));
    }
    0
}

/// A thread is to run again.
#[raw_tracepoint(tracepoint = "sched_wakeup")]
pub(crate) fn wakeup(ctx: RawTracePointContext) -> i32 {
    let tid = Kernel(ctx.arg(0)).u32(offset!(task_pid));
    // SAFETY: entries are only read and written as whole words.
    let thread = unsafe { TIDS.get(tid) }.and_then(|index| THREADS.get(*index));
    if let Some(thread) = thread
        && get(&thread.sleeps) != 0
    {
        wake(thread);
    }
    0
}

#[inline(always)]
fn wake(thread: &Thread) {
    set(&thread.sleeps, 0);
    if get(&thread.since_ns) == 0 {
        return;
    }
    // SAFETY: the helper has no precondition.
    let slept = parts::wake(thread, unsafe { bpf_ktime_get_ns() });
    if slept > get(&thread.longest_sleep_ns) {
        set(&thread.longest_sleep_ns, slept);
        set(&thread.longest_stack, get(&thread.stack));
    }
}
