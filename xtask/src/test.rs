//! Every check and test, in the order in which they are cheap; what needs other kernels runs
//! partly beside them, partly after them.

use crate::last_test::{self, LastTest};
use crate::scenario::JAVA;
use crate::setup::{
    BROWSER, CARGO_DENY, NPM, TESTBED, Tool, give_to_user_behind_sudo, install, install_packages,
    quietly, require_root, show,
};
use crate::{build, lab, managers, prometheus};
use anyhow::{Context, Result, anyhow};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use testbed::attempt;
use testbed::undo::Running;
use testbed::{root, target};

/// Options of `test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only checks, unit tests and one end-to-end test of each kind: a few minutes
    #[arg(long)]
    quick: bool,
    /// Leave out what needs other kernels
    #[arg(long)]
    native: bool,
    /// Do not fail when a test cannot run on this machine
    #[arg(long)]
    allow_skips: bool,
    /// Run it all that many times, and say how each ended
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Keep that many CPUs busy meanwhile: nothing may depend on the machine's speed
    #[arg(long, default_value_t = 0)]
    beside: u32,
    /// Fail at the first failure of a test; else it is run once more, and told at the end
    #[arg(long)]
    strict: bool,
    /// Only end-to-end tests whose name holds this
    filter: Option<String>,
}

/// What reads the recordings beside ourselves.
const READERS: [Tool; 2] = [Tool { program: "python3", package: "python3" }, NPM];
/// Their packages.
const PYTHON_READER: &str = "hdrhistogram==0.10.8";
/// What the README reads the tables with: whatever this Python can have.
const PANDAS: &str = "pandas>=2,<4";
/// Perfetto's messages, which its viewer reads traces by.
const PERFETTO: &str = "perfetto==0.59.1";
const NODE_READER: &str = "hdr-histogram-js@3";
/// What makes system calls fail.
const STRACE: Tool = Tool { program: "strace", package: "strace" };
/// A terminal to draw on.
const TMUX: Tool = Tool { program: "tmux", package: "tmux" };
/// What judges units.
const UNITS: Tool = Tool { program: "systemd-analyze", package: "systemd" };
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
    let _busy = (0..args.beside).map(|_| busy()).collect::<Result<Vec<_>>>()?;
    let mut runs = Vec::new();
    for _ in 0..args.repeat {
        let start = Instant::now();
        let mut last = LastTest::begin(left_out(args), args.beside)?;
        let outcome = steps(args);
        last.end(&outcome)?;
        last_test::unsteady().lines().for_each(|line| println!("{line}"));
        runs.push((start.elapsed(), outcome));
    }
    both(summed_up(runs), give_to_user_behind_sudo())
}

/// What a whole run has and this one has not.
fn left_out(args: &Args) -> Vec<&'static str> {
    let is_part = args.quick || args.filter.is_some();
    let parts = [
        (is_part, "all but some end-to-end tests"),
        (args.filter.is_some(), "checks and unit tests"),
        (is_part || args.native, "tests on other kernels"),
        (args.allow_skips, "what cannot run on this machine"),
    ];
    parts.into_iter().filter(|(is_out, _)| *is_out).map(|(_, part)| part).collect()
}

/// How each of several runs ended; how one ended is said by its error alone.
fn summed_up(runs: Vec<(Duration, Result<()>)>) -> Result<()> {
    let all = runs.len();
    if all > 1 {
        for (number, (time, outcome)) in runs.iter().enumerate() {
            let outcome =
                outcome.as_ref().map_or_else(|error| format!("{error:#}"), |()| "passed".into());
            println!("run {}: {:7.1} s  {outcome}", number + 1, time.as_secs_f64());
        }
    }
    let mut failed: Vec<_> = runs.into_iter().filter_map(|(_, outcome)| outcome.err()).collect();
    match failed.len() {
        0 => Ok(()),
        1 if all == 1 => Err(failed.remove(0)),
        failed => Err(anyhow!("{failed} of {all} runs failed")),
    }
}

fn steps(args: &Args) -> Result<()> {
    let mut steps = Steps::default();
    steps.run("set up", set_up)?;
    steps.run("build", build::all)?;
    if args.native || args.quick || args.filter.is_some() {
        native(args, &mut steps)?;
    } else {
        let prepared = steps.run("other kernels", || lab::Labs::spread(!args.strict))?;
        beside_labs(prepared, args, &mut steps)?;
    }
    steps.print();
    Ok(())
}

/// What needs no other kernel, a few labs beside it, and then the other labs.
fn beside_labs(labs: lab::Labs, args: &Args, steps: &mut Steps) -> Result<()> {
    let others = Mutex::new(());
    let held = others.lock();
    std::thread::scope(|scope| {
        let labs = scope.spawn(|| labs.run(&others));
        let native = native(args, steps);
        drop(held);
        // Also where a step has failed: labs that go on would be in the next run's way.
        let labs = steps.run("tests on other kernels", || {
            labs.join().map_err(|_| anyhow!("the labs panicked"))?
        });
        both(native, labs)
    })
}

/// The first error, with the second beside it.
fn both(one: Result<()>, other: Result<()>) -> Result<()> {
    match (one, other) {
        (Err(one), Err(other)) => Err(anyhow!("{one:#}; {other:#}")),
        (one, other) => one.and(other),
    }
}

/// What needs no other kernel.
fn native(args: &Args, steps: &mut Steps) -> Result<()> {
    if args.filter.is_none() {
        steps.run("format", || show(cargo().args(["fmt", "--all", "--check"])))?;
        steps.run("lint", lint)?;
        steps.run("unit and property tests", unit_tests)?;
    }
    if args.filter.is_none() && !args.quick {
        steps.run("dependencies", dependencies)?;
        steps.run("simulated recordings", || simulate(1))?;
    }
    steps.run("end-to-end tests", || end_to_end(args))
}

fn set_up() -> Result<()> {
    install(&TESTBED)?;
    install(&READERS)?;
    install(&JAVA)?;
    install(&LIBVIRT)?;
    install(&[STRACE, TMUX, BROWSER, UNITS])?;
    let mut probe = Command::new("python3");
    if testbed::run(probe.args(["-c", "import ensurepip"])).is_err() {
        install_packages(&["python3-venv"])?;
    }
    let python = target().join("readers/python");
    if !python.join("bin/pip").exists() {
        quietly(Command::new("python3").args(["-m", "venv"]).arg(&python))?;
    }
    let pip = python.join("bin/pip");
    quietly(Command::new(pip).args([
        "install",
        "--disable-pip-version-check",
        PYTHON_READER,
        PANDAS,
        PERFETTO,
    ]))?;
    let node = target().join("readers/node");
    if !node.join("node_modules/hdr-histogram-js").exists() {
        std::fs::create_dir_all(&node)?;
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-fund", "--no-audit", "--prefix"]).arg(&node).arg(NODE_READER);
        quietly(&mut npm)?;
    }
    // Without these a test each is skipped by name, and the run fails without --allow-skips.
    if let Err(error) = managers::libvirts_data() {
        println!("without libvirt's test data: {error:#}");
    }
    if let Err(error) = prometheus::fetch() {
        println!("without Prometheus: {error:#}");
    }
    Ok(())
}

fn lint() -> Result<()> {
    let deny = ["--", "-D", "warnings"];
    show(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets"]).args(deny))?;
    // Left out there, as of every plain `cargo test`.
    let lab = [
        "--package",
        "overcommit-tests",
        "--test",
        "lab",
        "--test",
        "simulation",
        "--test",
        "soak",
    ];
    show(cargo().args(["clippy", "--quiet"]).args(lab).args(deny))?;
    show(build::cargo_ebpf("clippy", build::Arch::HOST)?.arg("--quiet").args(deny))
}

/// Licences, sources and versions, which need no network. Advisories take the database of
/// RustSec: `target/tools/bin/cargo-deny check advisories` where it can be reached.
fn dependencies() -> Result<()> {
    let mut deny = Command::new(CARGO_DENY.path()?);
    deny.current_dir(root()).args(["--log-level", "error", "check"]);
    show(deny.args(["licenses", "bans", "sources"]))
}

fn unit_tests() -> Result<()> {
    show(cargo().args(["test", "--quiet", "--workspace", "--lib", "--bins"]))
}

/// Comparisons of made-up loads, so many times as many as the tests do.
pub(crate) fn simulate(times: u32) -> Result<()> {
    let mut cargo = cargo();
    cargo.args(["test", "--quiet", "--release", "--package", "overcommit-tests"]);
    cargo.args(["--test", "simulation", "--", "--nocapture"]);
    show(cargo.env("OVERCOMMIT_SIMULATE_TIMES", times.to_string()))
}

/// The long recording, for that many minutes.
pub(crate) fn soak(minutes: f64) -> Result<()> {
    require_root("soak")?;
    install(&TESTBED)?;
    build::all()?;
    let mut cargo = cargo();
    cargo.args(["test", "--quiet", "--package", "overcommit-tests", "--test", "soak"]);
    both(
        show(cargo.env("OVERCOMMIT_SOAK_MINUTES", minutes.to_string())),
        give_to_user_behind_sudo(),
    )
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
    cargo.env(attempt::LIST, last_test::unsteady_list());
    if args.strict {
        cargo.env(attempt::STRICT, "1");
    }
    if args.quick {
        cargo.env("OVERCOMMIT_ONE_OF_EACH", "1");
    }
    show(&mut cargo)
}

fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    // Tests say themselves who ran sudo, where that matters.
    for variable in ["SUDO_UID", "SUDO_GID", "DOAS_USER", "PKEXEC_UID"] {
        cargo.env_remove(variable);
    }
    cargo.current_dir(root());
    cargo
}

/// A process that does nothing but keep a CPU busy.
fn busy() -> Result<Running> {
    let mut busy = Command::new("sh");
    busy.args(["-c", "while :; do :; done"]);
    Running::start("a busy loop", &mut busy, |child| Ok(child.kill()?))
}

/// What took how long.
#[derive(Default)]
struct Steps(Vec<(&'static str, Duration)>);

impl Steps {
    fn run<T>(&mut self, name: &'static str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("== {name}");
        let start = Instant::now();
        let done = step().context(name)?;
        self.0.push((name, start.elapsed()));
        Ok(done)
    }

    fn print(&self) {
        for (name, time) in &self.0 {
            println!("{name:<26} {:6.1} s", time.as_secs_f64());
        }
    }
}
