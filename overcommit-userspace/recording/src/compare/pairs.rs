//! Which VM of one recording is which of another?

use crate::compare::series::Side;
use crate::model::latencies::Latencies;
use crate::model::metric::MetricName;
use crate::model::run::RunVm;
use std::collections::BTreeSet;
use std::ptr;

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

/// The distribution of a metric in all of these recordings together.
pub fn added<'a>(
    recordings: impl IntoIterator<Item = &'a (&'a Side, usize)>,
    metric: &MetricName,
) -> Latencies {
    let mut all = Latencies::empty();
    let each = recordings.into_iter().filter_map(|(side, vm)| side.latencies(*vm, metric));
    each.for_each(|latencies| all.merge(latencies));
    all
}

/// Pairs VMs by uuid, then by name; and names those that are not in every recording, or whose
/// name is not unique there.
pub fn matched<'a>(base: &'a [Side], new: &'a [Side]) -> (Vec<Pair<'a>>, Vec<String>) {
    let (mut pairs, mut unmatched) = (Vec::<Pair<'_>>::new(), Vec::new());
    let among = new[0].vms();
    for (index, vm) in among.iter().enumerate() {
        let find = |runs: &'a [Side]| -> Option<Vec<(&'a Side, usize)>> {
            runs.iter().map(|run| Some((run, the_one(run.vms(), vm, among)?))).collect()
        };
        // Of itself there must be one as well.
        let is_one = the_one(among, vm, among) == Some(index);
        match find(base).zip(find(new)).filter(|_| is_one) {
            Some((base, new)) => pairs.push(Pair { name: vm.name.clone(), base, new }),
            None => unmatched.push(vm.name.clone()),
        }
    }
    // Those of the other recordings that nobody has named yet.
    let paired: BTreeSet<(*const Side, usize)> = pairs
        .iter()
        .flat_map(Pair::everywhere)
        .map(|(run, vm)| (ptr::from_ref(*run), *vm))
        .collect();
    for run in base.iter().chain(new) {
        for (index, vm) in run.vms().iter().enumerate() {
            if !paired.contains(&(ptr::from_ref(run), index)) && !unmatched.contains(&vm.name) {
                unmatched.push(vm.name.clone());
            }
        }
    }
    (pairs, unmatched)
}

/// The only one of the VMs with the same uuid, else with the same name, if only this one of
/// `among`, where it is from, is called so; but not one that has the uuid of another of those.
fn the_one(vms: &[RunVm], vm: &RunVm, among: &[RunVm]) -> Option<usize> {
    let only = |is_it: &dyn Fn(&RunVm) -> bool| {
        let mut found = (0..vms.len()).filter(|index| is_it(&vms[*index]));
        found.next().filter(|_| found.next().is_none())
    };
    let has = |vm: &RunVm, uuid: &Option<String>| uuid.is_some() && vm.uuid == *uuid;
    let is_anothers = |other: &RunVm| {
        !has(vm, &other.uuid) && among.iter().any(|another| has(another, &other.uuid))
    };
    let by_uuid = only(&|other| has(other, &vm.uuid));
    let is_only_one = among.iter().filter(|other| other.name == vm.name).count() == 1;
    let by_name = || only(&|other| other.name == vm.name && !is_anothers(other));
    by_uuid.or_else(|| by_name().filter(|_| is_only_one))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str, uuid: Option<&str>) -> RunVm {
        RunVm { name: name.to_owned(), uuid: uuid.map(str::to_owned), ..RunVm::default() }
    }

    #[test]
    fn a_vm_is_paired_once_and_by_its_uuid_first() {
        let new = [vm("web", Some("1")), vm("db", Some("2"))];
        // Renamed since: it is the second one, whatever it was called.
        let base = [vm("web", Some("2"))];
        assert_eq!(the_one(&base, &new[0], &new), None);
        assert_eq!(the_one(&base, &new[1], &new), Some(0));
    }

    #[test]
    fn two_of_a_name_are_not_paired_with_the_same_one() {
        let new = [vm("web", Some("1")), vm("web", Some("2"))];
        let base = [vm("web", Some("3"))];
        assert_eq!(new.each_ref().map(|vm| the_one(&base, vm, &new)), [None, None]);
    }

    #[test]
    fn one_made_anew_is_found_by_its_name_if_that_is_the_only_one() {
        let new = [vm("web", Some("3"))];
        assert_eq!(the_one(&[vm("web", Some("1"))], &new[0], &new), Some(0));
        assert_eq!(the_one(&[vm("web", None)], &new[0], &new), Some(0));
        assert_eq!(the_one(&[vm("web", None), vm("web", Some("1"))], &new[0], &new), None);
    }
}
