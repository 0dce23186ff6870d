//! Which memory does a VM give back?

use crate::atomic::{add, get};
use crate::cpu::slot_of;
use crate::kernel::current_mm;
use crate::maps::{HOST_PAGE, VMS};
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;

/// include/uapi/asm-generic/mman-common.h
mod advice {
    pub(super) const WILLNEED: u64 = 3;
    pub(super) const DONTNEED: u64 = 4;
    pub(super) const REMOVE: u64 = 9;
}

/// Arguments in the record of a system call: words behind the common fields and the
/// call's number (`syscall_trace_enter`, kernel/trace/trace.h).
const START: usize = 16;
const LENGTH: usize = 24;
const ADVICE: usize = 32;

/// On `sys_enter_madvise`. `ram_block_discard_range` calls madvise whatever backs the
/// memory, after it has punched a hole into a file.
#[tracepoint]
pub(crate) fn madvise(ctx: TracePointContext) -> u32 {
    let word = |offset| {
        // SAFETY: the record holds the arguments as whole words there.
        unsafe { ctx.read_at::<u64>(offset) }.unwrap_or(0)
    };
    let (start, length, advice) = (word(START), word(LENGTH), word(ADVICE));
    // QEMU gives back one page of the host at a time for a balloon, once the guest gave all of
    // it (`balloon_inflate_page`, hw/virtio/virtio-balloon.c). Free page reporting gives back
    // more at once.
    if length != HOST_PAGE.load() {
        return 0;
    }
    let Some(vm) = slot_of(current_mm()).and_then(|slot| VMS.get(slot)) else { return 0 };
    if start < get(&vm.memory_start) || start >= get(&vm.memory_end) {
        return 0;
    }
    match advice {
        advice::DONTNEED | advice::REMOVE => add(&vm.given_back, 1),
        advice::WILLNEED => add(&vm.taken_again, 1),
        _ => {}
    }
    0
}
