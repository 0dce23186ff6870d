//! Is the difference between two recordings real?
//!
//! Intervals of a recording resemble their neighbours, so a test that takes them, or
//! even single faults, for independent finds differences where there are none. Each
//! recording is cut into a few long batches, whose means hardly know of each other
//! (`batches`); these are compared (`claim`). `series` takes them out of recordings,
//! `verdict` says what can be said.

pub mod batches;
pub mod claim;
pub mod series;
pub mod verdict;

pub use verdict::{Compared, Comparison, FigureName, compare};
