//! What a process has mapped, as the kernel lists it. Whoever maps a file may have named it, and
//! procfs panics at some names and gives up at others.

use procfs::process::{MemoryMaps, Process};
use procfs::{FromBufRead, ProcResult};
use std::borrow::Cow;
use std::io::{BufRead, BufReader, Read};

/// The mappings.
///
/// # Errors
/// The process is gone, or may not be looked at.
pub fn read(process: &Process) -> ProcResult<MemoryMaps> {
    parse(BufReader::new(process.open_relative("maps")?), &[])
}

/// The same with these figures of each.
///
/// # Errors
/// As [`read`].
pub fn read_with(process: &Process, figures: &[&str]) -> ProcResult<MemoryMaps> {
    parse(BufReader::new(process.open_relative("smaps")?), figures)
}

fn parse(list: impl BufRead, figures: &[&str]) -> ProcResult<MemoryMaps> {
    MemoryMaps::from_buf_read(Mended { list, figures, line: Vec::new(), at: 0 })
}

/// A list whose names can be read, without the figures that nobody reads and those that are 0: most are,
/// of two dozen for each mapping.
struct Mended<'a, R> {
    list: R,
    figures: &'a [&'a str],
    line: Vec<u8>,
    at: usize,
}

impl<R> Mended<'_, R> {
    /// Whether the line is to be read; a mapping's own always is.
    fn is_wanted(&self) -> bool {
        let word = self.line.split(|byte| *byte == b' ').next().unwrap_or_default();
        word.strip_suffix(b":").is_none_or(|name| {
            let is_figure = self.figures.iter().any(|figure| figure.as_bytes() == name);
            name == b"VmFlags" || (is_figure && !self.line.ends_with(b" 0 kB\n"))
        })
    }
}

impl<R: BufRead> BufRead for Mended<'_, R> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.at >= self.line.len() {
            self.at = 0;
            loop {
                self.line.clear();
                self.list.read_until(b'\n', &mut self.line)?;
                if self.line.is_empty() || self.is_wanted() {
                    break;
                }
            }
            mend(&mut self.line);
        }
        Ok(&self.line[self.at..])
    }

    fn consume(&mut self, length: usize) {
        self.at += length;
    }
}

impl<R: BufRead> Read for Mended<'_, R> {
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
        parse(list, &["Rss"]).unwrap().0.into_iter().map(|map| map.pathname).collect()
    }

    #[test]
    fn of_the_figures_those_are_read_that_are_asked_for_and_not_0() {
        let list = b"7f0000000000-7f0040000000 rw-p 00000000 00:00 0 \nSize: 8 kB\nRss: 4 kB\n\
            Pss: 0 kB\nPss_Dirty: 4 kB\nVmFlags: rd ht \n7f0050000000-7f0060000000 rw-p 00000000 00:00 0 \n";
        let maps = parse(&list[..], &["Rss", "Pss"]).unwrap().0;
        assert_eq!(maps.len(), 2);
        let read = &maps[0].extension;
        assert_eq!(read.map.iter().collect::<Vec<_>>(), [(&"Rss".to_owned(), &4096)]);
        assert!(read.vm_flags.contains(procfs::process::VmFlags::HT));
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
