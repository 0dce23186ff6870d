//! Output that survives a terminal, or a pipe, that is gone.

use anstream::{AutoStream, ColorChoice};
use anyhow::{Context, Result};
use nix::errno::Errno;
use overcommit_recording::recording::reader;
use overcommit_recording::view::style::{harmless, plain};
use serde::Serialize;
use std::io::{Error, ErrorKind, IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Prints a result on stdout: with words that stand out on a terminal, unless NO_COLOR or
/// TERM=dumb is set; without anything else that drives a terminal; in ASCII where the locale has nothing else. A reader that has seen enough is no
/// failure.
pub fn print(text: &str) -> Result<()> {
    let text = harmless(text);
    let text = if has_colour() { text } else { plain(&text) };
    let text = if wants_ascii() { ascii(&text) } else { text };
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if !is_gone(&error) => Err(error).context("cannot print the result"),
        _ => Ok(()),
    }
}

/// Prints a result as JSON.
///
/// # Errors
/// It cannot be printed.
pub fn print_json(result: &impl Serialize) -> Result<()> {
    print(&json(result)?)
}

/// As JSON, with the end of its last line.
///
/// # Errors
/// It has no such form.
pub fn json(result: &impl Serialize) -> Result<String> {
    Ok(format!("{}\n", serde_json::to_string_pretty(result)?))
}

/// Whether words may stand out on stdout: not where NO_COLOR or TERM=dumb is set.
pub fn has_colour() -> bool {
    AutoStream::choice(&std::io::stdout()) != ColorChoice::Never
}

/// Whether the locale has nothing but ASCII.
pub fn wants_ascii() -> bool {
    is_ascii(|name| std::env::var(name).ok())
}

/// Whether the user asked for the locale C or POSIX: the first variable that is set decides.
fn is_ascii(variable: impl Fn(&str) -> Option<String>) -> bool {
    let mut set = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(variable);
    let locale = set.find(|locale| !locale.is_empty());
    locale.is_some_and(|locale| locale == "C" || locale == "POSIX")
}

/// Our own signs in ASCII, one for one, so that columns stay; names of VMs as they are.
fn ascii(text: &str) -> String {
    let sign = |sign| match sign {
        '·' => '-',
        '…' => '~',
        '→' => '>',
        '×' => 'x',
        '÷' => '/',
        other => other,
    };
    text.chars().map(sign).collect()
}

/// Whether nobody reads it any more: a pipe that was closed, or a terminal that hung up.
fn is_gone(error: &Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe || error.raw_os_error() == Some(Errno::EIO as i32)
}

/// Tells the user something on stderr, if anybody still reads it.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", harmless(text));
}

/// How far a recording is read, as it is shown on a terminal.
#[derive(Clone, Copy)]
struct Reading {
    since: Instant,
    /// When it was shown last.
    shown: Option<Instant>,
}

/// From so long on it is shown, and again after so long.
const PATIENCE: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(200);

/// Shows on stderr, if that is a terminal, how far recordings are read, where that takes more than a
/// second.
pub fn show_reading() {
    if std::io::stderr().is_terminal() {
        reader::watch(|done, all| {
            static READING: Mutex<Option<Reading>> = Mutex::new(None);
            let Ok(mut reading) = READING.lock() else { return };
            let now = Instant::now();
            // Of several recordings since the first one.
            let of = reading.get_or_insert(Reading { since: now, shown: None });
            if let Some(line) = of.line(now, done, all) {
                let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
            }
        });
    }
}

impl Reading {
    /// What is to be shown now, if anything; nothing in place of it at the end.
    fn line(&mut self, now: Instant, done: u64, all: u64) -> Option<String> {
        if done >= all {
            return self.shown.take().map(|_| String::new());
        }
        let next = self.shown.map_or(self.since + PATIENCE, |shown| shown + AGAIN);
        (now >= next).then(|| {
            self.shown = Some(now);
            format!("overcommit: reading the recording, {} %", done * 100 / all)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_a_second_is_shown_until_it_is_over() {
        let since = Instant::now();
        let mut reading = Reading { since, shown: None };
        let mut at = |ms: u64, done| reading.line(since + Duration::from_millis(ms), done, 8);
        assert_eq!(at(0, 1), None);
        assert_eq!(at(900, 8), None, "it was never shown");
        assert_eq!(at(1_000, 3).as_deref(), Some("overcommit: reading the recording, 37 %"));
        assert_eq!(at(1_100, 4), None);
        assert!(at(1_200, 5).is_some());
        assert_eq!(at(1_210, 8).as_deref(), Some(""));
    }

    #[test]
    fn the_locale_c_has_ascii_alone() {
        let of = |set: &[(&str, &str)]| {
            let set: Vec<(String, String)> =
                set.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            is_ascii(|name| set.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone()))
        };
        assert!(of(&[("LANG", "C")]) && of(&[("LC_ALL", "POSIX"), ("LANG", "de_DE.UTF-8")]));
        assert!(!of(&[]) && !of(&[("LANG", "C.UTF-8")]));
        assert!(!of(&[("LC_ALL", "en_US.UTF-8"), ("LANG", "C")]));
        assert_eq!(ascii("vm · 2 VMs, web-01… ä"), "vm - 2 VMs, web-01~ ä");
    }
}
