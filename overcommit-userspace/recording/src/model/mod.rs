//! What an interval, a VM and a recording are. No I/O, no probes, no text.

pub mod balloon;
pub mod breakdown;
pub mod clock;
pub mod columns;
pub mod cost;
pub mod coverage;
pub mod evictions;
pub mod exit;
pub mod figures;
pub mod interval;
pub mod latencies;
pub mod memory;
pub mod metric;
pub mod name;
mod parts;
pub mod pattern;
pub mod run;
pub mod slow_fault;
pub mod start;
pub mod state;
pub mod swap;
pub mod swapins;
pub mod totals;
pub mod vcpus;
pub mod vm;
