//! The command `overcommit`.

use clap::Parser;
use overcommit::commands::{Cli, FAILED};
use overcommit::terminal::say;
use std::process::ExitCode;

fn main() -> ExitCode {
    Cli::parse().run().unwrap_or_else(|error| {
        say(&format!("overcommit: error: {error:#}"));
        ExitCode::from(FAILED)
    })
}
