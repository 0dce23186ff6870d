//! How near is the edge? What the VMs may have, what they hold and what they need,
//! against the memory that there is.

use overcommit_recording::model::balloon::BalloonState;
use overcommit_recording::model::balloon::LARGEST;
use overcommit_recording::model::memory::HostMemory;
use overcommit_recording::model::memory::Overcommit;
use overcommit_recording::model::memory::OvercommitState;
use overcommit_recording::model::memory::Range;
use overcommit_recording::model::swap::SwapState;

/// What is known of a VM, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct VmMemory {
    /// What it was given.
    pub configured: Option<u64>,
    /// What would be available without it, beside what already is; huge pages of the pool left
    /// out.
    pub freed: u64,
    /// Whether its memory comes out of the pool of huge pages.
    pub is_hugetlb: bool,
    /// What it needs.
    pub working_set: Option<Range>,
    /// Swap state.
    pub swap: SwapState,
}

/// Share of the capacity that the working sets may reach.
const WORKING_SETS: f64 = 0.85;
/// Shares in use.
const IN_USE: f64 = 0.90;
const IN_USE_CRITICAL: f64 = 0.95;
/// VMs that are taken to grow at a time.
const GROWING: usize = 3;

/// Of a host and all its VMs, recorded or not.
pub fn of(
    host: &HostMemory,
    vms: &[VmMemory],
    swap: SwapState,
    balloon: BalloonState,
) -> Overcommit {
    let small_pages = || vms.iter().filter(|vm| !vm.is_hugetlb);
    let physical = host.total.saturating_sub(host.hugetlb_pools);
    let available = host.available_with_cache();
    let in_use = available.map(|available| 1.0 - available as f64 / physical.max(1) as f64);
    // Of the same VMs as the working sets: what the others hold beside their huge pages is
    // needed as well.
    let resident = total(small_pages().map(|vm| vm.freed));
    let sets: Option<Vec<Range>> = small_pages().map(|vm| vm.working_set).collect();
    let working_sets = sets.map(|sets| Range {
        lower: total(sets.iter().map(|set| set.lower)),
        upper: total(sets.iter().map(|set| set.upper)),
    });
    let mut sum = Overcommit {
        state: OvercommitState::Unknown,
        configured: small_pages().map(|vm| vm.configured).collect::<Option<Vec<_>>>().map(total),
        physical,
        in_use,
        capacity: available.map(|available| available.saturating_add(resident)),
        working_sets,
        can_grow: can_grow(small_pages()),
    };
    let pressed = vms.iter().filter(|vm| vm.swap >= SwapState::Pressure).count();
    let all_pressed = pressed >= 2 || (pressed == 1 && vms.len() == 1);
    sum.state = decide(&sum, all_pressed, swap, balloon);
    sum
}

fn decide(
    sum: &Overcommit,
    all_pressed: bool,
    swap: SwapState,
    balloon: BalloonState,
) -> OvercommitState {
    let capacity = sum.capacity.map(|capacity| capacity.max(1) as f64);
    let sets = sum.working_sets.zip(capacity);
    let need = |part: fn(Range) -> u64| sets.map(|(set, all)| part(set) as f64 / all);
    let (lower, upper) = (need(|set| set.lower), need(|set| set.upper));
    let above = |share: Option<f64>, limit| share.is_some_and(|share| share >= limit);
    if lower.is_some_and(|lower| lower > 1.0) || (above(sum.in_use, IN_USE_CRITICAL) && all_pressed)
    {
        return OvercommitState::Critical;
    }
    if upper.is_some_and(|upper| upper > WORKING_SETS)
        || above(sum.in_use, IN_USE)
        || swap >= SwapState::Pressure
        || balloon >= BalloonState::Pressure
    {
        return OvercommitState::Approaching;
    }
    let is_known = upper.is_some() && sum.in_use.is_some() && swap != SwapState::Unknown;
    if is_known { OvercommitState::Safe } else { OvercommitState::Unknown }
}

/// What the VMs with the most room to grow could still take together.
fn can_grow<'a>(vms: impl Iterator<Item = &'a VmMemory>) -> Option<u64> {
    let room = vms.map(|vm| Some(vm.configured?.saturating_sub(vm.working_set?.upper)));
    let mut room = room.collect::<Option<Vec<u64>>>()?;
    room.sort_unstable_by(|a, b| b.cmp(a));
    Some(total(room.into_iter().take(GROWING)))
}

/// Of what VMs are said to have, which need not be true: as much as files hold, at the most.
pub fn total(bytes: impl IntoIterator<Item = u64>) -> u64 {
    bytes.into_iter().fold(0, |sum: u64, bytes| sum.saturating_add(bytes).min(4 * LARGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn vm(configured: u64, need: u64) -> VmMemory {
        VmMemory {
            configured: Some(configured * GIB),
            freed: need * GIB,
            working_set: Some(Range { lower: need * GIB, upper: need * GIB }),
            swap: SwapState::Healthy,
            ..VmMemory::default()
        }
    }

    fn host(total: u64, available: u64) -> HostMemory {
        HostMemory { total: total * GIB, available: Some(available * GIB), ..HostMemory::default() }
    }

    fn of(host: &HostMemory, vms: &[VmMemory]) -> Overcommit {
        super::of(host, vms, SwapState::Healthy, BalloonState::Normal)
    }

    #[test]
    fn what_cannot_be_true_does_not_wrap() {
        let lies = vec![vm(u64::MAX / GIB, u64::MAX / GIB); 3];
        let sum = of(&host(64, 32), &lies);
        assert_eq!(sum.configured, Some(4 * LARGEST));
        assert_eq!(sum.working_sets.map(|sets| sets.upper), Some(4 * LARGEST));
        assert_eq!(sum.capacity, Some(4 * LARGEST + 32 * GIB));
    }

    /// Six VMs of 16 GiB on a host of 64: the JVM's needs 4 GiB, and 12 in a full
    /// collection; the others 10 each.
    fn java(need: u64) -> Vec<VmMemory> {
        std::iter::once(vm(16, need)).chain(std::iter::repeat_n(vm(16, 10), 5)).collect()
    }

    #[test]
    fn the_full_collection_fits_as_long_as_the_host_takes_little() {
        let headroom = |host: u64, need| {
            let vms = java(need);
            let resident: u64 = vms.iter().map(|vm| vm.freed).sum();
            let available = (64 * GIB - host * GIB).saturating_sub(resident);
            let mut memory = tests::host(64, 0);
            memory.available = Some(available);
            let sum = of(&memory, &vms);
            assert_eq!(sum.ratio(), Some(1.5));
            let headroom = sum.headroom().unwrap();
            assert_eq!(headroom.lower, headroom.upper);
            headroom.lower as f64 / GIB as f64
        };
        assert_eq!(headroom(0, 12), 2.0);
        // What is resident is at most what there is.
        let mut vms = java(12);
        vms[0].freed = 11 * GIB;
        let sum = of(&host(64, 0), &vms);
        assert_eq!(sum.headroom().unwrap().lower, -(GIB as i64));
        assert_eq!(sum.state, OvercommitState::Critical);
    }

    #[test]
    fn allocation_alone_is_at_most_approaching() {
        let vms = vec![vm(64, 4), vm(64, 4)];
        let sum = of(&host(64, 50), &vms);
        assert_eq!((sum.state, sum.ratio()), (OvercommitState::Safe, Some(2.0)));
        assert_eq!(sum.can_grow, Some(120 * GIB));
        assert_eq!(of(&host(64, 6), &vms).state, OvercommitState::Approaching);
        let pressed = VmMemory { swap: SwapState::Pressure, ..vm(64, 4) };
        assert_eq!(of(&host(64, 3), &[pressed, pressed]).state, OvercommitState::Critical);
        assert_eq!(of(&host(64, 3), &[pressed, vm(64, 4)]).state, OvercommitState::Approaching);
        let tight = [vm(64, 50), vm(64, 5)];
        assert_eq!(of(&host(64, 9), &tight).state, OvercommitState::Approaching);
        let swap = SwapState::Pressure;
        let roomy = host(64, 50);
        let state = super::of(&roomy, &vms, swap, BalloonState::Normal).state;
        assert_eq!(state, OvercommitState::Approaching);
    }

    #[test]
    fn what_zfs_caches_is_not_in_use() {
        let vms = [vm(16, 4), vm(16, 4)];
        let full = host(64, 2);
        assert_eq!(of(&full, &vms).state, OvercommitState::Approaching);
        let cached = HostMemory { zfs_arc: 34 * GIB, zfs_arc_evictable: 30 * GIB, ..full };
        let sum = of(&cached, &vms);
        assert_eq!((sum.state, sum.capacity), (OvercommitState::Safe, Some(40 * GIB)));
        assert_eq!(sum.in_use, Some(0.5));
    }

    #[test]
    fn huge_pages_are_a_memory_of_their_own() {
        // QEMU's own memory is resident.
        let huge = VmMemory { is_hugetlb: true, freed: 150 << 20, ..vm(1, 1) };
        let memory = HostMemory { hugetlb_pools: GIB, ..host(64, 40) };
        let sum = of(&memory, &[huge, vm(16, 4)]);
        assert_eq!((sum.configured, sum.physical), (Some(16 * GIB), 63 * GIB));
        assert_eq!(sum.capacity, Some(44 * GIB));
    }

    #[test]
    fn what_is_not_known_is_not_safe() {
        let unknown = VmMemory { working_set: None, ..vm(16, 4) };
        let sum = of(&host(64, 50), &[unknown]);
        assert_eq!((sum.state, sum.headroom()), (OvercommitState::Unknown, None));
        let blind = HostMemory { available: None, ..host(64, 0) };
        assert_eq!(of(&blind, &[vm(16, 4)]).state, OvercommitState::Unknown);
        let swap = SwapState::Unknown;
        let state = super::of(&host(64, 50), &[vm(16, 4)], swap, BalloonState::Normal).state;
        assert_eq!(state, OvercommitState::Unknown);
    }
}
