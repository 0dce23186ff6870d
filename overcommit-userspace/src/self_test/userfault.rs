//! Memory whose faults wait for another thread, as those of a guest that is migrated by
//! postcopy.
// The tests' stand-in has this very file: it names nothing of this crate.

use anyhow::{Result, ensure};
use nix::libc;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

const PAGE: usize = 4096;

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

/// Memory whose faults wait for us.
pub(crate) struct Faultable {
    fd: OwnedFd,
    /// Where it is.
    pub(crate) memory: u64,
}

impl Faultable {
    /// That many small pages.
    ///
    /// # Errors
    /// The kernel refuses it: it has no userfaultfd, or not for this user.
    pub(crate) fn new(pages: usize) -> Result<Self> {
        // SAFETY: the system call takes flags alone and gives a descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        ensure!(fd >= 0, "userfaultfd: {}", std::io::Error::last_os_error());
        // SAFETY: the kernel has just given it to us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let raw = fd.as_raw_fd();
        let memory = small_pages(pages)?;
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
    pub(crate) fn resolve(&self, pages: usize) -> Result<()> {
        let len = (pages * PAGE) as u64;
        let mut zero = uffd::ZeroPage { start: self.memory, len, mode: 0, zeropage: 0 };
        // SAFETY: the structure is the one that the call wants.
        unsafe { uffd::zeropage(self.fd.as_raw_fd(), &mut zero) }?;
        Ok(())
    }
}

/// Fresh memory, which is never unmapped.
fn small_pages(pages: usize) -> Result<u64> {
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping of the kernel's choice touches nothing else.
    let address = unsafe { libc::mmap(ptr::null_mut(), pages * PAGE, protection, flags, -1, 0) };
    ensure!(address != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
    // SAFETY: the range is the mapping just made. Without huge pages no such call is needed.
    unsafe { libc::madvise(address, pages * PAGE, libc::MADV_NOHUGEPAGE) };
    Ok(address as u64)
}
