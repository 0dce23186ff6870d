//! evictions.csv: one row per interval, victim and aggressor.

use super::{
    Column, Leaf, Row, Unit, Value, column, computed, length, number, one, partial, start,
};
use crate::model::evictions::Eviction;
use crate::model::run::RunVm;

fn victim(row: &Row<'_, Eviction>, get: fn(&RunVm) -> String) -> Value {
    let vm = row.of.victim.and_then(|victim| row.run.vms.get(victim));
    Value::Text(vm.map(get).unwrap_or_default())
}

/// A count of what is dropped without being written, where that is seen.
fn dropped(row: &Row<'_, Eviction>, count: u64) -> Value {
    row.run.sees_drops().then_some(count).value()
}

/// Each figure of an eviction, in the order of the file.
pub fn evictions() -> Vec<Column<Eviction>> {
    vec![
        start(),
        length(),
        column(
            "victim_id",
            Unit::Word,
            "The VM whose pages were taken; empty of memory that is no recorded VM's own",
            |row, _| victim(row, |vm| vm.vm_id.clone()),
            |draft, _, cell| {
                draft.of.victim = if cell.is_empty() { None } else { Some(draft.member(cell)?) };
                Some(())
            },
        )
        .required(),
        computed("victim", Unit::Text, "Its name", |row, _| victim(row, |vm| vm.name.clone())),
        one!(Eviction: "aggressor_kind", Word,
            "Who took them: vm, process, kswapd, damon or kernel", aggressor.class)
        .required(),
        one!(Eviction: "aggressor_id", Word,
            "The VM's id, else that of the process or thread; empty of workers", aggressor.id)
        .required(),
        one!(Eviction: "aggressor", Text, "Its name", aggressor.name).required(),
        one!(Eviction: "written_folios", Count, "Folios that were handed to swap",
            counts.written_folios)
        .required(),
        one!(Eviction: "written_pages", Count, "Their pages", counts.written_pages).required(),
        computed("written_bytes", Unit::Bytes, "Their bytes", |row, _| {
            Value::Count(row.of.counts.written_pages.saturating_mul(row.run.page_size))
        }),
        column(
            "dropped_folios",
            Unit::Count,
            "Folios that were dropped because a disk has their content",
            |row, _| dropped(row, row.of.counts.dropped_folios),
            |draft, _, cell| {
                draft.of.counts.dropped_folios = Option::read(cell)?.unwrap_or(0);
                Some(())
            },
        ),
        column(
            "dropped_pages",
            Unit::Count,
            "Their pages",
            |row, _| dropped(row, row.of.counts.dropped_pages),
            |draft, _, cell| {
                draft.of.counts.dropped_pages = Option::read(cell)?.unwrap_or(0);
                Some(())
            },
        ),
        computed("dropped_bytes", Unit::Bytes, "Their bytes", |row, _| {
            dropped(row, row.of.counts.dropped_pages.saturating_mul(row.run.page_size))
        }),
        partial(),
        number(),
    ]
}
