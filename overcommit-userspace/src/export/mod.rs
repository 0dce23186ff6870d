//! One file a format.

pub mod csv;
pub mod evictions;
pub mod hgrm;
pub mod hlog;
pub mod host;
pub mod intervals;
pub mod kswapd_estimate;
pub mod memory_text;
pub mod parts;
pub mod progress;
pub mod sentence;
pub mod slow_faults;
pub mod summary;
pub mod summary_evictions;
pub mod summary_host;
pub mod table;
pub mod vms;
