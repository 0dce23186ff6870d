//! host.csv: one row an interval.

use crate::export::csv::{self, optional, seconds_of_ns, seconds_of_us};
use crate::export::intervals::place;
use crate::host::swap_state::Rates;
use crate::recording::Interval;
use anyhow::Result;

/// The columns; only ever appended to.
pub const COLUMNS: [&str; 13] = [
    "start_unix_s",
    "length_s",
    "partial",
    "interval",
    "swap_state",
    "swapped_in_pages_per_s",
    "swapped_out_pages_per_s",
    "memory_stall_share",
    "io_wait_share",
    "memory_total_bytes",
    "memory_available_bytes",
    "swap_total_bytes",
    "swap_free_bytes",
];

/// The interval's row.
///
/// # Errors
/// See [`csv::rows`].
pub fn row(interval: &Interval) -> Result<Vec<u8>> {
    let mut row = vec![seconds_of_us(interval.start_us), seconds_of_ns(interval.length_ns)];
    row.extend(place(interval));
    let host = &interval.host;
    row.push(host.swap_state.name().to_owned());
    row.extend(rates(host.rates));
    let io_wait = host.rates.and_then(|rates| rates.io_wait);
    row.push(optional(io_wait.map(|share| format!("{share:.6}"))));
    let memory = host.memory;
    row.push(optional(memory.map(|memory| memory.total)));
    row.push(optional(memory.and_then(|memory| memory.available)));
    row.push(optional(memory.map(|memory| memory.swap_total)));
    row.push(optional(memory.map(|memory| memory.swap_free)));
    csv::rows([row])
}

/// Pages in and out a second, and the share of the time stalled.
pub(super) fn rates(rates: Option<Rates>) -> [String; 3] {
    let pages = |pages: Option<f64>| optional(pages.map(|pages| format!("{pages:.3}")));
    let share = rates.and_then(|rates| rates.stall);
    [
        pages(rates.and_then(|rates| rates.swapped_in)),
        pages(rates.and_then(|rates| rates.swapped_out)),
        optional(share.map(|share| format!("{share:.6}"))),
    ]
}
