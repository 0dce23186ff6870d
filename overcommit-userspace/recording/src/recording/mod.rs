//! A recording: a folder that is complete after every interval.
//!
//! `writer` adds an interval to the logs and then replaces run.json, which says
//! how far they go; `reader` believes run.json and the logs where they agree.

mod beneath;
pub mod folder;
#[cfg(test)]
mod golden;
mod lines;
mod logs;
pub mod owner;
pub mod reader;
mod rows;
pub mod run_file;
pub mod single;
pub mod span;
pub mod writer;

pub use folder::Folder;
pub use owner::Owner;
pub use reader::Recording;
pub use span::Span;
pub use writer::Writer;
