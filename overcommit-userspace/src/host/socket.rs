//! A socket that a VM listens on, found where the VM sees it. A command line says what its process
//! wants it to say: nobody is connected to a socket that is not the VM's own.

use crate::host::memory_use::status;
use anyhow::{Context, Result, ensure};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{fmt, fs};
use tokio::net::UnixStream;

/// Bytes of the kernel's table of sockets that are read: anybody can fill it.
const TABLE_MAX: u64 = 16 << 20;

/// The socket of a monitor, or of a guest's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Socket {
    /// By `--monitor`, in our file system.
    Given(PathBuf),
    /// By the VM's command line, in its own.
    Own {
        /// The VM's folder in /proc.
        process: PathBuf,
        /// As the command line has it.
        path: PathBuf,
    },
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(path) | Self::Own { path, .. } => path.display().fmt(f),
        }
    }
}

impl Socket {
    /// One that a process holds under that number, listening. Its place is what the kernel's table of
    /// sockets says, in which whoever binds one has a part of the say: who listens there is seen
    /// when it is connected to.
    ///
    /// # Errors
    /// It holds none there, or one without a place in the file system.
    pub fn held(process: PathBuf, number: i32) -> Result<Self> {
        let link = fs::read_link(process.join(format!("fd/{number}")));
        let link = link.with_context(|| format!("cannot read its descriptor {number}"))?;
        let link = link.to_string_lossy();
        let inode = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        let inode = inode.with_context(|| format!("its descriptor {number} is no socket"))?;
        // Those of its network namespace.
        let mut table = Vec::new();
        fs::File::open(process.join("net/unix"))?.take(TABLE_MAX).read_to_end(&mut table)?;
        let mut lines = table.split(|byte| *byte == b'\n');
        let path = lines.find_map(|line| bound(line, inode.as_bytes()));
        let path = path.with_context(|| format!("its socket {number} has no path"))?;
        Ok(Self::Own { process, path: OsStr::from_bytes(path).into() })
    }

    /// Connects to it.
    ///
    /// # Errors
    /// As [`Self::open`] and [`connect`].
    pub async fn connect(&self, pid: i32) -> Result<UnixStream> {
        connect(self.open(pid)?, pid).await
    }

    /// Opens it without connecting.
    ///
    /// # Errors
    /// It is not there, is no socket, or belongs to another user than the process `pid`.
    pub fn open(&self, pid: i32) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let (socket, is_given) = match self {
            Self::Given(path) => (open(path, flags, Mode::empty()), true),
            Self::Own { process, path } => (within(process, path, flags), false),
        };
        let socket = socket.context("cannot open it")?;
        let stat = fstat(&socket)?;
        let is_socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
        ensure!(is_socket, "it is no socket");
        // The effective one. Files of the process in /proc may be root's all the same.
        let status = status(Path::new("/proc"), pid);
        let user = status.context("cannot tell who its process runs as")?.euid;
        ensure!(
            is_given || user == 0 || user == stat.st_uid,
            "it belongs to user {}, and the VM runs as user {user}; if it is the right monitor, \
             name it by --monitor",
            stat.st_uid
        );
        Ok(socket)
    }
}

/// Connects to a socket that was opened.
///
/// # Errors
/// Nobody listens there, or another than the process `pid`: QEMU listens itself also where it is
/// handed a socket (`socket_listen`, util/qemu-sockets.c, from 6.0 on), and the kernel says who did
/// (`unix_listen`, net/unix/af_unix.c).
pub async fn connect(socket: OwnedFd, pid: i32) -> Result<UnixStream> {
    let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
    let stream = UnixStream::connect(path).await.context("cannot connect")?;
    let listens = stream.peer_cred()?.pid();
    let who = listens.map_or("another process".to_owned(), |pid| format!("process {pid}"));
    ensure!(listens == Some(pid), "{who} listens there, not {pid}");
    Ok(stream)
}

/// Where the socket of that inode is bound, by its line of /proc/net/unix: seven fields, of which the
/// last is the inode, and the path (`unix_seq_show`, net/unix/af_unix.c).
fn bound<'a>(line: &'a [u8], inode: &[u8]) -> Option<&'a [u8]> {
    let mut rest = line;
    for field in 0..7 {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|byte| *byte == b' ')?;
        if field == 6 && rest[..end] != *inode {
            return None;
        }
        rest = &rest[end..];
    }
    Some(rest.trim_ascii_start()).filter(|path| path.starts_with(b"/"))
}

/// A path as a process sees it: links within its root stay there.
fn within(process: &Path, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let (base, resolve) = match path.is_absolute() {
        true => ("root", ResolveFlags::IN_ROOT),
        false => ("cwd", ResolveFlags::NO_MAGICLINKS),
    };
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let base = open(process.join(base), folder, Mode::empty())?;
    openat2(base, path, flags, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{chown, symlink};
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_that_was_handed_over_is_found_by_its_inode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("handed over");
        let listener = UnixListener::bind(&path).unwrap();
        let process = PathBuf::from("/proc/self");
        let found = Socket::held(process.clone(), listener.as_raw_fd()).unwrap();
        assert_eq!(found, Socket::Own { process: process.clone(), path });
        let file = fs::File::open("/proc/self/status").unwrap();
        let error = Socket::held(process.clone(), file.as_raw_fd()).unwrap_err();
        assert!(format!("{error:#}").contains("is no socket"), "{error:#}");
        assert!(Socket::held(process, -1).is_err());
        let line = b"ffff9c: 00000002 00000000 00010000 0001 01 21417 /run/a b";
        assert_eq!((bound(line, b"21417"), bound(line, b"2141")), (Some(&b"/run/a b"[..]), None));
        let unbound = b"ffff9c: 00000002 00000000 00010000 0001 01 21417";
        assert_eq!(bound(unbound, b"21417"), None);
    }

    #[test]
    fn only_a_socket_of_the_vms_own_user_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("qmp"), dir.path().join("link"));
        let _listener = UnixListener::bind(&path).unwrap();
        symlink(&path, &link).unwrap();
        let pid = std::process::id().cast_signed();
        let own = |path: &Path| Socket::Own { process: "/proc/self".into(), path: path.into() };
        own(&path).open(pid).unwrap();
        own(&link).open(pid).unwrap();
        let error = own(dir.path()).open(pid).unwrap_err();
        assert!(format!("{error:#}").contains("no socket"), "{error:#}");
        let mut other = std::process::Command::new("sleep");
        std::os::unix::process::CommandExt::uid(&mut other, 65534);
        // What needs root is not tried without.
        let Ok(mut other) = other.arg("100").spawn() else { return };
        let stranger = other.id().cast_signed();
        let refused = own(&path).open(stranger);
        let given = Socket::Given(path.clone()).open(stranger);
        chown(&path, Some(65534), None).unwrap();
        let own = own(&path).open(stranger);
        other.kill().unwrap();
        other.wait().unwrap();
        let error = format!("{:#}", refused.unwrap_err());
        assert!(error.contains("belongs to user 0, and the VM runs as user 65534"), "{error}");
        given.unwrap();
        own.unwrap();
    }
}
