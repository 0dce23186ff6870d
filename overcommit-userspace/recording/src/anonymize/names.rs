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

/// Swap devices by what they are, which tells nobody's name.
const DEVICES: [&str; 9] = ["zram", "zswap", "nvme", "sd", "vd", "xvd", "dm-", "md", "mmcblk"];

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

    /// A thread's name, but for those that a hypervisor gives each vCPU.
    pub(super) fn of_thread(&mut self, name: &str) -> String {
        let is_vcpu = |name: &str| name.starts_with("CPU ") && name.ends_with("/KVM");
        if is_vcpu(name) || name.starts_with("fc_vcpu ") || name.starts_with("vcpu") {
            return name.to_owned();
        }
        self.of(Kind::Thread, name)
    }

    /// A swap device's name, where it says more than what the device is.
    pub(super) fn of_device(&mut self, name: &str) -> String {
        let is_plain = |kind: &str| {
            let rest = name.strip_prefix(kind);
            rest.is_some_and(|rest| rest.len() <= 8 && !rest.contains(['-', '_', '.', '/']))
        };
        if DEVICES.iter().any(|kind| is_plain(kind)) {
            return name.to_owned();
        }
        self.of(Kind::Device, name)
    }

    /// A sentence with pseudonyms in place of what it names, and without paths but the kernel's.
    pub(super) fn scrub(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for kind in [Kind::Cgroup, Kind::Uuid, Kind::Vm, Kind::Host] {
            let mut given: Vec<_> = self.0.get(&kind).into_iter().flatten().collect();
            given.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
            for (name, pseudonym) in given {
                text = replaced(&text, name, pseudonym);
            }
        }
        without_paths(&text)
    }
}

/// Whether a character can be part of a longer name.
fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '-' | '_' | '.')
}

/// With another name in place of one, where it stands by itself.
fn replaced(text: &str, name: &str, by: &str) -> String {
    let mut made = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(name) {
        let (before, from) = rest.split_at(at);
        let after = &from[name.len()..];
        made.push_str(before);
        let is_longer = made.chars().next_back().is_some_and(is_of_name)
            || after.chars().next().is_some_and(is_of_name) && !after.starts_with(". ");
        made.push_str(if is_longer && after != "." { name } else { by });
        rest = after;
    }
    made + rest
}

fn without_paths(text: &str) -> String {
    let is_private = |word: &str| {
        word.starts_with('/')
            && word.len() > 1
            && !["/proc/", "/sys/", "/dev/kvm", "/cgroup-"].iter().any(|own| word.starts_with(own))
    };
    let word = |word: &str| {
        let from = word.find('/').unwrap_or(0);
        let is_quoted = word[..from].chars().all(|c| !c.is_alphanumeric());
        let end = word.trim_end_matches([',', '.', ':', ';', ')', '"', '\'']).len();
        match word.get(from..end) {
            Some(path) if is_quoted && is_private(path) => {
                format!("{}PATH{}", &word[..from], &word[end..])
            }
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
        assert_eq!(names.of_thread("CPU 3/KVM"), "CPU 3/KVM");
        assert_eq!(names.of_thread("acme-worker"), "thread-1");
        assert_eq!(names.of_device("nvme0n1"), "nvme0n1");
        assert_eq!(names.of_device("sdacme-secret"), "swap-1");
        assert_eq!(names.of_device("acme.swap"), "swap-2");
    }

    #[test]
    fn a_sentence_names_nobody() {
        let mut names = Pseudonyms::default();
        for (kind, name) in [(Kind::Vm, "web"), (Kind::Vm, "web-1"), (Kind::Cgroup, "/acme/web")] {
            names.of(kind, name);
        }
        for (said, scrubbed) in [
            ("web shares its cgroup with web-1.", "vm-1 shares its cgroup with vm-2."),
            ("website and web-10 stay", "website and web-10 stay"),
            ("its cgroup /acme/web holds others", "its cgroup /cgroup-1 holds others"),
            ("/run/acme/web.sock: refused (see /proc/swaps)", "PATH: refused (see /proc/swaps)"),
            ("read and/or written, \"/etc/x\"", "read and/or written, \"PATH\""),
        ] {
            assert_eq!(names.scrub(said), scrubbed);
        }
    }
}
