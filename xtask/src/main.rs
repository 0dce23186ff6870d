//! `cargo xtask`: builds, demonstrates and tests overcommit, and sets up what
//! each needs.

mod build;
mod demo;
mod dist;
mod docs;
mod fuzz;
mod kernels;
mod lab;
mod last_test;
mod managers;
mod notices;
mod plots;
mod prometheus;
mod scenario;
mod setup;
mod test;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use testbed::undo;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, demonstrates and tests overcommit")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure what tracing adds to a page fault, beside other tools
    Bench {
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Build the eBPF programs
    BuildEbpf,
    /// Build everything
    Build(build::Args),
    /// Show two VMs, one of them squeezed, side by side
    Demo(demo::Args),
    /// Make what is handed to users: tarballs, packages, checksums
    Dist,
    /// Write the documents that are made from the code
    Docs,
    /// Look for data that make a reader of others' data fail
    Fuzz(fuzz::Args),
    /// Boot every kernel of the lab and write what is seen there to docs/kernels.md
    Kernels,
    /// Run the tests on other kernels, in an emulated host
    Lab(lab::Args),
    /// Show a failure of the field on real VMs
    Scenario(scenario::Args),
    /// Say how often compare is wrong, of many made-up loads
    Simulate {
        /// Comparisons of each load, as a multiple of what the tests do
        #[arg(long, default_value_t = 10)]
        times: u32,
    },
    /// Record for a long time while VMs come and go and other recorders are killed
    Soak {
        /// How long, in minutes
        #[arg(long, default_value_t = 60.0)]
        minutes: f64,
    },
    /// Run every check and test
    Test(test::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = undo::on_signals().and_then(|()| match cli.command {
        Command::Bench { json } => build::bench(json),
        Command::BuildEbpf => build::ebpf(build::Arch::HOST),
        Command::Build(args) => build::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Dist => dist::make(),
        Command::Docs => docs::run(),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Kernels => kernels::run(),
        Command::Lab(args) => lab::run(&args),
        Command::Scenario(args) => scenario::run(&args),
        Command::Simulate { times } => test::simulate(times),
        Command::Soak { minutes } => test::soak(minutes),
        Command::Test(args) => test::run(&args),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
