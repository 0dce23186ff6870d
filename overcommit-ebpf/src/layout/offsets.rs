//! Where the running kernel keeps what.

use core::sync::atomic::AtomicU64;

/// Offsets that are handed to the programs as words.
macro_rules! offsets {
    ($(#[$about:meta])* $name:ident { $($(#[$what:meta])* $field:ident,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        pub struct $name {
            $($(#[$what])* pub $field: u32,)*
        }

        impl $name {
            /// None of them.
            pub const NONE: Self = Self { $($field: 0,)* };

            /// The offsets in the order of the fields, as they lie in memory.
            pub const fn words(&self) -> [u32; size_of::<Self>() / 4] {
                [$(self.$field,)*]
            }
        }
    };
}

offsets! {
    /// Offsets into kernel structures, in bytes, from the BTF of the running kernel.
    ///
    /// Read-only for the programs, so the verifier sees constants.
    KernelOffsets {
        /// `task_struct::mm`
        task_mm,
        /// `task_struct::pid`
        task_pid,
        /// `task_struct::tgid`
        task_tgid,
        /// `task_struct::start_boottime`
        task_start_boottime,
        /// `task_struct::exit_code`
        task_exit_code,
        /// `task_struct::group_leader`
        task_group_leader,
        /// `task_struct::min_flt`
        task_min_flt,
        /// `task_struct::maj_flt`
        task_maj_flt,
        /// `task_struct::sched_info.run_delay`; 0 if this kernel does not keep it
        task_run_delay,
        /// `task_struct::nvcsw`
        task_nvcsw,
        /// Byte of `task_struct::in_iowait`
        task_in_iowait,
        /// Its bit there
        in_iowait_bit,
        /// `task_struct::memcg_nr_pages_over_high`; 0 if this kernel does not keep it
        task_over_high,
        /// `mm_struct::mmap_lock`
        mm_mmap_lock,
        /// `task_struct::signal`
        task_signal,
        /// `signal_struct::live`
        signal_live,
        /// `signal_struct::flags`
        signal_flags,
        /// `signal_struct::group_exit_code`
        signal_group_exit_code,
        /// `signal_struct::min_flt`
        signal_min_flt,
        /// `signal_struct::maj_flt`
        signal_maj_flt,
        /// `mm_struct::exe_file`
        mm_exe_file,
        /// `file::f_path.dentry`
        file_dentry,
        /// `dentry::d_name.name`
        dentry_name,
        /// System call number in `pt_regs`: `orig_ax`, or `syscallno` on arm64
        regs_syscall,
        /// Second argument of the system call in `pt_regs`: `si`, or `regs[1]`
        regs_second_argument,
        /// `vm_area_struct::vm_mm`
        vma_mm,
        /// `vm_area_struct::vm_flags`
        vma_flags,
        /// `vm_area_struct::vm_file`
        vma_file,
        /// `file::f_mapping`
        file_mapping,
        /// `address_space::host`
        mapping_host,
        /// `inode::i_sb`
        inode_sb,
        /// `super_block::s_magic`
        sb_magic,
        /// `vm_fault::vma`
        fault_vma,
        /// `vm_fault::orig_pte`
        fault_orig_pte,
        /// `swap_info_struct::bdev`
        swap_info_bdev,
        /// `block_device::bd_disk`
        bdev_disk,
        /// `gendisk::disk_name`
        disk_name,
        /// `mmu_notifier_range::mm`; where this kernel has no such, it has no KVM either
        invalidation_mm,
        /// `mmu_notifier_range::event`
        invalidation_event,
    }
}

offsets! {
    /// Offsets by which the cgroup of a folio and its size are found, as [`KernelOffsets`].
    FolioOffsets {
        /// `folio::memcg_data`
        memcg_data,
        /// `obj_cgroup::memcg`
        objcg_memcg,
        /// `mem_cgroup::css.cgroup`
        memcg_cgroup,
        /// `cgroup::kn`
        cgroup_kn,
        /// `kernfs_node::id`
        kn_id,
        /// `folio::flags`
        flags,
        /// The bit of a folio of several pages in it, `PG_head`
        head_bit,
        /// `folio::_nr_pages`
        pages,
        /// `folio::private`, where a folio of the swap cache has its entry
        private,
    }
}

/// Where the records of KVM's tracepoints keep their fields, in bytes from the start
/// of the record, and where KVM keeps what kvm_exit is about. The loader writes them when it has found
/// the tracepoints.
#[repr(C)]
pub struct KvmFields {
    /// kvm_exit: `exit_reason`, of four bytes; on arm64 `esr_ec`, the class of the exception.
    pub exit_reason: AtomicU64,
    /// kvm_exit: `isa`; [`ABSENT`] on arm64.
    pub exit_isa: AtomicU64,
    /// kvm_exit of arm64: `ret`, of four bytes, which says whether there was an exception.
    pub exit_ret: AtomicU64,
    /// kvm_exit: `info1`; [`ABSENT`] on arm64.
    pub exit_info1: AtomicU64,
    /// kvm_exit: `vcpu_id`; [`ABSENT`] on arm64.
    pub exit_vcpu: AtomicU64,
    /// kvm_guest_fault, which arm64 alone has: `hsr`, the syndrome.
    pub fault_syndrome: AtomicU64,
    /// kvm_wfx_arm64: `is_wfe`, of one byte.
    pub wfx_is_wfe: AtomicU64,
    /// `kvm_vcpu::vcpu_id`
    pub vcpu_id: AtomicU64,
    /// On AMD `vcpu_svm::vmcb`, from the `kvm_vcpu` on that it begins with.
    pub svm_vmcb: AtomicU64,
    /// On Intel `vcpu_vmx::exit_reason`, likewise.
    pub vmx_exit_reason: AtomicU64,
    /// On Intel `vcpu_vmx::exit_qualification`, likewise; [`ABSENT`] where the record says it.
    pub vmx_exit_qualification: AtomicU64,
    /// Explicit padding to the cache line.
    pub reserved: [AtomicU64; 5],
}

/// Words of the record of kvm_exit that are read.
pub const RECORD_WORDS: usize = 8;

/// In [`KvmFields`]: there is no such field, or it is not read.
pub const ABSENT: u64 = u64::MAX;

const _: () = assert!(size_of::<KvmFields>() == 128);
