//! Is the difference between two recordings real?
//!
//! Data goes one way: `series` takes what is compared out of recordings, `pairs` finds the same
//! VM on both sides, `figures` gives each figure recording by recording, `judge` says what can be
//! claimed, and `verdict` puts it together. Intervals of a recording resemble their neighbours, so a test that takes
//! them, or even single faults, for independent finds differences where there are none. One
//! recording a side is cut into a few long batches, whose means hardly know of each other
//! (`batches`, `claim`); of several a side each is one value (`permutation`).

pub mod batches;
pub mod claim;
pub mod figures;
pub mod judge;
pub mod pairs;
pub mod permutation;
pub mod series;
pub mod verdict;

pub use figures::FigureName;
pub use judge::{Compared, LENGTH_S, judge};
pub use verdict::{Comparison, compare};
