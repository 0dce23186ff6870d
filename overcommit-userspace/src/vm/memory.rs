//! What backs a guest's memory.

use crate::vm::maps;
use crate::vm::regions::{AddressRange, normalized};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use overcommit_recording::model::vm::Backing;
use overcommit_recording::model::vm::Mapping;
use procfs::process::{MMPermissions, MMapPath, MemoryMap, MountInfo, Process};

/// Smallest mapping that can be a guest's memory.
const SMALLEST: u64 = 1 << 20;
/// Smallest mapping beside the largest that is: of a node, or of memory that is plugged in.
/// QEMU's own are smaller: its stacks and heaps, the rings and logs of its devices.
const SMALLEST_BESIDE: u64 = 128 << 20;

/// The largest writable mapping of the process: guest memory is one mapping, and by
/// far the largest. Of a guest with several nodes it is one of them.
///
/// Reads /proc/PID/maps; `None` where that cannot be read or is too small yet.
pub fn mapping(process: &Process) -> Option<Mapping> {
    let maps = maps::read(process).ok()?;
    let size = |map: &MemoryMap| map.address.1 - map.address.0;
    let largest = maps.iter().filter(|map| is_memory(map)).max_by_key(|map| size(map))?;
    if size(largest) < SMALLEST {
        return None;
    }
    let mounts = process.mountinfo().map(|mounts| mounts.0).unwrap_or_default();
    let (start, end) = largest.address;
    let mut backing = classify(largest, &mounts);
    if backing == Backing::Memfd && is_hugetlb(process, largest) {
        backing = Backing::Hugetlb;
    }
    Some(Mapping { backing, start, end })
}

fn is_memory(map: &MemoryMap) -> bool {
    map.perms.contains(MMPermissions::READ | MMPermissions::WRITE)
        // TCG's translated code, which may be larger than the guest's memory.
        && !map.perms.contains(MMPermissions::EXECUTE)
        && map.pathname != MMapPath::Heap
}

/// Where a process has its guest's memory: every node of it, and what was plugged in.
pub fn ram<'a>(maps: impl Iterator<Item = &'a MemoryMap>) -> Vec<AddressRange> {
    let mut joined = normalized(maps.filter(|map| is_memory(map)).map(|map| map.address).collect());
    let size = |(start, end): &AddressRange| end - start;
    let largest = joined.iter().map(size).max().unwrap_or(0);
    joined.retain(|range| size(range) >= SMALLEST_BESIDE.min(largest));
    joined
}

/// A figure that smaps has of a mapping, in bytes; 0 if it has none.
pub fn figure(map: &MemoryMap, name: &str) -> u64 {
    map.extension.map.get(name).copied().unwrap_or(0)
}

/// Whether a mapping is in one of those.
pub fn is_in(map: &MemoryMap, ram: &[AddressRange]) -> bool {
    let (start, end) = map.address;
    ram.iter().any(|range| start >= range.0 && end <= range.1)
}

/// Whether a memfd is of huge pages: its file system is in no list of mounts, and its path
/// is that of any memfd.
fn is_hugetlb(process: &Process, map: &MemoryMap) -> bool {
    let (start, end) = map.address;
    let file = process.open_relative(format!("map_files/{start:x}-{end:x}"));
    let system = file.ok().and_then(|file| fstatfs(&file).ok());
    system.is_some_and(|system| system.filesystem_type() == HUGETLBFS_MAGIC)
}

fn classify(map: &MemoryMap, mounts: &[MountInfo]) -> Backing {
    let path = match &map.pathname {
        MMapPath::Path(path) => path.to_string_lossy(),
        MMapPath::Other(text) => text.as_str().into(),
        _ => return Backing::Anonymous,
    };
    let device = format!("{}:{}", map.dev.0, map.dev.1);
    let on_hugetlbfs =
        mounts.iter().any(|mount| mount.fs_type == "hugetlbfs" && mount.majmin == device);
    if on_hugetlbfs || path.starts_with("/anon_hugepage") {
        Backing::Hugetlb
    } else if path.starts_with("/memfd:") {
        Backing::Memfd
    } else {
        Backing::File
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use procfs::FromBufRead;
    use procfs::process::MemoryMaps;

    fn ram_of(lines: &str) -> Vec<AddressRange> {
        let maps = MemoryMaps::from_buf_read(lines.as_bytes()).unwrap();
        ram(maps.iter())
    }

    #[test]
    fn every_node_and_what_is_plugged_in_is_ram() {
        let two_nodes = "\
            55d000000000-55d040000000 rw-p 00000000 00:00 0 [heap]\n\
            7e0000000000-7e0800000000 rw-s 00000000 00:01 77 /memfd:node0 (deleted)\n\
            7e1000000000-7e1800000000 rw-s 00000000 00:01 78 /memfd:node1 (deleted)\n\
            7e2000000000-7e2008000000 rw-p 00000000 00:00 0 \n\
            7e3000000000-7e3004000000 rw-p 00000000 00:00 0 \n\
            7e4000000000-7e5000000000 rwxp 00000000 00:00 0 \n\
            7e6000000000-7e7000000000 r--p 00000000 08:01 9 /usr/share/image\n";
        let nodes = [(0x7e00_0000_0000, 0x7e08_0000_0000), (0x7e10_0000_0000, 0x7e18_0000_0000)];
        let dimm = (0x7e20_0000_0000, 0x7e20_0800_0000);
        assert_eq!(ram_of(two_nodes), [nodes[0], nodes[1], dimm]);
    }

    /// As when a part of it is protected otherwise or merged.
    #[test]
    fn a_small_guest_in_pieces_is_all_ram() {
        let pieces = "\
            7e0000000000-7e0001000000 rw-p 00000000 00:00 0 \n\
            7e0001000000-7e0004000000 rw-p 00000000 00:00 0 \n\
            7e1000000000-7e1000800000 rw-p 00000000 00:00 0 \n";
        assert_eq!(ram_of(pieces), [(0x7e00_0000_0000, 0x7e00_0400_0000)]);
    }
}
