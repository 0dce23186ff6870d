//! The eBPF programs: filter, measure, count.
//!
//! `faults` follows a fault from start to completion, `vms` keeps the table of
//! VMs in step with processes, `maps` says what lies where.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "core has no atomic addition for BPF, see `atomic`")]

mod atomic;
mod faults;
mod kernel;
mod maps;
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
