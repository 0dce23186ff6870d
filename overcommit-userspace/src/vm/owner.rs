//! Whose VMs are they? Anybody may start a process that is called like a hypervisor, so what the
//! VMs of one user can take from all others has a bound.

use overcommit_recording::model::vm::{Vm, VmId};
use procfs::process::Process;
use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

/// Ids of users who log in (UID_MIN and UID_MAX in login.defs of shadow-utils). Root and users of
/// services are below, and above: libvirt's is 64055 on Debian.
const LOGINS: RangeInclusive<u32> = 1000..=60_000;
/// Where managers put VMs, by root's leave, whatever user they run as: libvirt and Proxmox.
const OF_MANAGERS: [&str; 3] = ["/machine.slice/", "/machine/", "/qemu.slice/"];
/// VMs of one such user that there is room for when a recording begins, at the most.
const ROOM: usize = 64;
/// VMs that one such user has in any case.
const SHARE: usize = 16;
/// Slots that are kept for others.
const RESERVED: usize = 16;

/// The user who logs in and whom a VM runs as; `None` of a service's or a manager's, or of one that
/// is gone.
pub fn login_user(process: &Process, vm: &Vm) -> Option<u32> {
    if vm.cgroup.as_deref().is_some_and(is_of_manager) {
        return None;
    }
    // Not by who owns /proc/PID, which is root where a process makes itself undumpable.
    process.status().ok().map(|status| status.euid).filter(|user| LOGINS.contains(user))
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
pub struct Slots(BTreeMap<VmId, Option<u32>>);

impl Slots {
    /// Whether a VM may have one of the slots that are free.
    pub fn may_have(&self, user: Option<u32>, free: usize) -> bool {
        let held = || self.0.values().filter(|holder| **holder == user).count();
        user.is_none() || Self::are_ample(free) || held() < SHARE
    }

    /// Whether anybody may have one.
    const fn are_ample(free: usize) -> bool {
        free > RESERVED
    }

    /// A VM has one.
    pub fn add(&mut self, vm: VmId, user: Option<u32>) {
        self.0.insert(vm, user);
    }

    /// It has given it back.
    pub fn remove(&mut self, vm: VmId) {
        self.0.remove(&vm);
    }

    /// Whether it has one.
    pub fn has(&self, vm: VmId) -> bool {
        self.0.contains_key(&vm)
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
