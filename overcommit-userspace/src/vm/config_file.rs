//! A file that a VM's command line names, as its process sees it. Whoever started the process chose
//! the path, so nothing but a small regular file is opened.

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes of the largest one that is read.
const LARGEST: u64 = 1 << 20;

/// Its text, of a process's folder in /proc; `None` if it cannot be read there.
pub(super) fn read(process: &Path, path: &[u8]) -> Option<String> {
    let path = Path::new(OsStr::from_bytes(path));
    let base = if path.is_absolute() { "root" } else { "cwd" };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let base = open(process.join(base), flags | OFlags::DIRECTORY, Mode::empty()).ok()?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file: OwnedFd = openat2(base, path, flags, Mode::empty(), resolve).ok()?;
    let stat = fstat(&file).ok()?;
    let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !is_regular || stat.st_size as u64 > LARGEST {
        return None;
    }
    // Opened once more, now that opening it does nothing; a lease on it is not waited for.
    let mut text = String::new();
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(open(again, flags, Mode::empty()).ok()?);
    file.take(LARGEST).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_a_file_within_the_root_of_the_process_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("container");
        std::fs::create_dir(&root).unwrap();
        symlink(&root, dir.path().join("root")).unwrap();
        std::fs::write(root.join("qemu.conf"), "[memory]").unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        symlink("../secret", root.join("link")).unwrap();
        nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read(dir.path(), b"/qemu.conf").as_deref(), Some("[memory]"));
        for other in ["/link", "/../secret", "/fifo", "/", "/none"] {
            assert_eq!(read(dir.path(), other.as_bytes()), None, "{other}");
        }
    }
}
