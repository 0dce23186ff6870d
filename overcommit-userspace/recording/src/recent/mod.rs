//! The last minutes of a host: what a screen shows of it, live and replayed alike.

mod board;
mod history;
mod row;

pub use board::Board;
pub use history::{History, Line, VmLine, WANTED};
pub use row::{HostRow, VmRow};
