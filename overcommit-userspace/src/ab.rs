//! Runs of two commands that take turns, each recorded: the way to tell a change from the time
//! of day.

use crate::session::wait::{Waiter, Woken};
use crate::terminal::say;
use anyhow::{Context, Result, anyhow, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overcommit_recording::format::text::readable;
use overcommit_recording::recording::Folder;
use overcommit_recording::recording::Owner;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io::ErrorKind;
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
    /// The folder holds something else, is in use, or cannot be read or written.
    pub fn resume(self, dir: &Path) -> Result<Runs> {
        let Some(folder) = Folder::open(dir).ok().filter(|folder| folder.has(PLAN_FILE)) else {
            let folder = Folder::make(dir, Owner::behind_sudo()?)?;
            let runs = Runs { plan: self, _lock: lock(&folder)?, folder };
            runs.write()?;
            return Ok(runs);
        };
        let there: Self =
            serde_json::from_slice(&folder.content(PLAN_FILE)?).with_context(|| {
                format!("{} is not of `overcommit ab`", folder.file(PLAN_FILE).display())
            })?;
        let is_same = Self { seed: there.seed, done: there.done, ..self } == there;
        ensure!(
            is_same,
            "--out {}: other commands or options are recorded there; name a new folder",
            dir.display()
        );
        Ok(Runs { plan: there, _lock: lock(&folder)?, folder })
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

/// A difference that so many runs of each find nine times of ten, in standard deviations
/// between runs of the same command: of one normal figure, by the test that `compare` uses, at a
/// chance of 1 %.
pub fn difference_found(runs: u32) -> f64 {
    match runs {
        ..=5 => 4.0,
        6 => 3.0,
        7 => 2.5,
        8 | 9 => 2.3,
        _ => 2.0 * (10.0 / f64::from(runs)).sqrt(),
    }
}

/// The runs of a plan in their folder, which nobody else uses.
#[derive(Debug)]
pub struct Runs {
    /// What is run.
    pub plan: Plan,
    folder: Folder,
    _lock: Flock<File>,
}

/// Keeps others out of the folder.
fn lock(folder: &Folder) -> Result<Flock<File>> {
    let dir = folder.path();
    let file = folder.descriptor().with_context(|| format!("cannot read {}", dir.display()))?;
    let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    locked.map_err(|_| anyhow!("--out {}: another overcommit ab uses that folder", dir.display()))
}

/// How it ended.
#[derive(Debug)]
pub enum End {
    /// Everything is recorded.
    Done,
    /// A signal came; what is recorded stays.
    Signal(Signal),
}

impl Runs {
    fn write(&self) -> Result<()> {
        self.folder.replace(PLAN_FILE, &serde_json::to_vec_pretty(&self.plan)?)
    }

    /// Records what is not yet recorded.
    ///
    /// # Errors
    /// A command or a recording failed: the rest can be recorded later.
    pub async fn record(&mut self, waiter: &mut Waiter) -> Result<End> {
        let order = self.plan.order();
        let pause = Duration::from_nanos(self.plan.pause_ns);
        let (start, already) = (Instant::now(), self.plan.done);
        while let Some(run) = order.get(self.plan.done as usize) {
            if self.plan.done > already
                && let Woken::Signal(signal) = waiter.rest(pause).await
            {
                return Ok(End::Signal(signal));
            }
            if let Err(signal) = self.record_one(*run, waiter).await? {
                return Ok(End::Signal(signal));
            }
            self.plan.done += 1;
            self.write()?;
            let left = order.len() as u32 - self.plan.done;
            let time = start.elapsed() / (self.plan.done - already) * left;
            let time = match left {
                0 => String::new(),
                _ => format!("; about {} left", readable(time.as_nanos() as u64)),
            };
            let (done, all, side) = (self.plan.done, order.len(), run.side.name());
            say(&format!("overcommit: run {done} of {all} ({side}) is done{time}"));
        }
        Ok(End::Done)
    }

    async fn record_one(&self, run: Run, waiter: &mut Waiter) -> Result<Result<(), Signal>> {
        let (out, command) = (self.folder.path(), self.plan.command(run.side));
        let dir = of_run(out, run);
        self.folder.as_owner(|| remove(&out.join(run.side.name()), &dir))?;
        let mut child = start_recording(&self.plan, run, &dir)?;
        let status = match wait(&mut child, waiter).await? {
            Ok(status) => status,
            Err(signal) => return Ok(Err(signal)),
        };
        ensure!(
            status.success(),
            "run {} of {command} ended with {}; to resume, run the same command with --out {}",
            run.number,
            said(status),
            out.display()
        );
        Ok(Ok(()))
    }
}

/// Removes what a run that was cut off has left.
fn remove(side: &Path, run: &Path) -> Result<()> {
    let is_link = side.symlink_metadata().is_ok_and(|side| side.is_symlink());
    ensure!(!is_link, "{} is a link: nothing is removed or recorded there", side.display());
    match std::fs::remove_dir_all(run) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", run.display()))
        }
        _ => Ok(()),
    }
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
    // Ours is for the comparison.
    command.stdout(std::io::stderr());
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
    fn nothing_is_removed_behind_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        std::fs::create_dir_all(elsewhere.join("001")).unwrap();
        let side = dir.path().join("a");
        remove(&side, &side.join("001")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &side).unwrap();
        assert!(remove(&side, &side.join("001")).is_err());
        assert!(elsewhere.join("001").exists());
    }

    #[test]
    fn the_same_plan_goes_on_and_another_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("ab");
        let mut begun = plan(1).resume(&dir).unwrap();
        let in_use = format!("{:#}", plan(1).resume(&dir).unwrap_err());
        assert!(in_use.contains("another overcommit ab"), "{in_use}");
        begun.plan.done = 3;
        begun.write().unwrap();
        let done = begun.plan.clone();
        drop(begun);
        // Its order is kept.
        assert_eq!(plan(2).resume(&dir).unwrap().plan, done);
        let other = Plan { a: "sleep 1".to_owned(), ..plan(1) };
        let error = format!("{:#}", other.resume(&dir).unwrap_err());
        assert!(error.contains("name a new folder"), "{error}");
    }
}
