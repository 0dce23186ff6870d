//! Words that stand out on a terminal. Every view has them; whoever prints to anything else takes
//! them away.

use anstyle::{AnsiColor, Style};

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

/// The same text without any of it.
pub fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}
