//! Words that stand out on a terminal. Every view has them; whoever prints to anything else takes
//! them away.

use crate::model::name::is_harmful;
use anstyle::{AnsiColor, Style};
use std::fmt::Write;

const STRONG: Style = Style::new().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// A heading.
pub fn strong(words: &str) -> String {
    format!("{STRONG}{words}{STRONG:#}")
}

/// What a reader must not miss.
pub fn bad(words: &str) -> String {
    format!("{BAD}{words}{BAD:#}")
}

/// The same text, with what else could drive a terminal as JSON has it: `\u001b`. Whoever made a
/// recording may have put it there.
pub fn harmless(text: &str) -> String {
    let own = [BAD.to_string(), STRONG.to_string(), format!("{STRONG:#}")];
    let mut harmless = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let style = own.iter().find(|style| rest.starts_with(style.as_str()));
        let taken = style.map_or(c.len_utf8(), String::len);
        if style.is_some() || c == '\n' || !is_harmful(c) {
            harmless.push_str(&rest[..taken]);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(harmless, "\\u{unit:04x}");
            }
        }
        rest = &rest[taken..];
    }
    harmless
}

/// The same text without any of it.
pub fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_driven_by_our_own_styles_alone() {
        let name = "web\u{1b}[2J\u{9b}8m\u{202e}\u{e0001}\r";
        let escaped = "web\\u001b[2J\\u009b8m\\u202e\\udb40\\udc01\\u000d";
        let line = |name: &str| format!("{} {}: {name}\n", strong("a"), bad("KILLED"));
        assert_eq!(harmless(&line(name)), line(escaped));
        // In JSON it stays what it was.
        let json = serde_json::to_string(name).unwrap();
        assert_eq!(serde_json::from_str::<String>(&harmless(&json)).unwrap(), name);
    }
}
