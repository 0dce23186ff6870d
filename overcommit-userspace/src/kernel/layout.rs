//! Where does the running kernel keep that field?
//!
//! Rust's eBPF objects carry no CO-RE relocations, so the offsets are looked up
//! in the kernel's BTF and handed to the programs as read-only globals.

use crate::kernel::btf::{Btf, Place};
use crate::kernel::userfault;
use anyhow::{Context, Result, anyhow};
use overcommit_ebpf::layout::{FolioOffsets, KernelOffsets, SwapEntry};
use procfs::sys::kernel::Version;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// The BTF of the running kernel.
pub const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Where the BTF of each module is.
const MODULES_BTF: &str = "/sys/kernel/btf";

/// Names of the registers in `struct pt_regs` that hold the number and the
/// second argument of a system call.
const SYSCALL_REGISTERS: (&str, &str) =
    if cfg!(target_arch = "aarch64") { ("syscallno", "regs") } else { ("orig_ax", "si") };
/// Bytes from that field to the argument: arm64 keeps them in an array.
const SECOND_ARGUMENT_AT: u32 = if cfg!(target_arch = "aarch64") { 8 } else { 0 };

/// `UFFD_FEATURE_PAGEFAULT_FLAG_WP`, include/uapi/linux/userfaultfd.h.
const WRITE_PROTECTION: u64 = 1;
/// The first kernel that has it on arm64.
const WRITE_PROTECTS: Version = Version { major: 6, minor: 10, patch: 0 };

/// Where the kernel keeps what is looked at.
pub struct KernelLayout {
    offsets: Result<KernelOffsets, String>,
    folio_offsets: Result<FolioOffsets, String>,
    /// How page tables keep an entry of a swapped page.
    pub swap_entry: SwapEntry,
    /// What zswap's load function returns when it had the page: 1 for `true`, or 0 where it
    /// returns an error number (zswap_load from 6.17 on, __frontswap_load before 6.5).
    pub zswap_loaded: u8,
    /// Whether the page-table walk of the multi-generational LRU asks KVM what guests
    /// touched. The change that brought it made `lru_gen_look_around` tell whether it
    /// found something (mm/vmscan.c, 6.12); in 6.1 the walk sees next to nothing of a
    /// guest.
    pub mglru_sees_guests: bool,
    /// Whether the kernel keeps account of how long each thread waits for a CPU.
    pub has_run_delay: bool,
    /// Where KVM keeps why a vCPU left; `None` where that is not known now.
    pub exits: Option<ExitLayout>,
}

/// Where KVM on x86 keeps why a vCPU left, in bytes from its `kvm_vcpu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitLayout {
    /// `kvm_vcpu::vcpu_id`
    pub vcpu_id: u32,
    /// `vcpu_svm::vmcb`, on AMD.
    pub svm_vmcb: Option<u32>,
    /// `vcpu_vmx::exit_reason` and `…::exit_qualification`, on Intel.
    pub vmx: Option<[u32; 2]>,
}

impl ExitLayout {
    /// The structure of KVM's that all of it is looked up in.
    pub const STRUCTURE: &str = "kvm_vcpu";

    /// Looks it up in the kernel and in the modules that are loaded; `None` if they do not say it of
    /// this CPU.
    fn find(kernel: &Btf<'_>) -> Option<Self> {
        let of_module = |name| {
            let bytes = std::fs::read(Path::new(MODULES_BTF).join(name)).ok()?;
            Self::of(&kernel.parse_module(&bytes).ok()?)
        };
        // One may be built in, and the other a module.
        let [amd, intel] =
            ["kvm_amd", "kvm_intel"].map(|name| of_module(name).or(Self::of(kernel)));
        let has_flag =
            |flag| cpu_flags().is_some_and(|flags| flags.split(' ').any(|of| of == flag));
        amd.filter(|amd| amd.svm_vmcb.is_some() && has_flag("svm"))
            .or_else(|| intel.filter(|intel| intel.vmx.is_some() && has_flag("vmx")))
    }

    fn of(btf: &Btf<'_>) -> Option<Self> {
        let of = |structure: &str, field: &str| offset(btf, structure, field).ok();
        // A vCPU of either is a `kvm_vcpu` and more.
        let begins = |structure: &str| of(structure, "vcpu") == Some(0);
        // Linux 6.16 put what VMX and TDX have in common into a structure.
        let vmx =
            |field: &str| of("vcpu_vmx", field).or_else(|| of("vcpu_vmx", &format!("vt.{field}")));
        let svm_vmcb = of("vcpu_svm", "vmcb").filter(|_| begins("vcpu_svm"));
        let vmx = vmx("exit_reason").zip(vmx("exit_qualification")).map(<[u32; 2]>::from);
        let vmx = vmx.filter(|_| begins("vcpu_vmx"));
        Some(Self { vcpu_id: of(Self::STRUCTURE, "vcpu_id")?, svm_vmcb, vmx })
    }
}

/// What the first CPU can do, as x86 tells it.
fn cpu_flags() -> Option<String> {
    let lines = BufReader::new(File::open("/proc/cpuinfo").ok()?).lines();
    lines.map_while(Result::ok).find(|line| line.starts_with("flags"))
}

impl KernelLayout {
    /// Reads BTF.
    ///
    /// # Errors
    /// The kernel has none there, or it is malformed.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| {
            format!(
                "the kernel has no type information at {}: it needs CONFIG_DEBUG_INFO_BTF",
                path.display()
            )
        })?;
        let btf = Btf::parse(&bytes).with_context(|| format!("cannot read {}", path.display()))?;
        let returns_bool = |function| {
            btf.returned(function).is_some_and(|name| [&b"bool"[..], b"_Bool"].contains(&name))
        };
        Ok(Self {
            offsets: offsets(&btf).map_err(|error| error.to_string()),
            folio_offsets: folio_offsets(&btf).map_err(|error| error.to_string()),
            swap_entry: swap_entry(),
            zswap_loaded: u8::from(returns_bool("zswap_load")),
            mglru_sees_guests: returns_bool("lru_gen_look_around"),
            has_run_delay: run_delay(&btf).is_ok(),
            exits: ExitLayout::find(&btf),
        })
    }

    /// Everything that the programs read.
    ///
    /// # Errors
    /// The first field that this kernel lacks.
    pub fn offsets(&self) -> Result<KernelOffsets> {
        self.offsets.clone().map_err(anyhow::Error::msg)
    }

    /// What the program on swap-outs reads; not every kernel has memory cgroups.
    ///
    /// # Errors
    /// The first field that this kernel lacks.
    pub fn folio_offsets(&self) -> Result<FolioOffsets> {
        self.folio_offsets.clone().map_err(anyhow::Error::msg)
    }
}

/// Offset of a field, in bytes.
fn offset(btf: &Btf<'_>, structure: &str, field: &str) -> Result<u32> {
    match btf.field(structure, field) {
        Some(Place { bit, bits: 0 }) => Ok(bit / 8),
        _ => Err(anyhow!("this kernel's BTF has no {structure}::{field}")),
    }
}

/// Offset of a field of one bit, in bits.
fn bit(btf: &Btf<'_>, structure: &str, field: &str) -> Result<u32> {
    match btf.field(structure, field) {
        Some(Place { bit, bits: 1 }) => Ok(bit),
        _ => Err(anyhow!("this kernel's BTF has no bit {structure}::{field}")),
    }
}

/// BTF does not say it. On arm64 it changed when the write protection of userfaultfd came, which took
/// a bit of the entries; the kernel says whether it has that.
fn swap_entry() -> SwapEntry {
    if cfg!(target_arch = "x86_64") {
        return SwapEntry::X86;
    }
    let has_bit = match userfault::open() {
        Ok((_, features)) => features & WRITE_PROTECTION != 0,
        Err(_) => Version::current().is_ok_and(|kernel| kernel >= WRITE_PROTECTS),
    };
    if has_bit { SwapEntry::ARM64 } else { SwapEntry::ARM64_OLD }
}

/// Where a thread's time of waiting for a CPU is (CONFIG_SCHED_INFO).
fn run_delay(btf: &Btf<'_>) -> Result<u32> {
    offset(btf, "task_struct", "sched_info.run_delay")
}

fn folio_offsets(btf: &Btf<'_>) -> Result<FolioOffsets> {
    let folio = |field| offset(btf, "folio", field);
    let head = btf.enumerator("pageflags", "PG_head");
    Ok(FolioOffsets {
        memcg_data: folio("memcg_data")?,
        objcg_memcg: offset(btf, "obj_cgroup", "memcg")?,
        memcg_cgroup: offset(btf, "mem_cgroup", "css.cgroup")?,
        cgroup_kn: offset(btf, "cgroup", "kn")?,
        kn_id: offset(btf, "kernfs_node", "id")?,
        flags: folio("flags")?,
        head_bit: head.context("this kernel's BTF has no PG_head in pageflags")?,
        // As it was called before Linux 6.15.
        pages: folio("_nr_pages").or_else(|_| folio("_folio_nr_pages"))?,
        private: folio("private")?,
    })
}

fn offsets(btf: &Btf<'_>) -> Result<KernelOffsets> {
    let of = |structure, field| offset(btf, structure, field);
    let task = |field| of("task_struct", field);
    let signal = |field| of("signal_struct", field);
    let in_iowait = bit(btf, "task_struct", "in_iowait")?;
    let (syscall, argument) = SYSCALL_REGISTERS;
    Ok(KernelOffsets {
        task_mm: task("mm")?,
        task_pid: task("pid")?,
        task_tgid: task("tgid")?,
        task_start_boottime: task("start_boottime")?,
        task_exit_code: task("exit_code")?,
        task_group_leader: task("group_leader")?,
        task_min_flt: task("min_flt")?,
        task_maj_flt: task("maj_flt")?,
        task_run_delay: run_delay(btf).unwrap_or(0),
        task_nvcsw: task("nvcsw")?,
        task_in_iowait: in_iowait / 8,
        in_iowait_bit: in_iowait % 8,
        task_over_high: task("memcg_nr_pages_over_high").unwrap_or(0),
        mm_mmap_lock: of("mm_struct", "mmap_lock")?,
        task_signal: task("signal")?,
        signal_live: signal("live")?,
        signal_flags: signal("flags")?,
        signal_group_exit_code: signal("group_exit_code")?,
        signal_min_flt: signal("min_flt")?,
        signal_maj_flt: signal("maj_flt")?,
        mm_exe_file: of("mm_struct", "exe_file")?,
        file_dentry: of("file", "f_path.dentry")?,
        dentry_name: of("dentry", "d_name.name")?,
        regs_syscall: of("pt_regs", syscall)?,
        regs_second_argument: of("pt_regs", argument)? + SECOND_ARGUMENT_AT,
        vma_mm: of("vm_area_struct", "vm_mm")?,
        vma_flags: of("vm_area_struct", "vm_flags")?,
        vma_file: of("vm_area_struct", "vm_file")?,
        file_mapping: of("file", "f_mapping")?,
        mapping_host: of("address_space", "host")?,
        inode_sb: of("inode", "i_sb")?,
        sb_magic: of("super_block", "s_magic")?,
        fault_vma: of("vm_fault", "vma")?,
        fault_orig_pte: of("vm_fault", "orig_pte")?,
        swap_info_bdev: of("swap_info_struct", "bdev")?,
        bdev_disk: of("block_device", "bd_disk")?,
        disk_name: of("gendisk", "disk_name")?,
        invalidation_mm: of("mmu_notifier_range", "mm").unwrap_or(0),
        invalidation_event: of("mmu_notifier_range", "event").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf::tests::{btf, info, name};

    fn layout(types: &[Vec<u32>]) -> Option<ExitLayout> {
        let integer = vec![name("bool"), info(1, 0), 4, 32];
        let bytes = btf(&[vec![integer], types.to_vec()].concat().concat());
        ExitLayout::of(&Btf::parse(&bytes).unwrap())
    }

    #[test]
    fn exits_are_told_where_kvm_keeps_them() {
        // 2: struct kvm_vcpu; 3: struct vcpu_svm
        let vcpu = vec![name("kvm_vcpu"), info(4, 1), 16, name("vcpu_id"), 1, 64];
        let svm = vec![name("vcpu_svm"), info(4, 2), 24, name("vcpu"), 2, 0, name("vmcb"), 1, 128];
        let amd = layout(&[vcpu.clone(), svm]);
        let expected = ExitLayout { vcpu_id: 8, svm_vmcb: Some(16), vmx: None };
        assert_eq!(amd, Some(expected));
        // 3: what VMX and TDX have in common; 4: struct vcpu_vmx, which holds it
        let fields = [name("exit_reason"), 1, 0, name("exit_qualification"), 1, 64];
        let common = [vec![name("vcpu_vt"), info(4, 2), 16], fields.to_vec()].concat();
        let held = vec![name("vcpu_vmx"), info(4, 2), 32, name("vcpu"), 2, 0, name("vt"), 3, 128];
        let intel = ExitLayout { vcpu_id: 8, svm_vmcb: None, vmx: Some([16, 24]) };
        assert_eq!(layout(&[vcpu.clone(), common, held]), Some(intel));
        // Before Linux 6.16.
        let begin = [name("vcpu_vmx"), info(4, 3), 32, name("vcpu"), 2, 0];
        let fields = [name("exit_reason"), 1, 128, name("exit_qualification"), 1, 192];
        let flat = [begin.to_vec(), fields.to_vec()].concat();
        assert_eq!(layout(&[vcpu, flat]), Some(intel));
        assert_eq!(layout(&[]), None);
    }

    #[test]
    fn a_kernel_without_btf_is_told_so() {
        let error = KernelLayout::read(Path::new("/nonexistent/vmlinux")).err().unwrap();
        assert!(error.to_string().contains("CONFIG_DEBUG_INFO_BTF"), "{error:#}");
    }
}
