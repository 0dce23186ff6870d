//! The host's end of vsock, where guests on vhost-vsock connect to.

use anyhow::{Context, Result};
use nix::libc::VMADDR_CID_ANY;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, getpeername, listen as wait_for,
    socket,
};
use overcommit_recording::guest::message::VSOCK_PORT as PORT;
use rustix::net::{SocketFlags, accept_with};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;

/// The device by which guests are given a CID.
pub(super) const VHOST: &str = "/dev/vhost-vsock";

/// Whether guests of this host can have vsock.
pub(super) fn is_there() -> bool {
    Path::new(VHOST).exists()
}

/// Listens for guests.
///
/// # Errors
/// Somebody else listens there, or this process may not.
pub(super) fn listen() -> Result<OwnedFd> {
    let failed = || format!("cannot listen on port {PORT} of vsock");
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Vsock, SockType::Stream, flags, None);
    let listener = listener.with_context(failed)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(VMADDR_CID_ANY, PORT)).with_context(failed)?;
    wait_for(&listener, Backlog::MAXCONN).with_context(failed)?;
    Ok(listener)
}

/// Takes connections.
pub(super) struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    /// Of a socket that listens; within a runtime.
    ///
    /// # Errors
    /// The kernel refuses to wait for it.
    pub(super) fn new(socket: OwnedFd) -> Result<Self> {
        // SAFETY: the descriptor is owned by what it is registered with.
        let registered = unsafe { AsyncFd::register(socket) };
        Ok(Self(registered.context("cannot wait for guests on vsock")?))
    }

    /// The next one, and the CID of who connects: the kernel says it, and gives each to one VM alone
    /// (`vhost_vsock_set_cid`, drivers/vhost/vsock.c).
    pub(super) async fn accept(&self) -> io::Result<(TcpStream, u32)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            let mut ready = self.0.readable().await?;
            let accept = |socket: &AsyncFd<OwnedFd>| Ok(accept_with(socket.get_ref(), flags)?);
            let Ok(accepted) = ready.try_io(accept) else { continue };
            let stream = accepted?;
            let peer: VsockAddr = getpeername(stream.as_raw_fd())?;
            // For what a stream does, one socket is like another.
            return Ok((TcpStream::from_std(stream.into())?, peer.cid()));
        }
    }
}
