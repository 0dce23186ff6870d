//! A vCPU out of its guest: KVM's tracepoints, on the vCPU's own thread.
//!
//! A window lasts from kvm_exit to the next kvm_entry (arch/x86/kvm: svm/svm.c,
//! vmx/vmx.c; arch/arm64/kvm/arm.c). In between the thread may leave for user space, once or more often; it
//! comes back through KVM_RUN, which no tracepoint shows, so a stay there lasts until
//! the window ends or the thread leaves once more.

use crate::atomic::{InKernel, add, get, set};
use crate::calls::goes_on;
use crate::cpu::slot_of;
use crate::kernel::{current_mm, current_run_delay, current_sleeps};
use crate::latency::record;
use crate::maps::{APFS, BEGINS_AT_CALL, KVM_FIELDS, VMS, histogram, lose};
use crate::threads::{known_thread, thread_entry};
use crate::{parts, pool};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel, generated,
};
use aya_ebpf::macros::{raw_tracepoint, tracepoint};
use aya_ebpf::programs::{RawTracePointContext, TracePointContext};
use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU64;
use overcommit_ebpf::exit::{aged, arm64_fault_marks, arm64_reason, by_age, marks, without_one};
use overcommit_ebpf::layout::{
    APF, HALT, IN_BACKGROUND, ISA_ARM64, Loss, MEMORY, MMIO, Metric, NEVER_RAN, OUTSIDE_FAULTS,
    PAUSED, PROTECTED, Part, READY, REASON_MMIO, RECORD_WORDS, SLEEPS_AT, Thread, Vm, Window,
    exit_key,
};
use overcommit_ebpf::order;

/// `KVM_EXIT_INTR`, include/uapi/linux/kvm.h: the thread was called away.
const USERSPACE_INTERRUPTED: u32 = 10;
/// The token that tells a guest that all its pages are ready.
const APF_BROADCAST: u32 = u32::MAX;

/// A classic tracepoint: its record has the reason, which each vendor's module keeps elsewhere. Those
/// of which no field is needed are raw: making a record costs more than what is done here.
#[tracepoint]
pub(crate) fn kvm_exit(ctx: TracePointContext) -> u32 {
    let Some((vm, thread)) = current_vcpu() else { return 0 };
    let Some(fields) = KVM_FIELDS.get(0) else { return 0 };
    let window = &thread.window;
    if get(&window.exit_ns) != 0 {
        lose(vm, Loss::ExitWithoutEntry);
    }
    let record = Record::read(&ctx);
    let mut reason = record.u32(&fields.exit_reason);
    let isa = if is_absent(&fields.exit_isa) { ISA_ARM64 } else { record.u32(&fields.exit_isa) };
    if isa == ISA_ARM64 && !is_absent(&fields.exit_ret) {
        reason = arm64_reason(record.u32(&fields.exit_ret), reason);
    }
    if !is_absent(&fields.exit_vcpu) {
        let vcpu = u64::from(record.u32(&fields.exit_vcpu));
        set(&window.vcpu, get(&window.vcpu) >> 32 << 32 | vcpu);
    }
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    if get(&vm.first_run_ns) == NEVER_RAN {
        set(&vm.first_run_ns, now);
    }
    let mut marks = marks(isa, reason, || record.u64(&fields.exit_info1));
    if marks & HALT != 0 && age(vm, window, now) != 0 {
        marks |= APF;
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
    0
}

/// Forgets asynchronous page faults that will not come any more. Gives what is open.
#[inline(always)]
fn age(vm: &Vm, window: &Window, now: u64) -> u64 {
    let open = get(&window.apf_open);
    let Some((open, dropped)) = aged(open, now.saturating_sub(get(&window.apf_since_ns))) else {
        return open;
    };
    set(&window.apf_open, open);
    set(&window.apf_since_ns, now);
    add(&vm.lost[Loss::ApfUnfinished as usize], dropped);
    open
}

/// One that is open has come; of one whose start is not known the oldest.
#[inline(always)]
fn came(window: &Window, since: u64) {
    let is_older = since < get(&window.apf_since_ns);
    set(&window.apf_open, without_one(get(&window.apf_open), is_older));
}

/// The window that the current thread is in.
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
    if get(&window.exit_ns) == 0 {
        return 0;
    }
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    come_back(window, now);
    // (reason, errno); after an error the reason is that of an earlier exit.
    let interrupted = ctx.arg::<i32>(1) < 0 || ctx.arg::<u32>(0) == USERSPACE_INTERRUPTED;
    let marks = get(&window.reason) & !PAUSED;
    set(&window.reason, marks | if interrupted { PAUSED } else { MMIO });
    set(&window.user_since_ns, now);
    0
}

/// Adds up a stay in user space.
#[inline(always)]
fn come_back(window: &Window, now: u64) {
    let since = get(&window.user_since_ns);
    if since != 0 {
        let paused = get(&window.reason) & PAUSED != 0;
        let total = if paused { &window.paused_ns } else { &window.user_ns };
        set(total, get(total) + now.saturating_sub(since));
        set(&window.user_since_ns, 0);
    }
}

#[raw_tracepoint]
pub(crate) fn kvm_entry(_ctx: RawTracePointContext) -> i32 {
    let Some(thread) = known_thread() else { return 0 };
    let window = &thread.window;
    let slot = get(&thread.vm) as u32;
    let Some(vm) = VMS.get(slot) else { return 0 };
    count_wait_for_cpu(vm, slot, window);
    if get(&thread.since_ns) != 0 {
        goes_on(thread, false);
    }
    let exit_ns = get(&window.exit_ns);
    if exit_ns == 0 {
        // The first entry of a vCPU is no loss.
        if get(&window.exits) != 0 {
            lose(vm, Loss::EntryWithoutExit);
        }
        return 0;
    }
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(length) = now.checked_sub(exit_ns) else {
        set(&window.exit_ns, 0);
        lose(vm, Loss::ClockBehind);
        return 0;
    };
    come_back(window, now);
    end_window(vm, slot, thread, length);
    0
}

/// What the vCPU waited for a CPU since its last entry: KVM tells its guest the same
/// number as steal (`record_steal_time`, arch/x86/kvm/x86.c).
#[inline(always)]
fn count_wait_for_cpu(vm: &Vm, slot: u32, window: &Window) {
    let delay = current_run_delay();
    let before = get(&window.run_delay_ns);
    set(&window.run_delay_ns, delay);
    if before != 0
        && delay > before
        && let Some(histogram) = histogram(slot, Metric::Runq)
    {
        record(vm, histogram, delay - before);
    }
}

#[inline(always)]
fn end_window(vm: &Vm, slot: u32, thread: &Thread, length: u64) {
    let window = &thread.window;
    let reason = get(&window.reason);
    let (user, paused) = (get(&window.user_ns), get(&window.paused_ns));
    let active = length.saturating_sub(paused);
    let within = get(&thread.waited_ns).saturating_sub(get(&window.waited_before_ns));
    let within = within + get(&window.attempts_ns);
    // KVM mends such an entry by itself, and without sleep, as when it logs what a migrating guest
    // writes, or for a guest of the guest; where faults are not seen by calls it may have been one.
    let is_mended =
        reason & PROTECTED != 0 && within == 0 && BEGINS_AT_CALL.load() != 0 && !slept(window);
    let is_memory = reason & (MEMORY | MMIO) == MEMORY && !is_mended;
    let waits = is_memory || reason & APF != 0;
    let kernel = active.saturating_sub(user);
    // Of any other window its faults alone are waits for memory: of KVM, which reads the guest's
    // memory in many exits, and of a device model whose own memory is on swap. What they waited
    // for a CPU is not, nor is what the thread did while it was held.
    let for_cpu = get(&window.parts_ns[Part::Runq as usize]);
    let stall = match (waits, paused) {
        (true, _) => kernel,
        (false, 0) => within.saturating_sub(for_cpu).min(active),
        (false, _) => 0,
    };
    order::change(&InKernel(&thread.sequence), || {
        if stall != 0 {
            set(&window.stall_ns, get(&window.stall_ns) + stall);
        }
        set(&window.exit_ns, 0);
    });
    count(&window.exits, 1);
    count(&window.user_total_ns, user);
    count(&window.paused_total_ns, paused);
    if is_memory {
        let is_counted = histogram(slot, Metric::StallMemory)
            .is_some_and(|histogram| record(vm, histogram, kernel));
        count(&window.stalls, 1);
        count(&window.stalls_inverted, u64::from(kernel < within));
        if is_counted {
            split(vm, window, kernel.saturating_sub(within), user + paused == 0);
        }
    }
    if reason & APF != 0 {
        count(&window.stall_halted_ns, kernel);
    } else if reason & HALT != 0 {
        count(&window.idle_total_ns, active);
        if let Some(histogram) = histogram(slot, Metric::Idle) {
            record(vm, histogram, active);
        }
    } else {
        count(&window.kernel_total_ns, kernel);
    }
    let device = reason & (MEMORY | MMIO) == MEMORY | MMIO;
    let key = if device { exit_key(0, REASON_MMIO) } else { reason as u32 };
    match pool::place_near(&window.vcpu, slot, key).and_then(pool::histogram) {
        Some(histogram) => {
            record(vm, histogram, active);
        }
        None => lose(vm, Loss::ExitsFull),
    }
}

/// Adds up what a memory window went into: the parts of the faults in it, and what passed
/// outside them, in which the thread may have waited for a CPU too.
#[inline(always)]
fn split(vm: &Vm, window: &Window, outside: u64, was_in_kernel: bool) {
    // As `count_wait_for_cpu` has just read it.
    let delay = get(&window.run_delay_ns).saturating_sub(get(&window.exit_run_delay_ns));
    let in_faults = get(&window.parts_ns[Part::Runq as usize]);
    // In user space it waited for a CPU too.
    let delay = if was_in_kernel { delay.saturating_sub(in_faults).min(outside) } else { 0 };
    if delay != 0 {
        add(&vm.stall_ns[Part::Runq as usize], delay);
    }
    if get(&window.has_parts) != 0 {
        for (part, sum) in window.parts_ns.iter().zip(&vm.stall_ns) {
            let time = get(part);
            if time != 0 {
                add(sum, time);
            }
        }
    }
    let place = if slept_for_page(window) { IN_BACKGROUND } else { OUTSIDE_FAULTS };
    add(&vm.stall_ns[place], outside - delay);
}

/// Whether the vCPU slept in a memory window while a worker read its page: where the guest cannot
/// be told of it, KVM halts the vCPU (`KVM_REQ_APF_HALT`, arch/x86/kvm/x86.c).
#[inline(always)]
fn slept_for_page(window: &Window) -> bool {
    (get(&window.apf_open) != 0 || get(&window.reason) & READY != 0) && slept(window)
}

/// Whether the vCPU slept in a memory window.
#[inline(always)]
fn slept(window: &Window) -> bool {
    current_sleeps() << SLEEPS_AT != get(&window.reason) >> SLEEPS_AT << SLEEPS_AT
}

/// Adds to a total of the thread's own.
#[inline(always)]
fn count(total: &AtomicU64, n: u64) {
    set(total, get(total) + n);
}

#[tracepoint]
pub(crate) fn kvm_apf_not_present(ctx: TracePointContext) -> u32 {
    let Some((vm, thread)) = current_vcpu() else { return 0 };
    let Some(fields) = KVM_FIELDS.get(0) else { return 0 };
    let window = &thread.window;
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    let key = apf_key(read::<u64>(&ctx, &fields.apf_token) as u32);
    // SAFETY: entries are only read and written as whole words.
    if let Some(since) = unsafe { APFS.get(key) }.copied() {
        // The guest's numbers have come round.
        lose(vm, Loss::ApfUnfinished);
        came(window, since);
    }
    let open = age(vm, window, now);
    if open == 0 {
        set(&window.apf_since_ns, now);
    }
    set(&window.apf_open, open + 1);
    let _ = APFS.insert(key, now, 0);
    0
}

#[tracepoint]
pub(crate) fn kvm_apf_ready(ctx: TracePointContext) -> u32 {
    let Some((vm, thread)) = current_vcpu() else { return 0 };
    let Some(fields) = KVM_FIELDS.get(0) else { return 0 };
    let window = &thread.window;
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    let token = read::<u64>(&ctx, &fields.apf_token) as u32;
    set(&window.reason, get(&window.reason) | READY);
    if token == APF_BROADCAST {
        let (younger, older) = by_age(get(&window.apf_open));
        set(&window.apf_open, 0);
        add(&vm.lost[Loss::ApfUnfinished as usize], younger + older);
        return 0;
    }
    let key = apf_key(token);
    // SAFETY: entries are only read and written as whole words.
    let Some(since) = (unsafe { APFS.get(key) }).copied() else {
        lose(vm, Loss::ApfWithoutStart);
        came(window, 0);
        return 0;
    };
    let _ = APFS.remove(key);
    came(window, since);
    match now.checked_sub(since) {
        Some(latency) => {
            if let Some(histogram) = histogram(get(&thread.vm) as u32, Metric::Apf) {
                record(vm, histogram, latency);
            }
        }
        None => lose(vm, Loss::ClockBehind),
    }
    0
}

/// A worker has brought the page of an asynchronous fault (`async_pf_execute`, virt/kvm/async_pf.c).
/// Where it waited and then found the page there, it does not call again, and goes on with something
/// else.
#[raw_tracepoint]
pub(crate) fn kvm_apf_completed(_ctx: RawTracePointContext) -> i32 {
    if let Some(thread) = known_thread()
        && get(&thread.since_ns) != 0
    {
        goes_on(thread, false);
    }
    0
}

#[inline(always)]
fn apf_key(token: u32) -> u64 {
    bpf_get_current_pid_tgid() << 32 | u64::from(token)
}

/// The VM and the entry of the current thread, which runs a vCPU.
#[inline(always)]
fn current_vcpu() -> Option<(&'static Vm, &'static Thread)> {
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
