//! VMs of the recording that have ended: those that are kept in it, and those whose places others
//! take. So a host that starts VMs without end makes neither the recorder nor run.json grow.

use overcommit_recording::model::run::{ENDED_VMS_KEPT, RunVm};
use std::collections::BTreeMap;

/// VMs of users who log in that may end in two intervals, before no more of theirs are taken up.
const OF_USERS: usize = 2_500;

/// Whether a VM is one of a user who logs in.
type IsOfUser = bool;

/// VMs that have ended, by their places in the recording.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// In the interval that is not over yet, and in the one before it.
    lately: [Vec<(usize, IsOfUser)>; 2],
    /// Before that: nothing but the recording refers to them any more.
    long_ago: BTreeMap<usize, IsOfUser>,
    /// Of those, places that new VMs take, from the last one on.
    spare: Vec<usize>,
    left_out: u64,
}

impl Ended {
    /// A VM has ended.
    pub(super) fn add(&mut self, place: usize, is_of_user: bool) {
        self.lately[0].push((place, is_of_user));
    }

    /// An interval is over. Above the number that is kept, VMs of users who log in are left out
    /// first: they can start as many as they like. Then those that were not lost, then the shortest.
    pub(super) fn next_interval(&mut self, run: &[RunVm]) {
        let [latest, before] = &mut self.lately;
        self.long_ago.extend(before.drain(..));
        std::mem::swap(latest, before);
        let mut by_worth: Vec<(usize, IsOfUser)> =
            self.long_ago.iter().map(|(place, is_of_user)| (*place, *is_of_user)).collect();
        by_worth.sort_by_key(|(place, is_of_user)| {
            let vm = &run[*place];
            let length_us = vm.ended_us.map(|ended_us| ended_us.saturating_sub(vm.first_seen_us));
            (!is_of_user, vm.was_lost(), length_us)
        });
        by_worth.truncate(by_worth.len().saturating_sub(ENDED_VMS_KEPT));
        self.spare = by_worth.into_iter().rev().map(|(place, _)| place).collect();
    }

    /// Whether so many VMs of users who log in have ended lately that no more of theirs may begin:
    /// the rows of an interval are still to be written.
    pub(super) fn are_many_of_users(&self) -> bool {
        let of_users = self.lately.iter().flatten().filter(|(_, is_of_user)| *is_of_user);
        of_users.count() >= OF_USERS
    }

    /// The place of a VM that is left out from now on, if one is to be.
    pub(super) fn leave_out(&mut self) -> Option<usize> {
        let place = self.spare.pop()?;
        self.long_ago.remove(&place);
        self.left_out += 1;
        Some(place)
    }

    /// How many are to be.
    pub(super) fn spare(&self) -> usize {
        self.spare.len()
    }

    /// How many were left out.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overcommit_recording::model::run::EndedBy;

    fn lived(length_us: u64) -> RunVm {
        RunVm { first_seen_us: 1, ended_us: Some(1 + length_us), ..RunVm::default() }
    }

    /// As many as are kept and these, an interval later than places may be taken from.
    fn above(mut run: Vec<RunVm>, of_user: &[usize]) -> Ended {
        run.extend((0..ENDED_VMS_KEPT).map(|_| lived(1_000_000)));
        let mut ended = Ended::default();
        (0..run.len()).for_each(|place| ended.add(place, of_user.contains(&place)));
        ended.next_interval(&run);
        assert_eq!(ended.leave_out(), None, "the interval in which they ended is still told of");
        ended.next_interval(&run);
        ended
    }

    fn left_out(ended: &mut Ended) -> Vec<usize> {
        std::iter::from_fn(|| ended.leave_out()).collect()
    }

    #[test]
    fn no_more_than_a_number_is_kept() {
        let mut ended = above(vec![lived(5), lived(3), lived(4)], &[]);
        assert_eq!(left_out(&mut ended), [1, 2, 0]);
        assert_eq!((ended.left_out(), ended.long_ago.len()), (3, ENDED_VMS_KEPT));
    }

    #[test]
    fn a_vm_that_was_lost_stays_longer_than_one_that_ran_well() {
        let lost = RunVm { ended_by: Some(EndedBy::OomCgroup), ..lived(1) };
        let mut ended = above(vec![lost, lived(2)], &[]);
        let left_out = left_out(&mut ended);
        assert!(left_out.len() == 2 && left_out[0] == 1 && !left_out.contains(&0), "{left_out:?}");
    }

    #[test]
    fn users_wait_where_many_of_theirs_ended_in_one_interval() {
        let mut ended = Ended::default();
        for place in 0..OF_USERS {
            assert!(!ended.are_many_of_users());
            ended.add(2 * place, true);
            ended.add(2 * place + 1, false);
        }
        assert!(ended.are_many_of_users());
        let run = vec![lived(1); 2 * OF_USERS];
        ended.next_interval(&run);
        assert!(ended.are_many_of_users(), "that interval has not been forgotten yet");
        ended.next_interval(&run);
        assert!(!ended.are_many_of_users());
    }

    #[test]
    fn users_push_out_none_but_their_own() {
        let lost = RunVm { ended_by: Some(EndedBy::OomCgroup), ..lived(u64::MAX - 1) };
        let mut ended = above(vec![lived(1), lost], &[1]);
        assert_eq!(left_out(&mut ended), [1, 0]);
    }
}
