//! How long could a VM's vCPU threads run and had no CPU? The scheduler keeps an account of each
//! thread, whatever runs its guest: the second figure of /proc/PID/task/TID/schedstat
//! (`proc_pid_schedstat`, fs/proc/base.c). A wait is added when it is over (`sched_info_arrive`,
//! kernel/sched/stats.h).

use crate::sampler::accounts;
use procfs::process::Process;
use std::collections::{BTreeMap, BTreeSet};

/// The accounts of a VM's vCPU threads as they were last read, in nanoseconds.
#[derive(Debug, Default)]
pub(super) struct RunDelays(BTreeMap<i32, u64>);

impl RunDelays {
    /// What they have grown by; `None` where no thread has one, as on a kernel without
    /// CONFIG_SCHED_INFO. Of a thread that is read for the first time nothing is known yet.
    pub(super) fn grown(&mut self, process: &Process, tids: &BTreeSet<i32>) -> Option<u64> {
        let read = |tid: &i32| {
            let account = accounts::schedstat(process, *tid)?;
            // All zeros where it keeps none.
            let is_kept = account.sum_exec_runtime > 0 || account.run_delay > 0;
            is_kept.then_some((*tid, account.run_delay))
        };
        self.advance(tids.iter().filter_map(read).collect())
    }

    fn advance(&mut self, now: BTreeMap<i32, u64>) -> Option<u64> {
        let before = std::mem::replace(&mut self.0, now);
        let grown = self.0.iter().map(|(tid, delay_ns)| {
            let before_ns = before.get(tid).unwrap_or(delay_ns);
            // A thread whose id is used again has less than the one before it.
            delay_ns.saturating_sub(*before_ns)
        });
        (!self.0.is_empty()).then(|| grown.sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_come_and_go() {
        let mut delays = RunDelays::default();
        assert_eq!(delays.advance(BTreeMap::new()), None);
        assert_eq!(delays.advance([(1, 100), (2, 50)].into()), Some(0), "before it was recorded");
        assert_eq!(delays.advance([(1, 130), (2, 60), (3, 7)].into()), Some(40));
        assert_eq!(delays.advance([(2, 20), (3, 8)].into()), Some(1), "another thread 2");
    }

    #[test]
    fn the_scheduler_keeps_an_account_of_this_thread() {
        let process = Process::myself().unwrap();
        let tids = [process.pid].into();
        let mut delays = RunDelays::default();
        assert_eq!(delays.grown(&process, &tids), Some(0));
        assert_eq!(delays.grown(&process, &[i32::MAX].into()), None);
    }
}
