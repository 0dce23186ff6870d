//! Which VMs are there, and what are they called?

mod channels;
mod chardev;
pub mod cmdline;
mod config_file;
pub mod discovery;
#[cfg(test)]
mod managers;
pub mod maps;
pub mod memory;
mod memory_devices;
pub mod micro_vm;
pub mod monitor;
mod options;
pub mod owner;
pub mod regions;
pub mod threads;

pub use discovery::Discovery;
