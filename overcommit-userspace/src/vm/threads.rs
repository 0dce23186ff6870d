//! Which threads of a VM are its vCPUs?
//!
//! Known by name where QEMU runs with `debug-threads=on`, else by sitting in
//! `KVM_RUN`: seen asleep in it here, or seen to fault inside it by the eBPF
//! programs.

use crate::kernel::IOCTL;
use overcommit_ebpf::layout::KVM_RUN;
use procfs::process::{Process, Syscall, Task};
use std::collections::BTreeSet;

/// The vCPU threads that are known of a VM.
#[derive(Debug, Default)]
pub struct VcpuThreads {
    known: BTreeSet<i32>,
    by_name: bool,
    /// Threads at the last look: a vCPU that is plugged in is one more.
    threads: usize,
}

impl VcpuThreads {
    /// Looks at the threads once more, as long as some vCPU is not known.
    ///
    /// Reads /proc/PID/task/TID/comm, and /proc/PID/task/TID/syscall where names
    /// tell nothing.
    pub fn refresh(&mut self, process: &Process, vcpus: Option<u32>) {
        let alive = |tid: &i32| process.task_from_tid(*tid).is_ok();
        self.known.retain(alive);
        let Ok(tasks) = process.tasks() else { return };
        let tasks: Vec<Task> = tasks.flatten().collect();
        let before = std::mem::replace(&mut self.threads, tasks.len());
        if before == tasks.len() && self.complete(vcpus) {
            return;
        }
        let unknown: Vec<Task> =
            tasks.into_iter().filter(|task| !self.known.contains(&task.tid)).collect();
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
