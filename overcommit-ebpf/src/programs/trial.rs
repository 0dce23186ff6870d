//! Programs that do nothing, one of each kind: loading and attaching them asks
//! the running kernel what it allows.

use aya_ebpf::macros::{
    btf_tracepoint, fentry, fexit, kprobe, kretprobe, perf_event, raw_tracepoint, tracepoint,
};
use aya_ebpf::programs::{
    BtfTracePointContext, FEntryContext, FExitContext, PerfEventContext, ProbeContext,
    RawTracePointContext, RetProbeContext, TracePointContext,
};

#[fentry(function = "handle_mm_fault")]
pub(crate) fn trial_fentry(_ctx: FEntryContext) -> i32 {
    0
}

#[fexit(function = "handle_mm_fault")]
pub(crate) fn trial_fexit(_ctx: FExitContext) -> i32 {
    0
}

#[kprobe]
pub(crate) fn trial_kprobe(_ctx: ProbeContext) -> u32 {
    0
}

#[kretprobe]
pub(crate) fn trial_kretprobe(_ctx: RetProbeContext) -> u32 {
    0
}

#[perf_event]
pub(crate) fn trial_perf_event(_ctx: PerfEventContext) -> u32 {
    0
}

#[tracepoint]
pub(crate) fn trial_tracepoint(_ctx: TracePointContext) -> u32 {
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn trial_raw_tracepoint(_ctx: RawTracePointContext) -> i32 {
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn trial_btf_tracepoint(_ctx: BtfTracePointContext) -> i32 {
    0
}

#[unsafe(link_section = "iter/task")]
#[unsafe(no_mangle)]
pub(crate) fn trial_iterator(_ctx: *const u64) -> i32 {
    0
}
