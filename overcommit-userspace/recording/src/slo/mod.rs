//! Who broke which objective?
//!
//! `objective` is what the user asks for, `judge` holds a recording against it,
//! `config` reads objectives from a file.

pub mod config;
pub mod judge;
pub mod objective;

pub use judge::{Judged, Verdict};
pub use objective::Objective;
