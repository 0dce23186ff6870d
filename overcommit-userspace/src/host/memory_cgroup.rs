//! What the kernel counts for a VM's memory cgroup, in either version.

use crate::host::counters;
use crate::host::counters::{counter_of, stalled_us};
use crate::host::memory_use::{is_shared_memory, status};
use crate::host::vm_processes::VmProcesses;
use crate::vm::maps;
use anyhow::{Context, Result};
use overcommit_recording::model::balloon::LARGEST;
use overcommit_recording::model::vm::Vm;
use procfs::VmStat;
use procfs::prelude::FromRead;
use procfs::process::{MountInfos, Process};
use std::cell::LazyCell;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Version 1 says "no limit" by a number, `PAGE_COUNTER_MAX` pages (include/linux/page_counter.h);
/// this much is none either.
const UNLIMITED: u64 = LARGEST;

/// Version of the hierarchy that has the memory controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where the memory controller's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    root: PathBuf,
    version: Version,
}

impl Hierarchy {
    /// The hierarchy mounted here; `None` without a memory controller.
    pub fn find(proc: &Path) -> Option<Self> {
        let mounts = MountInfos::from_file(proc.join("self/mountinfo")).ok()?.0;
        let one = mounts
            .iter()
            .find(|mount| mount.fs_type == "cgroup" && mount.super_options.contains_key("memory"));
        let two = || {
            mounts.iter().find(|mount| {
                let controllers = mount.mount_point.join("cgroup.controllers");
                mount.fs_type == "cgroup2"
                    && fs::read_to_string(controllers)
                        .is_ok_and(|text| text.split_whitespace().any(|word| word == "memory"))
            })
        };
        let of = |version| {
            move |mount: &procfs::process::MountInfo| Self {
                root: mount.mount_point.clone(),
                version,
            }
        };
        one.map(of(Version::One)).or_else(|| two().map(of(Version::Two)))
    }

    /// Version 1 or 2.
    pub const fn number(&self) -> u8 {
        match self.version {
            Version::One => 1,
            Version::Two => 2,
        }
    }

    /// The memory cgroup that is a VM's own, if there is one.
    pub fn own(&self, processes: &VmProcesses, vm: &Vm) -> Option<MemoryCgroup> {
        let found = self.memory_cgroup(vm.cgroup.as_deref()?)?;
        found.is_of(processes, vm.id.pid).then_some(found)
    }

    /// The memory cgroup of a process that lies in `cgroup`: the nearest that has the
    /// controller. `None` for the root, which is the host.
    pub fn memory_cgroup(&self, cgroup: &str) -> Option<MemoryCgroup> {
        let path = self.root.join(cgroup.trim_start_matches('/'));
        let within = path.ancestors().take_while(|dir| *dir != self.root);
        let path = within.into_iter().find(|dir| dir.join("memory.stat").exists())?;
        // Below the root only: a name with `..` in it is none.
        let is_below = path.starts_with(&self.root) && !cgroup.split('/').any(|part| part == "..");
        let name = path.strip_prefix(&self.root).ok()?;
        is_below.then(|| MemoryCgroup::at(path, &Path::new("/").join(name), self.version))?
    }
}

/// A memory cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryCgroup {
    path: PathBuf,
    version: Version,
    /// Its path below the root of the hierarchy.
    pub name: String,
    /// As the kernel numbers it (`kernfs_node::id`): the inode of its folder.
    pub id: u64,
}

/// Counters of a memory cgroup and all below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupCounters {
    /// Pages swapped in; `None` where memory.stat does not say (before Linux 7.x).
    pub swapped_in: Option<u64>,
    /// Pages swapped out; as above.
    pub swapped_out: Option<u64>,
    /// Major faults.
    pub major_faults: Option<u64>,
    /// Pages of files that were read back soon after they had been dropped.
    pub refaulted_files: Option<u64>,
    /// PSI's `some` of memory, in microseconds; version 2 alone.
    pub stalled_us: Option<u64>,
    /// Bytes of anonymous and shared memory, swapped out or not.
    charged: u64,
}

/// What a VM may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// How much, in bytes.
    pub bytes: u64,
    /// Whose limit it is.
    cgroup: MemoryCgroup,
}

impl Limit {
    /// The least of those of a VM's own cgroups: memory.limit_in_bytes, or memory.max and
    /// memory.high. `None` if there is no limit.
    pub fn least(own: &[MemoryCgroup]) -> Option<Self> {
        let limits = own.iter().flat_map(|cgroup| {
            let files: &[&str] = match cgroup.version {
                Version::One => &["memory.limit_in_bytes"],
                Version::Two => &["memory.max", "memory.high"],
            };
            files.iter().filter_map(|file| {
                let bytes = fs::read_to_string(cgroup.path.join(file)).ok()?.trim().parse().ok()?;
                Some(Self { bytes, cgroup: cgroup.clone() })
            })
        });
        limits.filter(|limit| limit.bytes < UNLIMITED).min_by_key(|limit| limit.bytes)
    }

    /// How often it was reached so far. A write to memory.reclaim is not counted. `None` if the
    /// kernel does not tell.
    ///
    /// Version 2 counts `max` and `high` for the cgroup and all below it (`try_charge_memcg` and
    /// `reclaim_high`, mm/memcontrol.c, 6.1 to 7.3), version 1 the charges that failed
    /// (`page_counter_try_charge`, mm/page_counter.c).
    pub fn hits(&self) -> Option<u64> {
        match self.cgroup.version {
            Version::One => fs::read_to_string(self.cgroup.path.join("memory.failcnt"))
                .ok()?
                .trim()
                .parse()
                .ok(),
            Version::Two => {
                let events = VmStat::from_file(self.cgroup.path.join("memory.events")).ok()?.0;
                let events = counter_of(&events);
                Some(events("max")? + events("high")?)
            }
        }
    }
}

impl MemoryCgroup {
    /// Reads them.
    ///
    /// # Errors
    /// It is gone, or the kernel does not tell.
    pub fn read(&self) -> Result<CgroupCounters> {
        let path = self.path.join("memory.stat");
        let stat: HashMap<String, i64> =
            VmStat::from_file(&path).with_context(|| format!("cannot read {}", path.display()))?.0;
        let prefix = if self.version == Version::One { "total_" } else { "" };
        let counter = |name: &str| counter_of(&stat)(&format!("{prefix}{name}"));
        let sum = |names: &[&str]| names.iter().filter_map(|name| counter(name)).sum::<u64>();
        let charged = match self.version {
            Version::One => sum(&["rss", "shmem", "swap"]),
            Version::Two => {
                let swap = fs::read_to_string(self.path.join("memory.swap.current"));
                let swap = swap.ok().and_then(|text| text.trim().parse::<u64>().ok());
                sum(&["anon", "shmem"]) + swap.unwrap_or(0)
            }
        };
        Ok(CgroupCounters {
            swapped_in: counters::swapped_in(&counter),
            swapped_out: counters::swapped_out(&counter),
            major_faults: counter("pgmajfault"),
            refaulted_files: counter("workingset_refault_file"),
            stalled_us: stalled_us(&self.path.join("memory.pressure")),
            charged,
        })
    }

    /// It and those around it that are the process's own too, the outermost last: libvirt limits
    /// the folder above.
    pub fn with_own_around(&self, processes: &VmProcesses, pid: i32) -> Vec<Self> {
        let places = self.path.ancestors().zip(Path::new(&self.name).ancestors()).skip(1);
        let around = places.map_while(|(path, name)| Self::at(path, name, self.version));
        let own = around.take_while(|cgroup| cgroup.is_of(processes, pid));
        std::iter::once(self.clone()).chain(own).collect()
    }

    /// The one in that folder, of that name.
    fn at(path: &Path, name: &Path, version: Version) -> Option<Self> {
        let (id, name) = (fs::metadata(path).ok()?.ino(), name.to_str()?.to_owned());
        Some(Self { path: path.to_owned(), version, name, id })
    }

    /// Whether what it counts is one VM's, but for a tenth: that much the helpers of a container
    /// may have. Of another VM's it is never, however small that one is.
    fn is_of(&self, processes: &VmProcesses, pid: i32) -> bool {
        if processes.holds_another(&self.path, pid) {
            return false;
        }
        let proc = processes.proc();
        let mut others = Vec::new();
        let mut is_there = false;
        // Around many VMs the first other process is one: no more is read then.
        let seen = processes_in(&self.path, &mut |process| {
            if process == pid {
                is_there = true;
            } else if processes.is_vm(process) {
                processes.lies_with_another(&self.path, process);
                return ControlFlow::Break(());
            } else {
                others.push(process);
            }
            ControlFlow::Continue(())
        });
        if seen.is_break() || !is_there {
            return false;
        }
        // The kernel adds up a large cgroup for that: not of one that holds many VMs.
        let Ok(counters) = self.read() else { return false };
        let its = LazyCell::new(|| shared_memory(proc, pid));
        let held: u64 = others.iter().filter_map(|other| held_by(proc, *other, &its)).sum();
        held.saturating_mul(10) <= counters.charged
    }
}

/// Hands out the processes of a cgroup and those below it, until enough were seen.
fn processes_in(dir: &Path, see: &mut impl FnMut(i32) -> ControlFlow<()>) -> ControlFlow<()> {
    // A threaded one refuses: its processes stand in the one above.
    let listed = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    listed.lines().filter_map(|line| line.parse().ok()).try_for_each(&mut *see)?;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            processes_in(&entry.path(), see)?;
        }
    }
    ControlFlow::Continue(())
}

/// Bytes of anonymous and shared memory of a process, swapped out or not; shared memory only if
/// none of it is also the VM's, whose `its` is.
fn held_by(
    proc: &Path,
    pid: i32,
    its: &LazyCell<Objects, impl FnOnce() -> Objects>,
) -> Option<u64> {
    let status = status(proc, pid)?;
    let shared = status.rssshmem.unwrap_or(0);
    let is_its = shared > 0 && !shared_memory(proc, pid).is_disjoint(its);
    let own = status.rssanon.unwrap_or(0) + status.vmswap.unwrap_or(0);
    Some((own + if is_its { 0 } else { shared }) << 10)
}

/// Objects of shared memory, by device and inode.
type Objects = BTreeSet<(i32, i32, u64)>;

/// Memory that a process maps shared: no files, which many may map.
fn shared_memory(proc: &Path, pid: i32) -> Objects {
    let Ok(process) = Process::new_with_root(proc.join(pid.to_string())) else {
        return Objects::new();
    };
    let mounts = process.mountinfo().map(|mounts| mounts.0).unwrap_or_default();
    let maps = maps::read(&process).map(|maps| maps.0).unwrap_or_default().into_iter();
    let shared = maps.filter(|map| is_shared_memory(map, &mounts));
    shared.map(|map| (map.dev.0, map.dev.1, map.inode)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version_one(root: &Path) -> Hierarchy {
        Hierarchy { root: root.to_owned(), version: Version::One }
    }

    fn make(root: &Path, cgroup: &str, stat: &str, processes: &str) {
        let dir = root.join(cgroup);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("memory.stat"), stat).unwrap();
        fs::write(dir.join("cgroup.procs"), processes).unwrap();
    }

    #[test]
    fn the_nearest_one_with_the_controller_is_taken() {
        let root = tempfile::tempdir().unwrap();
        make(root.path(), "machine/vm", "total_pgmajfault 7\npgmajfault 1\n", "1\n");
        fs::create_dir_all(root.path().join("machine/vm/libvirt/emulator")).unwrap();
        fs::write(root.path().join("memory.stat"), "").unwrap();
        let hierarchy = version_one(root.path());
        let found = hierarchy.memory_cgroup("/machine/vm/libvirt/emulator").unwrap();
        assert_eq!(found.path, root.path().join("machine/vm"));
        let counters = found.read().unwrap();
        assert_eq!((counters.major_faults, counters.swapped_in), (Some(7), None));
        for none in ["/", "/elsewhere", "/machine/vm/../..", "/machine/vm/../vm"] {
            assert_eq!(hierarchy.memory_cgroup(none), None, "{none}");
        }
    }

    #[test]
    fn version_two_counts_without_a_prefix() {
        let root = tempfile::tempdir().unwrap();
        let stat = "anon 100\nshmem 20\npswpin 3\nzswpin 4\npswpout 5\nzswpwb 1\npgmajfault 7\n";
        make(root.path(), "vm", stat, "1\n");
        fs::write(root.path().join("vm/memory.swap.current"), "80\n").unwrap();
        let hierarchy = Hierarchy { version: Version::Two, ..version_one(root.path()) };
        let counters = hierarchy.memory_cgroup("/vm").unwrap().read().unwrap();
        assert_eq!((counters.swapped_in, counters.swapped_out), (Some(7), Some(4)));
        assert_eq!(counters.charged, 200);
    }

    #[test]
    fn the_least_limit_of_its_own_cgroups_holds() {
        let root = tempfile::tempdir().unwrap();
        let proc = root.path().join("proc");
        let write = |cgroup: &str, file: &str, text: &str| {
            fs::write(root.path().join(cgroup).join(file), text).unwrap();
        };
        make(root.path(), "all", "anon 10485760\n", "1\n2\n");
        for cgroup in ["all/vm", "all/vm/libvirt"] {
            make(root.path(), cgroup, "anon 10485760\n", "1\n");
        }
        write("all", "memory.max", "1000\n");
        let hierarchy = Hierarchy { version: Version::Two, ..version_one(root.path()) };
        let found = hierarchy.memory_cgroup("/all/vm/libvirt").unwrap();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        fs::create_dir_all(proc.join("2")).unwrap();
        fs::write(proc.join("2/status"), status.replace("RssAnon:", "RssAnon:\t9999999 kB\nWas:"))
            .unwrap();
        write("all/vm/libvirt", "memory.max", "max\n");
        let least =
            |of: &MemoryCgroup| Limit::least(&of.with_own_around(&VmProcesses::new(&proc), 1));
        assert_eq!(least(&found), None, "others share that of all");
        write("all/vm", "memory.max", "3000\n");
        write("all/vm", "memory.high", "2000\n");
        let limit = least(&found).unwrap();
        assert_eq!((limit.bytes, limit.hits()), (2000, None));
        write("all/vm", "memory.events", "low 1\nhigh 20\nmax 300\noom 4000\n");
        assert_eq!(limit.hits(), Some(320));
        write("all/vm/libvirt", "memory.limit_in_bytes", "9223372036854771712\n");
        let one = MemoryCgroup { version: Version::One, ..found };
        assert_eq!(least(&one), None);
        write("all/vm/libvirt", "memory.limit_in_bytes", "4096\n");
        write("all/vm/libvirt", "memory.failcnt", "7\n");
        assert_eq!(least(&one).unwrap().hits(), Some(7));
    }

    #[test]
    fn a_cgroup_with_others_in_it_is_not_the_vms() {
        let root = tempfile::tempdir().unwrap();
        let (cgroups, proc) = (root.path().join("cgroup"), root.path().join("proc"));
        make(&cgroups, "vm", "total_rss 10485760\n", "1\n");
        make(&cgroups, "vm/child", "", "2\n");
        let found = version_one(&cgroups).memory_cgroup("/vm").unwrap();
        let status = |kib: u64| {
            let this = fs::read_to_string("/proc/self/status").unwrap();
            let lines = this.lines().filter(|line| !line.starts_with("RssAnon"));
            let lines: String = lines.map(|line| format!("{line}\n")).collect();
            fs::create_dir_all(proc.join("2")).unwrap();
            fs::write(proc.join("2/status"), format!("{lines}RssAnon:\t{kib} kB\n")).unwrap();
        };
        status(1_000);
        assert!(found.is_of(&VmProcesses::new(&proc), 1));
        status(1_100);
        assert!(!found.is_of(&VmProcesses::new(&proc), 1));
        assert!(!found.is_of(&VmProcesses::new(&proc), 3), "it is not even in it");
        // Memory that it shares with nobody, and with the VM.
        status(1_000);
        let quiet = fs::read_to_string(proc.join("2/status")).unwrap();
        let lines = quiet.lines().filter(|line| !line.starts_with("RssShmem"));
        let lines: String = lines.map(|line| format!("{line}\n")).collect();
        fs::write(proc.join("2/status"), format!("{lines}RssShmem:\t4000000 kB\n")).unwrap();
        let map = |inode| format!("7f0000000000-7f0040000000 rw-s 0 00:01 {inode} /memfd:ram\n");
        fs::write(proc.join("2/maps"), map(7)).unwrap();
        assert!(!found.is_of(&VmProcesses::new(&proc), 1));
        fs::create_dir_all(proc.join("1")).unwrap();
        fs::write(proc.join("1/maps"), map(7)).unwrap();
        assert!(found.is_of(&VmProcesses::new(&proc), 1), "it serves the VM");
        fs::write(proc.join("1/maps"), map(8)).unwrap();
        assert!(!found.is_of(&VmProcesses::new(&proc), 1));
    }

    #[test]
    fn a_cgroup_with_another_vm_in_it_is_nobodys() {
        let root = tempfile::tempdir().unwrap();
        let (cgroups, proc) = (root.path().join("cgroup"), root.path().join("proc"));
        make(&cgroups, "vm", "total_rss 10485760\n", "1\n2\n");
        let found = version_one(&cgroups).memory_cgroup("/vm").unwrap();
        assert!(found.is_of(&VmProcesses::new(&proc), 1));
        fs::create_dir_all(proc.join("2/fd")).unwrap();
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        fs::write(proc.join("2/stat"), stat).unwrap();
        std::os::unix::fs::symlink("/usr/bin/qemu-system-x86_64", proc.join("2/exe")).unwrap();
        let processes = VmProcesses::new(&proc);
        assert!(!found.is_of(&processes, 1) && !found.is_of(&processes, 1));
        assert!(found.is_of(&processes, 2), "the first one is no VM");
    }
}
