//! How series lie in the report's data: bytes in base64, small numbers in one byte.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use std::io::Write;

/// Numbers of seven bits a byte, the lowest first; all but the last byte have the highest bit set.
#[derive(Default)]
pub(super) struct Bytes(Vec<u8>);

impl Bytes {
    pub(super) fn number(&mut self, mut number: u64) {
        while number > 127 {
            self.0.push(number as u8 | 128);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    pub(super) fn base64(self) -> String {
        STANDARD.encode(self.0)
    }
}

/// A series by its differences: an even number up, an odd one down; zero is followed by how many
/// times nothing changed.
pub(super) fn series(values: impl Iterator<Item = u64>) -> String {
    let mut bytes = Bytes::default();
    let (mut before, mut same) = (0u64, 0);
    for value in values {
        if value == before {
            same += 1;
            continue;
        }
        repeat(&mut bytes, &mut same);
        let down = value < before;
        bytes.number(2 * value.abs_diff(before) - u64::from(down));
        before = value;
    }
    repeat(&mut bytes, &mut same);
    bytes.base64()
}

fn repeat(bytes: &mut Bytes, same: &mut u64) {
    if *same > 0 {
        bytes.number(0);
        bytes.number(std::mem::take(same));
    }
}

/// What a page can hold, compressed.
pub(super) fn packed(data: &[u8]) -> std::io::Result<String> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(data)?;
    Ok(STANDARD.encode(encoder.finish()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        STANDARD.decode(text).unwrap()
    }

    #[test]
    fn series_are_short_where_little_changes() {
        assert_eq!(bytes(&series([5, 5, 5, 4, 200].into_iter())), [10, 0, 2, 1, 136, 3]);
        assert_eq!(bytes(&series([0, 0, 0].into_iter())), [0, 3]);
        assert!(bytes(&series(std::iter::empty())).is_empty());
    }
}
