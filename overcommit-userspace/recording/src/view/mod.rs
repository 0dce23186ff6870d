//! A recording as people read it.

pub mod comparison_text;
pub mod documents;
pub mod memory_text;
pub mod presence;
pub mod progress;
pub mod sentence;
pub mod summary_text;
pub mod verdict_text;
