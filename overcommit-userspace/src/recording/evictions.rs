//! evictions.csv: one row an interval, victim and aggressor.

use crate::format::csv;
use crate::format::csv::{seconds_of_ns, seconds_of_us, text};
use crate::kernel;
use crate::model::interval::Interval;
use crate::model::run::RunVm;
use crate::recording::intervals::place;
use anyhow::Result;

/// The columns; only ever appended to.
pub const COLUMNS: [&str; 15] = [
    "start_unix_s",
    "length_s",
    "victim_id",
    "victim",
    "aggressor_kind",
    "aggressor_id",
    "aggressor",
    "written_folios",
    "written_pages",
    "written_bytes",
    "dropped_folios",
    "dropped_pages",
    "dropped_bytes",
    "partial",
    "interval",
];

/// The interval's rows. Memory that is no recorded VM's own has no victim.
///
/// # Errors
/// See [`csv::rows`].
pub fn rows(interval: &Interval, vms: &[RunVm], sees_drops: bool) -> Result<Vec<u8>> {
    let page_size = kernel::page_size();
    csv::rows(interval.evictions.iter().map(|sample| {
        let mut row = vec![seconds_of_us(interval.start_us), seconds_of_ns(interval.length_ns)];
        let victim = sample.victim.and_then(|member| vms.get(member));
        row.push(victim.map(|vm| vm.vm_id.clone()).unwrap_or_default());
        row.push(victim.map(|vm| text(&vm.name)).unwrap_or_default());
        let aggressor = &sample.aggressor;
        row.push(aggressor.class.name().to_owned());
        row.push(aggressor.id.clone());
        row.push(text(&aggressor.name));
        let counts = sample.counts;
        let written =
            [counts.written_folios, counts.written_pages, counts.written_pages * page_size];
        row.extend(written.map(|count| count.to_string()));
        let dropped =
            [counts.dropped_folios, counts.dropped_pages, counts.dropped_pages * page_size];
        row.extend(dropped.map(|count| if sees_drops { count.to_string() } else { String::new() }));
        row.extend(place(interval));
        row
    }))
}
