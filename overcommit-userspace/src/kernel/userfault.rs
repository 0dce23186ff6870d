//! Memory whose faults wait for another thread, as those of a guest that is migrated by
//! postcopy.
// The tests' stand-in has this very file: it names nothing of this crate.

use anyhow::{Result, ensure};
use nix::libc;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// include/uapi/linux/userfaultfd.h
mod uffd {
    pub(super) const API: u64 = 0xaa;
    pub(super) const REGISTER_MODE_MISSING: u64 = 1;

    #[repr(C)]
    #[derive(Default)]
    pub(super) struct Api {
        pub(super) api: u64,
        pub(super) features: u64,
        pub(super) ioctls: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    pub(super) struct Register {
        pub(super) start: u64,
        pub(super) len: u64,
        pub(super) mode: u64,
        pub(super) ioctls: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    pub(super) struct ZeroPage {
        pub(super) start: u64,
        pub(super) len: u64,
        pub(super) mode: u64,
        pub(super) zeropage: i64,
    }
    nix::ioctl_readwrite!(api, 0xaa, 0x3f, Api);
    nix::ioctl_readwrite!(register, 0xaa, 0x00, Register);
    nix::ioctl_readwrite!(zeropage, 0xaa, 0x04, ZeroPage);
}

/// Asks the kernel for a descriptor; also what it can do, `UFFD_FEATURE_*` of
/// include/uapi/linux/userfaultfd.h.
///
/// # Errors
/// It has no userfaultfd, or not for this user.
pub(crate) fn open() -> Result<(OwnedFd, u64)> {
    // SAFETY: the system call takes flags alone and gives a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    ensure!(fd >= 0, "userfaultfd: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just given it to us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut api = uffd::Api { api: uffd::API, ..Default::default() };
    // SAFETY: the structure is the one that the call wants.
    unsafe { uffd::api(fd.as_raw_fd(), &mut api) }?;
    Ok((fd, api.features))
}

/// Memory whose faults wait for us.
pub(crate) struct Faultable {
    fd: OwnedFd,
    /// Where it is.
    pub(crate) memory: u64,
    bytes: u64,
}

impl Faultable {
    /// Fresh small pages that are mapped there, and stay mapped.
    ///
    /// # Errors
    /// The kernel refuses it: it has no userfaultfd, or not for this user.
    pub(crate) fn new(memory: *mut u8, bytes: usize) -> Result<Self> {
        let (memory, bytes) = (memory as u64, bytes as u64);
        let (fd, _) = open()?;
        let mode = uffd::REGISTER_MODE_MISSING;
        let mut range = uffd::Register { start: memory, len: bytes, mode, ioctls: 0 };
        // SAFETY: the structure is the one that the call wants; the kernel refuses a range that is not
        // mapped.
        unsafe { uffd::register(fd.as_raw_fd(), &mut range) }?;
        Ok(Self { fd, memory, bytes })
    }

    /// Waits until somebody faults.
    ///
    /// # Errors
    /// The descriptor cannot be read.
    pub(crate) fn await_fault(&self) -> Result<()> {
        Ok(File::from(self.fd.try_clone()?).read_exact(&mut [0u8; 32])?)
    }

    /// Gives pages to those who wait.
    ///
    /// # Errors
    /// The kernel has none.
    pub(crate) fn resolve(&self) -> Result<()> {
        let (start, len) = (self.memory, self.bytes);
        let mut zero = uffd::ZeroPage { start, len, mode: 0, zeropage: 0 };
        // SAFETY: the structure is the one that the call wants.
        unsafe { uffd::zeropage(self.fd.as_raw_fd(), &mut zero) }?;
        Ok(())
    }
}
