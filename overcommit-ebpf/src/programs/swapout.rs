//! Whose pages are handed to swap?

use crate::atomic::add;
use crate::kernel::Kernel;
use crate::maps::{CGROUPS, FOLIO_OFFSETS, VMS};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;

/// Bits of `folio::memcg_data` that are no address: `__MEMCG_DATA_*`,
/// include/linux/memcontrol.h.
const FLAGS: u64 = 7;

/// On `mm_vmscan_write_folio` (`pageout`, mm/vmscan.c): reclaim by whomever writes a
/// folio out, to zswap too. What is dropped clean is not among them.
#[raw_tracepoint(tracepoint = "mm_vmscan_write_folio")]
pub(crate) fn swapout(ctx: RawTracePointContext) -> i32 {
    let offsets = FOLIO_OFFSETS.load();
    let folio = Kernel(ctx.arg(0));
    let owner = Kernel(folio.u64(offsets.memcg_data) & !FLAGS);
    // A mem_cgroup up to Linux 6.x, an obj_cgroup in 7.3. Taken for the other one it
    // leads to no cgroup that is looked for.
    let slot = slot(owner).or_else(|| slot(owner.pointer(offsets.objcg_memcg)));
    if let Some(vm) = slot.and_then(|slot| VMS.get(slot)) {
        let is_large = folio.u64(offsets.flags) >> offsets.head_bit & 1 == 1;
        let pages = if is_large { folio.u32(offsets.pages) } else { 1 };
        add(&vm.swapped_out, u64::from(pages));
    }
    0
}

/// The slot of the VM that a memory cgroup is of.
#[inline(always)]
fn slot(memcg: Kernel) -> Option<u32> {
    let offsets = FOLIO_OFFSETS.load();
    let node = memcg.pointer(offsets.memcg_cgroup).pointer(offsets.cgroup_kn);
    let id = node.u64(offsets.kn_id);
    // SAFETY: entries are only read and written as whole words.
    unsafe { CGROUPS.get(id) }.copied()
}
