//! Output that survives a terminal, or a pipe, that is gone.

use anyhow::{Context, Result};
use nix::errno::Errno;
use std::io::{Error, ErrorKind, Write};

/// Prints a result on stdout. A reader that has seen enough is no failure.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if !is_gone(&error) => Err(error).context("cannot print the result"),
        _ => Ok(()),
    }
}

/// Whether nobody reads it any more: a pipe that was closed, or a terminal that hung up.
fn is_gone(error: &Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe || error.raw_os_error() == Some(Errno::EIO as i32)
}

/// Tells the user something on stderr, if anybody still reads it.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
