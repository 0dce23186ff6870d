//! What each figure is: its name, unit and sentence, and where it lies in an interval. Files,
//! views and documents are made from these lists.
//!
//! A name keeps its meaning for good, and columns are only ever appended: readers go by names,
//! and spreadsheets by places.

mod evictions;
mod host;
mod leaf;
mod metrics;
mod slow_faults;
mod vms;

pub use evictions::evictions;
pub use host::host;
use leaf::LARGEST;
pub use leaf::{Leaf, Unit, Value, units};
pub use metrics::{QUANTILES, metrics};
pub use slow_faults::slow_faults;
pub use vms::{STALL_RUNQ, SWAPINS_BY_DEVICE, VCPUS_UNKNOWN, vms};

use crate::model::interval::Place;
use crate::model::run::Run;
use crate::model::state::{State, StateTimes};
use anyhow::{Context, Result};
use std::borrow::Cow;
use std::collections::HashMap;

/// A record in the interval and the recording that it is of.
#[derive(Clone, Copy)]
pub struct Row<'a, T> {
    /// The recording.
    pub run: &'a Run,
    /// The interval.
    pub place: &'a Place,
    /// The record.
    pub of: &'a T,
}

/// The VMs of a recording.
#[derive(Debug, Default)]
pub struct Members<'a> {
    by_id: HashMap<&'a str, usize>,
    /// Whether others were left out, of which there may be rows.
    are_more: bool,
}

impl<'a> Members<'a> {
    /// Those of a recording.
    pub fn of(run: &'a Run) -> Self {
        let vms = run.vms.iter().enumerate();
        Self {
            by_id: vms.map(|(index, vm)| (vm.vm_id.as_str(), index)).collect(),
            are_more: run.not_counted.vms_left_out > 0,
        }
    }
}

impl<T> Draft<'_, T> {
    /// The VM of that id. Notes where it is one that was left out.
    fn member(&mut self, id: &str) -> Option<usize> {
        let member = self.vms.by_id.get(id).copied();
        self.is_left_out |= member.is_none() && self.vms.are_more;
        member.or(self.vms.are_more.then_some(usize::MAX))
    }
}

/// A record that is being read.
pub struct Draft<'a, T> {
    /// VMs of the recording.
    pub vms: &'a Members<'a>,
    /// Whether it is of a VM that is not among them.
    pub is_left_out: bool,
    /// The interval.
    pub place: Place,
    /// The record.
    pub of: T,
}

/// How a cell is read into a record; of several columns alike the number says which.
type Set<T> = fn(&mut Draft<'_, T>, usize, &str) -> Option<()>;

/// A figure of a record.
pub struct Column<T> {
    /// The name in all files and views.
    pub name: Cow<'static, str>,
    /// Its unit.
    pub unit: Unit,
    /// What it is, as half a sentence.
    pub about: Cow<'static, str>,
    /// Whether no recording lacks it.
    pub is_required: bool,
    number: usize,
    get: fn(&Row<'_, T>, usize) -> Value,
    /// `None` of what follows from other figures.
    set: Option<Set<T>>,
}

impl<T> Column<T> {
    /// The figure.
    pub fn get(&self, row: &Row<'_, T>) -> Value {
        (self.get)(row, self.number)
    }

    /// Reads a cell of a file; an empty one of what may be unknown leaves it so.
    ///
    /// # Errors
    /// It is no such figure.
    pub fn set(&self, draft: &mut Draft<'_, T>, cell: &str) -> Result<()> {
        let Some(set) = self.set else { return Ok(()) };
        set(draft, self.number, cell).with_context(|| format!("{} is {cell:?}", self.name))
    }

    /// As one that every recording has.
    fn required(mut self) -> Self {
        self.is_required = true;
        self
    }
}

/// A column that is read back.
fn column<T>(
    name: impl Into<Cow<'static, str>>,
    unit: Unit,
    about: impl Into<Cow<'static, str>>,
    get: fn(&Row<'_, T>, usize) -> Value,
    set: Set<T>,
) -> Column<T> {
    Column { set: Some(set), ..computed(name, unit, about, get) }
}

/// A column that follows from others.
fn computed<T>(
    name: impl Into<Cow<'static, str>>,
    unit: Unit,
    about: impl Into<Cow<'static, str>>,
    get: fn(&Row<'_, T>, usize) -> Value,
) -> Column<T> {
    let (name, about) = (name.into(), about.into());
    Column { name, unit, about, is_required: false, number: 0, get, set: None }
}

/// The same of several alike, by their number.
fn numbered<T>(number: usize, column: Column<T>) -> Column<T> {
    Column { number, ..column }
}

/// A column with a place: behind `=>` comes a part of what may be missing as a whole.
macro_rules! one {
    ($record:ty: $name:expr, $unit:ident, $about:expr, $($path:tt).+) => {
        column::<$record>(
            $name,
            Unit::$unit,
            $about,
            |row, _| Leaf::value(&row.of.$($path).+),
            |draft, _, cell| {
                draft.of.$($path).+ = Leaf::read(cell)?;
                Some(())
            },
        )
    };
    ($record:ty: $name:expr, $unit:ident, $about:expr, $($path:tt).+ => $($part:tt).+) => {
        column::<$record>(
            $name,
            Unit::$unit,
            $about,
            |row, _| row.of.$($path).+.as_ref().map_or(Value::Absent, |of| of.$($part).+.value()),
            |draft, _, cell| {
                if !cell.is_empty() {
                    draft.of.$($path).+.get_or_insert_default().$($part).+ = Leaf::read(cell)?;
                }
                Some(())
            },
        )
    };
}
pub(crate) use one;

/// When the interval began.
fn start<T>() -> Column<T> {
    let about = "Start of the interval, in Unix time; whole multiples of the interval";
    let get = |row: &Row<'_, T>, _| Value::Count(row.place.start_us);
    let set: Set<T> = |draft, _, cell| {
        draft.place.start_us = units(cell, 6)?;
        Some(())
    };
    column("start_unix_s", Unit::Microseconds, about, get, set).required()
}

/// How long it was.
fn length<T>() -> Column<T> {
    let about = "Length of the interval, by the monotonic clock";
    let get = |row: &Row<'_, T>, _| Value::Count(row.place.length_ns);
    let set: Set<T> = |draft, _, cell| {
        draft.place.length_ns = units(cell, 9)?.min(LARGEST);
        Some(())
    };
    column("length_s", Unit::Nanoseconds, about, get, set).required()
}

/// Whether it is partial.
fn partial<T>() -> Column<T> {
    let about = "1 where the interval is shorter than asked for: the first and the last one";
    let get = |row: &Row<'_, T>, _| Value::Count(u64::from(row.place.partial));
    let set: Set<T> = |draft, _, cell| {
        draft.place.partial = cell == "1";
        Some(())
    };
    column("partial", Unit::Count, about, get, set)
}

/// Whether it is delayed.
fn delayed<T>() -> Column<T> {
    let about = "1 where the interval is much longer than asked for: the recorder was held up";
    let get = |row: &Row<'_, T>, _| Value::Count(u64::from(row.place.delayed));
    let set: Set<T> = |draft, _, cell| {
        draft.place.delayed = cell == "1";
        Some(())
    };
    column("delayed", Unit::Count, about, get, set)
}

/// Its number.
fn number<T>() -> Column<T> {
    let about = "Number of the interval, from 0";
    let get = |row: &Row<'_, T>, _| Value::Count(row.place.number);
    let set: Set<T> = |draft, _, cell| {
        draft.place.number = cell.parse().ok()?;
        Some(())
    };
    column("interval", Unit::Count, about, get, set).required()
}

/// A record that has the time in each state of a kind.
trait InStates<S> {
    /// Those times.
    fn times_of(&self) -> StateTimes<S>;

    /// Those of a record that is being read.
    fn times(&mut self) -> &mut StateTimes<S>;
}

/// Time in each state of that kind.
fn state_times<S: State, T: InStates<S>>(kind: &str) -> impl Iterator<Item = Column<T>> {
    S::ALL.iter().map(move |state| {
        let name = format!("{kind}_{}_ns", state.name());
        let about = format!("Time in which {kind}_state was {}", state.name());
        let get = |row: &Row<'_, T>, place: usize| row.of.times_of().at(place).value();
        let set: Set<T> = |draft, place, cell| {
            *draft.of.times().at(place) = Leaf::read(cell)?;
            Some(())
        };
        numbered(state.place(), column(name, Unit::WholeNanoseconds, about, get, set))
    })
}

/// A record of a VM.
trait OfVm {
    /// Index of the VM in the recording.
    fn vm(&self) -> usize;

    /// The VM of a record that is being read.
    fn set_vm(&mut self, vm: usize);
}

/// Who the VM is.
fn who<T: OfVm>() -> [Column<T>; 4] {
    fn of<T: OfVm>(row: &Row<'_, T>, get: fn(&crate::model::run::RunVm) -> Value) -> Value {
        row.run.vms.get(row.of.vm()).map_or(Value::Absent, get)
    }
    let set: Set<T> = |draft, _, cell| {
        let vm = draft.member(cell)?;
        draft.of.set_vm(vm);
        Some(())
    };
    [
        column(
            "vm_id",
            Unit::Word,
            "The VM: process id and start time, which no other has",
            |row, _| of(row, |vm| Value::Text(vm.vm_id.clone())),
            set,
        )
        .required(),
        computed("vm", Unit::Text, "Its name; not unique", |row, _| {
            of(row, |vm| Value::Text(vm.name.clone()))
        }),
        computed("uuid", Unit::Text, "Its UUID, where its command line has one", |row, _| {
            of(row, |vm| Value::Text(vm.uuid.clone().unwrap_or_default()))
        }),
        computed("pid", Unit::Count, "Its process id", |row, _| {
            of(row, |vm| Value::Signed(vm.pid.into()))
        }),
    ]
}
