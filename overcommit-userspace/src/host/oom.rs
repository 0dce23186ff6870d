//! Whom did the kernel kill because memory ran out? It says so in its log, by process id
//! (`__oom_kill_process`, mm/oom_kill.c, Linux 5.1 and later).

use nix::fcntl::OFlag;
use overcommit_recording::format::text::reason;
use overcommit_recording::model::run::EndedBy;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

/// Longest record of the log (`PRINTKRB_RECORD_MAX`, kernel/printk).
const RECORD_MAX: usize = 8192;

/// Follows the kernel's log from now on.
pub struct OomKills {
    /// `None` where it cannot be read.
    log: Option<File>,
    killed: BTreeMap<i32, EndedBy>,
}

impl OomKills {
    /// Begins at its end; says why it cannot be read, if so.
    pub fn follow() -> (Self, Option<String>) {
        let flags = OFlag::O_NONBLOCK.bits();
        let log = OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg");
        let log = log.and_then(|mut log: File| log.seek(SeekFrom::End(0)).map(|_| log));
        let why = log.as_ref().err().map(|error| format!("/dev/kmsg: {}", reason(error)));
        (Self { log: log.ok(), killed: BTreeMap::new() }, why)
    }

    /// Why the kernel killed that process, if it did.
    pub fn of(&mut self, pid: i32) -> Option<EndedBy> {
        self.read();
        self.killed.remove(&pid)
    }

    fn read(&mut self) {
        let Some(log) = &mut self.log else { return };
        let mut record = [0; RECORD_MAX];
        loop {
            match log.read(&mut record) {
                Ok(0) => return,
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    self.killed.extend(killed(&text));
                }
                // Records were overwritten before they were read: it goes on with the oldest.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

/// Who was killed by a record of /dev/kmsg, and for want of whose memory.
fn killed(record: &str) -> Option<(i32, EndedBy)> {
    let (_, message) = record.split_once(';')?;
    let (why, who) = message.split_once(": Killed process ")?;
    let by = match why {
        "Memory cgroup out of memory" => EndedBy::OomCgroup,
        "Out of memory" => EndedBy::OomHost,
        why if why.starts_with("Out of memory (") && why.ends_with(')') => EndedBy::OomHost,
        _ => return None,
    };
    // What the kernel says of a process in another way may hold a name that reads so.
    let (pid, rest) = who.split_once(' ').filter(|(_, rest)| rest.contains(") total-vm:"))?;
    if rest.contains(": Killed process ") {
        return None;
    }
    Some((pid.parse().ok()?, by))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_the_log_says_was_killed() {
        let record = |message: &str| format!("3,1339,5140900,-;{message}\n SUBSYSTEM=x\n");
        let cgroup = record(
            "Memory cgroup out of memory: Killed process 4711 (qemu-system-x86) \
             total-vm:1024kB, anon-rss:1kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:48kB \
             oom_score_adj:0",
        );
        assert_eq!(killed(&cgroup), Some((4711, EndedBy::OomCgroup)));
        let host = record("Out of memory: Killed process 42 (qemu-kvm) total-vm:1kB");
        assert_eq!(killed(&host), Some((42, EndedBy::OomHost)));
        let chosen = "Out of memory (oom_kill_allocating_task): Killed process 43 (x) total-vm:1";
        assert_eq!(killed(&record(chosen)), Some((43, EndedBy::OomHost)));
        let forged = "Out of memory[7]: segfault at 0 in a: Killed process 4711 (x) total-vm:1";
        for other in [
            forged,
            "Out of memory: Killed process 4711 (x)",
            "oom_reaper: reaped process 4711 (qemu)",
            "x: Killed process 1 (y)",
            "",
        ] {
            assert_eq!(killed(&record(other)), None, "{other}");
        }
    }
}
