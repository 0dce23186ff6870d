//! Whom did the kernel kill because memory ran out? It says so in its log, by process id
//! (`__oom_kill_process`, mm/oom_kill.c, Linux 5.1 and later), and just before whose limit it was
//! (`dump_oom_summary` there, `dump_oom_victim` in later kernels).

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
    /// Whom the last shortage of a memory cgroup made the kernel choose, and that cgroup.
    chosen: Option<(i32, String)>,
}

impl OomKills {
    /// Begins at its end; says why it cannot be read, if so.
    pub fn follow() -> (Self, Option<String>) {
        let flags = OFlag::O_NONBLOCK.bits();
        let log = OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg");
        let log = log.and_then(|mut log: File| log.seek(SeekFrom::End(0)).map(|_| log));
        let why = log.as_ref().err().map(|error| format!("/dev/kmsg: {}", reason(error)));
        (Self { log: log.ok(), killed: BTreeMap::new(), chosen: None }, why)
    }

    /// Why the kernel killed that process, if it did. `own` is the outermost memory cgroup that is
    /// the process's own: a limit further out holds for others too.
    pub fn of(&mut self, pid: i32, own: Option<&str>) -> Option<EndedBy> {
        self.read();
        let by = self.killed.remove(&pid)?;
        let limited = self.chosen.as_ref().filter(|(chosen, _)| *chosen == pid);
        let is_around = |own: &str, limited: &str| {
            own.strip_prefix(limited).is_some_and(|rest| rest.starts_with('/'))
        };
        let is_shared = own.zip(limited).is_some_and(|(own, (_, limited))| is_around(own, limited));
        Some(if by == EndedBy::OomCgroup && is_shared { EndedBy::OomSharedCgroup } else { by })
    }

    fn read(&mut self) {
        let mut record = [0; RECORD_MAX];
        loop {
            let Some(log) = &mut self.log else { return };
            match log.read(&mut record) {
                Ok(0) => return,
                Ok(length) => self.note(&String::from_utf8_lossy(&record[..length])),
                // Records were overwritten before they were read: it goes on with the oldest.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn note(&mut self, record: &str) {
        self.chosen = chosen(record).or(self.chosen.take());
        self.killed.extend(killed(record));
    }
}

/// Whom a record of /dev/kmsg says was chosen, and the memory cgroup that was short.
fn chosen(record: &str) -> Option<(i32, String)> {
    let (_, message) = record.split_once(';')?;
    let message = message.strip_prefix("oom-kill:constraint=CONSTRAINT_MEMCG,")?;
    let (_, rest) = message.lines().next()?.split_once(",oom_memcg=")?;
    // Names of cgroups and threads may hold anything; the end is the kernel's.
    let (before, _) = rest.rsplit_once(",uid=")?;
    let (before, pid) = before.rsplit_once(",pid=")?;
    let (limited, _) = before.split_once(",task_memcg=")?;
    Some((pid.parse().ok()?, unescaped(limited)))
}

/// Text of /dev/kmsg, which has a backslash and what cannot be printed as `\xNN`
/// (`append_char`, kernel/printk/printk.c): systemd's names hold backslashes.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split("\\x");
    bytes.extend(parts.next().unwrap_or_default().bytes());
    for part in parts {
        match part.get(..2).and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend(&part.as_bytes()[2..]);
            }
            None => bytes.extend([br"\x", part.as_bytes()].concat()),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
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

    #[test]
    fn a_limit_around_the_vms_own_cgroup_is_not_its_own() {
        let summary = "6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=vm,\
                       mems_allowed=0,oom_memcg=/slice/a,task_memcg=/slice/a/vm/emulator,\
                       task=a,pid=7,uid=0,pid=4711,uid=107\n SUBSYSTEM=x\n";
        assert_eq!(chosen(summary), Some((4711, "/slice/a".to_owned())));
        assert_eq!(unescaped(r"/a\x5cx2db.slice/\xc3\xa9\xzz"), "/a\\x2db.slice/é\\xzz");
        let kill = "3,3,3,-;Memory cgroup out of memory: Killed process 4711 (qemu) total-vm:1kB";
        let by = |own: Option<&str>, pid: i32| {
            let killed = BTreeMap::new();
            let mut kills = OomKills { log: None, killed, chosen: None };
            [summary, kill].iter().for_each(|record| kills.note(record));
            kills.of(pid, own)
        };
        assert_eq!(by(Some("/slice/a/vm"), 4711), Some(EndedBy::OomSharedCgroup));
        for own in [Some("/slice/a"), Some("/slice/ab"), Some("/slice"), None] {
            assert_eq!(by(own, 4711), Some(EndedBy::OomCgroup), "{own:?}");
        }
        assert_eq!(by(Some("/slice/a/vm"), 4712), None);
    }
}
