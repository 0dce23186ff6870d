//! The tests that need function hooks and real KVM exits. They run inside the lab,
//! which `cargo xtask lab` boots.

mod async_faults;
mod causes;
mod costs;
mod counts;
mod evictions;
mod guests;
mod host_changes;
mod kernel;
mod kswapd;
mod lifecycle;
mod spread;
mod start;
mod swapins;
mod taken;
mod windows;
mod witness;
mod working_set;

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use testbed::attempt::attempt;
use testbed::qemu::{Config, IN_BOOT, IN_FIRMWARE, Vm};
use testbed::undo;

/// A scenario by name; it is given a folder for its recordings.
type Scenario = (String, Box<dyn Fn(&Path) -> Result<()> + Send>);

/// Time after which a scenario is said to hang.
const LONG: Duration = Duration::from_secs(240);

/// Backends that see every fault, whoever takes it.
const FUNCTION_BACKENDS: [&str; 2] = ["fentry", "kprobe"];

/// A disk whose content is nobody's; but with Bochs, a slow one.
fn disk() -> &'static str {
    if witness::is_intel() { "/dev/sdb" } else { "/dev/vda" }
}

fn main() -> ExitCode {
    if let Err(error) = undo::on_signals() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    if let Err(error) = warm_up() {
        eprintln!("{error:#}");
    }
    match trials() {
        Ok(trials) => libtest_mimic::run(&Arguments::from_args(), trials).exit_code(),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The scenarios that this lab is to run.
fn trials() -> Result<Vec<Trial>> {
    let scenarios = [
        counts::scenarios(),
        taken::scenarios(),
        swapins::scenarios(),
        windows::scenarios(),
        async_faults::scenarios(),
        host_changes::scenarios(),
        lifecycle::scenarios(),
        working_set::scenarios(),
        evictions::scenarios(),
        guests::scenarios(),
        kswapd::scenarios(),
        causes::scenarios(),
        costs::scenarios(),
        kernel::scenarios(),
        start::scenarios(),
    ];
    let mut scenarios: Vec<Scenario> = scenarios.into_iter().flatten().collect();
    if std::env::var_os("OVERCOMMIT_LAB_SPREAD").is_some() {
        scenarios = spread::of_kernel(scenarios, &kernel())?;
    }
    let scenarios = spread::of_cpu(scenarios);
    let (part, parts) = part().unwrap_or((0, 1));
    Ok(scenarios.into_iter().skip(part).step_by(parts).map(trial).collect())
}

/// The kernel that runs, as `--kernel` names it.
fn kernel() -> String {
    std::env::var("OVERCOMMIT_LAB_KERNEL").unwrap_or_default()
}

/// Has QEMU's own files in the page cache, so that no VM with too little memory pays for
/// them: it would be killed for want of it.
fn warm_up() -> Result<()> {
    let mut vm = Vm::start(&Config { shared: true, ..Config::new("first", 1) })?;
    vm.await_passes(1)
}

/// Which part of the scenarios is to run, of how many: `0/2`.
fn part() -> Option<(usize, usize)> {
    let part = std::env::var("OVERCOMMIT_LAB_PART").ok()?;
    let (part, parts) = part.split_once('/')?;
    Some((part.parse().ok()?, parts.parse().ok().filter(|parts| *parts > 0)?))
}

fn trial((name, run): Scenario) -> Trial {
    let label = name.clone();
    Trial::test(name, move || {
        // Ends the line, so that one who waits sees what for.
        println!("begins");
        let start = Instant::now();
        let (_ends, end) = channel::<()>();
        std::thread::spawn(move || {
            if end.recv_timeout(LONG) == Err(RecvTimeoutError::Timeout) {
                println!("still running after {LONG:?}; who waits where:");
                say_who_waits();
            }
        });
        let outcome = attempt(&label, || {
            let mut outcome = in_a_folder(&label, &run);
            // A vCPU that hangs before our guest begins is the emulation's, and once enough.
            let failure = outcome.as_ref().err().map(|error| format!("{error:#}"));
            let hang =
                |text: String| [IN_FIRMWARE, IN_BOOT].into_iter().find(|why| text.contains(why));
            if let Some(why) = failure.and_then(hang) {
                println!("again: {why}");
                outcome = in_a_folder(&label, &run);
            }
            if outcome.is_err() {
                say_what_the_kernel_said();
            }
            outcome
        });
        let how = if outcome.is_ok() { "passed" } else { "failed" };
        println!("{how} {label} in {:.1} s", start.elapsed().as_secs_f64());
        let again = format!("cargo xtask lab --kernel {} --scenario {label}", kernel());
        outcome.map_err(|error| Failed::from(format!("{error:#}\nto run it again: {again}")))
    })
}

/// Lines of the kernel's that are shown where a scenario failed.
const KERNEL_LINES: usize = 80;

fn say_what_the_kernel_said() {
    let said = testbed::run(&mut std::process::Command::new("dmesg")).unwrap_or_default();
    let lines: Vec<&str> = said.lines().collect();
    println!("the kernel's last lines:");
    lines.iter().rev().take(KERNEL_LINES).rev().for_each(|line| println!("{line}"));
}

/// Prints each thread of a process, with its stack in the kernel.
fn say_who_waits() {
    let threads = glob::glob("/proc/[0-9]*/task/[0-9]*").into_iter().flatten().flatten();
    for thread in threads {
        let read = |file| std::fs::read_to_string(thread.join(file)).unwrap_or_default();
        // Threads of the kernel run nothing that could be read.
        if !read("cmdline").is_empty() {
            println!("{} {}\n{}", thread.display(), read("comm").trim(), read("stack"));
        }
    }
}

/// Runs a scenario in a folder of its own, which stays if `lab --keep` says where.
fn in_a_folder(name: &str, run: impl Fn(&Path) -> Result<()>) -> Result<()> {
    match std::env::var_os("OVERCOMMIT_LAB_KEEP") {
        Some(keep) => {
            let named = (1..).map(|number| Path::new(&keep).join(format!("{name}-{number}")));
            let folder = named.into_iter().find(|folder| !folder.exists()).context("no folder")?;
            std::fs::create_dir(&folder)?;
            run(&folder)
        }
        None => run(tempfile::tempdir()?.path()),
    }
}
