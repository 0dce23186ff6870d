//! What the programs send one by one: VMs that start and end, and slow faults.

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::maps::{Map, MapData, RingBuf};
use bytes::Buf;
use overcommit_ebpf::layout::{Lifecycle, LifecycleKind, Metric, SlowFault};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// VMs that start and end.
pub struct Events {
    ring: RingBuf<MapData>,
    /// The map once more, to wait on.
    fd: OwnedFd,
}

/// Something that happened to a VM's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub kind: LifecycleKind,
    /// Its slot.
    pub slot: u32,
    /// Process id.
    pub pid: i32,
    /// Whether what starts runs VMs by KVM alone.
    pub is_micro_vm: bool,
}

impl Events {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self> {
        let (ring, fd) = ring(ebpf, "EVENTS")?;
        Ok(Self { ring, fd })
    }
}

impl Iterator for Events {
    type Item = Event;

    /// The next event, if one has come.
    fn next(&mut self) -> Option<Event> {
        loop {
            let item = self.ring.next()?;
            if let Some(event) = event(&item) {
                return Some(event);
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Faults above the length asked for.
pub struct SlowFaults(RingBuf<MapData>);

impl SlowFaults {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self(ring(ebpf, "SLOW")?.0))
    }
}

impl Iterator for SlowFaults {
    type Item = (Metric, SlowFault);

    /// The next fault, if one has come.
    fn next(&mut self) -> Option<(Metric, SlowFault)> {
        loop {
            let item = self.0.next()?;
            if let Some(fault) = slow_fault(&item) {
                return Some(fault);
            }
        }
    }
}

fn ring(ebpf: &mut Ebpf, name: &str) -> Result<(RingBuf<MapData>, OwnedFd)> {
    let Some(Map::RingBuf(map)) = ebpf.take_map(name) else {
        bail!("the eBPF object has no ring buffer {name}");
    };
    let failed = || format!("cannot map the ring buffer {name}");
    let fd = map.fd().as_fd().try_clone_to_owned().with_context(failed)?;
    Ok((RingBuf::try_from(Map::RingBuf(map)).with_context(failed)?, fd))
}

/// `None` for a record that the programs of this version do not send.
fn event(mut record: &[u8]) -> Option<Event> {
    if record.len() < size_of::<Lifecycle>() {
        return None;
    }
    let kind = match record.get_u32_ne() {
        kind if kind == LifecycleKind::Started as u32 => LifecycleKind::Started,
        kind if kind == LifecycleKind::Ended as u32 => LifecycleKind::Ended,
        kind if kind == LifecycleKind::NoSlot as u32 => LifecycleKind::NoSlot,
        kind if kind == LifecycleKind::FewChunks as u32 => LifecycleKind::FewChunks,
        _ => return None,
    };
    Some(Event {
        kind,
        slot: record.get_u32_ne(),
        pid: record.get_u32_ne().cast_signed(),
        is_micro_vm: record.get_u32_ne() != 0,
    })
}

fn slow_fault(mut record: &[u8]) -> Option<(Metric, SlowFault)> {
    if record.len() < size_of::<SlowFault>() {
        return None;
    }
    let fault = SlowFault {
        end_ns: record.get_u64_ne(),
        latency_ns: record.get_u64_ne(),
        address: record.get_u64_ne(),
        vm_tgid: record.get_u32_ne(),
        vm: record.get_u32_ne(),
        tid: record.get_u32_ne(),
        metric: record.get_u32_ne(),
        comm: {
            let mut comm = [0; 16];
            record.copy_to_slice(&mut comm);
            comm
        },
        parts_ns: std::array::from_fn(|_| record.get_u64_ne()),
        backing: record.get_u32_ne(),
        swap_device: record.get_u32_ne(),
        stack: record.get_u32_ne(),
        reserved: record.get_u32_ne(),
        aggressor: record.get_u64_ne(),
    };
    Some((*Metric::ALL.get(fault.metric as usize)?, fault))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{BufMut, BytesMut};
    use overcommit_ebpf::layout::{AggressorKind, Part, pack_aggressor, unpack_aggressor};

    #[test]
    fn records_are_read_field_by_field() {
        let mut record = BytesMut::new();
        for word in [2u32, 7, 4711, 1] {
            record.put_u32_ne(word);
        }
        let ended = Event { kind: LifecycleKind::Ended, slot: 7, pid: 4711, is_micro_vm: true };
        assert_eq!(event(&record), Some(ended));
        assert_eq!(event(&record[..12]), None, "cut off");
        record[0] = 99;
        assert_eq!(event(&record), None, "unknown kind");

        let mut record = BytesMut::new();
        for word in [100u64, 30, 0x7f00_1000] {
            record.put_u64_ne(word);
        }
        for word in [11u32, 1, 12, 1] {
            record.put_u32_ne(word);
        }
        record.put_slice(b"CPU 0/KVM\0\0\0\0\0\0\0");
        (0..Part::COUNT as u64).for_each(|part| record.put_u64_ne(part));
        for word in [7u32, 1, 3, 0] {
            record.put_u32_ne(word);
        }
        record.put_u64_ne(pack_aggressor(AggressorKind::Process, 60));
        let (metric, fault) = slow_fault(&record).unwrap();
        assert_eq!(metric, Metric::FaultMajor);
        assert_eq!((fault.end_ns, fault.latency_ns, fault.address), (100, 30, 0x7f00_1000));
        assert_eq!((fault.vm_tgid, fault.vm, fault.tid), (11, 1, 12));
        assert_eq!(&fault.comm[..10], b"CPU 0/KVM\0");
        assert_eq!(fault.parts_ns.last(), Some(&(Part::COUNT as u64 - 1)));
        assert_eq!((fault.backing, fault.swap_device, fault.stack), (7, 1, 3));
        assert_eq!(unpack_aggressor(fault.aggressor), Some((AggressorKind::Process, 60)));
        assert!(slow_fault(&record[..151]).is_none(), "cut off");
    }
}
