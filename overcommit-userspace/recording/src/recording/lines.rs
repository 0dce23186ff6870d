//! Lines of a recording's files, none of them longer than we write: who made a recording may have
//! made one that takes all memory to read.

use std::io::{Error, Read, Result};

/// Bytes of the longest line. What we write is far shorter: a stack of a slow fault takes some
/// KiB, a histogram 50 KiB at the most.
const LONGEST: usize = 1 << 20;

/// A file that cannot be read on where a line is too long. The end of a line between quotes is part
/// of a cell.
pub(super) struct Lines<R> {
    inner: R,
    /// Bytes since the last end of a line.
    length: usize,
    is_quoted: bool,
}

impl<R> Lines<R> {
    /// From the start of a line on.
    pub(super) fn new(inner: R) -> Self {
        Self { inner, length: 0, is_quoted: false }
    }
}

impl<R: Read> Read for Lines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let read = self.inner.read(buffer)?;
        for byte in &buffer[..read] {
            self.length += 1;
            match byte {
                b'"' => self.is_quoted = !self.is_quoted,
                b'\n' if !self.is_quoted => self.length = 0,
                _ if self.length > LONGEST => {
                    return Err(Error::other("a line is longer than any that overcommit writes"));
                }
                _ => {}
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufReader, repeat};

    #[test]
    fn a_line_has_a_limit_and_a_file_has_none() {
        let short = "x".repeat(LONGEST - 1) + "\n";
        let mut text = String::new();
        let many = short.repeat(3) + &"x".repeat(LONGEST);
        BufReader::new(Lines::new(many.as_bytes())).read_to_string(&mut text).unwrap();
        assert_eq!(text.len(), many.len());
        let endless = BufReader::new(Lines::new(repeat(b'x'))).read_to_string(&mut text);
        assert!(endless.unwrap_err().to_string().contains("longer than any"));
        for (begin, line) in [("\n", "x"), ("a,b\n\"", "\n")] {
            let long = begin.to_owned() + &line.repeat(LONGEST) + "x";
            Lines::new(long.as_bytes()).read_to_string(&mut text).unwrap_err();
        }
    }
}
