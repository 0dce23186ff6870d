//! Runs of two commands that take turns, each recorded: the way to tell a change from the time
//! of day.

use crate::session::wait::{Waiter, Woken};
use crate::terminal::say;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overcommit_recording::format::text::readable;
use overcommit_recording::recording::Folder;
use overcommit_recording::recording::folder::Owner;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// The file that says how far the runs have come.
const PLAN_FILE: &str = "ab.json";
const SCHEMA: &str = "overcommit.ab/1";

/// What is run, and how far it has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Name and version of the format.
    pub schema: String,
    /// The commands, as a shell takes them.
    pub a: String,
    /// See [`Self::a`].
    pub b: String,
    /// Runs of each.
    pub runs: u32,
    /// Between two runs, in nanoseconds.
    pub pause_ns: u64,
    /// What the order is drawn from.
    pub seed: u64,
    /// Options of each recording.
    pub record: Vec<String>,
    /// Runs that are recorded, in their order.
    pub done: u32,
}

/// One of the two commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that is compared with.
    A,
    /// The one that is compared.
    B,
}

impl Side {
    /// Its name, which is its folder's.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

/// A run: whose, and which of that side's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which command.
    pub side: Side,
    /// From 1 on.
    pub number: u32,
}

impl Plan {
    /// Nothing of it is done.
    pub fn new(commands: [String; 2], runs: u32, pause: Duration, seed: u64) -> Self {
        let [a, b] = commands;
        let pause_ns = pause.as_nanos() as u64;
        let schema = SCHEMA.to_owned();
        Self { schema, a, b, runs, pause_ns, seed, record: Vec::new(), done: 0 }
    }

    /// Goes on with the plan of the folder if that is the same, whatever its order; else begins
    /// it in a new folder.
    ///
    /// # Errors
    /// The folder holds something else, or cannot be read or written.
    pub fn resume(self, dir: &Path) -> Result<(Self, Folder)> {
        let path = dir.join(PLAN_FILE);
        let Ok(text) = std::fs::read(&path) else {
            let folder = Folder::make(dir, Owner::behind_sudo())?;
            self.write(&folder)?;
            return Ok((self, folder));
        };
        let there: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not of `overcommit ab`", path.display()))?;
        let is_same = Self { seed: there.seed, done: there.done, ..self } == there;
        ensure!(
            is_same,
            "--out {}: other commands or options are recorded there; name a new folder",
            dir.display()
        );
        Ok((there, Folder::open(dir)))
    }

    fn write(&self, folder: &Folder) -> Result<()> {
        folder.replace(PLAN_FILE, &serde_json::to_vec_pretty(self)?)
    }

    /// All runs: in pairs, which of a pair comes first being drawn.
    pub fn order(&self) -> Vec<Run> {
        let mut state = self.seed;
        let mut order = Vec::new();
        for number in 1..=self.runs {
            // splitmix64
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let a_first = (mixed ^ (mixed >> 31)) & 1 == 0;
            let sides = if a_first { [Side::A, Side::B] } else { [Side::B, Side::A] };
            order.extend(sides.map(|side| Run { side, number }));
        }
        order
    }

    fn command(&self, side: Side) -> &str {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }
}

/// A difference that so many runs of each find nine times of ten, as a multiple of the
/// deviation between runs of the same command: of normal figures, by the test that `compare`
/// uses, at a chance of 1 %.
pub fn difference_found(runs: u32) -> f64 {
    match runs {
        ..=5 => 4.0,
        6 => 3.0,
        7 => 2.5,
        8 | 9 => 2.3,
        _ => 2.0 * (10.0 / f64::from(runs)).sqrt(),
    }
}

/// How it ended.
#[derive(Debug)]
pub enum End {
    /// Everything is recorded.
    Done,
    /// A signal came; what is recorded stays.
    Signal(Signal),
}

/// Records what is not yet recorded.
///
/// # Errors
/// A command or a recording failed: the rest can be recorded later.
pub async fn record(mut plan: Plan, folder: &Folder, waiter: &mut Waiter) -> Result<End> {
    let order = plan.order();
    let start = Instant::now();
    let already = plan.done;
    while let Some(run) = order.get(plan.done as usize) {
        if plan.done > already
            && let Woken::Signal(signal) = waiter.rest(Duration::from_nanos(plan.pause_ns)).await
        {
            return Ok(End::Signal(signal));
        }
        let dir = of_run(folder.path(), *run);
        // Of a run that was cut off.
        if dir.exists() {
            let failed = || format!("cannot remove {}", dir.display());
            std::fs::remove_dir_all(&dir).with_context(failed)?;
        }
        let mut child = start_recording(&plan, *run, &dir)?;
        let status = match wait(&mut child, waiter).await? {
            Ok(status) => status,
            Err(signal) => return Ok(End::Signal(signal)),
        };
        if !status.success() {
            bail!(
                "run {} of {} ended with {}; give the same command again to go on from there",
                run.number,
                plan.command(run.side),
                said(status)
            );
        }
        plan.done += 1;
        plan.write(folder)?;
        let left = order.len() as u32 - plan.done;
        let time = start.elapsed() / (plan.done - already) * left;
        let time = match left {
            0 => String::new(),
            _ => format!("; about {} left", readable(time.as_nanos() as u64)),
        };
        let (done, all, side) = (plan.done, order.len(), run.side.name());
        say(&format!("overcommit: {done} of {all} runs are done, the last one of {side}{time}"));
    }
    Ok(End::Done)
}

fn of_run(dir: &Path, run: Run) -> PathBuf {
    dir.join(run.side.name()).join(format!("{:03}", run.number))
}

fn start_recording(plan: &Plan, run: Run, dir: &Path) -> Result<Child> {
    let program = std::env::current_exe().context("cannot find overcommit itself")?;
    let mut words: Vec<OsString> = ["record", "--quiet", "--out"].map(OsString::from).to_vec();
    words.push(dir.into());
    words.extend(plan.record.iter().map(OsString::from));
    words.extend(["--", "sh", "-c", plan.command(run.side)].map(OsString::from));
    let mut command = Command::new(&program);
    command.args(words);
    // SAFETY: between fork and exec only this system call is made.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGTERM)?)) };
    command.spawn().with_context(|| format!("cannot run {}", program.display()))
}

/// Waits for a recording; a signal is passed on to it, and it may take its time to end.
async fn wait(child: &mut Child, waiter: &mut Waiter) -> Result<Result<ExitStatus, Signal>> {
    let ended = "cannot wait for the recording";
    let signal = tokio::select! {
        status = child.wait() => return Ok(Ok(status.context(ended)?)),
        signal = waiter.signal() => signal,
    };
    if let Some(pid) = child.id() {
        // It may have ended by itself: a terminal signals both.
        let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
    }
    child.wait().await.context(ended)?;
    Ok(Err(signal))
}

fn said(status: ExitStatus) -> String {
    status.code().map_or_else(|| status.to_string(), |code| format!("exit code {code}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(seed: u64) -> Plan {
        Plan::new(["true".to_owned(), "false".to_owned()], 8, Duration::from_secs(1), seed)
    }

    #[test]
    fn each_pair_is_drawn_and_the_same_seed_draws_the_same() {
        let order = plan(1).order();
        assert_eq!(order, plan(1).order());
        assert!((0..20).any(|seed| plan(seed).order() != order));
        for (pair, number) in order.chunks(2).zip(1..) {
            assert!(pair.iter().all(|run| run.number == number) && pair[0].side != pair[1].side);
        }
        let firsts: Vec<Side> = (0..20).map(|seed| plan(seed).order()[0].side).collect();
        assert!(firsts.contains(&Side::A) && firsts.contains(&Side::B));
    }

    #[test]
    fn the_same_plan_goes_on_and_another_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("ab");
        let (mut begun, folder) = plan(1).resume(&dir).unwrap();
        begun.done = 3;
        begun.write(&folder).unwrap();
        // Its order is kept.
        let (there, _) = plan(2).resume(&dir).unwrap();
        assert_eq!(there, begun);
        let other = Plan { a: "sleep 1".to_owned(), ..plan(1) };
        let error = format!("{:#}", other.resume(&dir).unwrap_err());
        assert!(error.contains("name a new folder"), "{error}");
    }
}
