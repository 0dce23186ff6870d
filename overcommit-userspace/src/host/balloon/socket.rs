//! The socket of a monitor, found where its VM sees it. A command line says what its process
//! wants it to say: nobody is connected to a socket that is not the VM's own.

use crate::host::memory_use::status;
use anyhow::{Context, Result, ensure};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// A monitor's socket.
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
            "it belongs to user {}, and the VM runs as user {user}; if it is right, name it by \
             --monitor",
            stat.st_uid
        );
        Ok(socket)
    }
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
