//! How often does `compare` claim a difference where there is none, and how often does
//! it find one? Recordings are made up and written as files; the comparison is that of
//! the command.

mod load;
mod model;

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use load::{Load, recording};
use overcommit_recording::compare::compare;
use overcommit_recording::compare::series::Side;
use overcommit_recording::recording::{Recording, Span};
use std::process::ExitCode;

/// Pairs without a change, of each kind of load.
const UNCHANGED: u64 = 200;
/// Pairs in which the latency doubles, of each kind.
const DOUBLED: u64 = 60;

fn main() -> ExitCode {
    let trial = |name: &str, run: fn() -> Result<()>| {
        Trial::test(name, move || run().map_err(|error| Failed::from(format!("{error:#}"))))
    };
    let trials = vec![
        trial("a_load_that_drifts", || simulate(Load::Drifting, 600)),
        trial("a_load_in_bursts", || simulate(Load::Bursts, 1_200)),
        trial("a_load_in_bursts_is_said_to_be_too_short", too_short),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Whether anything is claimed of a pair; `None` where it is said to be too short.
fn is_claimed(load: Load, seconds: u64, seed: u64, factor: f64) -> Result<Option<bool>> {
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let run = |name: &str, seed, factor| -> Result<Vec<Side>> {
        let folder = recording(&dir.path().join(name), load, seconds, seed, factor)?;
        Ok(vec![Side::read(Recording::open(&folder)?, Span::WHOLE)?])
    };
    let compared = compare(&run("base", 2 * seed, 1.0)?, &run("new", 2 * seed + 1, factor)?)?;
    ensure!(compared.compared.len() == 3, "{compared:#?}");
    let is_judged = compared.compared.iter().any(|entry| entry.p.is_some());
    Ok(is_judged.then(|| compared.compared.iter().any(|entry| entry.is_real)))
}

fn simulate(load: Load, seconds: u64) -> Result<()> {
    let claims = |seeds: std::ops::Range<u64>, factor| -> Result<(u64, u64)> {
        let (mut claimed, mut short) = (0, 0);
        for seed in seeds {
            let is_claimed = is_claimed(load, seconds, seed, factor)?;
            claimed += u64::from(is_claimed == Some(true));
            short += u64::from(is_claimed.is_none());
        }
        Ok((claimed, short))
    };
    let (false_alarms, short) = claims(0..UNCHANGED, 1.0)?;
    println!(
        "{load:?}, {seconds} s, seeds from 0: of {UNCHANGED} without a change {false_alarms} \
         claimed, {short} said to be too short"
    );
    let (found, short) = claims(10_000..10_000 + DOUBLED, 2.0)?;
    println!(
        "{load:?}, {seconds} s, seeds from 20000: of {DOUBLED} doublings {found} found, \
         {short} said to be too short"
    );
    ensure!(false_alarms * 100 <= 4 * UNCHANGED, "{false_alarms} false alarms of {UNCHANGED}");
    ensure!(found * 100 >= 95 * DOUBLED, "{found} doublings found of {DOUBLED}");
    Ok(())
}

fn too_short() -> Result<()> {
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let folder = recording(&dir.path().join("run"), Load::Bursts, 60, 1, 1.0)?;
    let runs = [Side::read(Recording::open(&folder)?, Span::WHOLE)?];
    let compared = compare(&runs, &runs)?;
    let says = |why: &Option<String>| why.as_ref().is_some_and(|why| why.contains("60 s recorded"));
    ensure!(compared.compared.iter().all(|entry| says(&entry.why_not)), "{compared:#?}");
    Ok(())
}
