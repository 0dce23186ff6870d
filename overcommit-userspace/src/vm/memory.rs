//! What backs a guest's memory.

use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use overcommit_recording::model::vm::Backing;
use overcommit_recording::model::vm::Mapping;
use procfs::process::{MMPermissions, MMapPath, MemoryMap, MountInfo, Process};

/// Smallest mapping that can be a guest's memory.
const SMALLEST: u64 = 1 << 20;

/// The largest writable mapping of the process: guest memory is one mapping, and by
/// far the largest. Of a guest with several nodes it is one of them.
///
/// Reads /proc/PID/maps; `None` where that cannot be read or is too small yet.
pub fn mapping(process: &Process) -> Option<Mapping> {
    let maps = process.maps().ok()?;
    let is_memory = |map: &&MemoryMap| {
        map.perms.contains(MMPermissions::READ | MMPermissions::WRITE)
            // TCG's translated code, which may be larger than the guest's memory.
            && !map.perms.contains(MMPermissions::EXECUTE)
            && map.pathname != MMapPath::Heap
    };
    let size = |map: &MemoryMap| map.address.1 - map.address.0;
    let largest = maps.iter().filter(is_memory).max_by_key(|map| size(map))?;
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
