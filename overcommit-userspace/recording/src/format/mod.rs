//! How figures are spelled, one file a format.

pub mod csv;
pub mod hgrm;
pub mod hlog;
pub mod text;
