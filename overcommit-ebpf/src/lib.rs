//! What both sides of overcommit share: the plain data that lies in the maps and
//! the bucket arithmetic of its histograms; and what the programs decide without the kernel.
//!
//! The eBPF programs (`src/programs`) write these types, the loader maps the same
//! memory and reads them. Fields that both touch at once are atomics, so neither
//! side needs a lock or a system call.

#![cfg_attr(not(test), no_std)]

pub mod bucket;
pub mod exit;
pub mod layout;
pub mod order;
