//! `cargo xtask scenario`: a failure of the field on real VMs, and what guest and host
//! see of it.

use crate::setup::{TESTBED, Tool, give_to_user_behind_sudo, install, require_root};
use crate::{build, lab};
use anyhow::{Result, ensure};
use clap::builder::PossibleValuesParser;
use testbed::scenario::{ALL, Scenario};
use testbed::{payload, qemu, root, undo};

/// Options of `scenario`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which
    #[arg(value_parser = PossibleValuesParser::new(ALL.iter().map(|scenario| scenario.name)))]
    name: String,
}

/// What the scenarios need beside the testbed.
pub(crate) const JAVA: [Tool; 1] = [Tool { program: "javac", package: "default-jdk-headless" }];

/// Runs one and keeps its recordings.
///
/// # Errors
/// Something cannot be set up, or what was seen is not what is known to be true.
pub(crate) fn run(args: &Args) -> Result<()> {
    require_root("scenario")?;
    install(&TESTBED)?;
    install(&JAVA)?;
    build::all()?;
    payload::assemble(payload::Processor::X86)?;
    payload::name_files(lab::guest_files()?);
    let _owner = undo::Undo::call("ownership", give_to_user_behind_sudo);
    for scenario in ALL.iter().filter(|scenario| scenario.name == args.name) {
        run_one(scenario)?;
    }
    Ok(())
}

fn run_one(scenario: &Scenario) -> Result<()> {
    let works = !scenario.needs_kvm || qemu::kvm_works();
    ensure!(works, "scenario {} needs /dev/kvm", scenario.name);
    println!("{}: {}", scenario.name, scenario.shows);
    let dir = root().join("target/scenario").join(scenario.name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    std::fs::create_dir_all(&dir)?;
    (scenario.run)(&dir)?;
    println!("\nrecorded in {}; the host is as it was", dir.display());
    Ok(())
}
