//! How much of its memory does a VM use?
//!
//! By the best source that this kernel has and that sees what a guest touches through
//! its own page tables (EPT, NPT): `damon`, else `mglru`. `clear_refs` does not see that,
//! and is for VMs that run without such tables. Where nothing can be asked, what
//! is resident bounds it (`bounds`).

pub mod clear_refs;
pub mod damon;
pub mod follow;
pub mod guard;
pub mod mglru;

use crate::host::working_set::follow::Target;
use overcommit_recording::model::memory::Range;
use overcommit_recording::model::memory::Source;
use overcommit_recording::model::memory::WorkingSet;
use overcommit_recording::model::vm::Backing;
use std::collections::VecDeque;
use std::path::Path;

/// What the user wants to measure with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Wanted {
    /// The best source that changes nothing
    #[default]
    Auto,
    /// DAMON; stops the kernel's own use of it meanwhile
    Damon,
    /// The generations of the multi-generational LRU
    Mglru,
    /// Referenced bits of the page tables; TCG only; disturbs the kernel's page ageing
    ClearRefs,
    /// Do not measure; give bounds from resident memory
    Bounds,
}

/// Share of a CPU that measuring all VMs may take.
pub const COST_MAX: f64 = 0.02;
/// Windows that the range is over.
pub const WINDOWS: usize = 5;

/// The last windows of a VM, each with its own range.
#[derive(Debug, Default)]
pub struct Windows(VecDeque<Range>);

impl Windows {
    /// Takes one more; the range over all once there are enough.
    pub fn advance(&mut self, window: Range) -> Option<Range> {
        self.0.push_back(window);
        if self.0.len() > WINDOWS {
            self.0.pop_front();
        }
        let lower = self.0.iter().map(|range| range.lower).min()?;
        let upper = self.0.iter().map(|range| range.upper).max()?;
        (self.0.len() == WINDOWS).then_some(Range { lower, upper })
    }
}

/// What this host can measure with; why not, where it cannot.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// DAMON of virtual addresses.
    pub damon: Result<(), String>,
    /// The multi-generational LRU.
    pub mglru: Result<(), String>,
}

impl Capabilities {
    /// Of the host that `sys` is of.
    pub fn probe(sys: &Path, wanted: Wanted, mglru_sees_guests: bool) -> Self {
        let said = |checked: anyhow::Result<()>| checked.map_err(|error| format!("{error:#}"));
        Self {
            damon: said(damon::check(sys, wanted == Wanted::Damon)),
            mglru: said(mglru::check(sys, mglru_sees_guests)),
        }
    }
}

/// Whether what is wanted can be used on the host that `sys` is of, for whichever VM.
///
/// # Errors
/// Why it cannot.
pub fn require(sys: &Path, wanted: Wanted, mglru_sees_guests: bool) -> anyhow::Result<()> {
    match wanted {
        Wanted::Damon => damon::check(sys, true),
        Wanted::Mglru => mglru::check(sys, mglru_sees_guests),
        Wanted::Auto | Wanted::ClearRefs | Wanted::Bounds => Ok(()),
    }
}

/// What to measure a VM with; why with nothing.
///
/// # Errors
/// Why it can only be bounded.
pub fn choose(wanted: Wanted, host: &Capabilities, target: &Target) -> Result<Source, String> {
    let Some(backing) = target.vm.backing() else {
        return Err("its memory is not known yet".to_owned());
    };
    if backing == Backing::Hugetlb {
        return Err("huge pages of the pool are never reclaimed".to_owned());
    }
    let damon = || host.damon.clone().map(|()| Source::Damon);
    let mglru = || {
        host.mglru.clone()?;
        // Generations are a cgroup's.
        let own = target.cgroup.as_ref().map(|_| Source::Mglru);
        own.ok_or_else(|| "its memory cgroup is not its own".to_owned())
    };
    match wanted {
        Wanted::Bounds => Err("not asked for".to_owned()),
        Wanted::Damon => damon(),
        Wanted::Mglru => mglru(),
        Wanted::ClearRefs if target.has_page_tables => {
            Err("the guest runs on page tables of its own, which clear_refs does not see"
                .to_owned())
        }
        Wanted::ClearRefs => Ok(Source::ClearRefs),
        Wanted::Auto => damon()
            .or_else(|no_damon| mglru().map_err(|no_mglru| format!("{no_damon}; {no_mglru}"))),
    }
}

/// Without a source: nothing that was not resident was missed, so it is no more than
/// that; or else it is no less.
pub fn bounds(resident: u64, configured: Option<u64>, is_missed: bool) -> Option<WorkingSet> {
    let range = if is_missed {
        Range { lower: resident, upper: configured?.max(resident) }
    } else {
        Range { lower: 0, upper: resident }
    };
    Some(WorkingSet { range, source: Source::Bounds, window_s: 10.0, cost: 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use overcommit_recording::model::vm::{Mapping, Vm, VmId};

    fn target(backing: Option<Backing>, has_page_tables: bool, cgroup: Option<&str>) -> Target {
        let mapping = backing.map(|backing| Mapping { backing, start: 0, end: 1 << 30 });
        let vm = Vm { mapping, ..Vm::gone(VmId { pid: 42, start_ticks: 4711 }) };
        Target { vm, has_page_tables, cgroup: cgroup.map(str::to_owned) }
    }

    #[test]
    fn the_best_source_that_sees_is_taken() {
        let no = |why: &str| Err(why.to_owned());
        let anonymous = Some(Backing::Anonymous);
        let (guest, emulated) =
            (target(anonymous, true, Some("/a")), target(anonymous, false, Some("/a")));
        let all = Capabilities { damon: Ok(()), mglru: Ok(()) };
        assert_eq!(choose(Wanted::Auto, &all, &guest), Ok(Source::Damon));
        let without_damon = Capabilities { damon: no("no damon"), ..all.clone() };
        assert_eq!(choose(Wanted::Auto, &without_damon, &guest), Ok(Source::Mglru));
        let shares = target(anonymous, true, None);
        let why = choose(Wanted::Auto, &without_damon, &shares).unwrap_err();
        assert!(why.contains("not its own"), "{why}");
        let none = Capabilities { mglru: no("no mglru"), ..without_damon };
        let why = choose(Wanted::Auto, &none, &guest).unwrap_err();
        assert_eq!(why, "no damon; no mglru");
        assert_eq!(choose(Wanted::ClearRefs, &none, &emulated), Ok(Source::ClearRefs));
        let why = choose(Wanted::ClearRefs, &all, &guest).unwrap_err();
        assert!(why.contains("does not see"), "{why}");
        let why = choose(Wanted::Damon, &none, &guest).unwrap_err();
        assert_eq!(why, "no damon", "never another one than was asked for");
        for unfit in [target(Some(Backing::Hugetlb), true, None), target(None, true, None)] {
            assert!(choose(Wanted::Auto, &all, &unfit).is_err());
        }
    }

    #[test]
    fn the_range_is_over_the_last_windows() {
        let mut windows = Windows::default();
        let window = |lower, upper| Range { lower, upper };
        for lower in [1, 5, 5, 5] {
            assert_eq!(windows.advance(window(lower, 9)), None);
        }
        assert_eq!(windows.advance(window(5, 7)), Some(window(1, 9)));
        assert_eq!(windows.advance(window(5, 12)), Some(window(5, 12)));
    }

    #[test]
    fn without_a_source_it_is_bounded() {
        let range = |missed| bounds(3, Some(8), missed).unwrap().range;
        assert_eq!(range(false), Range { lower: 0, upper: 3 });
        assert_eq!(range(true), Range { lower: 3, upper: 8 });
        assert_eq!(bounds(3, None, true), None);
    }
}
