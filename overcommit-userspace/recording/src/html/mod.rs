//! A recording as a page that needs no network: report.html.
//!
//! `timeline` folds intervals into columns of time, `data` packs them for the page's script,
//! `tables` and `matrix` are what is readable without it, `page` puts all into the template. The
//! script, style and template lie in `templates/`. `comparison` is the page of two recordings, whose `curve`s are
//! drawn here already.

mod comparison;
mod curve;
mod data;
mod encode;
mod matrix;
mod page;
mod tables;
mod timeline;

pub use comparison::comparison;
pub use page::{Library, Plots};
