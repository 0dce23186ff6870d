//! What overcommit records, and all that is made of it without a live host.
//!
//! `model` says what an interval, a VM and a recording are. A source, a living session or a
//! recording on disk, hands out intervals; `recording` writes and reads them, `summary`, `slo`
//! and `compare` are folds of them, `export` and `view` spell what came out.

pub mod anonymize;
pub mod compare;
pub mod export;
pub mod exposition;
pub mod format;
pub mod guest;
pub mod html;
pub mod model;
pub mod recent;
pub mod recording;
pub mod report;
pub mod slo;
pub mod summary;
pub mod view;
