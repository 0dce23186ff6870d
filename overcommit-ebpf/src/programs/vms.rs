//! Which memory belongs to a VM: the loader asks for processes that run, exec
//! brings new ones, exit ends them.

use crate::atomic::{add, get, set};
use crate::calls::goes_on;
use crate::cpu::vm_has_come;
use crate::kernel::Kernel;
use crate::maps::{EVENTS, FOLLOW_EXEC, FREE_VMS, MMS, TGIDS, THREADS, TIDS, VMS, WANTED, offset};
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_task, bpf_ktime_get_ns,
    bpf_probe_read_kernel_str_bytes,
};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::debug;
use overcommit_ebpf::layout::{Lifecycle, LifecycleKind, NEVER_RAN};

/// Iterator over all tasks: gives those that the loader wants a slot.
///
/// The loader reads it once a search; nothing is attached.
#[unsafe(link_section = "iter/task")]
#[unsafe(no_mangle)]
pub(crate) fn adopt_wanted(ctx: *const u64) -> i32 {
    // SAFETY: struct bpf_iter__task is { meta, task }, one word each.
    let task = Kernel(unsafe { *ctx.add(1) });
    if task.0 == 0 {
        return 0;
    }
    let tgid = task.u32(offset!(task_tgid));
    // SAFETY: entries are only read and written as whole words.
    let wanted = unsafe { WANTED.get(tgid) }.is_some();
    if wanted && task.u32(offset!(task_pid)) == tgid {
        adopt(task, tgid);
    }
    0
}

/// On `sched_process_exec` (`exec_binprm`): the current process runs another
/// program now.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn process_exec(ctx: RawTracePointContext) -> i32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: the helper has no precondition.
    let task = Kernel(unsafe { bpf_get_current_task() });
    // A VM that executes another program is over; its other threads have exited.
    // SAFETY: entries are only read and written as whole words.
    if let Some(vm) = unsafe { TGIDS.get(tgid) }.and_then(|slot| VMS.get(*slot))
        && get(&vm.ended_ns) == 0
    {
        add(&vm.faults_at_end[0], task.u64(offset!(task_min_flt)));
        add(&vm.faults_at_end[1], task.u64(offset!(task_maj_flt)));
        end(tgid, 0);
    }
    let _ = TGIDS.remove(tgid);
    if FOLLOW_EXEC.load() == 0 {
        return 0;
    }
    if let Some(is_micro_vm) = hypervisor(task) {
        forget_former_owner(task, tgid);
        let slot = adopt(task, tgid);
        if let Some(vm) = slot.and_then(|slot| VMS.get(slot)) {
            set(&vm.first_run_ns, NEVER_RAN);
        }
        debug!(&ctx, "exec of a hypervisor by {}: slot {}", tgid, slot.unwrap_or(u32::MAX));
        let kind = if slot.is_some() { LifecycleKind::Started } else { LifecycleKind::NoSlot };
        announce(kind, slot.unwrap_or(u32::MAX), tgid, is_micro_vm);
    }
    0
}

/// The memory of a process that executes is new. A VM that is filed under its address has
/// given it back and is about to end: before Linux 6.16 `do_exit` calls `exit_mm` first
/// (kernel/exit.c).
#[inline(always)]
fn forget_former_owner(task: Kernel, tgid: u32) {
    let mm = task.u64(offset!(task_mm));
    // SAFETY: entries are only read and written as whole words.
    let owner = unsafe { MMS.get(mm) }.and_then(|slot| VMS.get(*slot));
    if let Some(vm) = owner.filter(|vm| get(&vm.tgid) != u64::from(tgid)) {
        let _ = MMS.remove(mm);
        set(&vm.mm, 0);
    }
}

/// On `sched_process_exit` (`do_exit`), for each thread of the host.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn process_exit(_ctx: RawTracePointContext) -> i32 {
    let id = bpf_get_current_pid_tgid();
    abandon_fault(id as u32);
    let tgid = (id >> 32) as u32;
    // SAFETY: the helper has no precondition.
    let task = Kernel(unsafe { bpf_get_current_task() });
    let signal = task.pointer(offset!(task_signal));
    // SAFETY: entries are only read and written as whole words.
    let slot = unsafe { TGIDS.get(tgid) };
    if let Some(vm) = slot.and_then(|slot| VMS.get(*slot)) {
        add(&vm.faults_at_end[0], task.u64(offset!(task_min_flt)));
        add(&vm.faults_at_end[1], task.u64(offset!(task_maj_flt)));
    }
    // do_exit has already taken this thread off signal->live. The last threads may
    // all see it so; each has added its faults, the first one ends the VM.
    if signal.u32(offset!(signal_live)) == 0 {
        end(tgid, u64::from(exit_code(task, signal)) + 1);
    }
    0
}

/// How the process of a thread ends, as its parent is told (`wait_task_zombie`, kernel/exit.c). Not
/// by the thread that exits last, which may be a worker of the kernel's in the process, as vhost's
/// are from Linux 6.4 on: those end with 0.
#[inline(always)]
fn exit_code(task: Kernel, signal: Kernel) -> u32 {
    /// `SIGNAL_GROUP_EXIT`, include/linux/sched/signal.h.
    const GROUP_EXIT: u32 = 4;
    if signal.u32(offset!(signal_flags)) & GROUP_EXIT != 0 {
        return signal.u32(offset!(signal_group_exit_code));
    }
    task.pointer(offset!(task_group_leader)).u32(offset!(task_exit_code))
}

/// A thread that exits inside a fault will not complete it.
#[inline(always)]
fn abandon_fault(tid: u32) {
    // SAFETY: entries are only read and written as whole words.
    let Some(thread) = unsafe { TIDS.get(tid) }.and_then(|index| THREADS.get(*index)) else {
        return;
    };
    if get(&thread.since_ns) != 0 {
        goes_on(thread, true);
    }
}

/// What is QEMU (0), or Firecracker or Cloud Hypervisor (1), by the file that it executes; the
/// loader looks closer. The name comes from the file system, so a process cannot choose it for
/// itself. Not crosvm, whose commands to a VM that runs are the same program.
#[inline(always)]
fn hypervisor(task: Kernel) -> Option<u32> {
    let name = task
        .pointer(offset!(task_mm))
        .pointer(offset!(mm_exe_file))
        .pointer(offset!(file_dentry))
        .pointer(offset!(dentry_name));
    let mut buffer = [0u8; 16];
    // SAFETY: the helper checks the address.
    let read = unsafe { bpf_probe_read_kernel_str_bytes(name.0 as *const u8, &mut buffer) };
    if read.is_err() {
        return None;
    }
    let is_qemu = buffer.starts_with(b"qemu-system-")
        || buffer.starts_with(b"qemu-kvm")
        || buffer.starts_with(b"kvm\0");
    let is_micro_vm = buffer.starts_with(b"firecracker\0")
        || buffer.starts_with(b"firecracker-v")
        // As much of the name as is read.
        || buffer.starts_with(b"cloud-hyperviso");
    (is_qemu || is_micro_vm).then_some(u32::from(is_micro_vm))
}

/// Gives the task's memory a slot, or finds the one that it has.
#[inline(always)]
fn adopt(task: Kernel, tgid: u32) -> Option<u32> {
    let mm = task.u64(offset!(task_mm));
    if mm == 0 {
        return None;
    }
    // SAFETY: entries are only read and written as whole words.
    if let Some(slot) = unsafe { MMS.get(mm) } {
        return Some(*slot);
    }
    let slot = FREE_VMS.pop().ok()??;
    let vm = VMS.get(slot)?;
    set(&vm.start_boottime_ns, task.u64(offset!(task_start_boottime)));
    set(&vm.tgid, u64::from(tgid));
    let signal = task.pointer(offset!(task_signal));
    // Threads that are gone; each one that exits adds itself.
    let (minor, major) = (signal.u64(offset!(signal_min_flt)), signal.u64(offset!(signal_maj_flt)));
    set(&vm.faults_at_end[0], minor);
    set(&vm.faults_at_end[1], major);
    set(&vm.faults_before[0], minor + task.u64(offset!(task_min_flt)));
    set(&vm.faults_before[1], major + task.u64(offset!(task_maj_flt)));
    if MMS.insert(mm, slot, u64::from(BPF_NOEXIST)).is_err() {
        let _ = FREE_VMS.push(slot, 0);
        // Somebody else may have been faster.
        // SAFETY: as above.
        return unsafe { MMS.get(mm) }.copied();
    }
    if TGIDS.insert(tgid, slot, 0).is_err() {
        let _ = MMS.remove(mm);
        let _ = FREE_VMS.push(slot, 0);
        return None;
    }
    // Last: programs go by it.
    set(&vm.mm, mm);
    if get(&vm.ended_ns) != 0 {
        // It has ended meanwhile.
        let _ = MMS.remove(mm);
        set(&vm.mm, 0);
    }
    vm_has_come();
    Some(slot)
}

/// Ends the VM of a process, if it is one. Its process id stays filed until the
/// loader closes the slot, for threads that are still exiting. `exit_code` as in
/// [`Vm::exit_code`](overcommit_ebpf::layout::Vm::exit_code).
#[inline(always)]
fn end(tgid: u32, exit_code: u64) {
    // SAFETY: entries are only read and written as whole words.
    let Some(slot) = (unsafe { TGIDS.get(tgid) }) else {
        return;
    };
    let slot = *slot;
    let Some(vm) = VMS.get(slot) else { return };
    if get(&vm.ended_ns) != 0 {
        return;
    }
    let mm = get(&vm.mm);
    // Another VM may have its address already.
    // SAFETY: as above.
    if unsafe { MMS.get(mm) } == Some(&slot) {
        let _ = MMS.remove(mm);
    }
    set(&vm.mm, 0);
    // Whoever sees that it ended sees how.
    set(&vm.exit_code, exit_code);
    // SAFETY: the helper has no precondition.
    set(&vm.ended_ns, unsafe { bpf_ktime_get_ns() });
    announce(LifecycleKind::Ended, slot, tgid, 0);
}

#[inline(always)]
pub(crate) fn announce(kind: LifecycleKind, vm: u32, tgid: u32, is_micro_vm: u32) {
    // A full buffer loses nothing: the loader rescans every second.
    if let Some(mut entry) = EVENTS.reserve::<Lifecycle>(0) {
        entry.write(Lifecycle { kind: kind as u32, vm, tgid, is_micro_vm });
        entry.submit(0);
    }
}
