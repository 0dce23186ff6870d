//! What this host is.

pub mod btf;
pub mod capability;
pub mod clock;
pub mod exit_reasons;
pub mod layout;
pub(crate) mod userfault;

use anyhow::{Context, Result, anyhow};
use overcommit_recording::model::vm::VmId;
use procfs::sys::kernel::Version;
use procfs::{CpuInfo, Current};
use std::collections::HashMap;
use std::fs;

/// Number of the system call `ioctl`.
pub const IOCTL: u32 = if cfg!(target_arch = "aarch64") { 29 } else { 16 };

/// Nanoseconds in a clock tick of /proc: `USER_HZ` is 100 on every architecture
/// that runs KVM.
pub const TICK_NS: u64 = 10_000_000;

/// `uname -r`.
///
/// # Errors
/// /proc cannot be read.
pub fn release() -> Result<String> {
    let path = "/proc/sys/kernel/osrelease";
    Ok(fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?.trim().to_owned())
}

/// Whether KVM tells of an exit only when it has let the host's interrupts in again. It does on AMD
/// before Linux 6.12, which moved `kvm_exit` from `svm_handle_exit` to `svm_vcpu_run`
/// (arch/x86/kvm/svm/svm.c), and on arm64 (`kvm_arch_vcpu_ioctl_run`, arch/arm64/kvm/arm.c).
pub fn tells_exits_late() -> bool {
    if cfg!(target_arch = "aarch64") {
        return true;
    }
    let vendor = CpuInfo::current().ok().and_then(|cpus| cpus.vendor_id(0).map(str::to_owned));
    let is_amd =
        vendor.is_some_and(|vendor| ["AuthenticAMD", "HygonGenuine"].contains(&vendor.as_str()));
    let is_before = |kernel| kernel < Version::new(6, 12, 0);
    is_amd && Version::current().is_ok_and(is_before)
}

/// The host's name.
///
/// # Errors
/// It is not set, or no UTF-8.
pub fn host_name() -> Result<String> {
    let name = nix::unistd::gethostname().context("cannot get the host name")?;
    name.into_string().map_err(|name| anyhow!("the host name {name:?} is not UTF-8"))
}

/// How many numbers CPUs of the kernel can have, online or not: some in between may be unused.
///
/// # Errors
/// /sys cannot be read.
pub fn possible_cpus() -> Result<u32> {
    let path = "/sys/devices/system/cpu/possible";
    let list = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    after_last(&list).with_context(|| format!("{path} has no list of CPUs: {list:?}"))
}

/// One more than the last number of a list of ranges.
fn after_last(list: &str) -> Option<u32> {
    list.trim().rsplit([',', '-']).next()?.parse::<u32>().ok()?.checked_add(1)
}

/// Bytes of a page.
pub fn page_size() -> u64 {
    procfs::page_size()
}

/// Addresses of functions and variables of the kernel itself, not of its modules.
pub struct Symbols(HashMap<&'static str, Option<u64>>);

impl Symbols {
    /// Looks for those of these names.
    ///
    /// # Errors
    /// /proc/kallsyms cannot be read.
    pub fn read(names: impl IntoIterator<Item = &'static str>) -> Result<Self> {
        Ok(Self::of(&kallsyms()?, names))
    }

    fn of(text: &str, names: impl IntoIterator<Item = &'static str>) -> Self {
        let mut symbols: HashMap<_, _> = names.into_iter().map(|name| (name, None)).collect();
        for line in text.lines() {
            let Some((address, rest)) = line.split_once(' ') else { continue };
            // A letter for its kind and a space come first. A module's has the module behind it.
            if let Some(symbol) = rest.get(2..).and_then(|name| symbols.get_mut(name)) {
                // Of several that share a name the first counts.
                symbol.get_or_insert(u64::from_str_radix(address, 16).unwrap_or(0));
            }
        }
        Self(symbols)
    }

    /// The address of one that was looked for, 0 if the kernel hides it. `None` if it has none: a
    /// function may be inlined, or have been given other arguments, which shows in its name
    /// (`.isra`).
    pub fn address(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied().flatten()
    }
}

/// A name of the kernel's or a module's on each line.
fn kallsyms() -> Result<String> {
    let path = "/proc/kallsyms";
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

/// Every function of the kernel and its modules, by address.
pub struct Functions(Vec<(u64, String)>);

impl Functions {
    /// Reads them.
    ///
    /// # Errors
    /// /proc/kallsyms cannot be read.
    pub fn read() -> Result<Self> {
        Ok(Self::of(&kallsyms()?))
    }

    fn of(symbols: &str) -> Self {
        let function = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let is_function = words.next()?.eq_ignore_ascii_case("t");
            (is_function && address != 0).then_some((address, words.next()?.to_owned()))
        };
        let mut functions: Vec<_> = symbols.lines().filter_map(function).collect();
        functions.sort_unstable();
        Self(functions)
    }

    /// The function in which an address lies.
    pub fn name(&self, address: u64) -> Option<&str> {
        let behind = self.0.partition_point(|(start, _)| *start <= address);
        Some(&self.0.get(behind.checked_sub(1)?)?.1)
    }
}

/// The kernel's id of this boot.
///
/// # Errors
/// /proc cannot be read.
pub fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?.trim().to_owned())
}

/// Which run of a process that is.
///
/// # Errors
/// There is no such process.
pub fn process_id(pid: i32) -> Result<VmId> {
    let stat = procfs::process::Process::new(pid)?.stat()?;
    Ok(VmId { pid, start_ticks: stat.starttime })
}

/// Whether this process has every right of root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_cpus_may_have_gaps() {
        for (list, numbers) in [("0\n", 1), ("0-1\n", 2), ("0-3,8-11\n", 12), ("0,2\n", 3)] {
            assert_eq!(after_last(list), Some(numbers), "{list}");
        }
        assert_eq!(after_last("\n"), None);
    }

    #[test]
    fn only_the_kernels_own_whole_names_count() {
        let text = "ffffffff81000000 T do_swap_page\nffffffff81000040 t late.isra.0\n\
            ffffffffc0000000 t kvm_mmu_page_fault\t[kvm]\n0000000000000000 b nr_swapfiles\n";
        let names = ["do_swap_page", "swap_page", "late", "kvm_mmu_page_fault", "nr_swapfiles"];
        let symbols = Symbols::of(text, names);
        assert_eq!(symbols.address("do_swap_page"), Some(0xffff_ffff_8100_0000));
        assert_eq!(symbols.address("swap_page"), None);
        assert_eq!(symbols.address("late"), None);
        assert_eq!(symbols.address("kvm_mmu_page_fault"), None);
        assert_eq!(symbols.address("nr_swapfiles"), Some(0), "hidden");
    }

    #[test]
    fn an_address_lies_in_the_function_before_it() {
        let text = "ffffffff81000040 t later\nffffffff81000000 T earlier\n\
            ffffffff81000050 d data\nffffffffc0000000 t in_a_module\t[kvm]\n";
        let functions = Functions::of(text);
        assert_eq!(functions.name(0xffff_ffff_8100_003f), Some("earlier"));
        assert_eq!(functions.name(0xffff_ffff_8100_0060), Some("later"));
        assert_eq!(functions.name(0xffff_ffff_c000_0010), Some("in_a_module"));
        assert_eq!(functions.name(0x1000), None);
    }
}
