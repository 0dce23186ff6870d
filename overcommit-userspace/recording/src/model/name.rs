//! Names that strangers chose.

use std::fmt;

/// Longest folder name that [`Name::folder`] gives, in bytes.
pub const FOLDER_MAX: usize = 100;

/// The name of a VM, in the bytes that its starter wrote.
///
/// It is never trusted: [`fmt::Display`] escapes what a terminal or a cell could
/// act on, [`Name::folder`] makes a path component of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Vec<u8>);

impl Name {
    /// Takes the bytes as they are.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A folder name: bytes outside `[A-Za-z0-9_-]` as `%XX`, at most 100 bytes.
    pub fn folder(&self) -> String {
        let mut folder = String::new();
        for &byte in &self.0 {
            let safe = byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
            let piece = if safe { char::from(byte).to_string() } else { format!("%{byte:02X}") };
            if folder.len() + piece.len() > FOLDER_MAX {
                break;
            }
            folder.push_str(&piece);
        }
        if folder.is_empty() { "%".to_owned() } else { folder }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0))
    }
}

/// Text of foreign bytes: control characters and what is not UTF-8 as `\xHH`.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if is_harmful(c) {
                let mut buffer = [0; 4];
                for byte in c.encode_utf8(&mut buffer).bytes() {
                    text.push_str(&format!("\\x{byte:02X}"));
                }
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02X}"));
        }
    }
    text
}

/// Control characters, and those that reorder text on a terminal or are not seen there: two names
/// that look alike are the same.
pub fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_never_leaves_its_parent() {
        assert_eq!(Name::new("web-01").folder(), "web-01");
        assert_eq!(Name::new("../../etc").folder(), "%2E%2E%2F%2E%2E%2Fetc");
        assert_eq!(Name::new("a b\n").folder(), "a%20b%0A");
        assert_eq!(Name::new("").folder(), "%");
        assert_eq!(Name::new("ä".repeat(80)).folder().len(), 96 + 3);
        assert_eq!(Name::new(vec![0xff; 80]).folder().len(), 99);
    }

    #[test]
    fn text_cannot_drive_a_terminal() {
        assert_eq!(escape(b"web\x1b[2J"), "web\\x1B[2J");
        assert_eq!(escape(b"\xffweb\t"), "\\xFFweb\\x09");
        assert_eq!(escape("a\u{202e}b".as_bytes()), "a\\xE2\\x80\\xAEb");
        assert_eq!(escape("größe".as_bytes()), "größe");
        for unseen in ['\u{61c}', '\u{2060}', '\u{ad}', '\u{feff}', '\u{e0041}'] {
            assert!(escape(format!("web{unseen}").as_bytes()).starts_with("web\\x"), "{unseen:?}");
        }
    }
}
