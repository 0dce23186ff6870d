//! Signs and styles: sixteen colours, whose shades the terminal decides, and all of it in ASCII and
//! without colour too.

use overcommit_recording::model::name::is_harmful;
use overcommit_recording::view::wrapped_at;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

/// What a terminal can show.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Whether it has nothing but ASCII.
    pub ascii: bool,
    /// Whether it has colours, bold and reverse.
    pub colour: bool,
}

/// How words stand out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    /// Headings, names.
    Strong,
    /// Harm, and broken objectives.
    Bad,
    /// What may become harm, or is not seen.
    Warn,
    /// Who took what others lack.
    Cause,
    /// What is well, rules and axes.
    Dim,
}

/// Blocks of an eighth to a whole.
const EIGHTHS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

impl Look {
    /// A word with its style.
    pub(super) fn span(self, text: impl Into<String>, tone: Tone) -> Span<'static> {
        Span::styled(self.signs(&text.into()), self.style(tone))
    }

    fn style(self, tone: Tone) -> Style {
        let style = Style::new();
        match (self.colour, tone) {
            (false, _) | (_, Tone::Plain) => style,
            (_, Tone::Strong) => style.add_modifier(Modifier::BOLD),
            (_, Tone::Bad) => style.fg(Color::Red).add_modifier(Modifier::BOLD),
            (_, Tone::Warn) => style.fg(Color::Yellow),
            (_, Tone::Cause) => style.fg(Color::Blue),
            (_, Tone::Dim) => style.add_modifier(Modifier::DIM),
        }
    }

    /// A whole line of one style.
    pub(super) fn line(self, text: impl Into<String>, tone: Tone) -> Line<'static> {
        Line::from(self.span(text, tone))
    }

    /// Paragraphs, in lines of at most that many columns.
    pub(super) fn paragraphs<'a>(
        self,
        texts: impl Iterator<Item = &'a str>,
        columns: u16,
    ) -> Vec<Line<'static>> {
        let wrapped = texts.map(|text| wrapped_at(columns.into(), text, "", "  "));
        let wrapped: Vec<String> = wrapped.collect();
        let lines = wrapped.iter().flat_map(|lines| lines.lines());
        lines.map(|line| self.line(line, Tone::Plain)).collect()
    }

    /// A line across.
    pub(super) fn rule(self, columns: u16) -> Line<'static> {
        self.line("─".repeat(columns.into()), Tone::Dim)
    }

    /// The line that is chosen.
    pub(super) fn chosen(self, line: Line<'static>) -> Line<'static> {
        if self.colour {
            line.patch_style(Style::new().add_modifier(Modifier::REVERSED))
        } else {
            line
        }
    }

    /// Plain words, which may hold names that strangers chose.
    pub(super) fn words(self, text: impl Into<String>) -> Span<'static> {
        self.span(text, Tone::Plain)
    }

    /// Our own signs in ASCII, one for one, so that columns stay; what could drive a terminal, or is not
    /// seen on it, as a question mark.
    fn signs(self, text: &str) -> String {
        let sign = |sign| match sign {
            harmful if is_harmful(harmful) => '?',
            other if !self.ascii => other,
            '─' => '-',
            '│' | '┤' => '|',
            '└' | '┴' => '+',
            '▸' | '→' => '>',
            '←' => '<',
            '▲' | '↑' => '^',
            '↓' => 'v',
            '…' => '~',
            '·' => '-',
            '█' => '#',
            '▓' => '+',
            '▒' => ':',
            '░' | '▁' | '▂' => '.',
            '▃' | '▄' => ':',
            '▅' | '▆' => '=',
            '▇' => '*',
            other => other,
        };
        text.chars().map(sign).collect()
    }
}

/// Eighths of blocks that fill a cell, whose bottom is at that many eighths; a blank of none.
pub(super) fn cell(eighths: usize, bottom: usize) -> char {
    match eighths.saturating_sub(bottom).min(8) {
        0 => ' ',
        filled => EIGHTHS[filled - 1],
    }
}
