//! The command `overcommit`.

use clap::Parser;
use nix::errno::Errno;
use overcommit::commands::{Cli, FAILED};
use overcommit::probes::host::error_number;
use overcommit::terminal::say;
use overcommit_recording::format::text::without_numbers;
use std::process::ExitCode;

fn main() -> ExitCode {
    Cli::parse().run().unwrap_or_else(|error| {
        let said = without_numbers(&format!("{error:#}"));
        say(&format!("overcommit: error: {said}{}", advice(&error)));
        ExitCode::from(FAILED)
    })
}

/// What to do about what may hit any call.
fn advice(error: &anyhow::Error) -> &'static str {
    match error_number(error) {
        Some(Errno::EMFILE) => "; raise the hard limit on open files: ulimit -Hn, LimitNOFILE=",
        _ => "",
    }
}
