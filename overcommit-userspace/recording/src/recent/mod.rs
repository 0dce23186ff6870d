//! The last minutes of a host: what a screen shows of it, live and replayed alike.

mod board;
mod history;
mod row;

pub use board::{Board, cause_of};
pub use history::{History, Line, VmLine, WANTED, slim, slim_of};
pub use row::{HostRow, VmRow};
