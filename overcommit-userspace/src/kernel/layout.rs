//! Where does the running kernel keep that field?
//!
//! Rust's eBPF objects carry no CO-RE relocations, so the offsets are looked up
//! in the kernel's BTF and handed to the programs as read-only globals.

use anyhow::{Context, Result, anyhow};
use btfparse::{Error, ErrorKind, Integer32Value, Offset, Readable, TypeInformation, TypeVariant};
use overcommit_ebpf::layout::{FolioOffsets, KernelOffsets};
use std::path::Path;

/// The BTF of the running kernel.
pub const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Names of the registers in `struct pt_regs` that hold the number and the
/// second argument of a system call.
const SYSCALL_REGISTERS: (&str, &str) =
    if cfg!(target_arch = "aarch64") { ("syscallno", "regs") } else { ("orig_ax", "si") };
/// Bytes from that field to the argument: arm64 keeps them in an array.
const SECOND_ARGUMENT_AT: u32 = if cfg!(target_arch = "aarch64") { 8 } else { 0 };

/// Where an entry that stands for a swapped page keeps the number of its device: the
/// shift above, the mask below. x86-64: the five highest bits, of page tables
/// (`__swp_type`, arch/x86/include/asm/pgtable_64.h) and of shared memory's
/// (`radix_to_swp_entry`, include/linux/swapops.h) alike. Elsewhere it is not looked
/// at, and every page counts for device 0.
pub const SWAP_TYPE: u64 = if cfg!(target_arch = "x86_64") { 59 << 8 | 31 } else { 0 };

/// A BTF file in memory.
struct Bytes(Vec<u8>);

impl Readable for Bytes {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(buffer.len());
        let Some(bytes) = self.0.get(start..end) else {
            // The parser takes EOF exactly at the end for the regular one.
            let at_end = start == self.0.len();
            let kind = if at_end { ErrorKind::EOF } else { ErrorKind::InvalidOffset };
            return Err(Error::new(kind, "the file ends too early"));
        };
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

/// The kernel's types.
pub struct KernelLayout(TypeInformation);

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
        let types = TypeInformation::new(&Bytes(bytes))
            .map_err(|error| anyhow!("cannot read {}: {}", path.display(), error.message()))?;
        Ok(Self(types))
    }

    /// Offset of a field, in bytes.
    ///
    /// # Errors
    /// This kernel has no such field.
    pub fn offset(&self, structure: &str, field: &str) -> Result<u32> {
        let missing = || anyhow!("this kernel's BTF has no {structure}::{field}");
        let id = self.0.id_of(structure).ok_or_else(missing)?;
        match self.0.offset_of(id, field) {
            Ok((_, Offset::ByteOffset(offset))) => Ok(offset),
            _ => Err(missing()),
        }
    }

    /// Offset of a field of one bit, in bits.
    ///
    /// # Errors
    /// This kernel has no such field.
    fn bit(&self, structure: &str, field: &str) -> Result<u32> {
        let missing = || anyhow!("this kernel's BTF has no bit {structure}::{field}");
        let id = self.0.id_of(structure).ok_or_else(missing)?;
        match self.0.offset_of(id, field) {
            Ok((_, Offset::BitOffsetAndSize(offset, 1))) => Ok(offset),
            _ => Err(missing()),
        }
    }

    /// Whether the kernel keeps account of how long each thread waits for a CPU.
    pub fn has_run_delay(&self) -> bool {
        self.offset("task_struct", "sched_info.run_delay").is_ok()
    }

    /// The value of a name in an enumeration.
    ///
    /// # Errors
    /// This kernel has no such name.
    fn enumerator(&self, enumeration: &str, name: &str) -> Result<u32> {
        let find = || {
            let TypeVariant::Enum(values) = self.0.from_id(self.0.id_of(enumeration)?)? else {
                return None;
            };
            let value = values.named_value_list().iter().find(|value| value.name == name)?;
            Some(match value.value {
                Integer32Value::Signed(value) => value.cast_unsigned(),
                Integer32Value::Unsigned(value) => value,
            })
        };
        find().ok_or_else(|| anyhow!("this kernel's BTF has no {name} in {enumeration}"))
    }

    /// What the program on swap-outs reads; not every kernel has memory cgroups.
    ///
    /// # Errors
    /// The first field that this kernel lacks.
    pub fn folio_offsets(&self) -> Result<FolioOffsets> {
        let folio = |field| self.offset("folio", field);
        Ok(FolioOffsets {
            memcg_data: folio("memcg_data")?,
            objcg_memcg: self.offset("obj_cgroup", "memcg")?,
            memcg_cgroup: self.offset("mem_cgroup", "css.cgroup")?,
            cgroup_kn: self.offset("cgroup", "kn")?,
            kn_id: self.offset("kernfs_node", "id")?,
            flags: folio("flags")?,
            head_bit: self.enumerator("pageflags", "PG_head")?,
            // As it was called before Linux 6.15.
            pages: folio("_nr_pages").or_else(|_| folio("_folio_nr_pages"))?,
            private: folio("private")?,
        })
    }

    /// What zswap's load function returns when it had the page: `true`, or 0 where it
    /// returns an error number (zswap_load from 6.17 on, __frontswap_load before 6.5).
    pub fn zswap_loaded(&self) -> u8 {
        u8::from(self.returns_bool("zswap_load"))
    }

    /// Whether the page-table walk of the multi-generational LRU asks KVM what guests
    /// touched. The change that brought it made `lru_gen_look_around` tell whether it
    /// found something (mm/vmscan.c, 6.12); in 6.1 the walk sees next to nothing of a
    /// guest.
    pub fn mglru_sees_guests(&self) -> bool {
        self.returns_bool("lru_gen_look_around")
    }

    fn returns_bool(&self, function: &str) -> bool {
        let returned = || {
            let TypeVariant::Func(function) = self.0.from_id(self.0.id_of(function)?)? else {
                return None;
            };
            let TypeVariant::FuncProto(prototype) = self.0.from_id(*function.prototype_tid())?
            else {
                return None;
            };
            self.0.name_of(*prototype.return_tid())
        };
        returned().is_some_and(|name| ["bool", "_Bool"].contains(&name.as_str()))
    }

    /// Everything that the programs read.
    ///
    /// # Errors
    /// The first field that this kernel lacks.
    pub fn offsets(&self) -> Result<KernelOffsets> {
        let task = |field| self.offset("task_struct", field);
        let signal = |field| self.offset("signal_struct", field);
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
            task_run_delay: task("sched_info.run_delay").unwrap_or(0),
            task_nvcsw: task("nvcsw")?,
            task_in_iowait: self.bit("task_struct", "in_iowait")? / 8,
            in_iowait_bit: self.bit("task_struct", "in_iowait")? % 8,
            task_over_high: task("memcg_nr_pages_over_high").unwrap_or(0),
            mm_mmap_lock: self.offset("mm_struct", "mmap_lock")?,
            task_signal: task("signal")?,
            signal_live: signal("live")?,
            signal_flags: signal("flags")?,
            signal_group_exit_code: signal("group_exit_code")?,
            signal_min_flt: signal("min_flt")?,
            signal_maj_flt: signal("maj_flt")?,
            mm_exe_file: self.offset("mm_struct", "exe_file")?,
            file_dentry: self.offset("file", "f_path.dentry")?,
            dentry_name: self.offset("dentry", "d_name.name")?,
            regs_syscall: self.offset("pt_regs", syscall)?,
            regs_second_argument: self.offset("pt_regs", argument)? + SECOND_ARGUMENT_AT,
            vma_mm: self.offset("vm_area_struct", "vm_mm")?,
            vma_flags: self.offset("vm_area_struct", "vm_flags")?,
            vma_file: self.offset("vm_area_struct", "vm_file")?,
            file_mapping: self.offset("file", "f_mapping")?,
            mapping_host: self.offset("address_space", "host")?,
            inode_sb: self.offset("inode", "i_sb")?,
            sb_magic: self.offset("super_block", "s_magic")?,
            fault_vma: self.offset("vm_fault", "vma")?,
            fault_orig_pte: self.offset("vm_fault", "orig_pte")?,
            swap_info_bdev: self.offset("swap_info_struct", "bdev")?,
            bdev_disk: self.offset("block_device", "bd_disk")?,
            disk_name: self.offset("gendisk", "disk_name")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_btf_is_told_so() {
        let error = KernelLayout::read(Path::new("/nonexistent/vmlinux")).err().unwrap();
        assert!(error.to_string().contains("CONFIG_DEBUG_INFO_BTF"), "{error:#}");
    }
}
