//! How figures are spelled, one file a format.

pub mod csv;
mod deflate;
pub mod hgrm;
pub mod hlog;
pub mod text;
mod values;
