//! A recording as other programs read it, one file a format.

pub mod files;
