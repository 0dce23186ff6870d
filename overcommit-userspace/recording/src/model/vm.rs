//! A virtual machine: a process that runs one.

use crate::model::name::Name;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// One run of a process: PIDs are used again, their start times are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId {
    /// Process id.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: start after boot, in clock ticks.
    pub start_ticks: u64,
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.pid, self.start_ticks)
    }
}

/// How a VM got the name that it is shown under.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamedBy {
    /// QEMU's `-name guest=`.
    Guest,
    /// QEMU's `-name process=`.
    Process,
    /// Firecracker's `--id`, or crosvm's `--name`.
    Id,
    /// The API socket of Cloud Hypervisor or crosvm.
    Socket,
    /// Nothing: executable and PID.
    #[default]
    Pid,
    /// In a way that a later version knows.
    #[serde(other)]
    Other,
}

impl NamedBy {
    /// In words, for `list`.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Guest => "-name guest=",
            Self::Process => "-name process=",
            Self::Id => "--id or --name",
            Self::Socket => "its API socket",
            Self::Pid => "PID (no name given)",
            Self::Other => "in a way that this version does not know",
        }
    }
}

/// What backs the largest mapping of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backing {
    /// Private anonymous memory.
    Anonymous,
    /// `memfd_create`.
    Memfd,
    /// A file, on tmpfs or on disk.
    File,
    /// Huge pages out of the host's pool.
    Hugetlb,
    /// What a later version knows.
    #[serde(other)]
    Other,
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "anonymous",
            Self::Memfd => "memfd",
            Self::File => "file",
            Self::Hugetlb => "hugetlb",
            Self::Other => "other",
        })
    }
}

/// Where a process has its guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// What backs it.
    pub backing: Backing,
    /// Its first address.
    pub start: u64,
    /// The address behind it.
    pub end: u64,
}

/// A monitor that speaks QMP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Monitor {
    /// QEMU listens there, as it sees the file system.
    Socket(PathBuf),
    /// A descriptor that whoever started it holds, as libvirt does.
    Held,
}

/// Where a process listens for whoever is to talk to what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listening {
    /// At that path, as the process sees the file system.
    At(PathBuf),
    /// At that descriptor, which it was given.
    Descriptor(i32),
}

/// What is spoken at a port of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dialect {
    /// A line for a line, see docs/guest-protocol.md.
    Own,
    /// vhostmd's XML.
    Vhostmd,
}

impl Dialect {
    /// Each.
    pub const ALL: [Self; 2] = [Self::Own, Self::Vhostmd];

    /// The name of its port, by which the guest finds it.
    pub const fn port(self) -> &'static str {
        match self {
            Self::Own => "org.overcommit.truth.0",
            Self::Vhostmd => "org.github.vhostmd.1",
        }
    }

    /// What is spoken at a port of that name, if we know it.
    pub fn of(port: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|dialect| dialect.port().as_bytes() == port)
    }
}

/// A virtio-serial port of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// What is spoken there.
    pub dialect: Dialect,
    /// Its host's end.
    pub place: Listening,
}

/// The ways by which a guest can reach its host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// Its ports that we know.
    pub ports: Vec<Port>,
    /// Its CID on the host's vhost-vsock.
    pub cid: Option<u32>,
}

/// Bytes of a guest that lie where they lie in its process, from the start.
const FLAT: u64 = 1 << 30;

/// A virtual machine: a process that runs one.
#[derive(Clone, Debug, PartialEq)]
pub struct Vm {
    /// Which run of which process.
    pub id: VmId,
    /// What it is called; not unique.
    pub name: Name,
    /// Why it is called so.
    pub named_by: NamedBy,
    /// QEMU's `-uuid`, or that of `-smbios`; in lower case.
    pub uuid: Option<String>,
    /// Proxmox's `-id`, its VMID.
    pub proxmox_id: Option<String>,
    /// File name of the executable.
    pub executable: String,
    /// vCPUs at the start.
    pub vcpus: Option<u32>,
    /// Memory configured, what is plugged in included, in bytes.
    pub memory_bytes: Option<u64>,
    /// What of it is plugged in.
    pub plugged: Plugged,
    /// Where the guest's memory is.
    pub mapping: Option<Mapping>,
    /// `kvm`, `tcg`, …
    pub accelerator: Option<String>,
    /// Path in the hierarchy of the memory controller.
    pub cgroup: Option<String>,
    /// Where QEMU can be asked.
    pub monitors: Vec<Monitor>,
    /// By which ways its guest can reach us.
    pub channels: Channels,
}

/// Memory of a VM beside what it began with, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plugged {
    /// DIMMs, each of which is there as a whole.
    pub dimms: u64,
    /// virtio-mem, as far as the guest was asked to take it.
    pub virtio_mem: u64,
    /// The largest device, persistent memory included, with what of it is not there.
    pub largest: u64,
}

impl Vm {
    /// Whether it runs on KVM, and not in an emulator alone.
    pub fn is_kvm(&self) -> bool {
        self.accelerator.as_deref() == Some("kvm")
    }

    /// One of which nothing can be told any more but that it was a hypervisor.
    pub fn gone(id: VmId) -> Self {
        Self {
            id,
            name: Name::new(format!("gone-{}", id.pid)),
            named_by: NamedBy::Pid,
            uuid: None,
            proxmox_id: None,
            executable: "hypervisor".to_owned(),
            vcpus: None,
            memory_bytes: None,
            plugged: Plugged::default(),
            mapping: None,
            accelerator: None,
            cgroup: None,
            monitors: Vec::new(),
            channels: Channels::default(),
        }
    }

    /// Where in the guest's physical memory an address of its process lies; `None` where
    /// that cannot be told without asking QEMU. On x86 the first GiB lies at its own place:
    /// a machine has no less below its hole for devices (`pc_memory_init`, hw/i386/pc.c, by
    /// `max-ram-below-4g`, of which QEMU warns if it is less).
    pub fn guest_address(&self, address: u64) -> Option<u64> {
        let base = self.memory_bytes?.checked_sub(self.plugged.dimms + self.plugged.virtio_mem)?;
        // The largest mapping is not what is plugged in.
        let is_base = |map: &Mapping| map.end - map.start == base && self.plugged.largest < base;
        let mapping = self.mapping.filter(is_base)?;
        let offset = address.checked_sub(mapping.start)?;
        let is_x86 = cfg!(target_arch = "x86_64") && self.executable.starts_with("qemu-system-x86");
        (is_x86 && offset < FLAT.min(base)).then_some(offset)
    }

    /// What backs the guest's memory.
    pub fn backing(&self) -> Option<Backing> {
        Some(self.mapping?.backing)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A VM of that name.
    pub(crate) fn vm(name: &str) -> Vm {
        Vm {
            name: Name::new(name),
            named_by: NamedBy::Guest,
            executable: "qemu-system-x86_64".to_owned(),
            vcpus: Some(2),
            memory_bytes: Some(1 << 30),
            accelerator: Some("kvm".to_owned()),
            cgroup: Some("/vms/a".to_owned()),
            ..Vm::gone(VmId { pid: 42, start_ticks: 4711 })
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn what_is_plugged_in_is_not_taken_for_what_the_vm_began_with() {
        let gib = |count: u64| count << 30;
        let mapping = Mapping { backing: Backing::Anonymous, start: 0x1000, end: 0x1000 + gib(4) };
        let address = |all, plugged| {
            let mapping = Some(mapping);
            let vm = Vm { memory_bytes: Some(gib(all)), plugged, mapping, ..vm("web") };
            vm.guest_address(0x1010)
        };
        let dimm = |size| Plugged { dimms: gib(size), largest: gib(size), virtio_mem: 0 };
        assert_eq!(address(4, Plugged::default()), Some(0x10));
        assert_eq!(address(6, dimm(2)), Some(0x10));
        assert_eq!(address(8, dimm(4)), None, "the mapping may be the DIMM's");
        let virtio_mem = Plugged { virtio_mem: gib(2), largest: gib(4), dimms: 0 };
        assert_eq!(address(4, virtio_mem), None, "that is not what it began with");
    }
}
