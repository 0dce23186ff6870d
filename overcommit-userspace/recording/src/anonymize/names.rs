//! Pseudonyms: the same for the same name, and nothing of it.

use std::collections::BTreeMap;

/// What a name is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Vm,
    Uuid,
    Host,
    Cgroup,
    Pattern,
    Process,
    Thread,
    Device,
    Mark,
}

/// Names of a recording, each with what stands for it. Of several recordings the same name gets the
/// same pseudonym.
#[derive(Debug, Default)]
pub struct Pseudonyms(BTreeMap<Kind, BTreeMap<String, String>>);

/// Hypervisors that anybody can have.
const HYPERVISORS: [&str; 12] = [
    "qemu-system-x86_64",
    "qemu-system-i386",
    "qemu-system-aarch64",
    "qemu-system-riscv64",
    "qemu-system-s390x",
    "qemu-kvm",
    "kvm",
    "firecracker",
    "cloud-hypervisor",
    "crosvm",
    "hypervisor",
    "stratovirt",
];

/// Threads that each kernel has, by how their names begin.
const KERNELS: [&str; 10] = [
    "kswapd",
    "kdamond",
    "kcompactd",
    "khugepaged",
    "kworker",
    "ksmd",
    "kthreadd",
    "migration/",
    "oom_reaper",
    "others",
];

/// Paths that are alike on all hosts.
const PUBLIC: [&str; 6] =
    ["/proc/", "/sys/", "/dev/kvm", "/dev/kmsg", "/run/libvirt/", "/var/run/libvirt/"];

impl Pseudonyms {
    /// What stands for a name; nothing for none.
    pub(super) fn of(&mut self, kind: Kind, name: &str) -> String {
        if name.is_empty() {
            return String::new();
        }
        let given = self.0.entry(kind).or_default();
        let number = given.len() + 1;
        let made = || match kind {
            Kind::Vm => format!("vm-{number}"),
            Kind::Uuid => format!("00000000-0000-4000-8000-{number:012}"),
            Kind::Host => format!("host-{number}"),
            Kind::Cgroup => format!("/cgroup-{number}"),
            Kind::Pattern => format!("pattern-{number}"),
            Kind::Process => format!("process-{number}"),
            Kind::Thread => format!("thread-{number}"),
            Kind::Device => format!("swap-{number}"),
            Kind::Mark => format!("mark-{number}"),
        };
        given.entry(name.to_owned()).or_insert_with(made).clone()
    }

    /// The same where there may be none.
    pub(super) fn of_some(&mut self, kind: Kind, name: Option<&String>) -> Option<String> {
        name.map(|name| self.of(kind, name))
    }

    /// The name of a program's file, where it is no known hypervisor.
    pub(super) fn of_program(&mut self, name: &str) -> String {
        let is_known = HYPERVISORS.contains(&name);
        if is_known { name.to_owned() } else { self.of(Kind::Process, name) }
    }

    /// The name of a thread of the kernel, where not each kernel has it: some are called after what
    /// they serve.
    pub(super) fn of_kernel_thread(&mut self, name: &str) -> String {
        let is_known = KERNELS.iter().any(|known| name.starts_with(known));
        if is_known { name.to_owned() } else { self.of(Kind::Thread, name) }
    }

    /// A thread's name, but for those that a hypervisor gives each vCPU.
    pub(super) fn of_thread(&mut self, name: &str) -> String {
        let between = |start: &str, end: &str| {
            name.strip_prefix(start).and_then(|rest| rest.strip_suffix(end)).is_some_and(is_number)
        };
        let is_vcpu = between("CPU ", "/KVM")
            || between("CPU ", "/TCG")
            || between("fc_vcpu ", "")
            || between("vcpu", "");
        if is_vcpu { name.to_owned() } else { self.of(Kind::Thread, name) }
    }

    /// A swap device's name, where it says more than what the device is.
    pub(super) fn of_device(&mut self, name: &str) -> String {
        let numbered = ["zram", "md", "dm-", "loop", "zswap"];
        let is_numbered = |kind: &&str| {
            name.strip_prefix(*kind).is_some_and(|rest| rest.is_empty() || is_number(rest))
        };
        let is_lettered = |kind: &&str| {
            let rest = name.strip_prefix(*kind);
            let rest = rest.map(|rest| rest.trim_end_matches(|c: char| c.is_ascii_digit()));
            rest.is_some_and(|rest| {
                rest.len() <= 2 && rest.bytes().all(|byte| byte.is_ascii_lowercase())
            })
        };
        let is_parted = |kind: &&str| {
            let rest = name.strip_prefix(*kind);
            rest.is_some_and(|rest| {
                rest.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'n' | b'p'))
            })
        };
        let is_plain = numbered.iter().any(is_numbered)
            || ["sd", "vd", "xvd", "hd"].iter().any(is_lettered)
            || ["nvme", "mmcblk"].iter().any(is_parted);
        if is_plain { name.to_owned() } else { self.of(Kind::Device, name) }
    }

    /// A sentence with pseudonyms in place of what it names, and without paths but those that all
    /// hosts have.
    pub(super) fn scrub(&self, text: &str) -> String {
        // A monitor's path may be anything.
        let text = match text.strip_prefix("monitor ").and_then(|rest| rest.split_once(": ")) {
            Some((_, why)) => format!("monitor PATH: {why}"),
            None => text.to_owned(),
        };
        let kinds = [Kind::Cgroup, Kind::Uuid, Kind::Vm, Kind::Host];
        let mut given: Vec<(&String, &String)> =
            kinds.iter().filter_map(|kind| self.0.get(kind)).flatten().collect();
        given.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        without_paths(&replaced(&text, &given))
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a character can be part of a longer name, or of a path.
fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '/')
}

/// With what stands for each name in its place, where it stands by itself.
fn replaced(text: &str, given: &[(&String, &String)]) -> String {
    let mut made = String::new();
    let mut rest = text;
    let mut before = None;
    while let Some(c) = rest.chars().next() {
        let starts_alone = !before.is_some_and(is_of_name);
        let found = given.iter().find(|(name, _)| {
            let after = rest.strip_prefix(name.as_str());
            starts_alone && after.is_some_and(ends_alone)
        });
        let length = match found {
            Some((name, pseudonym)) => {
                made.push_str(pseudonym);
                name.len()
            }
            None => {
                made.push(c);
                c.len_utf8()
            }
        };
        before = rest[..length].chars().next_back();
        rest = &rest[length..];
    }
    made
}

/// Whether a name ends before this: a full stop behind it is none of its own.
fn ends_alone(after: &str) -> bool {
    let after = after
        .strip_prefix('.')
        .filter(|rest| rest.is_empty() || rest.starts_with(' '))
        .unwrap_or(after);
    !after.chars().next().is_some_and(is_of_name)
}

fn without_paths(text: &str) -> String {
    let is_private = |word: &str| {
        let is_path = word.starts_with('/') && word.len() > 1;
        let is_public =
            word.starts_with("/cgroup-") || PUBLIC.iter().any(|path| word.starts_with(path));
        is_path && !is_public || word.contains(".sock")
    };
    let word = |word: &str| {
        let from = word.find(|c: char| c == '/' || c.is_alphanumeric()).unwrap_or(0);
        let end = word.trim_end_matches([',', '.', ':', ';', ')', '"', '\'']).len();
        match word.get(from..end) {
            Some(path) if is_private(path) => format!("{}PATH{}", &word[..from], &word[end..]),
            _ => word.to_owned(),
        }
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_name_has_the_same_pseudonym() {
        let mut names = Pseudonyms::default();
        assert_eq!(names.of(Kind::Vm, "billing"), "vm-1");
        assert_eq!(names.of(Kind::Vm, "web"), "vm-2");
        assert_eq!(names.of(Kind::Vm, "billing"), "vm-1");
        assert_eq!(names.of(Kind::Host, "billing"), "host-1");
        assert_eq!(names.of(Kind::Vm, ""), "");
    }

    #[test]
    fn what_every_host_has_keeps_its_name() {
        let mut names = Pseudonyms::default();
        for thread in ["CPU 3/KVM", "fc_vcpu 0", "vcpu12"] {
            assert_eq!(names.of_thread(thread), thread);
        }
        for thread in ["acme-worker", "CPU acme/KVM", "vcpu-acme", "vcpu"] {
            assert!(names.of_thread(thread).starts_with("thread-"), "{thread}");
        }
        for device in ["nvme0n1", "nvme1n1p3", "sda2", "vdb", "zram0", "dm-7", "mmcblk0p2"] {
            assert_eq!(names.of_device(device), device);
        }
        for device in ["sdbilling", "mdsecret1", "acme.swap", "swapfile", "nvme-acme"] {
            assert!(names.of_device(device).starts_with("swap-"), "{device}");
        }
        assert_eq!(names.of_kernel_thread("kswapd0"), "kswapd0");
        assert!(names.of_kernel_thread("drbd_w_acme").starts_with("thread-"));
        assert_eq!(names.of_program("qemu-system-x86_64"), "qemu-system-x86_64");
        for program in ["acme-sandboxd", "qemu-system-x86_64-acme"] {
            assert!(names.of_program(program).starts_with("process-"), "{program}");
        }
    }

    #[test]
    fn a_sentence_names_nobody() {
        let mut names = Pseudonyms::default();
        for (kind, name) in [
            (Kind::Vm, "web"),
            (Kind::Vm, "web-1"),
            (Kind::Vm, "vm-1"),
            (Kind::Vm, "kvm"),
            (Kind::Cgroup, "/acme/web"),
        ] {
            names.of(kind, name);
        }
        for (said, scrubbed) in [
            ("web shares its cgroup with web-1.", "vm-1 shares its cgroup with vm-2."),
            ("web and vm-1", "vm-1 and vm-3"),
            ("website and web-10 stay", "website and web-10 stay"),
            ("its cgroup /acme/web holds others", "its cgroup /cgroup-1 holds others"),
            ("/run/acme/web.sock: refused (see /proc/swaps)", "PATH: refused (see /proc/swaps)"),
            ("monitor /srv/Acme Billing/qmp: no answer", "monitor PATH: no answer"),
            ("monitor acme.qmp: no answer", "monitor PATH: no answer"),
            ("(run/acme.sock)", "(PATH)"),
            ("/dev/kmsg: not permitted, nor /dev/kvm", "/dev/kmsg: not permitted, nor /dev/kvm"),
            ("read and/or written, \"/etc/x\"", "read and/or written, \"PATH\""),
        ] {
            assert_eq!(names.scrub(said), scrubbed);
        }
    }
}
