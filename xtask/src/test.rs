//! Every check and test, in the order in which they are cheap.

use crate::scenario::JAVA;
use crate::setup::{
    TESTBED, Tool, give_to_user_behind_sudo, install, install_packages, require_root, show,
};
use crate::{build, lab};
use anyhow::Result;
use std::process::Command;
use std::time::{Duration, Instant};
use testbed::{root, target};

/// Options of `test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out what needs other kernels
    #[arg(long)]
    native: bool,
    /// Do not fail when a test cannot run on this machine
    #[arg(long)]
    allow_skips: bool,
    /// Only end-to-end tests whose name holds this
    filter: Option<String>,
}

/// What reads the recordings beside ourselves.
const READERS: [Tool; 2] =
    [Tool { program: "python3", package: "python3" }, Tool { program: "npm", package: "npm" }];
/// Their packages.
const PYTHON_READER: &str = "hdrhistogram==0.10.8";
const NODE_READER: &str = "hdr-histogram-js@3";
/// libvirt, and what makes it run VMs.
const LIBVIRT: [Tool; 3] = [
    Tool { program: "virsh", package: "libvirt-clients" },
    Tool { program: "libvirtd", package: "libvirt-daemon-system" },
    Tool { program: "libvirtd", package: "libvirt-daemon-driver-qemu" },
];

/// Runs them.
///
/// # Errors
/// The first that fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    require_root("test")?;
    let done = run_steps(args);
    give_to_user_behind_sudo()?;
    done
}

fn run_steps(args: &Args) -> Result<()> {
    let mut steps = Steps::default();
    steps.run("set up", set_up)?;
    steps.run("build", build::all)?;
    if args.filter.is_none() {
        steps.run("format", || show(cargo().args(["fmt", "--all", "--check"])))?;
        steps.run("lint", lint)?;
        steps.run("unit and property tests", || {
            show(cargo().args(["test", "--quiet", "--workspace", "--lib", "--bins"]))
        })?;
    }
    if args.filter.is_none() {
        steps.run("simulated recordings", simulation)?;
    }
    steps.run("end-to-end tests", || end_to_end(args))?;
    if !args.native && args.filter.is_none() {
        steps.run("tests on other kernels", lab::all)?;
    }
    steps.print();
    Ok(())
}

fn set_up() -> Result<()> {
    install(&TESTBED)?;
    install(&READERS)?;
    install(&JAVA)?;
    install(&LIBVIRT)?;
    let mut probe = Command::new("python3");
    if testbed::run(probe.args(["-c", "import ensurepip"])).is_err() {
        install_packages(&["python3-venv"])?;
    }
    let python = target().join("readers/python");
    if !python.join("bin/pip").exists() {
        show(Command::new("python3").args(["-m", "venv"]).arg(&python))?;
    }
    let pip = python.join("bin/pip");
    show(Command::new(pip).args([
        "install",
        "--quiet",
        "--disable-pip-version-check",
        PYTHON_READER,
    ]))?;
    let node = target().join("readers/node");
    if !node.join("node_modules/hdr-histogram-js").exists() {
        std::fs::create_dir_all(&node)?;
        show(
            Command::new("npm")
                .args(["install", "--silent", "--no-fund", "--no-audit", "--prefix"])
                .arg(&node)
                .arg(NODE_READER),
        )?;
    }
    Ok(())
}

fn lint() -> Result<()> {
    let deny = ["--", "-D", "warnings"];
    show(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets"]).args(deny))?;
    // Left out there, as of every plain `cargo test`.
    let lab = ["--package", "overcommit-tests", "--test", "lab", "--test", "simulation"];
    show(cargo().args(["clippy", "--quiet"]).args(lab).args(deny))?;
    show(build::cargo_ebpf("clippy")?.arg("--quiet").args(deny))
}

fn simulation() -> Result<()> {
    let package = ["--package", "overcommit-tests", "--test", "simulation"];
    show(cargo().args(["test", "--quiet", "--release"]).args(package).args(["--", "--nocapture"]))
}

fn end_to_end(args: &Args) -> Result<()> {
    let mut cargo = cargo();
    cargo.args(["test", "--quiet", "--package", "overcommit-tests", "--test", "e2e", "--"]);
    cargo.envs(lab::guest_files()?);
    // They share the host's swap and settings.
    cargo.arg("--test-threads=1").args(&args.filter);
    if args.allow_skips {
        cargo.env("OVERCOMMIT_ALLOW_SKIPS", "1");
    }
    show(&mut cargo)
}

fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root());
    cargo
}

/// What took how long.
#[derive(Default)]
struct Steps(Vec<(&'static str, Duration)>);

impl Steps {
    fn run(&mut self, name: &'static str, step: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("== {name}");
        let start = Instant::now();
        step()?;
        self.0.push((name, start.elapsed()));
        Ok(())
    }

    fn print(&self) {
        for (name, time) in &self.0 {
            println!("{name:<26} {:6.1} s", time.as_secs_f64());
        }
    }
}
