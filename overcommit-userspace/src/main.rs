//! The command `overcommit`.

use clap::Parser;
use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
use nix::errno::Errno;
use overcommit::commands::{Cli, FAILED};
use overcommit::probes::host::error_number;
use overcommit::terminal::say;
use overcommit_recording::format::text::without_numbers;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        // Help goes to stdout, or begins without this word.
        if error.use_stderr() && error.kind() != DisplayHelpOnMissingArgumentOrSubcommand {
            let _ = write!(std::io::stderr(), "overcommit: ");
        }
        error.exit()
    });
    cli.run().unwrap_or_else(|error| {
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
