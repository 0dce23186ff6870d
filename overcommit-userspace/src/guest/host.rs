//! The guest's end of the channel to its host, see docs/guest-protocol.md.

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc::VMADDR_CID_HOST;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use nix::unistd::{read, write};
use overcommit_recording::guest::Message;
use overcommit_recording::guest::message::{LINE_MAX, Refusal, SCHEMA, VSOCK_PORT};
use overcommit_recording::model::vm::Dialect;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time that the host has to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Time between two tries to open a port that another program has open.
const BUSY: Duration = Duration::from_millis(50);

/// By which ways the host may be asked.
#[derive(Clone, Debug)]
pub enum Ways {
    /// By the port that is found, else by vsock.
    Any,
    /// By this port.
    Port(PathBuf),
    /// By vsock.
    Vsock,
}

impl Ways {
    /// Asks for this VM's figures.
    ///
    /// # Errors
    /// There is no way, or the host does not answer, or refuses.
    pub fn ask(&self) -> Result<Message> {
        match self {
            Self::Port(path) => ask(open_port(path)?),
            Self::Vsock => ask(open_vsock()?),
            Self::Any => {
                let by_port = find_port(Path::new("/")).map(|port| ask(open_port(&port)?));
                if let Some(Ok(message)) = by_port {
                    return Ok(message);
                }
                let has_vsock = Path::new("/dev/vsock").exists();
                let by_vsock = has_vsock.then(|| ask(open_vsock()?));
                match (by_port, by_vsock) {
                    (_, Some(Ok(message))) => Ok(message),
                    (Some(not), _) => not,
                    (None, Some(not)) => not.with_context(|| {
                        let name = Dialect::Own.port();
                        format!("this VM has no port {name}, and by vsock (port {VSOCK_PORT})")
                    }),
                    (None, None) => {
                        bail!("this VM has no port {} and no vsock", Dialect::Own.port())
                    }
                }
            }
        }
    }
}

/// Asks at one end of a channel.
fn ask(stream: OwnedFd) -> Result<Message> {
    let until = Instant::now() + PATIENCE;
    // Who was here before may have left a part of an answer, or of a request.
    let word = uuid::Uuid::now_v7().simple().to_string();
    send(&stream, format!("\nGET {word}\n").as_bytes(), until)?;
    let mut lines = Lines { stream, pending: Vec::new() };
    let is_ours = |request: &Option<String>| request.as_deref() == Some(&word);
    loop {
        let line = lines.next(until)?;
        if let Ok(message) = serde_json::from_slice::<Message>(&line) {
            if is_ours(&message.request) && message.schema == SCHEMA {
                return Ok(message);
            }
        } else if let Ok(refusal) = serde_json::from_slice::<Refusal>(&line)
            && is_ours(&refusal.request)
        {
            bail!("the host answers: {}", refusal.error);
        }
    }
}

/// The port by its name: as udev links it, else as the kernel lists it.
fn find_port(root: &Path) -> Option<PathBuf> {
    let name = Dialect::Own.port();
    let link = root.join("dev/virtio-ports").join(name);
    if link.exists() {
        return Some(link);
    }
    let ports = std::fs::read_dir(root.join("sys/class/virtio-ports")).ok()?;
    let is_it = |port: &PathBuf| {
        std::fs::read_to_string(port.join("name")).is_ok_and(|text| text.trim() == name)
    };
    let port = ports.flatten().map(|entry| entry.path()).find(is_it)?;
    Some(root.join("dev").join(port.file_name()?))
}

/// Opens a port, which one program at a time may have open (`port_fops_open`,
/// drivers/char/virtio_console.c).
fn open_port(path: &Path) -> Result<OwnedFd> {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(nix::libc::O_NONBLOCK);
        match options.open(path) {
            Ok(file) => return Ok(file.into()),
            Err(error)
                if error.raw_os_error() == Some(Errno::EBUSY as i32) && Instant::now() < until =>
            {
                std::thread::sleep(BUSY);
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot open {}", path.display()));
            }
        }
    }
}

fn open_vsock() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    let host = VsockAddr::new(VMADDR_CID_HOST, VSOCK_PORT);
    match connect(stream.as_raw_fd(), &host) {
        Err(Errno::EINPROGRESS) => {
            wait(&stream, PollFlags::POLLOUT, Instant::now() + PATIENCE)?;
            let error =
                nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::SocketError)?;
            ensure!(error == 0, "{}", Errno::from_raw(error).desc());
        }
        connected => connected?,
    }
    Ok(stream)
}

/// Waits until the host is ready for that.
fn wait(stream: &OwnedFd, what: PollFlags, until: Instant) -> Result<()> {
    let rest = until.saturating_duration_since(Instant::now());
    let time = PollTimeout::try_from(rest.as_millis() + 1)?;
    let mut polled = [PollFd::new(stream.as_fd(), what)];
    let count = match poll(&mut polled, time) {
        Err(Errno::EINTR) => return Ok(()),
        count => count?,
    };
    let seen = polled[0].revents().unwrap_or(PollFlags::empty());
    // A port tells so that nobody has its other end open (`port_fops_poll`).
    ensure!(
        !seen.contains(PollFlags::POLLHUP) || seen.intersects(what),
        "the host does not listen: is overcommit serve --guests running there, for this VM?"
    );
    ensure!(count > 0 && Instant::now() < until, "the host does not answer");
    Ok(())
}

fn send(stream: &OwnedFd, mut bytes: &[u8], until: Instant) -> Result<()> {
    while !bytes.is_empty() {
        match write(stream, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::EAGAIN) => wait(stream, PollFlags::POLLOUT, until)?,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot ask the host"),
        }
    }
    Ok(())
}

/// What the host sends, line by line.
struct Lines {
    stream: OwnedFd,
    pending: Vec<u8>,
}

impl Lines {
    fn next(&mut self, until: Instant) -> Result<Vec<u8>> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                return Ok(self.pending.drain(..=end).collect());
            }
            ensure!(self.pending.len() <= LINE_MAX, "the host's answer does not end");
            let mut bytes = [0; 1024];
            match read(&self.stream, &mut bytes) {
                Ok(0) => bail!("the host has closed the channel"),
                Ok(length) => self.pending.extend_from_slice(&bytes[..length]),
                Err(Errno::EAGAIN) => wait(&self.stream, PollFlags::POLLIN, until)?,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot read the host's answer"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_port_is_found_by_its_name() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(find_port(root.path()), None);
        let sys = root.path().join("sys/class/virtio-ports");
        for (port, name) in
            [("vport0p1", "org.qemu.guest_agent.0"), ("vport0p2", Dialect::Own.port())]
        {
            std::fs::create_dir_all(sys.join(port)).unwrap();
            std::fs::write(sys.join(port).join("name"), format!("{name}\n")).unwrap();
        }
        assert_eq!(find_port(root.path()), Some(root.path().join("dev/vport0p2")));
        let link = root.path().join("dev/virtio-ports").join(Dialect::Own.port());
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::fs::write(&link, "").unwrap();
        assert_eq!(find_port(root.path()), Some(link));
    }

    #[test]
    fn what_was_for_somebody_before_is_passed_over() {
        let (guest, host) = UnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        let answering = std::thread::spawn(move || {
            let mut host = BufReader::new(host);
            // The rest of an answer, and one that nobody has read.
            host.get_mut().write_all(b"is_over\":1}\n{\"request\":\"0\"}\n").unwrap();
            let mut line = String::new();
            host.read_line(&mut line).unwrap();
            host.read_line(&mut line).unwrap();
            let refusal = Refusal::because("for a reason", None);
            writeln!(host.get_mut(), "{}", serde_json::to_string(&refusal).unwrap()).unwrap();
            line
        });
        let stream = OwnedFd::from(guest);
        let until = Instant::now() + PATIENCE * 20;
        send(&stream, b"\nGET 1\n", until).unwrap();
        let mut lines = Lines { stream, pending: Vec::new() };
        let told: Vec<_> = (0..3).map(|_| lines.next(until).unwrap()).collect();
        assert_eq!(answering.join().unwrap(), "\nGET 1\n");
        assert!(
            serde_json::from_slice::<Refusal>(&told[2]).is_ok_and(|it| it.error == "for a reason")
        );
        let error = lines.next(until).unwrap_err();
        assert!(format!("{error:#}").contains("closed the channel"), "{error:#}");
    }
}
