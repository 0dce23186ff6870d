//! What a CPU looked up last: the programs of a fault, or of an exit, ask for the same thing several
//! times, and most faults of a host are of the same few processes.

use crate::atomic::{add_in_order, get, set};
use crate::kernel::number;
use crate::maps::{CPUS, MMS, MMS_CHANGES, VMS};
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use overcommit_ebpf::layout::{Cpu, is_other_memory, other_memory};

/// The current CPU.
#[inline(always)]
pub(crate) fn this_cpu() -> Option<&'static Cpu> {
    // SAFETY: the helper has no precondition.
    CPUS.get(unsafe { bpf_get_smp_processor_id() } as u32)
}

/// The slot of the VM whose memory that `mm_struct` is.
#[inline(always)]
pub(crate) fn slot_of(mm: u64) -> Option<u32> {
    slot_on(this_cpu()?, mm)
}

/// The same where the CPU is known.
#[inline(always)]
pub(crate) fn slot_on(cpu: &Cpu, mm: u64) -> Option<u32> {
    let changes = || MMS_CHANGES.get(0).map_or(0, |changes| get(&changes.0));
    // First those who are no VM: most of a host's faults are theirs, and they are to pay least.
    if is_other_memory(get(&cpu.other), mm, changes) {
        return None;
    }
    // The VM says itself whether it is its memory.
    let last = get(&cpu.vm) as u32;
    if mm != 0
        && let Some(vm) = VMS.get(last)
        && get(&vm.mm) == mm
    {
        return Some(last);
    }
    let changes = changes();
    // The changes were read before it is looked up, on arm64 too: what changes now is seen next time.
    add_in_order(&cpu.other, 0);
    // SAFETY: entries are only read and written as whole words.
    let slot = unsafe { MMS.get(mm) }.copied();
    match slot {
        Some(slot) => set(&cpu.vm, u64::from(slot)),
        None => set(&cpu.other, other_memory(number(mm), changes)),
    }
    slot
}

/// A VM has come: nobody goes by what was known before of memory that was no VM's.
#[inline(always)]
pub(crate) fn vm_has_come() {
    if let Some(changes) = MMS_CHANGES.get(0) {
        add_in_order(&changes.0, 1);
    }
}
