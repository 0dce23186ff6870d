//! vms.csv: one row per interval and VM.

use super::{
    Column, Leaf, OfVm, Row, Set, Unit, Value, column, computed, delayed, length, number, numbered,
    one, partial,
};
use super::{InStates, start, state_times, who};
use crate::model::interval::VmInterval;
use crate::model::state::StateTimes;
use crate::model::swap::SwapState;
use overcommit_ebpf::layout::{Invalidator, Loss, Part, Taker};

/// The column that older recordings lack, which tells where swapped pages came from by disk.
pub const SWAPINS_BY_DEVICE: &str = "swapins_by_device";

/// The column that older recordings lack, whose stall share holds waits for a CPU too.
pub const STALL_RUNQ: &str = "stall_runq_ns";

/// The column that recordings lack whose `stall.memory` is of memory exits alone.
pub const VCPUS_UNKNOWN: &str = "vcpus_unknown_ns";

impl InStates<SwapState> for VmInterval {
    fn times(&mut self) -> &mut StateTimes<SwapState> {
        &mut self.swap.times
    }

    fn times_of(&self) -> StateTimes<SwapState> {
        self.swap.times
    }
}

impl OfVm for VmInterval {
    fn vm(&self) -> usize {
        self.vm
    }

    fn set_vm(&mut self, vm: usize) {
        self.vm = vm;
    }
}

/// Each figure of a VM, in the order of the file.
pub fn vms() -> Vec<Column<VmInterval>> {
    let mut columns = vec![start(), length()];
    columns.extend(who());
    columns.extend(stall());
    columns.extend([
        one!(VmInterval: "faults_counted", Count, "Faults of its threads that were counted",
            seen.counted)
        .required(),
        one!(VmInterval: "faults_kernel", Count,
            "Faults that the kernel accounted to its threads", seen.kernel)
        .required(),
        taken_by(Taker::Outside, "faults_by_others", "Faults that workers and others took in it"),
        partial(),
        number(),
        taken_by(Taker::Vcpu, "faults_by_vcpus", "Faults that its vCPU threads took"),
        taken_by(Taker::VmThread, "faults_by_vm_threads", "Faults that its other threads took"),
        computed(
            "metrics",
            Unit::Count,
            "Rows that it has in intervals.csv",
            |row: &Row<'_, VmInterval>, _| Value::Count(row.of.metrics.len() as u64),
        )
        .required(),
    ]);
    columns.extend(swapping());
    columns.extend(memory());
    columns.extend(working_set());
    columns.extend(parts());
    columns.extend(Loss::ALL.into_iter().map(|cause| {
        let name = format!("lost_{}", cause.name());
        let about = match cause {
            Loss::EvictionsFull => {
                "Evictions that are counted for others, because the matrix was full".to_owned()
            }
            cause => format!("Not counted: {}", cause.name()),
        };
        let get = |row: &Row<'_, VmInterval>, cause: usize| row.of.not_counted[cause].value();
        let set: Set<VmInterval> = |draft, cause, cell| {
            draft.of.not_counted[cause] = Leaf::read(cell)?;
            Some(())
        };
        numbered(cause as usize, column(name, Unit::Count, about, get, set))
    }));
    columns.extend([
        one!(VmInterval: "swapins_by_device", Text,
            "Swap-ins that were read from a device, by its name", swapins => from_device),
        one!(VmInterval: "file_faults_cached", Count,
            "Faults that took a page of a file out of the page cache", file_faults => cached),
        one!(VmInterval: "file_faults_read", Count,
            "Faults that took a page of a file which had to be read", file_faults => read),
        one!(VmInterval: STALL_RUNQ, WholeNanoseconds,
            "Part of stall_ns in which a vCPU was runnable but had no CPU", stall => runq_ns),
        one!(VmInterval: "cpu_wait_ns", WholeNanoseconds,
            "Time for which its vCPUs were runnable but had no CPU", cpu_wait_ns),
        computed("cpu_wait_share", Unit::Share, "That ÷ the vCPUs' time", |row, _| {
            row.of.stall.zip(row.of.cpu_wait_ns).and_then(|(stall, ns)| stall.cpu_share(ns)).value()
        }),
        one!(VmInterval: "overhead_bytes", Bytes,
            "What of the resident is QEMU's own, beside the guest's memory", memory => overhead),
        one!(VmInterval: "page_cache_bytes", Bytes,
            "What of the resident is pages of files on a disk", memory => page_cache),
    ]);
    columns.extend(state_times::<SwapState, _>("swap"));
    columns.push(delayed());
    columns.push(one!(VmInterval: "stall_memory_background_ns", WholeNanoseconds,
        "Part of `stall_memory_ns`: the vCPU slept until a worker had read its page, outside faults",
        stall_time => background_ns));
    columns.push(one!(VmInterval: "vcpus_known_ns", WholeNanoseconds,
        "Time for which vCPU threads of it were known", stall => known_ns));
    columns.push(one!(VmInterval: VCPUS_UNKNOWN, WholeNanoseconds,
        "Part of vcpu_ns of vCPUs whose threads were not known", stall => unknown_vcpu_ns));
    columns.push(one!(VmInterval: "huge_pages_bytes", Bytes,
        "What it has mapped in transparent huge pages", memory => huge_pages));
    columns.push(one!(VmInterval: "stopped_ns", WholeNanoseconds,
        "How long its process was stopped, by SIGSTOP or a debugger", stopped_ns));
    columns.push(one!(VmInterval: "recorded_ns", WholeNanoseconds,
        "How long it was recorded: it may have started or ended within", recorded_ns));
    columns.extend(Invalidator::ALL.map(invalidations));
    columns
}

/// KVM has to find such pages again when the guest touches them, which costs an exit and mostly no
/// fault.
fn invalidations(by: Invalidator) -> Column<VmInterval> {
    let who = match by {
        Invalidator::Own => "the VM itself (balloon, copies, mappings that are gone)",
        Invalidator::Numa => "NUMA balancing or mprotect",
        Invalidator::Ksm => "KSM",
        Invalidator::Compaction => "compaction",
        Invalidator::HugePages => "khugepaged",
        Invalidator::Reclaim => "reclaim (kswapd, DAMON, VMs' own threads)",
        Invalidator::Other => "anything else",
    };
    let column = column(
        format!("invalidations_{}", by.name()),
        Unit::Count,
        format!("How often KVM was told to unmap some of its memory, by {who}"),
        |row: &Row<'_, VmInterval>, by: usize| row.of.invalidations.map(|of| of[by]).value(),
        |draft, by, cell| {
            if !cell.is_empty() {
                let counts = draft.of.invalidations.get_or_insert_default();
                counts[by] = Leaf::read(cell)?;
            }
            Some(())
        },
    );
    numbered(by as usize, column)
}

fn taken_by(taker: Taker, name: &'static str, about: &'static str) -> Column<VmInterval> {
    let column = column(
        name,
        Unit::Count,
        about,
        |row: &Row<'_, VmInterval>, taker: usize| row.of.taken_by[taker].value(),
        |draft, taker, cell| {
            draft.of.taken_by[taker] = Leaf::read(cell)?;
            Some(())
        },
    );
    numbered(taker as usize, column).required()
}

fn stall() -> Vec<Column<VmInterval>> {
    vec![
        computed(
            "stall_share",
            Unit::Share,
            "Time that its vCPUs waited for memory, without waits for a CPU ÷ their time",
            |row, _| row.of.stall.and_then(|stall| stall.share()).value(),
        ),
        one!(VmInterval: "stall_source", Word,
            "Where that is seen: stall.memory (exits) or fault (faults of vCPU threads)",
            stall => source)
        .required(),
        one!(VmInterval: "stall_ns", WholeNanoseconds,
            "Time that its vCPUs waited for memory, waits for a CPU in between included",
            stall => waited_ns)
        .required(),
        one!(VmInterval: "vcpu_ns", WholeNanoseconds, "vCPUs × time", stall => vcpu_ns).required(),
    ]
}

fn swapping() -> Vec<Column<VmInterval>> {
    vec![
        one!(VmInterval: "swapins_from_cache", Count,
            "Swap-ins whose page was in the swap cache", swapins => from_cache),
        one!(VmInterval: "swapins_from_zswap", Count, "Swap-ins out of zswap",
            swapins => from_zswap),
        computed(
            "swapins_from_devices",
            Unit::Count,
            "Swap-ins that were read from a device",
            |row, _| row.of.swapins.as_ref().map(|swapins| swapins.from_devices()).value(),
        ),
        one!(VmInterval: "swapins_without_fault", Count,
            "Pages that khugepaged swapped in, which nobody waited for",
            swapins => without_fault),
        one!(VmInterval: "swap_state", Word,
            "How much swapping hurts it, at the worst: unknown, healthy, pressure or thrashing",
            swap.state),
        one!(VmInterval: "swapped_in_pages_per_s", PerSecond, "Its pages that came back",
            swap.rates => swapped_in),
        one!(VmInterval: "swapped_out_pages_per_s", PerSecond,
            "Its pages that went to swap; of a memory cgroup of its own",
            swap.rates => swapped_out),
        one!(VmInterval: "memory_stall_share", Share,
            "Time for which it waited for memory: of its vCPUs, or PSI of its cgroup",
            swap.rates => stall),
    ]
}

fn memory() -> Vec<Column<VmInterval>> {
    vec![
        one!(VmInterval: "configured_bytes", Bytes, "What it was given", configured),
        one!(VmInterval: "current_bytes", Bytes, "What its balloon driver says that it keeps",
            balloon => current),
        one!(VmInterval: "ballooned_bytes", Bytes, "What it gave back", balloon => ballooned),
        one!(VmInterval: "balloon_source", Word, "Who says so: qmp, libvirt or discards",
            balloon => source),
        one!(VmInterval: "resident_bytes", Bytes, "In RAM, with its part of what is shared",
            memory => resident),
        one!(VmInterval: "swapped_bytes", Bytes, "On swap, with its part of what is shared",
            memory => swapped),
        one!(VmInterval: "hugetlb_bytes", Bytes, "Huge pages out of the host's pool",
            memory => hugetlb),
        guest("guest_total_bytes", "Memory that the guest manages, as it says", 0),
        guest("guest_available_bytes", "What its programs could still have, as it says", 1),
        guest("guest_free_bytes", "What lies idle in it, as it says", 2),
        one!(VmInterval: "guest_age_s", Tenths, "How long ago the guest said so", guest_age_s),
        one!(VmInterval: "guest_is_stale", Word, "Whether that says nothing of now",
            guest_is_stale),
    ]
}

/// What the guest itself says of its memory.
fn guest(name: &'static str, about: &'static str, which: usize) -> Column<VmInterval> {
    let column = column(
        name,
        Unit::Bytes,
        about,
        |row: &Row<'_, VmInterval>, which: usize| {
            let guest = row.of.balloon.and_then(|balloon| balloon.guest);
            guest.and_then(|guest| [guest.total, guest.available, guest.free][which]).value()
        },
        |draft, which, cell| {
            if cell.is_empty() {
                return Some(());
            }
            let balloon = draft.of.balloon.get_or_insert_default();
            let guest = balloon.guest.get_or_insert_default();
            let places = [&mut guest.total, &mut guest.available, &mut guest.free];
            *places.into_iter().nth(which)? = Leaf::read(cell)?;
            Some(())
        },
    );
    numbered(which, column)
}

fn working_set() -> Vec<Column<VmInterval>> {
    vec![
        one!(VmInterval: "working_set_lower_bytes", Bytes, "What it uses, at least",
            working_set => range.lower),
        one!(VmInterval: "working_set_upper_bytes", Bytes, "What it uses, at most",
            working_set => range.upper),
        one!(VmInterval: "working_set_source", Word,
            "What measured that: damon, mglru, clear_refs or bounds", working_set => source),
        one!(VmInterval: "working_set_window_s", Thousandths,
            "Time in which memory must be touched to belong to it", working_set => window_s),
        one!(VmInterval: "working_set_cost_share", Share,
            "CPU time that measuring takes ÷ time", working_set => cost),
        one!(VmInterval: "cgroup_limit_bytes", Bytes, "What its memory cgroup may hold",
            swap.limit),
        computed(
            "cgroup_headroom_lower_bytes",
            Unit::Bytes,
            "What that leaves beside its working set, at least",
            |row, _| row.of.cgroup_headroom().map(|left| left.lower).value(),
        ),
        computed(
            "cgroup_headroom_upper_bytes",
            Unit::Bytes,
            "What that leaves beside its working set, at most",
            |row, _| row.of.cgroup_headroom().map(|left| left.upper).value(),
        ),
        one!(VmInterval: "numa_nodes", Text, "NUMA nodes to which it is bound", numa_nodes),
        one!(VmInterval: "numa_headroom_lower_bytes", Bytes,
            "Memory left on those nodes beside the working sets of all VMs bound to them, lower bound",
            numa_headroom => lower),
        one!(VmInterval: "numa_headroom_upper_bytes", Bytes,
            "Memory left on those nodes beside the working sets of all VMs bound to them, upper bound",
            numa_headroom => upper),
    ]
}

/// Parts of the time of its faults, and of its windows of `stall.memory`.
fn parts() -> Vec<Column<VmInterval>> {
    let mut columns = vec![one!(VmInterval: "fault_ns", WholeNanoseconds,
        "Time of its faults", fault_time.total_ns)];
    columns.extend(Part::ALL.into_iter().map(|part| {
        let name = format!("fault_{}_ns", part.name());
        let about = format!("Part of the time of its faults: {}", part.name());
        let get = |row: &Row<'_, VmInterval>, part: usize| row.of.fault_time.parts_ns[part].value();
        let set: Set<VmInterval> = |draft, part, cell| {
            draft.of.fault_time.parts_ns[part] = Leaf::read(cell)?;
            Some(())
        };
        numbered(part as usize, column(name, Unit::WholeNanoseconds, about, get, set))
    }));
    columns.push(one!(VmInterval: "stall_memory_ns", WholeNanoseconds,
        "Time from memory exits to the next entries", stall_time => total_ns));
    columns.extend(Part::ALL.into_iter().map(|part| {
        let name = format!("stall_memory_{}_ns", part.name());
        let about = format!("Part of that time: {}", part.name());
        let get = |row: &Row<'_, VmInterval>, part: usize| {
            row.of.stall_time.and_then(|time| time.parts_ns[part]).value()
        };
        let set: Set<VmInterval> = |draft, part, cell| {
            if !cell.is_empty() {
                let time = draft.of.stall_time.get_or_insert_default();
                time.parts_ns[part] = Leaf::read(cell)?;
            }
            Some(())
        };
        numbered(part as usize, column(name, Unit::WholeNanoseconds, about, get, set))
    }));
    columns.push(one!(VmInterval: "stall_memory_kvm_ns", WholeNanoseconds,
        "Part of that time: KVM's own work, outside faults", stall_time => kvm_ns));
    columns
}
