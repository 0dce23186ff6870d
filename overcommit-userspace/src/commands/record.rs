//! `overcommit record`

pub(super) mod room;
pub(super) mod said;

use crate::commands::record::room::Room as DiskRoom;
use crate::commands::record::said::{begun_with, failed, full, next, over, unserved};
use crate::commands::subject::{Subject, ns, raise_limit};
use crate::commands::whom::{Found, find, selection, stopped};
use crate::commands::{PLOTS, WHEN, WHERE, default_out, require_hosts_pids, require_root};
use crate::host::survey::Options as HostOptions;
use crate::kernel::capability;
use crate::sampler::roster::Selection;
use crate::session::Session;
use crate::session::load::{self, Load};
use crate::session::run::{End, GO_ON, Taken, Told, Until, follow, warm_up};
use crate::session::wait::{Waiter, Woken};
use crate::terminal::{print, say};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use overcommit_recording::format::text::{parse_duration, parse_positive_duration, parse_size};
use overcommit_recording::model::run::{Options, Run, StoppedBy};
use overcommit_recording::recording::{Folder, Owner, Writer, single};
use overcommit_recording::report::{Format, View, rebuild};
use overcommit_recording::slo::Objective;
use overcommit_recording::slo::judge::BROKEN;
use overcommit_recording::view::presence::ended;
use overcommit_recording::view::progress::Progress;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;
use tokio::time::Instant;

/// Options of `record`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  overcommit record --duration 5m
  overcommit record --vm 'web-*' --slo 'fault.major:p99<2ms' --duration 10m --out run-1
  overcommit record --out run-2 --label build=417 -- k6 run load.js

Exits with 3 if an objective was broken, else with COMMAND's status if it failed, else with 4 if\nan objective could not be judged.")]
pub struct Args {
    /// How long to record, such as 90s or 1m30s; until Ctrl-C or the end of COMMAND if not given
    #[arg(long, help_heading = WHEN, value_name = "D", allow_hyphen_values = true)]
    #[arg(value_parser = parse_positive_duration)]
    duration: Option<Duration>,
    /// Skip the first D, while the load warms up
    #[arg(long, help_heading = WHEN, value_name = "D", allow_hyphen_values = true)]
    #[arg(default_value = "0s", value_parser = parse_duration)]
    delay: Duration,
    /// Folder for the recording, new or empty [default: overcommit-HOST-TIME]
    #[arg(long, help_heading = WHERE, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    subject: Subject,
    /// Attach KEY=VALUE to the recording; may be repeated
    #[arg(long, help_heading = WHERE, value_name = "K=V", value_parser = parse_label)]
    label: Vec<(String, String)>,
    /// End the recording when its files reach about this size, such as 500M or 2G; COMMAND goes on
    #[arg(long, help_heading = WHEN, value_name = "SIZE", value_parser = parse_size)]
    max_size: Option<u64>,
    /// Write this file once counting has begun; it holds the absolute path of the recording
    #[arg(long, help_heading = WHERE, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Print the summary as JSON; what COMMAND prints goes to stderr
    #[arg(long, help_heading = WHERE)]
    json: bool,
    /// Print only errors, warnings, VMs that were killed, and the JSON of --json
    #[arg(short, long, help_heading = WHERE)]
    quiet: bool,
    /// Record from here to the end of this command, run as the user who ran sudo
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Args {
    /// Whether nothing but errors and warnings is to be printed.
    pub const fn is_quiet(&self) -> bool {
        self.quiet
    }
}

fn parse_label(text: &str) -> Result<(String, String)> {
    let (key, value) = text.split_once('=').context("a label is KEY=VALUE")?;
    ensure!(!key.is_empty(), "the label's key is empty");
    Ok((key.to_owned(), value.to_owned()))
}

/// Records.
///
/// # Errors
/// What failed, on what, and what to do next.
pub fn run(args: Args) -> Result<ExitCode> {
    require_root()?;
    require_hosts_pids()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(record(args))
}

async fn record(args: Args) -> Result<ExitCode> {
    let mut waiter = Waiter::new()?;
    let descriptors = raise_limit()?;
    let owner = Owner::behind_sudo()?;
    let selection = selection(&args.subject)?;
    let objectives = args.subject.objectives.read();
    if let Some(folder) = args.ready_file.as_deref().and_then(Path::parent) {
        let there = folder.as_os_str().is_empty() || folder.is_dir();
        ensure!(there, "--ready-file: there is no folder {}", folder.display());
    }
    let found = match find(&args.subject, args.quiet, &selection, &mut waiter).await? {
        Ok(found) => found,
        Err(code) => return Ok(code),
    };
    let folder = Folder::create(&out(&args)?, owner)?;
    let disk = DiskRoom::new(&folder, args.max_size).inspect_err(|_| folder.discard())?;
    let of_user = OfUser { owner, descriptors };
    if !args.quiet && std::io::stderr().is_terminal() {
        say("overcommit: loading eBPF programs; this takes about a second");
    }
    let begun = begin(&args, selection, found, of_user, &mut waiter).await;
    let (session, host, mut load) = match begun.inspect_err(|_| folder.discard())? {
        Ok(begun) => begun,
        Err(code) => {
            folder.discard();
            return Ok(code);
        }
    };
    let begun = session.begin(options(&args, &objectives), &host);
    let mut session = begun.inspect_err(|_| folder.discard())?;
    let writer = Writer::create(folder.clone(), session.run());
    let writer = writer.inspect_err(|_| folder.discard())?;
    if let Some(path) = &args.ready_file {
        // Whole when it is there.
        let folder = std::path::absolute(folder.path())?;
        single::put(path, format!("{}\n", folder.display()).as_bytes())?;
    }
    if !args.quiet {
        say(&format!("overcommit: {}", begun_with(session.run(), &args, &folder)));
    }
    let until = Until {
        interval: args.subject.interval,
        duration: args.duration,
        slow_faults: args.subject.slow_faults.is_some(),
    };
    let progress = Progress::new(!args.quiet, args.duration);
    let mut taker = Taker {
        writer,
        disk,
        progress,
        is_quiet: args.quiet,
        has_said_unserved: false,
        ends_told: [0; 2],
    };
    // What the load does while it shuts down is none of the recording's.
    let take = |run: &Run, told: Told<'_>| taker.take(run, told);
    let deadline = args.duration.map(|duration| Instant::now() + duration);
    let end = follow(&until, &mut session, &mut waiter, &mut load, take).await;
    let end = end.inspect_err(|_| say(&format!("overcommit: {}", failed(&folder))))?;
    if let End::Full(why) = &end
        && (!args.quiet || *why == StoppedBy::DiskFull)
    {
        taker.say(&full(*why, load.is_some()));
    }
    let writer = taker.writer;
    writer.write_run(session.run())?;
    let mut run = session.run().clone();
    drop((taker.progress, session));
    run.stopped_by = Some(stopped_by(&end));
    writer.write_run(&run)?;
    if load.is_some() && matches!(end, End::Full(_)) {
        // COMMAND may take what is left of the disk.
        let report = rebuild(&folder, &View::whole(Format::Text, false).drawn_by(PLOTS))?;
        report.not_written.map_or(Ok(()), Err)?;
    }
    let (status, sent) = end_load(end, load, &mut waiter, deadline).await?;
    run.command_status = status.map(|status| load::code(status, None));
    writer.write_run(&run)?;
    conclude(&args, &folder, &run, status.map_or(0, |status| load::code(status, sent)))
}

/// Takes what a session hands on.
struct Taker {
    writer: Writer,
    disk: DiskRoom,
    progress: Progress,
    is_quiet: bool,
    has_said_unserved: bool,
    /// VMs whose end was told of: of those that ran well, and of those that were lost.
    ends_told: [usize; 2],
}

/// VMs of either kind whose end is told of, one by one.
const ENDS_TOLD: usize = 100;

impl Taker {
    fn take(&mut self, run: &Run, told: Told<'_>) -> Taken {
        match told {
            Told::Interval(interval) => {
                self.writer.write(run, interval)?;
                if !self.has_said_unserved && run.not_counted.vms_without_slot > 0 {
                    self.has_said_unserved = true;
                    self.say(&unserved(run));
                }
                self.progress.show(run, interval);
                return self.disk.goes_on(&self.writer, run);
            }
            Told::SlowFaults(faults) => {
                self.writer.write_slow_faults(run, faults)?;
                return self.disk.goes_on(&self.writer, run);
            }
            Told::Ended(vm) => {
                let vm = &run.vms[vm];
                let told = &mut self.ends_told[usize::from(vm.was_lost())];
                if *told < ENDS_TOLD && (!self.is_quiet || vm.was_lost()) {
                    *told += 1;
                    let is_last = *told == ENDS_TOLD;
                    self.say(&ended(run, vm));
                    if is_last {
                        let how = if vm.was_lost() { "were lost" } else { "ran well" };
                        self.say(&format!(
                            "the ends of further VMs that {how} are not shown here; see the report"
                        ));
                    }
                }
            }
        }
        GO_ON
    }

    fn say(&self, text: &str) {
        self.progress.interrupt();
        say(&format!("overcommit: {text}"));
    }
}

/// Ends COMMAND, or waits for its end where only the recording is over; gives how it ended, and by
/// which signal of ours, if by any.
async fn end_load(
    end: End,
    mut load: Option<Load>,
    waiter: &mut Waiter,
    deadline: Option<Instant>,
) -> Result<(Option<ExitStatus>, Option<Signal>)> {
    let signal = match end {
        End::Load(status) => return Ok((Some(status), None)),
        End::Signal(signal) => signal,
        End::Time => Signal::SIGTERM,
        End::Full(_) => loop {
            if load.is_none() {
                return Ok((None, None));
            }
            let time = deadline.unwrap_or_else(|| Instant::now() + LONG);
            match waiter.until(time, &mut load).await? {
                Woken::LoadEnded(status) => return Ok((Some(status), None)),
                Woken::Signal(signal) => break signal,
                // As it would have at the end of `--duration`.
                Woken::Time if deadline.is_some() => break Signal::SIGTERM,
                Woken::Time | Woken::Event | Woken::Scan | Woken::Poll => {}
            }
        },
    };
    match load {
        Some(mut load) => Ok((Some(load.end(signal).await?), Some(signal))),
        None => Ok((None, None)),
    }
}

/// Any length of time: it is waited for something else.
const LONG: Duration = Duration::from_secs(3_600);

/// Prints the report; `code` is that of COMMAND.
fn conclude(args: &Args, folder: &Folder, run: &Run, code: u8) -> Result<ExitCode> {
    let format = if args.json { Format::Json } else { Format::Text };
    let report = rebuild(folder, &View::whole(format, false).drawn_by(PLOTS))?;
    if args.json || !args.quiet {
        print(&report.text)?;
    }
    if (args.json || args.quiet)
        && let Some(why) = &report.nothing
    {
        say(&format!("overcommit: {why}"));
    }
    if !args.quiet && code != 0 {
        say(&format!("overcommit: COMMAND ended with exit status {code}"));
    }
    if !args.quiet && !args.json {
        print(&next(folder, run))?;
    }
    if let Some(error) = report.not_written {
        return Err(error);
    }
    ensure!(
        run.stopped_by != Some(StoppedBy::DiskFull),
        "the recording ended early: the disk of {} is nearly full",
        folder.path().display()
    );
    // A broken objective comes first, then the load's own status.
    let objective_comes_first = report.code == BROKEN || code == 0;
    Ok(ExitCode::from(if objective_comes_first { report.code } else { code }))
}

/// Why a session is over, as run.json has it.
pub(super) fn stopped_by(end: &End) -> StoppedBy {
    match end {
        End::Load(_) => StoppedBy::Command,
        End::Time => StoppedBy::Duration,
        End::Signal(Signal::SIGINT) => StoppedBy::Interrupt,
        End::Signal(Signal::SIGHUP) => StoppedBy::Hangup,
        End::Signal(_) => StoppedBy::Terminate,
        End::Full(why) => *why,
    }
}

/// Whose COMMAND it is, and how many files that may open.
struct OfUser {
    owner: Option<Owner>,
    descriptors: (u64, u64),
}

/// Attaches, starts COMMAND, gives up what is not needed any more, and waits for `--delay`. The
/// exit code where it was over before it began.
async fn begin(
    args: &Args,
    selection: Selection,
    found: Found,
    of_user: OfUser,
    waiter: &mut Waiter,
) -> Result<Result<(Session, HostOptions, Option<Load>), ExitCode>> {
    let (mut session, host) = args.subject.attach(selection, found, true)?;
    waiter.watch(session.events())?;
    if let Woken::Signal(signal) = waiter.rest(Duration::ZERO).await {
        return Ok(Err(stopped(signal)));
    }
    let mut load = None;
    if !args.command.is_empty() {
        match Load::start(&args.command, of_user.owner, of_user.descriptors, args.json) {
            Ok(started) => load = Some(started),
            Err(not_started) => {
                say(&format!("overcommit: error: {}; nothing was recorded", not_started.message));
                return Ok(Err(ExitCode::from(not_started.code)));
            }
        }
    }
    // After COMMAND has begun: it may run sudo itself; and a process that gains capabilities when it
    // executes loses the signal that is to end it with us (`commit_creds`, kernel/cred.c).
    capability::keep_what_records(of_user.owner.is_some())?;
    if let Some(early) = warm_up(args.delay, &mut session, waiter, &mut load).await? {
        return Ok(Err(over(early)));
    }
    Ok(Ok((session, host, load)))
}

/// `--out`, or a name made of the host and the time.
fn out(args: &Args) -> Result<PathBuf> {
    if let Some(out) = &args.out {
        return Ok(out.clone());
    }
    default_out("overcommit")
}

fn options(args: &Args, objectives: &[Objective]) -> Options {
    Options {
        duration_ns: args.duration.map(ns),
        delay_ns: ns(args.delay),
        labels: BTreeMap::from_iter(args.label.iter().cloned()),
        command: args.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        ..args.subject.options(objectives)
    }
}
