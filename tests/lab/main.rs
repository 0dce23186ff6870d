//! The tests that need function hooks and real KVM exits. They run inside the lab,
//! which `cargo xtask lab` boots.

mod async_faults;
mod counts;
mod host_changes;
mod lifecycle;
mod taken;
mod windows;
mod witness;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use std::process::ExitCode;
use std::time::Instant;
use testbed::undo;

/// A scenario by name.
type Scenario = (String, Box<dyn FnOnce() -> Result<()> + Send>);

/// Backends that see every fault, whoever takes it.
const FUNCTION_BACKENDS: [&str; 2] = ["fentry", "kprobe"];

fn main() -> ExitCode {
    if let Err(error) = undo::on_signals() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let scenarios = [
        counts::scenarios(),
        taken::scenarios(),
        windows::scenarios(),
        async_faults::scenarios(),
        host_changes::scenarios(),
        lifecycle::scenarios(),
    ];
    let trials = scenarios.into_iter().flatten().map(trial).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial((name, run): Scenario) -> Trial {
    Trial::test(name, move || {
        let start = Instant::now();
        let outcome = run().map_err(|error| Failed::from(format!("{error:#}")));
        println!("took {:.1} s", start.elapsed().as_secs_f64());
        outcome
    })
}
