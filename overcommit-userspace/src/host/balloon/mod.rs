//! How much of its memory has each VM been made to give back?
//!
//! `qmp` asks QEMU itself, `libvirt` whoever holds its monitor; where neither can be
//! asked, the pages that the VM gave back since the start are counted in the kernel.
//! `state` decides.

pub mod libvirt;
pub mod qmp;
pub mod state;
