//! Who broke which objective?
//!
//! `objective` is what the user asks for, `judge` holds a recording against it, by
//! `outcome` (pure: a figure against its limit), `config` reads objectives from a file.

pub mod config;
pub mod judge;
pub mod objective;
mod outcome;

pub use judge::{Judged, Verdict};
pub use objective::Objective;
