//! Reads of kernel memory.

use crate::maps::{IOCTL, offset};
use aya_ebpf::helpers::{bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_task_pt_regs};
use overcommit_ebpf::layout::KVM_RUN;

/// A kernel address. Reading through a wrong one gives 0, never a crash.
#[derive(Clone, Copy)]
pub(crate) struct Kernel(pub(crate) u64);

impl Kernel {
    #[inline(always)]
    fn read<T: Default>(self, offset: u32) -> T {
        let address = (self.0 + u64::from(offset)) as *const T;
        // SAFETY: the helper checks the address and fails on a bad one.
        unsafe { bpf_probe_read_kernel(address) }.unwrap_or_default()
    }

    #[inline(always)]
    pub(crate) fn u64(self, offset: u32) -> u64 {
        self.read(offset)
    }

    #[inline(always)]
    pub(crate) fn u32(self, offset: u32) -> u32 {
        self.read(offset)
    }

    /// Two words that follow each other.
    #[inline(always)]
    pub(crate) fn words(self, offset: u32) -> [u64; 2] {
        self.read(offset)
    }

    #[inline(always)]
    pub(crate) fn pointer(self, offset: u32) -> Self {
        Self(self.read(offset))
    }
}

/// A pointer as a number, with which the verifier lets one calculate: it is read back from the stack.
#[inline(always)]
pub(crate) fn number(pointer: u64) -> u64 {
    // SAFETY: it is the program's own.
    unsafe { bpf_probe_read_kernel(&raw const pointer) }.unwrap_or_default()
}

/// A structure of the kernel's, read through.
pub(crate) trait Structure: Copy {
    fn word(self, offset: u32) -> u64;
    fn follow(self, offset: u32) -> Self;
    fn is_null(self) -> bool;
}

impl Structure for Kernel {
    #[inline(always)]
    fn word(self, offset: u32) -> u64 {
        self.u64(offset)
    }

    #[inline(always)]
    fn follow(self, offset: u32) -> Self {
        self.pointer(offset)
    }

    #[inline(always)]
    fn is_null(self) -> bool {
        self.0 == 0
    }
}

/// One of which the verifier knows the type, and so those of what it points to: read by loads, which
/// the kernel catches where an address is bad.
#[derive(Clone, Copy)]
pub(crate) struct Typed(*const u8);

impl Typed {
    /// # Safety
    /// The pointer is one by the verifier's own account, and the offsets that are read are those of
    /// fields by this kernel's BTF; it checks both.
    #[inline(always)]
    pub(crate) unsafe fn new(pointer: *const u8) -> Self {
        Self(pointer)
    }

    #[inline(always)]
    pub(crate) fn half(self, offset: u32) -> u32 {
        // SAFETY: see `new`.
        unsafe { *self.0.add(offset as usize).cast::<u32>() }
    }
}

impl Structure for Typed {
    #[inline(always)]
    fn word(self, offset: u32) -> u64 {
        // SAFETY: see `new`.
        unsafe { *self.0.add(offset as usize).cast::<u64>() }
    }

    #[inline(always)]
    fn follow(self, offset: u32) -> Self {
        // SAFETY: see `new`.
        Self(unsafe { *self.0.add(offset as usize).cast::<*const u8>() })
    }

    #[inline(always)]
    fn is_null(self) -> bool {
        self.0.is_null()
    }
}

/// Address of the `mm_struct` that the current thread uses; 0 for a kernel
/// thread that borrows none.
///
/// A direct load through the typed task pointer: no helper call on the hottest
/// path. The verifier checks the offset, the kernel catches a bad address.
#[inline(always)]
pub(crate) fn current_mm() -> u64 {
    // SAFETY: the helper has no precondition; the pointer is valid while the
    // program runs.
    let task = unsafe { bpf_get_current_task_btf() } as *const u8;
    // SAFETY: the offset is task_struct::mm of this kernel's BTF.
    unsafe { *task.add(offset!(task_mm) as usize).cast::<u64>() }
}

/// Time for which the current thread could run and had no CPU, in nanoseconds, as far as
/// the kernel has added it up: up to its last arrival at one. 0 where the kernel keeps no
/// such account.
#[inline(always)]
pub(crate) fn current_run_delay() -> u64 {
    let offset = offset!(task_run_delay);
    if offset == 0 {
        return 0;
    }
    // SAFETY: as in `current_mm`.
    let task = unsafe { bpf_get_current_task_btf() } as *const u8;
    // SAFETY: the offset is task_struct::sched_info.run_delay of this kernel's BTF.
    unsafe { *task.add(offset as usize).cast::<u64>() }
}

/// How often the current thread has gone to sleep.
#[inline(always)]
pub(crate) fn current_sleeps() -> u64 {
    // SAFETY: as in `current_mm`.
    let task = unsafe { bpf_get_current_task_btf() } as *const u8;
    // SAFETY: the offset is task_struct::nvcsw of this kernel's BTF.
    unsafe { *task.add(offset!(task_nvcsw) as usize).cast::<u64>() }
}

/// Whether the current thread, which is about to sleep, waits for a device
/// (`io_schedule_prepare`, kernel/sched/core.c).
#[inline(always)]
pub(crate) fn current_waits_for_io() -> bool {
    // SAFETY: the helper has no precondition.
    let task = Kernel(unsafe { bpf_get_current_task_btf() } as u64);
    let byte: u8 = task.read(offset!(task_in_iowait));
    byte >> (offset!(in_iowait_bit) & 7) & 1 != 0
}

/// What the current thread entered the kernel with: the second argument of a system call,
/// and its number, which is negative in a handler.
#[inline(always)]
fn entered_with() -> (u64, u32) {
    // SAFETY: the helpers have no precondition; the registers are those that the
    // thread entered the kernel with, on its own stack.
    let registers = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const u8;
    // SAFETY: the offsets are fields of pt_regs by this kernel's BTF; the verifier
    // checks them.
    unsafe {
        (
            *registers.add(offset!(regs_second_argument) as usize).cast::<u64>(),
            *registers.add(offset!(regs_syscall) as usize).cast::<u32>(),
        )
    }
}

/// Whether the current thread is inside the system call by which it runs a vCPU.
#[inline(always)]
pub(crate) fn in_kvm_run() -> bool {
    let (argument, syscall) = entered_with();
    argument == KVM_RUN && syscall == IOCTL.load()
}

/// Whether the current thread came into the kernel by a fault of its own
/// (`do_user_addr_fault`, arch/x86/mm/fault.c).
#[inline(always)]
pub(crate) fn in_fault_handler() -> bool {
    entered_with().1.cast_signed() < 0
}
