//! The eBPF programs: filter, measure, count.
//!
//! `perf` and `calls` follow a fault from start to completion, each by other hooks;
//! `backing` says what it took, `swapin` looks at the part of it that waits for swap,
//! `evictions` at what reclaim takes and for whom, `reclaim` at the time of those who do it,
//! `locks` and `sleeps` at what else threads wait for, and `parts` splits the fault's time
//! among all those; `high` follows those who are held back after a fault, `discards` what a VM gives back,
//! `invalidations` counts what its guest has to find again, `exits` follows a vCPU out of
//! its guest, `entry` back into it, and `apf` what it waits for meanwhile;
//! `latency` counts it, in histograms of the VM's own or of the `pool`, whose buckets lie in
//! `chunks`, `threads` remembers it meanwhile. `free` hands out what those take. `vms` keeps the
//! table of VMs in step with processes, `maps` says what lies where.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "core has no atomic addition for BPF, see `atomic`")]

mod apf;
mod atomic;
mod backing;
mod calls;
mod chunks;
mod cpu;
mod discards;
mod entry;
mod evictions;
mod exits;
mod free;
mod high;
mod invalidations;
mod kernel;
mod latency;
mod locks;
mod maps;
mod parts;
mod perf;
mod pool;
mod reclaim;
mod sleeps;
mod swapin;
mod threads;
mod trial;
mod vms;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
