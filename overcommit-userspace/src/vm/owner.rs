//! Whose VMs are they? Anybody may start a process that is called like a hypervisor, so what the
//! VMs of one user can take from all others has a bound.

use overcommit_recording::model::vm::{Vm, VmId};
use procfs::process::Process;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::RangeInclusive;

/// Ids of users who log in (UID_MIN and UID_MAX in login.defs of shadow-utils). Root and users of
/// services are below, and above: libvirt's is 64055 on Debian.
const LOGINS: RangeInclusive<u32> = 1000..=60_000;
/// Which ids each user may map into containers of theirs: `NAME:FIRST:COUNT` (subuid(5)).
const MAPPED: &str = "/etc/subuid";
/// Where managers put VMs, by root's leave, whatever user they run as: libvirt and Proxmox.
const OF_MANAGERS: [&str; 3] = ["/machine.slice/", "/machine/", "/qemu.slice/"];
/// VMs of one such user that there is room for when a recording begins, at the most.
const ROOM: usize = 64;
/// VMs that one such user has in any case.
const SHARE: usize = 16;
/// The user whom VMs count for that were gone before anybody could look whose they were.
pub const GONE: u32 = u32::MAX;
/// Slots that are kept for others.
const RESERVED: usize = 16;

/// The user who logs in and whom a VM runs as, in a container of theirs or not; `None` of a
/// service's or a manager's, or of one that is gone.
pub fn login_user(process: &Process, vm: &Vm) -> Option<u32> {
    if vm.cgroup.as_deref().is_some_and(is_of_manager) {
        return None;
    }
    // Not by who owns /proc/PID, which is root where a process makes itself undumpable.
    counted_as(process.status().ok()?.euid, &fs::read_to_string(MAPPED).unwrap_or_default())
}

/// Whom the VMs of a user id count for: all ids that a user may map are that user's.
fn counted_as(user: u32, mapped: &str) -> Option<u32> {
    let mut ranges = mapped.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(1).map(|field| field.trim().parse::<u32>().ok());
        Some((fields.next()??, fields.next()??))
    });
    let is_in =
        |(first, count): &(u32, u32)| user.checked_sub(*first).is_some_and(|at| at < *count);
    let first = ranges.find(is_in).map(|(first, _)| first);
    first.or_else(|| LOGINS.contains(&user).then_some(user))
}

fn is_of_manager(cgroup: &str) -> bool {
    OF_MANAGERS.iter().any(|place| cgroup.starts_with(place))
}

/// How many of these VMs there is to be room for.
pub fn with_room(vms: &[Vm], user: impl Fn(&Vm) -> Option<u32>) -> usize {
    let mut by_user: HashMap<u32, usize> = HashMap::new();
    let mut of_services = 0;
    for vm in vms {
        match user(vm) {
            Some(user) => *by_user.entry(user).or_default() += 1,
            None => of_services += 1,
        }
    }
    of_services + by_user.values().map(|count| (*count).min(ROOM)).sum::<usize>()
}

/// Which of the VMs that have a slot are whose.
#[derive(Debug, Default)]
pub struct Slots {
    held: BTreeMap<VmId, Option<u32>>,
}

impl Slots {
    /// Whether a VM may have one of the slots that are free.
    pub fn may_have(&self, user: Option<u32>, free: usize) -> bool {
        let held = || self.held.values().filter(|holder| **holder == user).count();
        user.is_none() || Self::are_ample(free) || held() < SHARE
    }

    /// Whether anybody may have one.
    const fn are_ample(free: usize) -> bool {
        free > RESERVED
    }

    /// A VM has one.
    pub fn add(&mut self, vm: VmId, user: Option<u32>) {
        self.held.insert(vm, user);
    }

    /// It has given it back; gives the user who logs in and whose it was.
    pub fn remove(&mut self, vm: VmId) -> Option<u32> {
        self.held.remove(&vm).flatten()
    }

    /// Whether it has one.
    pub fn has(&self, vm: VmId) -> bool {
        self.held.contains_key(&vm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(pid: i32) -> VmId {
        VmId { pid, start_ticks: 1 }
    }

    #[test]
    fn a_user_cannot_take_all_slots() {
        let mut slots = Slots::default();
        let mut free = 64;
        for pid in 0..300 {
            if slots.may_have(Some(1000), free) {
                slots.add(id(pid), Some(1000));
                free -= 1;
            }
        }
        assert_eq!(free, RESERVED, "{slots:?}");
        assert!(slots.may_have(Some(1001), free) && slots.may_have(None, 0));
        slots.remove(id(0));
        assert!(!slots.has(id(0)) && slots.has(id(1)));
        assert!(slots.may_have(Some(1000), free + 1));
    }

    #[test]
    fn ids_that_a_user_was_given_are_one_user() {
        let mapped = "# x\nann:100000:65536\nbob:165536:65536\n";
        for (user, counted) in [
            (100_000, Some(100_000)),
            (165_535, Some(100_000)),
            (165_536, Some(165_536)),
            (231_072, None),
            (1_000, Some(1_000)),
            (64_055, None),
            (0, None),
        ] {
            assert_eq!(counted_as(user, mapped), counted, "{user}");
        }
    }

    #[test]
    fn managers_put_vms_where_no_user_can() {
        assert!(is_of_manager("/machine.slice/machine-qemu\\x2d1\\x2dweb.scope/libvirt"));
        assert!(
            is_of_manager("/qemu.slice/100.scope") && is_of_manager("/machine/web.libvirt-qemu")
        );
        assert!(!is_of_manager("/user.slice/user-1000.slice/machine.slice/web.scope"));
        assert!(!is_of_manager("/") && !LOGINS.contains(&64_055) && LOGINS.contains(&1000));
    }

    #[test]
    fn room_for_a_user_has_a_bound() {
        let vms: Vec<Vm> = (0..500).map(|pid| Vm::gone(id(pid))).collect();
        assert_eq!(with_room(&vms, |_| None), 500);
        assert_eq!(with_room(&vms, |_| Some(1000)), ROOM);
        assert_eq!(with_room(&vms, |vm| (vm.id.pid < 400).then_some(1000)), ROOM + 100);
    }
}
