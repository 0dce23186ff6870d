//! End-to-end tests: real eBPF, real VMs, real swap.
//!
//! A test that cannot run here is skipped before it starts, with its reason; a
//! skip fails the run unless OVERCOMMIT_ALLOW_SKIPS is set.

mod ab;
mod causes;
mod command;
mod cost;
mod counts;
mod disk;
mod evictions;
mod exits;
mod fakes;
mod files;
mod guests;
mod host_state;
mod input;
mod libvirt;
mod lifecycle;
mod links;
mod managers;
mod memory;
mod mishaps;
mod objectives;
mod page;
mod readme;
mod rights;
mod serve;
mod start;
mod threads;
mod top;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use std::process::ExitCode;
use std::time::Instant;
use testbed::attempt::attempt;
use testbed::scenario::{ALL, Scenario};
use testbed::undo;

/// Tests of a module by name.
type Tests = &'static [(&'static str, fn() -> Result<()>)];

/// A test and what it needs beside root.
struct Test {
    name: &'static str,
    run: fn() -> Result<()>,
    /// Why it cannot run here.
    skip: Option<String>,
}

fn main() -> ExitCode {
    if let Err(error) = undo::on_signals() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    // Of each module the first, which stands for its kind.
    let one_of_each = std::env::var_os("OVERCOMMIT_ONE_OF_EACH").is_some();
    let wanted = |tests: Tests| if one_of_each { &tests[..1] } else { tests };
    let tests: Vec<Test> = [
        ab::TESTS,
        causes::TESTS,
        command::TESTS,
        cost::TESTS,
        counts::TESTS,
        disk::TESTS,
        evictions::TESTS,
        exits::TESTS,
        fakes::TESTS,
        files::TESTS,
        guests::TESTS,
        host_state::TESTS,
        input::TESTS,
        libvirt::TESTS,
        lifecycle::TESTS,
        links::TESTS,
        managers::TESTS,
        memory::TESTS,
        mishaps::TESTS,
        objectives::TESTS,
        page::TESTS,
        readme::TESTS,
        rights::TESTS,
        serve::TESTS,
        start::TESTS,
        threads::TESTS,
        top::TESTS,
    ]
    .map(wanted)
    .concat()
    .into_iter()
    .map(|(name, run)| Test { name, run, skip: missing(name) })
    .collect();
    for test in &tests {
        if let Some(reason) = &test.skip {
            println!("skipping {}: {reason}", test.name);
        }
    }
    let scenarios = ALL.into_iter().filter(|_| !one_of_each).map(scenario);
    let trials = tests.into_iter().map(trial).chain(scenarios).collect();
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    let allowed = std::env::var_os("OVERCOMMIT_ALLOW_SKIPS").is_some();
    if conclusion.num_ignored > 0 && !allowed {
        eprintln!("{} tests were skipped; --allow-skips accepts that", conclusion.num_ignored);
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// What this machine lacks for the test: one that needs KVM says so in its name, by which all of
/// them can also be run.
fn missing(name: &str) -> Option<String> {
    if name == managers::LIBVIRT && !managers::libvirts_data().exists() {
        return Some("libvirt's test data could not be fetched".to_owned());
    }
    if name == serve::PROMETHEUS && !serve::of_system().exists() {
        return Some("Prometheus could not be fetched".to_owned());
    }
    let needs_kvm = name.contains("kvm");
    let kvm = testbed::qemu::kvm_works();
    (needs_kvm && !kvm).then(|| "/dev/kvm cannot be opened".to_owned())
}

/// What `cargo xtask scenario` shows.
fn scenario(scenario: Scenario) -> Trial {
    let name = format!("scenario_{}", scenario.name);
    let label = name.clone();
    let outcome = move || said(&label, || (scenario.run)(tempfile::tempdir()?.path()));
    let is_missing = scenario.needs_kvm && !testbed::qemu::kvm_works();
    Trial::test(name, outcome).with_ignored_flag(is_missing)
}

/// Runs a test; prints how long it took, and says of a failure how to run it again.
fn said(name: &str, run: impl Fn() -> Result<()>) -> Result<(), Failed> {
    let start = Instant::now();
    let outcome = attempt(name, run);
    println!("{name} took {:.1} s", start.elapsed().as_secs_f64());
    outcome.map_err(|error| {
        Failed::from(format!("{error:#}\nto run it again: cargo xtask test {name}"))
    })
}

fn trial(test: Test) -> Trial {
    let Test { name, run, skip } = test;
    Trial::test(name, move || said(name, run)).with_ignored_flag(skip.is_some())
}
