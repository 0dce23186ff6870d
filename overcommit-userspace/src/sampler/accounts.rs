//! What the kernel accounts for a process and its threads. These files are short and read by one call
//! each: the crate's own readers ask first how long a file is, and read until nothing comes.

use procfs::FromRead;
use procfs::process::{Process, Schedstat, Stat};
use std::io::Read;

/// Bytes that a file has at the most: /proc/PID/stat has 51 numbers and a name of 64 bytes
/// (`do_task_stat`, fs/proc/array.c).
const MOST: usize = 2048;

/// /proc/PID/stat; `None` if the process is gone.
pub(super) fn stat(process: &Process) -> Option<Stat> {
    read(process, "stat")
}

/// /proc/PID/task/TID/schedstat; `None` if the thread is gone, or the kernel keeps no account.
pub(super) fn schedstat(process: &Process, tid: i32) -> Option<Schedstat> {
    read(process, &format!("task/{tid}/schedstat"))
}

fn read<T: FromRead>(process: &Process, name: &str) -> Option<T> {
    let mut bytes = [0; MOST];
    let length = process.open_relative(name).ok()?.read(&mut bytes).ok()?;
    T::from_read(&bytes[..length]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_reads_all_of_it() {
        let process = Process::myself().unwrap();
        let (own, theirs) = (stat(&process).unwrap(), process.stat().unwrap());
        assert_eq!((own.pid, own.starttime), (theirs.pid, theirs.starttime));
        assert_eq!(own.exit_code, theirs.exit_code, "the last of its numbers");
        assert!(schedstat(&process, process.pid).unwrap().sum_exec_runtime > 0);
        assert!(schedstat(&process, i32::MAX).is_none());
    }
}
