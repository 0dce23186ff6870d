//! A vCPU out of its guest: KVM's tracepoints, on the vCPU's own thread.
//!
//! A window lasts from kvm_exit to the next kvm_entry (arch/x86/kvm: svm/svm.c,
//! vmx/vmx.c; arch/arm64/kvm/arm.c). In between the thread may leave for user space, once or more often; it
//! comes back through KVM_RUN, which no tracepoint shows, so a stay there lasts until
//! the window ends or the thread leaves once more.

use crate::apf::age;
use crate::atomic::{get, set};
use crate::cpu::slot_of;
use crate::kernel::{Kernel, current_mm, current_run_delay, current_sleeps};
use crate::maps::{KVM_FIELDS, ONLY_MEMORY_EXITS, VMS, lose};
use crate::parts;
use crate::threads::{known_thread, thread_entry};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel, generated};
use aya_ebpf::macros::{raw_tracepoint, tracepoint};
use aya_ebpf::programs::{RawTracePointContext, TracePointContext};
use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU64;
use overcommit_ebpf::exit::{
    arm64_fault_marks, arm64_reason, has_qualification, marks, vmx_fault_marks,
};
use overcommit_ebpf::layout::{
    APF, HALT, ISA_ARM64, ISA_SVM, Loss, MEMORY, MMIO, NEVER_RAN, PASSED_OVER, PAUSED, PROTECTED,
    RECORD_WORDS, SLEEPS_AT, Thread, Vm, Window, exit_key,
};

/// `KVM_EXIT_INTR`, include/uapi/linux/kvm.h: the thread was called away.
const USERSPACE_INTERRUPTED: u32 = 10;

/// A classic tracepoint: its record has the reason, wherever KVM keeps it. Those of which no field is
/// needed are raw: making a record costs more than what is done here.
#[tracepoint]
pub(crate) fn kvm_exit(ctx: TracePointContext) -> u32 {
    let Some((vm, thread)) = current_vcpu() else { return 0 };
    let Some(fields) = KVM_FIELDS.get(0) else { return 0 };
    let record = Record::read(&ctx);
    let mut reason = record.u32(&fields.exit_reason);
    let isa = if is_absent(&fields.exit_isa) { ISA_ARM64 } else { record.u32(&fields.exit_isa) };
    if isa == ISA_ARM64 && !is_absent(&fields.exit_ret) {
        reason = arm64_reason(record.u32(&fields.exit_ret), reason);
    }
    if !is_absent(&fields.exit_vcpu) {
        set_vcpu(&thread.window, record.u32(&fields.exit_vcpu));
    }
    open(vm, thread, isa, reason, || record.u64(&fields.exit_info1));
    0
}

/// In place of it on x86, where it is known where KVM keeps the reason: no record is made.
///
/// The reason is where `svm_get_exit_info` and `vmx_get_exit_info` (arch/x86/kvm/svm/svm.c, vmx/vmx.c;
/// 6.1 to 7.3) have it from. On VMX the qualification is read when the window ends: KVM asks the CPU for
/// it when it handles the exit (`handle_ept_violation`).
#[raw_tracepoint]
pub(crate) fn kvm_exit_x86(ctx: RawTracePointContext) -> i32 {
    let Some((vm, thread)) = current_vcpu() else { return 0 };
    let Some(fields) = KVM_FIELDS.get(0) else { return 0 };
    let (vcpu, isa) = (ctx.arg::<u64>(0), ctx.arg::<u32>(1));
    let window = &thread.window;
    // A vCPU keeps its number, and a thread its vCPU.
    if get(&window.vcpu_at) != vcpu {
        set(&window.vcpu_at, vcpu);
        set_vcpu(window, Kernel(vcpu).u32(get(&fields.vcpu_id) as u32));
    }
    if isa == ISA_SVM {
        let vmcb = Kernel(vcpu).pointer(get(&fields.svm_vmcb) as u32);
        let [code, info1] = vmcb.words(VMCB_EXIT_CODE);
        open(vm, thread, isa, code as u32, || info1);
    } else {
        let reason = Kernel(vcpu).u32(get(&fields.vmx_exit_reason) as u32);
        open(vm, thread, isa, reason, || 0);
    }
    0
}

/// `vmcb_control_area::exit_code`, which `exit_info_1` follows (arch/x86/include/asm/svm.h): AMD's
/// manual has them there.
const VMCB_EXIT_CODE: u32 = 0x70;

/// Why the vCPU left, with what is read of that at the end of its window.
#[inline(always)]
pub(crate) fn read_qualification(window: &Window) -> u64 {
    let reason = get(&window.reason);
    if has_qualification(reason as u32)
        && let Some(fields) = KVM_FIELDS.get(0)
        && !is_absent(&fields.vmx_exit_qualification)
    {
        let at = get(&fields.vmx_exit_qualification) as u32;
        return reason | vmx_fault_marks(Kernel(get(&window.vcpu_at)).u64(at));
    }
    reason
}

/// The number of the vCPU that the thread runs.
#[inline(always)]
fn set_vcpu(window: &Window, number: u32) {
    set(&window.vcpu, get(&window.vcpu) >> 32 << 32 | u64::from(number));
}

/// A window begins now.
#[inline(always)]
fn open(vm: &Vm, thread: &Thread, isa: u32, reason: u32, info1: impl Fn() -> u64) {
    let window = &thread.window;
    if is_open(window) {
        lose(vm, Loss::ExitWithoutEntry);
    }
    // Not kept for below: that would cost the others 17 instructions.
    if ONLY_MEMORY_EXITS.load() != 0 && !may_wait(window, marks(isa, reason, &info1)) {
        pass_over(vm, thread);
        return;
    }
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    if get(&vm.first_run_ns) == NEVER_RAN {
        set(&vm.first_run_ns, now);
    }
    let mut marks = marks(isa, reason, info1);
    if marks & HALT != 0 && age(vm, window, now) != 0 {
        marks |= APF;
    }
    // The page that it may have waited for was dropped.
    if ONLY_MEMORY_EXITS.load() != 0 && marks & (MEMORY | APF) == 0 {
        pass_over(vm, thread);
        return;
    }
    if marks & MEMORY != 0 {
        marks |= current_sleeps() << SLEEPS_AT;
    }
    set(&window.reason, u64::from(exit_key(isa, reason)) | marks);
    set(&window.user_since_ns, 0);
    set(&window.user_ns, 0);
    set(&window.paused_ns, 0);
    set(&window.waited_before_ns, get(&thread.waited_ns));
    set(&window.attempts_ns, 0);
    set(&window.exit_run_delay_ns, current_run_delay());
    parts::empty(&window.has_parts, &window.parts_ns);
    set(&window.exit_ns, now);
}

/// Whether the exit itself can be a wait for memory.
#[inline(always)]
fn may_wait(window: &Window, marks: u64) -> bool {
    marks & MEMORY != 0 || (marks & HALT != 0 && get(&window.apf_open) != 0)
}

/// A window begins of which only the faults in it matter.
#[inline(always)]
fn pass_over(vm: &Vm, thread: &Thread) {
    let window = &thread.window;
    if get(&vm.first_run_ns) == NEVER_RAN {
        // SAFETY: the helper has no precondition.
        set(&vm.first_run_ns, unsafe { bpf_ktime_get_ns() });
    }
    // Else the entry before it has noted that.
    if get(&window.exits) == 0 {
        set(&window.waited_before_ns, get(&thread.waited_ns));
    }
    set(&window.exit_ns, 0);
    set(&window.reason, PASSED_OVER);
}

/// Whether the thread is in a window.
#[inline(always)]
pub(crate) fn is_open(window: &Window) -> bool {
    get(&window.exit_ns) != 0 || is_passed_over(window)
}

/// Whether it is in one of which only the faults in it matter.
#[inline(always)]
pub(crate) fn is_passed_over(window: &Window) -> bool {
    ONLY_MEMORY_EXITS.load() != 0 && get(&window.reason) & PASSED_OVER != 0
}

/// The window that the current thread is in, and that is followed.
#[inline(always)]
fn open_window() -> Option<&'static Window> {
    let window = &known_thread()?.window;
    (get(&window.exit_ns) != 0).then_some(window)
}

/// On `kvm_mmio` and `kvm_fast_mmio`: a device's memory is meant.
#[raw_tracepoint]
pub(crate) fn kvm_mmio(_ctx: RawTracePointContext) -> i32 {
    if let Some(window) = open_window() {
        set(&window.reason, get(&window.reason) | MMIO);
    }
    0
}

/// On x86: the guest that left is one within the VM (`svm_handle_exit`, arch/x86/kvm/svm/svm.c;
/// `nested_vmx_reflect_vmexit`, arch/x86/kvm/vmx/nested.c; 6.1 to 7.3). KVM hands such an exit to the
/// VM, or fills the tables that it keeps for that guest.
#[raw_tracepoint]
pub(crate) fn kvm_nested_vmexit(_ctx: RawTracePointContext) -> i32 {
    if let Some(window) = open_window() {
        set(&window.reason, get(&window.reason) | PROTECTED);
    }
    0
}

/// On arm64, whose `kvm_exit` does not say what a memory exit was for (`kvm_handle_guest_abort`,
/// arch/arm64/kvm/mmu.c).
#[tracepoint]
pub(crate) fn kvm_guest_fault(ctx: TracePointContext) -> u32 {
    if let Some(window) = open_window()
        && let Some(fields) = KVM_FIELDS.get(0)
        && !is_absent(&fields.fault_syndrome)
    {
        let marks = arm64_fault_marks(read(&ctx, &fields.fault_syndrome));
        set(&window.reason, get(&window.reason) | marks);
    }
    0
}

/// On arm64: a guest that waits for an event yields its CPU and is not halted (`kvm_handle_wfx`,
/// arch/arm64/kvm/handle_exit.c).
#[tracepoint]
pub(crate) fn kvm_wfx(ctx: TracePointContext) -> u32 {
    if let Some(window) = open_window()
        && let Some(fields) = KVM_FIELDS.get(0)
        && !is_absent(&fields.wfx_is_wfe)
        && read::<u8>(&ctx, &fields.wfx_is_wfe) != 0
    {
        set(&window.reason, get(&window.reason) & !HALT);
    }
    0
}

#[raw_tracepoint]
pub(crate) fn kvm_userspace_exit(ctx: RawTracePointContext) -> i32 {
    let Some(thread) = known_thread() else { return 0 };
    let window = &thread.window;
    if !is_open(window) {
        return 0;
    }
    // (reason, errno); after an error the reason is that of an earlier exit.
    let interrupted = ctx.arg::<i32>(1) < 0 || ctx.arg::<u32>(0) == USERSPACE_INTERRUPTED;
    if is_passed_over(window) {
        if interrupted {
            set(&window.reason, PASSED_OVER | PAUSED);
        }
        return 0;
    }
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    come_back(window, now);
    let marks = get(&window.reason) & !PAUSED;
    set(&window.reason, marks | if interrupted { PAUSED } else { MMIO });
    set(&window.user_since_ns, now);
    0
}

/// Adds up a stay in user space.
#[inline(always)]
pub(crate) fn come_back(window: &Window, now: u64) {
    let since = get(&window.user_since_ns);
    if since != 0 {
        let paused = get(&window.reason) & PAUSED != 0;
        let total = if paused { &window.paused_ns } else { &window.user_ns };
        set(total, get(total) + now.saturating_sub(since));
        set(&window.user_since_ns, 0);
    }
}

/// The VM and the entry of the current thread, which runs a vCPU.
#[inline(always)]
pub(crate) fn current_vcpu() -> Option<(&'static Vm, &'static Thread)> {
    let thread = match known_thread() {
        Some(thread) => thread,
        None => {
            let slot = slot_of(current_mm())?;
            let vm = VMS.get(slot)?;
            let Some(thread) = thread_entry(slot) else {
                lose(vm, Loss::ThreadsFull);
                return None;
            };
            thread
        }
    };
    set(&thread.is_vcpu, 1);
    Some((VMS.get(get(&thread.vm) as u32)?, thread))
}

#[inline(always)]
fn is_absent(field: &AtomicU64) -> bool {
    get(field) > 0xffff
}

/// The first words of the record of `kvm_exit`, in which all lies that is read of it
/// (`TRACE_EVENT_KVM_EXIT`, arch/x86/kvm/trace.h; arch/arm64/kvm/trace_arm.h; 6.1 to 7.3): at once they
/// cost what a single field does.
struct Record([u64; RECORD_WORDS]);

impl Record {
    #[inline(always)]
    fn read(ctx: &TracePointContext) -> Self {
        let mut words = MaybeUninit::<[u64; RECORD_WORDS]>::uninit();
        // SAFETY: the helper writes all of them: zeros where it cannot read.
        unsafe {
            generated::bpf_probe_read_kernel(
                words.as_mut_ptr().cast(),
                size_of::<[u64; RECORD_WORDS]>() as u32,
                ctx.as_ptr().cast(),
            );
            Self(words.assume_init())
        }
    }

    /// A field of eight bytes; see the loader for one that lies further on.
    #[inline(always)]
    fn u64(&self, field: &AtomicU64) -> u64 {
        self.0[get(field) as usize / 8 % RECORD_WORDS]
    }

    #[inline(always)]
    fn u32(&self, field: &AtomicU64) -> u32 {
        (self.u64(field) >> (get(field) % 8 * 8)) as u32
    }
}

/// A field of the record that the program was called with; 0 if it cannot be read.
#[inline(always)]
fn read<T: Default>(ctx: &TracePointContext, field: &AtomicU64) -> T {
    let address = (ctx.as_ptr() as u64 + (get(field) & 0xffff)) as *const T;
    // SAFETY: the helper checks the address and fails on a bad one.
    unsafe { bpf_probe_read_kernel(address) }.unwrap_or_default()
}
