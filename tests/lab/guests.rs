//! What guests are told of themselves, under KVM and by vsock.

use crate::Scenario;
use anyhow::{Context, Result, ensure};
use nix::libc::VMADDR_CID_LOCAL;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use overcommit_recording::guest::message::VSOCK_PORT;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::path::Path;
use testbed::PATIENCE;
use testbed::payload::{LINUX_KERNEL, named_file};
use testbed::scenario::feedback;
use testbed::serving::Serving;

/// Connections of somebody who is no guest.
const CONNECTIONS: usize = 1000;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut scenarios: Vec<Scenario> = Vec::new();
    if feedback::has_vsock() {
        scenarios.push(("who_is_no_guest_is_told_nothing".to_owned(), Box::new(strangers)));
    }
    if named_file(LINUX_KERNEL).is_ok() {
        scenarios.push(("guests_are_told".to_owned(), Box::new(feedback::under_kvm)));
    }
    scenarios
}

/// By vsock within the host: its CID is no VM's.
fn strangers(dir: &Path) -> Result<()> {
    let mut serving = Serving::start(dir, &["--guests-only", "--guests", "*"])?;
    serving.await_told(|text| text.contains("telling guests").then_some(()))?;
    for number in 0..CONNECTIONS {
        let mut stream = open().with_context(|| format!("connection {number}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // It may be closed by then.
        let _ = stream.write_all(b"GET\n");
        let read = stream.read(&mut [0; 10]);
        let is_closed = match &read {
            Ok(length) => *length == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        };
        ensure!(is_closed, "a stranger reads {read:?}");
    }
    serving.end()
}

fn open() -> Result<TcpStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let stream = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    connect(stream.as_raw_fd(), &VsockAddr::new(VMADDR_CID_LOCAL, VSOCK_PORT))?;
    // For what a stream does, one socket is like another.
    Ok(TcpStream::from(stream))
}
