//! What a process has mapped, as the kernel lists it. Whoever maps a file may have named it, and
//! procfs panics at some names and gives up at others.

use procfs::process::{MemoryMaps, Process};
use procfs::{FromBufRead, ProcResult};
use std::borrow::Cow;
use std::io::{BufRead, BufReader, Read};

/// The mappings in a list of the kernel's: `maps`, or `smaps` with figures of each.
///
/// # Errors
/// The process is gone, or may not be looked at.
pub fn read(process: &Process, list: &str) -> ProcResult<MemoryMaps> {
    parse(BufReader::new(process.open_relative(list)?))
}

fn parse(list: impl BufRead) -> ProcResult<MemoryMaps> {
    MemoryMaps::from_buf_read(Mended { list, line: Vec::new(), at: 0 })
}

/// A list whose names can be read.
struct Mended<R> {
    list: R,
    line: Vec<u8>,
    at: usize,
}

impl<R: BufRead> BufRead for Mended<R> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.at >= self.line.len() {
            self.line.clear();
            self.at = 0;
            self.list.read_until(b'\n', &mut self.line)?;
            mend(&mut self.line);
        }
        Ok(&self.line[self.at..])
    }

    fn consume(&mut self, length: usize) {
        self.at += length;
    }
}

impl<R: BufRead> Read for Mended<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

/// How the kernel names memory that shmget made, before its key (`newseg`, ipc/shm.c).
const SYSTEM_V: &str = " /SYSV";
/// Digits of such a key.
const KEY: usize = 8;

fn mend(line: &mut Vec<u8>) {
    if !line.contains(&b'/') && line.is_ascii() {
        return;
    }
    let text = String::from_utf8_lossy(line);
    let is_name = |(at, _): (usize, &str)| {
        let key = text.as_bytes()[at + SYSTEM_V.len()..].get(..KEY);
        !key.is_some_and(|key| key.iter().all(u8::is_ascii_hexdigit))
    };
    if text.match_indices(SYSTEM_V).any(is_name) {
        *line = text.replace(SYSTEM_V, " /sysv").into_bytes();
    } else if let Cow::Owned(text) = text {
        *line = text.into_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use procfs::process::MMapPath;

    fn names(list: &[u8]) -> Vec<MMapPath> {
        parse(list).unwrap().0.into_iter().map(|map| map.pathname).collect()
    }

    #[test]
    fn no_name_hides_the_list() {
        let line = |name: &[u8]| {
            [b"7f0000000000-7f0040000000 rw-s 00000000 00:01 77      ", name, b"\nRss: 4 kB\n"]
                .concat()
        };
        let path = |name: &str| MMapPath::Path(name.into());
        for (name, read) in [
            (&b"/SYSV000000ff (deleted)"[..], MMapPath::Vsys(255)),
            (b"/SYSV", path("/sysv")),
            (b"/SYSVzzzzzzzz", path("/sysvzzzzzzzz")),
            ("/SYSVäääääääää".as_bytes(), path("/sysväääääääää")),
            (b"/a\xff", path("/a\u{fffd}")),
            (b"[heap]", MMapPath::Heap),
        ] {
            assert_eq!(names(&[line(name), line(b"/b")].concat()), [read, path("/b")]);
        }
    }
}
