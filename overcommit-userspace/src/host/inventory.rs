//! What a host has, and which VMs run on it, before anything is recorded.

use crate::host::memory_cgroup::Hierarchy;
use crate::host::vm_processes::VmProcesses;
use overcommit_recording::format::text::readable_bytes;
use overcommit_recording::model::swap::SwapArea;
use overcommit_recording::model::vm::Vm;
use overcommit_recording::view::facts::Facts;
use overcommit_recording::view::memory_text;
use procfs::{FromRead, Meminfo};
use serde::Serialize;
use std::fs;
use std::path::Path;

/// All of it. What cannot be read is `None`.
#[derive(Debug, Serialize)]
pub struct Inventory {
    /// RAM, in bytes.
    memory_bytes: Option<u64>,
    /// Where pages are swapped to.
    swap: Vec<SwapArea>,
    /// Version of the memory cgroups.
    memory_cgroups: Option<u8>,
    /// `always`, `madvise` or `never`.
    transparent_huge_pages: Option<String>,
    /// Whether the kernel merges pages of equal content.
    ksm: bool,
    /// VMs that run.
    vms: Vms,
}

/// How many VMs are of which kind.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Vms {
    running: usize,
    /// Without KVM: no exits are seen.
    under_tcg: usize,
    /// Without swap-outs, evictions and a limit of their own.
    without_own_cgroup: usize,
}

impl Inventory {
    /// Reads it, of a host on which these VMs run.
    pub fn read(proc: &Path, sys: &Path, vms: &[Vm]) -> Self {
        let hierarchy = Hierarchy::find(proc);
        let meminfo = Meminfo::from_file(proc.join("meminfo"));
        let setting = |name: &str| fs::read_to_string(sys.join("kernel/mm").join(name)).ok();
        Self {
            memory_bytes: meminfo.ok().map(|meminfo| meminfo.mem_total),
            swap: swap_areas(proc),
            transparent_huge_pages: setting("transparent_hugepage/enabled").and_then(chosen),
            ksm: setting("ksm/run").is_some_and(|run| run.trim() == "1"),
            vms: Vms::of(vms, proc, hierarchy.as_ref()),
            memory_cgroups: hierarchy.map(|hierarchy| hierarchy.number()),
        }
    }

    /// As people read it.
    pub fn facts(&self) -> Facts {
        let mut facts = Facts::default();
        facts.add("RAM", self.memory_bytes.map(readable_bytes));
        let swap = self.swap.iter().map(|area| {
            format!("{}, {} used", memory_text::swap_area(area), readable_bytes(area.used_bytes))
        });
        let swap: Vec<String> = swap.collect();
        let none = || "none: no memory of a VM can be swapped out".to_owned();
        facts.add("swap", if swap.is_empty() { none() } else { swap.join("; ") });
        let version = self.memory_cgroups.map(|version| format!("version {version}"));
        let none = || "none: no limits, swap-outs or evictions are seen".to_owned();
        facts.add("memory cgroups", version.unwrap_or_else(none));
        let huge = self.transparent_huge_pages.clone().unwrap_or_else(|| "none".to_owned());
        let ksm = if self.ksm { "on" } else { "off" };
        facts.add("pages", format!("transparent huge pages {huge}, KSM {ksm}"));
        facts.add("VMs", self.vms.said());
        facts
    }
}

impl Vms {
    fn of(vms: &[Vm], proc: &Path, hierarchy: Option<&Hierarchy>) -> Self {
        let processes = VmProcesses::new(proc);
        let is_shared = |vm: &&Vm| hierarchy.and_then(|of| of.own(&processes, vm)).is_none();
        Self {
            running: vms.len(),
            under_tcg: vms.iter().filter(|vm| vm.accelerator.as_deref() == Some("tcg")).count(),
            without_own_cgroup: vms.iter().filter(is_shared).count(),
        }
    }

    fn said(&self) -> String {
        let parts = [
            (self.under_tcg, "under TCG, without KVM exits"),
            (self.without_own_cgroup, "without a memory cgroup of their own"),
        ];
        let parts = parts.into_iter().filter(|(count, _)| *count > 0);
        let parts: String = parts.map(|(count, what)| format!(", {count} {what}")).collect();
        format!("{} running{parts}", self.running)
    }
}

/// Where pages can be swapped to.
pub fn swap_areas(proc: &Path) -> Vec<SwapArea> {
    let swaps = fs::read_to_string(proc.join("swaps")).unwrap_or_default();
    swaps.lines().skip(1).filter_map(swap_area).collect()
}

/// A line as `swap_show` writes it (mm/swapfile.c): name, type, size, used and priority, in KiB;
/// white space in a name is escaped.
fn swap_area(line: &str) -> Option<SwapArea> {
    let mut words = line.split_whitespace();
    let name = words.next()?;
    let kib: Vec<u64> = words.skip(1).filter_map(|word| word.parse().ok()).collect();
    let name = name.rsplit('/').next().unwrap_or(name).to_owned();
    Some(SwapArea { name, size_bytes: kib.first()? << 10, used_bytes: kib.get(1)? << 10 })
}

/// The word in brackets, which is the one that holds.
fn chosen(setting: String) -> Option<String> {
    let (_, chosen) = setting.split_once('[')?;
    Some(chosen.split_once(']')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_read_as_the_kernel_writes_it() {
        let line = "/dev/zram1                              partition\t2097148\t\t80128\t\t100";
        let area = |name: &str, size: u64, used: u64| {
            Some(SwapArea { name: name.to_owned(), size_bytes: size << 10, used_bytes: used << 10 })
        };
        assert_eq!(swap_area(line), area("zram1", 2_097_148, 80_128));
        let file = r"/var/swap\040file file 1024 0 -2";
        assert_eq!(swap_area(file), area(r"swap\040file", 1_024, 0));
        assert_eq!(swap_area(""), None);
        assert_eq!(chosen("always [madvise] never\n".to_owned()).as_deref(), Some("madvise"));
    }

    #[test]
    fn what_is_missing_is_said() {
        let of = |running, under_tcg, without_own_cgroup| {
            Vms { running, under_tcg, without_own_cgroup }.said()
        };
        assert_eq!(of(2, 0, 0), "2 running");
        let said =
            "4 running, 2 under TCG, without KVM exits, 1 without a memory cgroup of their own";
        assert_eq!(of(4, 2, 1), said);
        let bare = Inventory {
            memory_bytes: None,
            swap: Vec::new(),
            memory_cgroups: None,
            transparent_huge_pages: None,
            ksm: false,
            vms: Vms::default(),
        };
        let mut text = String::new();
        bare.facts().write(&mut text, "Host");
        assert_eq!(text.matches("none: no ").count(), 2, "{text}");
    }
}
