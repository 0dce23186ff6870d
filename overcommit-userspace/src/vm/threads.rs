//! Which threads of a VM are its vCPUs?
//!
//! Known by name where QEMU runs with `debug-threads=on`, else by sitting in
//! `KVM_RUN`: seen asleep in it here, or seen to fault inside it by the eBPF
//! programs.

use crate::kernel::IOCTL;
use overcommit_ebpf::layout::KVM_RUN;
use procfs::process::{Process, Syscall, Task};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// The vCPU threads that are known of a VM.
#[derive(Debug, Default)]
pub struct VcpuThreads {
    known: BTreeSet<i32>,
    by_name: bool,
    /// Links of the folder of its threads at the last look: a vCPU that is plugged in is one more.
    links: Option<u64>,
    /// Looks that are left out in a row while there is nothing new, and how many of those are left.
    rest: u32,
    left: u32,
}

/// The most looks in a row that are left out.
const REST_MAX: u32 = 8;
/// The same while a vCPU without a name has to be seen in `KVM_RUN`, where it may seldom sleep.
const REST_UNNAMED: u32 = 1;

impl VcpuThreads {
    /// Looks at the threads once more, as long as some vCPU is not known: more and more seldom where
    /// nothing changes.
    ///
    /// Reads /proc/PID/task/TID/comm, and /proc/PID/task/TID/syscall where names
    /// tell nothing.
    pub fn refresh(&mut self, process: &Process, vcpus: Option<u32>) {
        let links = links(process.pid);
        let is_same = links.is_some() && std::mem::replace(&mut self.links, links) == links;
        if is_same && self.left > 0 {
            self.left -= 1;
            return;
        }
        // One may have gone as another one came.
        self.known.retain(|tid| process.task_from_tid(*tid).is_ok());
        if is_same && self.complete(vcpus) {
            self.left = REST_MAX;
            return;
        }
        let before = self.known.len();
        self.look(process);
        let is_nothing_new = is_same && self.known.len() == before;
        let most = if self.by_name { REST_MAX } else { REST_UNNAMED };
        self.rest = if is_nothing_new { (self.rest * 2).clamp(1, most) } else { 0 };
        self.left = self.rest;
    }

    fn look(&mut self, process: &Process) {
        let Ok(tasks) = process.tasks() else { return };
        let unknown = tasks.flatten().filter(|task| !self.known.contains(&task.tid));
        let unknown: Vec<Task> = unknown.collect();
        let named = unknown.iter().filter(|task| has_vcpu_name(task)).map(|task| task.tid);
        let named: Vec<i32> = named.collect();
        self.by_name |= !named.is_empty();
        self.known.extend(named);
        if !self.by_name {
            let running = unknown.iter().filter(|task| sleeps_in_kvm_run(process.pid, task.tid));
            self.known.extend(running.map(|task| task.tid));
        }
    }

    /// Takes a thread that was seen to fault inside `KVM_RUN`.
    pub fn saw_in_kvm_run(&mut self, tid: i32) {
        if !self.by_name {
            self.known.insert(tid);
        }
    }

    /// The thread ids.
    pub fn tids(&self) -> &BTreeSet<i32> {
        &self.known
    }

    /// How they are known: `name`, `kvm_run`, or nothing yet.
    pub fn known_by(&self) -> Option<&'static str> {
        match (self.known.is_empty(), self.by_name) {
            (true, _) => None,
            (false, true) => Some("name"),
            (false, false) => Some("kvm_run"),
        }
    }

    /// Threads to divide by: one for each vCPU, or the one that runs them all.
    pub fn divisor(&self, vcpus: Option<u32>) -> u64 {
        let known = self.known.len() as u64;
        if self.by_name { known } else { known.max(vcpus.unwrap_or(0).into()) }
    }

    fn complete(&self, vcpus: Option<u32>) -> bool {
        vcpus.is_some_and(|vcpus| self.known.len() as u64 >= vcpus.into())
    }
}

/// Links of the folder of a process's threads, of which the kernel gives it one for each
/// (`proc_task_getattr`, fs/proc/base.c, 4.18 to 7.3).
fn links(pid: i32) -> Option<u64> {
    Some(fs::metadata(format!("/proc/{pid}/task")).ok()?.nlink())
}

/// QEMU's names: `CPU 0/KVM`, `CPU 0/TCG`, and `ALL CPUs/TCG` for the one thread
/// of single-threaded TCG (accel/*/…-accel-ops.c).
fn is_vcpu_name(comm: &str) -> bool {
    comm.starts_with("ALL CPUs/")
        || comm
            .strip_prefix("CPU ")
            .and_then(|rest| rest.split_once('/'))
            .is_some_and(|(number, kind)| number.parse::<u32>().is_ok() && !kind.is_empty())
}

fn has_vcpu_name(task: &Task) -> bool {
    task.stat().is_ok_and(|stat| is_vcpu_name(&stat.comm))
}

fn sleeps_in_kvm_run(pid: i32, tid: i32) -> bool {
    let path = format!("/proc/{pid}/task/{tid}");
    let Ok(task) = Process::new_with_root(path.into()) else {
        return false;
    };
    matches!(task.syscall(), Ok(Syscall::Blocked { syscall_number, argument_registers, .. })
        if syscall_number == i64::from(IOCTL) && argument_registers[1] == KVM_RUN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn where_nothing_changes_it_is_seldom_looked_at() {
        let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        let mut child = child.unwrap();
        let process = Process::new(child.id().cast_signed()).unwrap();
        let mut threads = VcpuThreads::default();
        let mut left_out = || {
            threads.refresh(&process, None);
            (threads.rest, threads.left)
        };
        assert_eq!(left_out(), (0, 0), "the first look");
        assert_eq!(left_out(), (1, 1));
        assert_eq!(left_out(), (1, 0), "no look");
        assert_eq!(left_out(), (REST_UNNAMED, REST_UNNAMED));
        threads.by_name = true;
        (0..40).for_each(|_| threads.refresh(&process, None));
        assert_eq!(threads.rest, REST_MAX);
        // The last look was of a process with another thread.
        threads.links = links(process.pid).map(|links| links + 1);
        threads.refresh(&process, None);
        assert_eq!((threads.rest, threads.left), (0, 0));
        let own = std::process::id().cast_signed();
        let listed = || fs::read_dir("/proc/self/task").unwrap().count() as u64;
        // Other tests' threads come and go meanwhile.
        let agrees = || listed() + 2 == links(own).unwrap();
        assert!(std::iter::repeat_with(agrees).take(1_000).any(|agrees| agrees));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn names_of_vcpus() {
        for comm in ["CPU 0/KVM", "CPU 17/TCG", "ALL CPUs/TCG"] {
            assert!(is_vcpu_name(comm), "{comm}");
        }
        for comm in ["qemu-system-x86", "CPU", "CPU x/KVM", "CPU 1", "IO iothread1", "CPU 1/"] {
            assert!(!is_vcpu_name(comm), "{comm}");
        }
    }
}
