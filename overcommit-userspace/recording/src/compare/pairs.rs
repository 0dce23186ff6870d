//! Which VM of one recording is which of another?

use crate::compare::series::Side;
use crate::model::metric::MetricName;
use crate::model::run::RunVm;

/// A VM on both sides: one recording or more, each with its index there.
#[derive(Debug)]
pub struct Pair<'a> {
    /// The VM's name.
    pub name: String,
    /// In each recording of the base.
    pub base: Vec<(&'a Side, usize)>,
    /// In each of the other side.
    pub new: Vec<(&'a Side, usize)>,
}

impl<'a> Pair<'a> {
    /// Where it is, in all recordings.
    pub fn everywhere(&self) -> impl Iterator<Item = &(&'a Side, usize)> {
        self.base.iter().chain(&self.new)
    }

    /// Every metric that is compared and of which any recording counted something.
    pub fn counted(&self) -> Vec<&'a MetricName> {
        let mut metrics: Vec<_> =
            self.everywhere().flat_map(|(side, vm)| side.counted(*vm)).collect();
        metrics.sort();
        metrics.dedup();
        metrics
    }
}

/// Pairs VMs by uuid, then by name; and names those of which there is no other, or more than
/// one.
pub fn matched<'a>(base: &'a [Side], new: &'a [Side]) -> (Vec<Pair<'a>>, Vec<String>) {
    let (mut pairs, mut unmatched) = (Vec::<Pair<'_>>::new(), Vec::new());
    for (index, vm) in new[0].vms() {
        let find = |runs: &'a [Side]| -> Option<Vec<(&'a Side, usize)>> {
            runs.iter().map(|run| Some((run, the_one(run, vm, &new[0])?))).collect()
        };
        // Of itself there must be one as well.
        let is_one = the_one(&new[0], vm, &new[0]) == Some(index);
        match find(base).zip(find(new)).filter(|_| is_one) {
            Some((base, new)) => pairs.push(Pair { name: vm.name.clone(), base, new }),
            None => unmatched.push(vm.name.clone()),
        }
    }
    for (index, vm) in base[0].vms() {
        let is_taken = |pair: &Pair<'_>| pair.base[0].1 == index;
        if !pairs.iter().any(is_taken) && !unmatched.contains(&vm.name) {
            unmatched.push(vm.name.clone());
        }
    }
    (pairs, unmatched)
}

/// The only VM of a recording with the same uuid, else with the same name; but not one that
/// another VM of `among`, from where this one is, has the uuid of.
fn the_one(run: &Side, vm: &RunVm, among: &Side) -> Option<usize> {
    let only = |is_it: &dyn Fn(&RunVm) -> bool| {
        let mut found = run.vms().filter(|(_, other)| is_it(other)).map(|(index, _)| index);
        found.next().filter(|_| found.next().is_none())
    };
    let by_uuid = || only(&|other| other.uuid.is_some() && other.uuid == vm.uuid);
    let is_anothers = |other: &RunVm| {
        other.uuid.is_some()
            && among.vms().any(|(_, its)| its.uuid == other.uuid)
            && other.uuid != vm.uuid
    };
    by_uuid().or_else(|| only(&|other| other.name == vm.name && !is_anothers(other)))
}
