//! What guests are told of themselves, under KVM and by vsock.

use crate::Scenario;
use anyhow::{Context, Result, ensure};
use nix::libc::VMADDR_CID_LOCAL;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use overcommit_recording::guest::message::VSOCK_PORT;
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::path::Path;
use testbed::payload::{SHELL_INITRAMFS, named_file};
use testbed::results::StandIn;
use testbed::scenario::feedback;
use testbed::serving::Serving;
use testbed::{PATIENCE, await_some};

/// Connections of somebody who is no guest.
const CONNECTIONS: usize = 1000;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut scenarios: Vec<Scenario> = Vec::new();
    if feedback::has_vsock() {
        scenarios.push(("who_is_no_guest_is_told_nothing".to_owned(), Box::new(strangers)));
        scenarios.push(("guests_are_told_by_vsock".to_owned(), Box::new(by_vsock)));
    }
    if named_file(SHELL_INITRAMFS).is_ok() {
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

/// A VM that has vsock, though no guest: its driver's end is ours.
struct Guest {
    process: StandIn,
    /// MiB that it claims: by that it tells another's figures from its own.
    memory: u64,
}

impl Guest {
    /// Has that CID, or only claims it.
    fn start(dir: &Path, name: &str, cid: u32, memory: u64, has_cid: bool) -> Result<Self> {
        let (cid, port, size) = (cid.to_string(), VSOCK_PORT.to_string(), memory.to_string());
        let end = if has_cid { ["vsock", &cid, &port] } else { ["vsock-held", "0", ""] };
        let device = format!("vhost-vsock-pci,guest-cid={cid}");
        let line = ["-name", name, "-m", &size, "-device", &device];
        let process = StandIn::as_qemu(dir, &[&end[..], &line].concat())?;
        Ok(Self { process, memory })
    }

    /// What it is told; an error if that is another's figures.
    fn ask(&mut self) -> Result<Answer> {
        let told = self.process.work()?;
        if told == "closed" {
            return Ok(Answer::Closed);
        }
        let message: Value = serde_json::from_str(&told).with_context(|| told.clone())?;
        let Some(bytes) = message["configured_bytes"].as_u64() else { return Ok(Answer::None) };
        ensure!(bytes == self.memory << 20, "a VM of {} MiB is told {told}", self.memory);
        Ok(Answer::Figures)
    }

    fn await_answer(&mut self, answer: Answer) -> Result<()> {
        let what = format!("{answer:?} of the host");
        await_some(&what, PATIENCE, || Ok((self.ask()? == answer).then_some(())))
    }
}

/// What the host says to a guest.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Figures,
    /// Of that VM there are none yet.
    None,
    /// It does not listen to it.
    Closed,
}

/// Each by its CID, until another VM claims that as well.
fn by_vsock(dir: &Path) -> Result<()> {
    let start = |name, cid, memory| Guest::start(dir, name, cid, memory, true);
    let (mut web, mut db, mut other) =
        (start("web", 41, 384)?, start("db", 42, 448)?, start("other", 43, 512)?);
    let mut serving = Serving::start(dir, &["--guests-only", "--guests", "web", "--guests", "db"])?;
    serving.await_told(|text| text.contains("telling guests").then_some(()))?;
    [&mut web, &mut db].into_iter().try_for_each(|guest| guest.await_answer(Answer::Figures))?;
    ensure!(other.ask()? == Answer::Closed, "one is told that is not to be");
    let claims = Guest::start(dir, "claims", 41, 512, false)?;
    web.await_answer(Answer::Closed)?;
    ensure!(db.ask()? == Answer::Figures, "nobody claims its CID");
    drop(claims);
    web.await_answer(Answer::Figures)?;
    // Its CID is free, and another's next.
    drop(db);
    let mut next = start("db", 42, 640)?;
    next.await_answer(Answer::Figures)?;
    serving.end()
}
