//! What did the time that a VM lost go into?

use overcommit_ebpf::layout::Part;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// Parts of the time of faults, or of the windows of `stall.memory` with the faults in them,
/// in nanoseconds; one that was not seen is `None`. They do not overlap, but for
/// [`Part::SwapinIo`], which here is a part of [`Part::Swapin`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Breakdown {
    /// All of it.
    pub total_ns: u64,
    /// By [`Part`].
    pub parts_ns: [Option<u64>; Part::COUNT],
    /// Of windows: outside faults, where KVM works itself.
    pub kvm_ns: Option<u64>,
    /// Of windows: outside faults, while the vCPU slept until a worker had read its page.
    pub background_ns: Option<u64>,
}

impl Breakdown {
    /// As the programs counted it; a part that is not seen is left out.
    pub fn new(total_ns: u64, counted: [u64; Part::COUNT], is_seen: impl Fn(Part) -> bool) -> Self {
        let mut parts_ns = [None; Part::COUNT];
        for part in Part::ALL.into_iter().filter(|part| is_seen(*part)) {
            parts_ns[part as usize] = Some(counted[part as usize]);
        }
        if let Some(swapin) = &mut parts_ns[Part::Swapin as usize] {
            *swapin += counted[Part::SwapinIo as usize];
        }
        Self { total_ns, parts_ns, ..Self::default() }
    }

    /// A part.
    pub const fn of(&self, part: Part) -> Option<u64> {
        self.parts_ns[part as usize]
    }

    /// What is in no part that was seen.
    pub fn rest_ns(&self) -> u64 {
        let whole = Part::ALL.into_iter().filter(|part| *part != Part::SwapinIo);
        let seen: u64 = whole.filter_map(|part| self.of(part)).sum();
        let outside: u64 = [self.kvm_ns, self.background_ns].into_iter().flatten().sum();
        self.total_ns.saturating_sub(seen + outside)
    }

    /// Adds another time.
    pub fn add(&mut self, other: Self) {
        self.total_ns += other.total_ns;
        let sums = self.parts_ns.iter_mut().chain([&mut self.kvm_ns, &mut self.background_ns]);
        let others = other.parts_ns.into_iter().chain([other.kvm_ns, other.background_ns]);
        for (sum, more) in sums.zip(others) {
            *sum = match (*sum, more) {
                (Some(sum), Some(more)) => Some(sum + more),
                (sum, more) => sum.or(more),
            };
        }
    }
}

impl Serialize for Breakdown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("total_ns", &self.total_ns)?;
        for part in Part::ALL {
            map.serialize_entry(&format!("{}_ns", part.name()), &self.of(part))?;
        }
        if let Some(kvm_ns) = self.kvm_ns {
            map.serialize_entry("kvm_ns", &kvm_ns)?;
        }
        if let Some(background_ns) = self.background_ns {
            map.serialize_entry("background_ns", &background_ns)?;
        }
        map.serialize_entry("rest_ns", &self.rest_ns())?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_in_holds_its_sleep_and_parts_add_up() {
        let mut counted = [0; Part::COUNT];
        counted[Part::Reclaim as usize] = 10;
        counted[Part::Swapin as usize] = 20;
        counted[Part::SwapinIo as usize] = 30;
        let mut time = Breakdown::new(100, counted, |part| part != Part::Lock);
        assert_eq!(time.of(Part::Swapin), Some(50));
        assert_eq!((time.of(Part::Lock), time.rest_ns()), (None, 40));
        time.add(Breakdown::new(10, [1; Part::COUNT], |part| part == Part::Lock));
        assert_eq!((time.of(Part::Lock), time.of(Part::Swapin)), (Some(1), Some(50)));
        assert_eq!((time.total_ns, time.rest_ns()), (110, 49));
        let background_ns = Some(6);
        time.add(Breakdown {
            total_ns: 11,
            kvm_ns: Some(4),
            background_ns,
            ..Breakdown::default()
        });
        assert_eq!((time.kvm_ns, time.background_ns), (Some(4), Some(6)));
        assert_eq!(time.rest_ns(), 50);
    }
}
