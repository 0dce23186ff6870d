//! What a VM is told of itself, and nobody else: `message` is what it gets, `telling` makes it of
//! intervals, `words` say it to the VM's owner, `figures` as metrics, `vhostmd` as that daemon does.

pub mod figures;
pub mod message;
mod telling;
pub mod vhostmd;
pub mod words;

pub use message::Message;
pub use telling::Telling;
