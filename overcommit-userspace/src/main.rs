//! The command `overcommit`.

use clap::Parser;
use nix::errno::Errno;
use overcommit::commands::{Cli, FAILED};
use overcommit::probes::host::error_number;
use overcommit::terminal::say;
use std::process::ExitCode;

fn main() -> ExitCode {
    Cli::parse().run().unwrap_or_else(|error| {
        let said = without_number(format!("{error:#}"), error_number(&error));
        say(&format!("overcommit: error: {said}{}", advice(&error)));
        ExitCode::from(FAILED)
    })
}

/// The message says what the number means.
fn without_number(said: String, number: Option<Errno>) -> String {
    let number = number.map(|number| format!(" (os error {})", number as i32));
    number.map_or(said.clone(), |number| said.replace(&number, ""))
}

/// What to do about what may hit any call.
fn advice(error: &anyhow::Error) -> &'static str {
    match error_number(error) {
        Some(Errno::EMFILE) => "; raise the hard limit on open files: ulimit -Hn, LimitNOFILE=",
        _ => "",
    }
}
