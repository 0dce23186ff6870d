//! Whose VMs are they? Anybody may start a process that is called like a hypervisor, so what the
//! VMs of one user can take from all others has a bound.

use overcommit_recording::model::vm::{Mapping, Vm, VmId};
use procfs::process::Process;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Read;
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
/// Memory that a VM has at the least, in bytes.
const SMALLEST: u64 = 16 << 20;
/// vCPUs that a VM can have at the most: `KVM_MAX_VCPUS` of x86 is 4,096, of Arm 512.
const VCPUS: usize = 4096;
/// Slots that are kept for others.
const RESERVED: usize = 16;

/// The user who logs in and whom a VM runs as, in a container of theirs or not; `None` of a
/// service's or a manager's, or of one that is gone.
pub fn login_user(process: &Process, vm: &Vm) -> Option<u32> {
    if vm.cgroup.as_deref().is_some_and(is_of_manager) {
        return None;
    }
    let mut status = Vec::new();
    process.open_relative("status").ok()?.read_to_end(&mut status).ok()?;
    counted_as(effective_user(&status)?, &fs::read_to_string(MAPPED).unwrap_or_default())
}

/// The user in /proc/PID/status, of which a start asks each VM twice: the crate's reader goes through
/// all of it. Not the owner of /proc/PID, which is root where a process makes itself undumpable.
fn effective_user(status: &[u8]) -> Option<u32> {
    // What a process calls itself need not be text.
    let users = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    std::str::from_utf8(users).ok()?.split_whitespace().nth(1)?.parse().ok()
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

/// What there is to be room for when a recording begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// VMs.
    pub vms: usize,
    /// Those among them that are VMs by more than their name.
    pub real: usize,
    /// Virtual CPUs of those.
    pub vcpus: usize,
}

impl Room {
    /// For one VM.
    pub const ONE: Self = Self { vms: 1, real: 1, vcpus: 1 };

    /// For these VMs: of one user, for some of them.
    pub fn for_vms(vms: &[Vm], user: impl Fn(&Vm) -> Option<u32>) -> Self {
        let mut by_user: HashMap<u32, usize> = HashMap::new();
        let mut room = Self::default();
        let (real, named): (Vec<&Vm>, Vec<&Vm>) = vms.iter().partition(|vm| is_real(vm));
        for vm in real.into_iter().chain(named) {
            if let Some(user) = user(vm) {
                let count = by_user.entry(user).or_default();
                *count += 1;
                if *count > ROOM {
                    continue;
                }
            }
            room.vms += 1;
            if is_real(vm) {
                room.real += 1;
                // What a command line says, it may say of a process that does nothing.
                let vcpus = vm.vcpus.filter(|_| uses_kvm(vm)).unwrap_or(1);
                room.vcpus += (vcpus as usize).min(VCPUS);
            }
        }
        room
    }
}

/// Whether a process is a VM by more than what it is called: it uses KVM, or has memory like one.
pub fn is_real(vm: &Vm) -> bool {
    let has_memory = |memory: Mapping| memory.end - memory.start >= SMALLEST;
    uses_kvm(vm) || vm.mapping.is_some_and(has_memory)
}

fn uses_kvm(vm: &Vm) -> bool {
    vm.accelerator.as_deref() == Some("kvm")
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
    use overcommit_recording::model::vm::Backing;

    fn id(pid: i32) -> VmId {
        VmId { pid, start_ticks: 1 }
    }

    #[test]
    fn the_effective_user_is_told_whatever_the_process_calls_itself() {
        let status = b"Name:\tq\xff\\nUid:\t0\t0\nUmask:\t0022\nUid:\t1000\t1001\t1002\t1003\n";
        assert_eq!(effective_user(status), Some(1001));
        assert_eq!(effective_user(b"Name:\tqemu\n"), None);
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
        let count = |user: fn(&Vm) -> Option<u32>| Room::for_vms(&vms, user).vms;
        assert_eq!(count(|_| None), 500);
        assert_eq!(count(|_| Some(1000)), ROOM);
        assert_eq!(count(|vm| (vm.id.pid < 400).then_some(1000)), ROOM + 100);
    }

    #[test]
    fn a_name_makes_no_vm() {
        let named = Vm { vcpus: Some(255), ..Vm::gone(id(1)) };
        let with_kvm =
            Vm { accelerator: Some("kvm".to_owned()), vcpus: Some(8), ..Vm::gone(id(2)) };
        let memory = |end| Some(Mapping { backing: Backing::Anonymous, start: 4096, end });
        let small = Vm { mapping: memory(SMALLEST), ..Vm::gone(id(3)) };
        let mapping = memory(SMALLEST + 4096);
        let large = Vm { mapping, vcpus: Some(64), ..Vm::gone(id(4)) };
        let room = Room::for_vms(&[named, with_kvm, small, large], |_| None);
        assert_eq!(room, Room { vms: 4, real: 2, vcpus: 9 });
    }
}
