//! Memory whose faults wait for another thread, as those of a guest that is migrated by
//! postcopy.

use crate::{PAGE, memory};
use anyhow::{Result, ensure};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// include/uapi/linux/userfaultfd.h
mod uffd {
    pub(crate) const API: u64 = 0xaa;
    pub(crate) const REGISTER_MODE_MISSING: u64 = 1;

    #[repr(C)]
    #[derive(Default)]
    pub(crate) struct Api {
        pub(crate) api: u64,
        pub(crate) features: u64,
        pub(crate) ioctls: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    pub(crate) struct Register {
        pub(crate) start: u64,
        pub(crate) len: u64,
        pub(crate) mode: u64,
        pub(crate) ioctls: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    pub(crate) struct ZeroPage {
        pub(crate) start: u64,
        pub(crate) len: u64,
        pub(crate) mode: u64,
        pub(crate) zeropage: i64,
    }
    nix::ioctl_readwrite!(api, 0xaa, 0x3f, Api);
    nix::ioctl_readwrite!(register, 0xaa, 0x00, Register);
    nix::ioctl_readwrite!(zeropage, 0xaa, 0x04, ZeroPage);
}

/// Memory whose faults wait for us.
pub(crate) struct Faultable {
    fd: OwnedFd,
    /// Where it is.
    pub(crate) memory: u64,
}

impl Faultable {
    pub(crate) fn new(pages: usize) -> Result<Self> {
        // SAFETY: the system call takes flags alone and gives a descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        ensure!(fd >= 0, "userfaultfd: {}", std::io::Error::last_os_error());
        // SAFETY: the kernel has just given it to us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let raw = fd.as_raw_fd();
        let memory = memory(pages)? as u64;
        let mut api = uffd::Api { api: uffd::API, ..Default::default() };
        // SAFETY: the structure is the one that the call wants.
        unsafe { uffd::api(raw, &mut api) }?;
        let (mode, len) = (uffd::REGISTER_MODE_MISSING, (pages * PAGE) as u64);
        let mut range = uffd::Register { start: memory, len, mode, ioctls: 0 };
        // SAFETY: as above; the range is a mapping of ours.
        unsafe { uffd::register(raw, &mut range) }?;
        Ok(Self { fd, memory })
    }

    /// Waits until somebody faults.
    pub(crate) fn await_fault(&self) -> Result<()> {
        Ok(File::from(self.fd.try_clone()?).read_exact(&mut [0u8; 32])?)
    }

    /// Gives pages to those who wait.
    pub(crate) fn resolve(&self, pages: usize) -> Result<()> {
        let len = (pages * PAGE) as u64;
        let mut zero = uffd::ZeroPage { start: self.memory, len, mode: 0, zeropage: 0 };
        // SAFETY: the structure is the one that the call wants.
        unsafe { uffd::zeropage(self.fd.as_raw_fd(), &mut zero) }?;
        Ok(())
    }
}
