//! Output that survives a terminal, or a pipe, that is gone.

use anyhow::{Context, Result};
use std::io::{ErrorKind, Write};

/// Prints a result on stdout. A reader that has seen enough is no failure.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot print the result")
        }
        _ => Ok(()),
    }
}

/// Tells the user something on stderr, if anybody still reads it.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
