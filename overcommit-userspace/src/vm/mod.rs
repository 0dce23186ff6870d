//! Which VMs are there, and what are they called?

pub mod cmdline;
pub mod discovery;
pub mod memory;
pub mod monitor;
pub mod owner;
pub mod regions;
pub mod threads;

pub use discovery::Discovery;
