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
#[derive(Default)]
pub struct OomKills {
    /// `None` where it cannot be read.
    log: Option<File>,
    /// With the memory cgroup that was short, where that was one.
    killed: BTreeMap<i32, (EndedBy, Option<String>)>,
    /// Whom the last shortage of a memory cgroup made the kernel choose, or a whole group, and that
    /// cgroup.
    chosen: Option<(Chosen, String)>,
}

/// Who is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Chosen {
    One(i32),
    Group,
}

/// Processes that were killed and are remembered.
const REMEMBERED: usize = 1024;

impl OomKills {
    /// Begins at its end; says why it cannot be read, if so.
    pub fn follow() -> (Self, Option<String>) {
        let flags = OFlag::O_NONBLOCK.bits();
        let log = OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg");
        let log = log.and_then(|mut log: File| log.seek(SeekFrom::End(0)).map(|_| log));
        let why = log.as_ref().err().map(|error| format!("/dev/kmsg: {}", reason(error)));
        (Self { log: log.ok(), ..Self::default() }, why)
    }

    /// Why the kernel killed that process, if it did. `own` is the outermost memory cgroup that is
    /// the process's own: a limit further out holds for others too.
    pub fn of(&mut self, pid: i32, own: Option<&str>) -> Option<EndedBy> {
        self.read();
        let (by, limited) = self.killed.remove(&pid)?;
        let is_around = |own: &str, limited: &str| {
            own.strip_prefix(limited).is_some_and(|rest| rest.starts_with('/'))
        };
        let is_shared = own.zip(limited).is_some_and(|(own, limited)| is_around(own, &limited));
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

    /// Takes a record of the log.
    ///
    /// The kernel kills for one shortage at a time (`oom_lock`, mm/oom_kill.c): whom it chose, then
    /// who was killed, then, if a group dies with that one, its others. Whom it chose may be left
    /// out of the log if there was much of that (`oom_rs`).
    pub fn note(&mut self, record: &str) {
        let Some((_, message)) = record.split_once(';') else { return };
        if message.starts_with(CHOSEN) {
            self.chosen = chosen(message);
        } else if message.starts_with("Tasks in ") && message.contains(GROUP) {
            self.chosen = self.chosen.take().map(|(_, limited)| (Chosen::Group, limited));
        } else if let Some((pid, by)) = killed(message) {
            let is_its = |who: Chosen| [Chosen::Group, Chosen::One(pid)].contains(&who);
            let limited = self.chosen.as_ref().filter(|(who, _)| is_its(*who));
            let limited = limited.map(|(_, limited)| limited.clone());
            if self.killed.len() >= REMEMBERED {
                self.killed.pop_first();
            }
            self.killed.insert(pid, (by, limited));
        }
    }
}

/// How the kernel begins to say whom it chose, and what it says of a group.
const CHOSEN: &str = "oom-kill:constraint=";
const GROUP: &str = " are going to be killed due to memory.oom.group set";

/// Whom a message says was chosen, and the memory cgroup that was short.
fn chosen(message: &str) -> Option<(Chosen, String)> {
    let (_, rest) = message.lines().next()?.split_once(",oom_memcg=")?;
    // Names of cgroups and threads may hold anything; the end is the kernel's.
    let (before, _) = rest.rsplit_once(",uid=")?;
    let (before, pid) = before.rsplit_once(",pid=")?;
    let (limited, _) = before.split_once(",task_memcg=")?;
    Some((Chosen::One(pid.parse().ok()?), unescaped(limited)))
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

/// Who was killed by a message, and for want of whose memory.
fn killed(message: &str) -> Option<(i32, EndedBy)> {
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
        let cgroup = "Memory cgroup out of memory: Killed process 4711 (qemu-system-x86) \
             total-vm:1024kB, anon-rss:1kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:48kB \
             oom_score_adj:0\n SUBSYSTEM=x\n";
        assert_eq!(killed(cgroup), Some((4711, EndedBy::OomCgroup)));
        let host = "Out of memory: Killed process 42 (qemu-kvm) total-vm:1kB";
        assert_eq!(killed(host), Some((42, EndedBy::OomHost)));
        let chosen = "Out of memory (oom_kill_allocating_task): Killed process 43 (x) total-vm:1";
        assert_eq!(killed(chosen), Some((43, EndedBy::OomHost)));
        let forged = "Out of memory[7]: segfault at 0 in a: Killed process 4711 (x) total-vm:1";
        for other in [
            forged,
            "Out of memory: Killed process 4711 (x)",
            "oom_reaper: reaped process 4711 (qemu)",
            "x: Killed process 1 (y)",
            "",
        ] {
            assert_eq!(killed(other), None, "{other}");
        }
    }

    /// What the log says while a cgroup is short: whom the kernel chose, and whom it killed.
    fn short(limited: &str, chosen: i32, killed: &[&str]) -> Vec<String> {
        let chosen = format!(
            "6,1,2,-;{CHOSEN}CONSTRAINT_MEMCG,nodemask=(null),cpuset=vm,mems_allowed=0,\
             oom_memcg={limited},task_memcg={limited}/vm/emulator,task=a,pid=7,uid=0,pid={chosen},\
             uid=107\n SUBSYSTEM=x\n"
        );
        let killed = killed.iter().map(|pid| {
            format!("3,3,3,-;Memory cgroup out of memory: Killed process {pid} (qemu) total-vm:1kB")
        });
        std::iter::once(chosen).chain(killed).collect()
    }

    fn by(log: &[String], pid: i32, own: &str) -> Option<EndedBy> {
        let mut kills = OomKills::default();
        log.iter().for_each(|record| kills.note(record));
        kills.of(pid, Some(own))
    }

    #[test]
    fn a_limit_around_the_vms_own_cgroup_is_not_its_own() {
        assert_eq!(unescaped(r"/a\x5cx2db.slice/\xc3\xa9\xzz"), "/a\\x2db.slice/é\\xzz");
        let log = short("/slice/a", 4711, &["4711"]);
        assert_eq!(by(&log, 4711, "/slice/a/vm"), Some(EndedBy::OomSharedCgroup));
        for own in ["/slice/a", "/slice/ab", "/slice"] {
            assert_eq!(by(&log, 4711, own), Some(EndedBy::OomCgroup), "{own}");
        }
        assert_eq!(by(&log, 4712, "/slice/a/vm"), None);
        let mut kills = OomKills::default();
        log.iter().for_each(|record| kills.note(record));
        assert_eq!(kills.of(4711, None), Some(EndedBy::OomCgroup));
    }

    #[test]
    fn each_kill_goes_by_its_own_shortage() {
        let two = [short("/slice", 1, &["1"]), short("/slice/vm-2", 2, &["2"])].concat();
        assert_eq!(by(&two, 1, "/slice/vm-1"), Some(EndedBy::OomSharedCgroup));
        assert_eq!(by(&two, 2, "/slice/vm-2"), Some(EndedBy::OomCgroup));
        // A summary that the log left out.
        let mut lost = two.clone();
        lost.remove(2);
        assert_eq!(by(&lost, 2, "/slice/vm-2"), Some(EndedBy::OomCgroup));
        let mut group = short("/slice", 1, &["1", "2"]);
        assert_eq!(by(&group, 2, "/slice/vm-2"), Some(EndedBy::OomCgroup));
        group.insert(2, format!("6,2,2,-;Tasks in /slice{GROUP}"));
        assert_eq!(by(&group, 2, "/slice/vm-2"), Some(EndedBy::OomSharedCgroup));
    }
}
