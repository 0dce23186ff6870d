//! slow-faults.csv: one row per fault above `--slow-faults`.

use super::{Column, Leaf, OfVm, Row, Set, Unit, Value, column, numbered, one, units, who};
use crate::model::evictions::{Aggressor, AggressorClass};
use crate::model::slow_fault::SlowFault;
use overcommit_ebpf::layout::{FaultBacking, Part};

impl OfVm for SlowFault {
    fn vm(&self) -> usize {
        self.vm
    }

    fn set_vm(&mut self, vm: usize) {
        self.vm = vm;
    }
}

/// Each figure of a slow fault, in the order of the file.
pub fn slow_faults() -> Vec<Column<SlowFault>> {
    let mut columns = vec![column(
        "end_unix_s",
        Unit::Nanoseconds,
        "Its end, in Unix time",
        |row: &Row<'_, SlowFault>, _| Value::Count(row.of.end_ns),
        |draft, _, cell| {
            draft.of.end_ns = units(cell, 9)?;
            Some(())
        },
    )];
    columns.extend(who());
    columns.extend([
        one!(SlowFault: "tid", Count, "Thread that took it", tid),
        one!(SlowFault: "thread", Text, "The thread's name", thread),
        one!(SlowFault: "metric", Word, "fault.minor or fault.major", metric),
        column(
            "latency_ns",
            Unit::WholeNanoseconds,
            "How long it took",
            |row, _| row.of.latency_ns.value(),
            |draft, _, cell| {
                draft.of.latency_ns = Leaf::read(cell)?;
                draft.of.time.total_ns = draft.of.latency_ns;
                Some(())
            },
        ),
        address("address", "The address that faulted, in the VM's process", 0),
        column(
            "backing",
            Unit::Word,
            "What it took, as in backing.*; empty where that is not known",
            |row, _| row.of.backing.map_or(Value::Absent, |backing| Value::Word(backing.name())),
            |draft, _, cell| {
                draft.of.backing =
                    FaultBacking::ALL.into_iter().find(|backing| backing.name() == cell);
                Some(())
            },
        ),
        one!(SlowFault: "swap_device", Text, "Device from which it read a swapped page",
            swap_device),
        one!(SlowFault: "stack", Text, "Where in the kernel it slept longest, outermost first",
            stack),
        address("guest_address", "Its place in the guest's physical memory, where that is sure", 1),
        aggressor("aggressor_kind", Unit::Word, "Who had evicted the page that it read back", 0),
        aggressor("aggressor_id", Unit::Word, "The id of that VM, process or thread", 1),
        aggressor("aggressor", Unit::Text, "Its name", 2),
    ]);
    columns.extend(Part::ALL.into_iter().map(|part| {
        let name = format!("{}_ns", part.name());
        let about = format!("Part of its time: {}", part.name());
        let get = |row: &Row<'_, SlowFault>, part: usize| row.of.time.parts_ns[part].value();
        let set: Set<SlowFault> = |draft, part, cell| {
            draft.of.time.parts_ns[part] = Leaf::read(cell)?;
            Some(())
        };
        numbered(part as usize, column(name, Unit::WholeNanoseconds, about, get, set))
    }));
    columns
}

/// An address: of the process, or of the guest.
fn address(name: &'static str, about: &'static str, which: usize) -> Column<SlowFault> {
    let get = |row: &Row<'_, SlowFault>, which: usize| {
        [Some(row.of.address), row.of.guest_address][which].value()
    };
    let set: Set<SlowFault> = |draft, which, cell| {
        let read = || u64::from_str_radix(cell.strip_prefix("0x")?, 16).ok();
        match which {
            0 => draft.of.address = read()?,
            _ if cell.is_empty() => draft.of.guest_address = None,
            _ => draft.of.guest_address = Some(read()?),
        }
        Some(())
    };
    numbered(which, column(name, Unit::Address, about, get, set))
}

/// What is known of who had evicted the page.
fn aggressor(
    name: &'static str,
    unit: Unit,
    about: &'static str,
    which: usize,
) -> Column<SlowFault> {
    let get = |row: &Row<'_, SlowFault>, which: usize| match &row.of.aggressor {
        None => Value::Absent,
        Some(who) if which == 0 => who.class.value(),
        Some(who) => [&who.id, &who.name][which - 1].value(),
    };
    let set: Set<SlowFault> = |draft, which, cell| {
        if cell.is_empty() && draft.of.aggressor.is_none() {
            return Some(());
        }
        let nobody =
            || Aggressor { class: AggressorClass::Kernel, id: String::new(), name: String::new() };
        let who = draft.of.aggressor.get_or_insert_with(nobody);
        match which {
            0 => who.class = Leaf::read(cell)?,
            1 => who.id = Leaf::read(cell)?,
            _ => who.name = Leaf::read(cell)?,
        }
        Some(())
    };
    numbered(which, column(name, unit, about, get, set))
}
