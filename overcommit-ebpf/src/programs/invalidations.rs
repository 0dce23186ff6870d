//! Pages that leave the tables of a guest while the host may still have them: KVM is told, and the guest's
//! next touch is an exit for memory (`kvm_mmu_notifier_invalidate_range_start`, virt/kvm/kvm_main.c, called
//! by `__mmu_notifier_invalidate_range_start`, mm/mmu_notifier.c, 6.1 to 7.3, for memory that somebody
//! listens to).

use crate::atomic::{add, get};
use crate::cpu::slot_of;
use crate::kernel::{Kernel, Structure, Typed, current_mm};
use crate::maps::{VMS, offset};
use crate::parts;
use crate::threads::known_thread;
use aya_ebpf::helpers::bpf_get_current_comm;
use aya_ebpf::macros::{fentry, kprobe};
use aya_ebpf::programs::{FEntryContext, ProbeContext};
use overcommit_ebpf::layout::{Invalidator, Part};

/// `MMU_NOTIFY_PROTECTION_VMA`, include/linux/mmu_notifier.h, the same from 6.1 to 7.3: mprotect and
/// NUMA balancing (`change_protection`, mm/mprotect.c).
const PROTECTION: u32 = 2;

#[fentry]
pub(crate) fn fentry_invalidation(ctx: FEntryContext) -> i32 {
    // SAFETY: the argument is an mmu_notifier_range.
    let range = unsafe { Typed::new(ctx.arg(0)) };
    count(range.word(offset!(invalidation_mm)), || range.half(offset!(invalidation_event)));
    0
}

#[kprobe]
pub(crate) fn kprobe_invalidation(ctx: ProbeContext) -> u32 {
    let range = Kernel(ctx.arg(0).unwrap_or(0));
    count(range.u64(offset!(invalidation_mm)), || range.u32(offset!(invalidation_event)));
    0
}

#[inline(always)]
fn count(mm: u64, event: impl FnOnce() -> u32) {
    let Some(slot) = slot_of(mm) else { return };
    let Some(vm) = VMS.get(slot) else { return };
    let by = if event() == PROTECTION { Invalidator::Numa } else { invalidator(mm) };
    add(&vm.invalidated[by as usize], 1);
}

#[inline(always)]
fn invalidator(mm: u64) -> Invalidator {
    if let Some(thread) = known_thread() {
        // A VM's thread that reclaims, for itself or in another's fault.
        if get(&thread.reclaim_since_ns) != 0 {
            return Invalidator::Reclaim;
        }
        if get(&thread.since_ns) != 0 {
            if parts::is_in(thread, Some(Part::Compaction)) {
                return Invalidator::Compaction;
            }
            // A worker's copy on write is the VM's own as well.
            let faults_in = VMS.get(get(&thread.vm) as u32);
            if faults_in.is_some_and(|vm| get(&vm.mm) == mm) {
                return Invalidator::Own;
            }
        }
    }
    let own = current_mm();
    if own == mm {
        return Invalidator::Own;
    }
    if own != 0 {
        return Invalidator::Other;
    }
    let name = bpf_get_current_comm().unwrap_or_default();
    if name.starts_with(b"ksmd") {
        Invalidator::Ksm
    } else if name.starts_with(b"kcompactd") {
        Invalidator::Compaction
    } else if name.starts_with(b"khugepaged") {
        Invalidator::HugePages
    } else if name.starts_with(b"kswapd") || name.starts_with(b"kdamond") {
        Invalidator::Reclaim
    } else {
        Invalidator::Other
    }
}
