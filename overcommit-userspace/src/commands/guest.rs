//! `overcommit guest`

use crate::commands::subject::raise_limit;
use crate::commands::{JUDGE, WHEN, WHERE, parse_objective, signalled};
use crate::guest::alone::Alone;
use crate::guest::asking::{Answers, asking};
use crate::guest::host::Ways;
use crate::guest::load::{Known, exit_code};
use crate::session::load::{Load, code};
use crate::session::wait::Waiter;
use crate::terminal::{print, print_json, say};
use anyhow::{Context, Result};
use clap::builder::ValueParser;
use overcommit_recording::format::text::percent;
use overcommit_recording::guest::message::Shares;
use overcommit_recording::guest::{Message, figures, words};
use overcommit_recording::slo::Objective;
use overcommit_recording::slo::judge::{BROKEN, NOT_JUDGED};
use overcommit_recording::slo::objective::Bound;
use overcommit_recording::view::wrapped_at;
use serde::Serialize;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Columns of a line.
const COLUMNS: usize = 80;
/// Time for which it looks at the guest itself.
const LOOK: Duration = Duration::from_secs(1);

/// Options of `guest`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  overcommit guest                                 what did the host take from this VM?
  overcommit guest --watch
  overcommit guest --slo 'stall.share<1%' -- ./load-test.sh
                                                   exits with 3 if the host disturbed the test
  overcommit guest --watch --textfile /var/lib/prometheus/node-exporter/overcommit.prom

On the host: overcommit serve --guests PATTERN, and a channel to this VM; see
docs/guest-protocol.md. Exit code: 3 if an objective is broken; else COMMAND's, if that is not 0; 4 if
the host does not tell what was asked for.")]
pub struct Args {
    /// Ask once a second, and print one line each time
    #[arg(long, help_heading = WHEN, conflicts_with = "command")]
    watch: bool,
    /// What this VM must meet, over the last minute or while COMMAND runs: stall.share<PERCENT% or
    /// cpu.share<PERCENT%; may be repeated
    #[arg(long, help_heading = JUDGE, value_name = "OBJECTIVE")]
    #[arg(value_parser = ValueParser::new(parse_share))]
    slo: Vec<Objective>,
    /// Print the figures as JSON
    #[arg(long, help_heading = WHERE)]
    json: bool,
    /// Also write the figures there, for node_exporter's textfile collector
    #[arg(long, help_heading = WHERE, value_name = "FILE", conflicts_with = "command")]
    textfile: Option<PathBuf>,
    /// Use this virtio-serial port instead of the one found automatically
    #[arg(long, help_heading = WHERE, value_name = "DEVICE")]
    port: Option<PathBuf>,
    /// Ask over vsock, even if there is a port
    #[arg(long, help_heading = WHERE, conflicts_with = "port")]
    vsock: bool,
    /// Run this, and report what the host took meanwhile
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Only what intervals can be added up to.
fn parse_share(text: &str) -> Result<Objective, String> {
    let objective = parse_objective(text)?;
    if objective.without_vms().is_some() || !matches!(objective.bound, Bound::Share { .. }) {
        return Err("a guest takes stall.share<PERCENT% and cpu.share<PERCENT%".to_owned());
    }
    Ok(objective)
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Seen<'a> {
    /// `null` where the host does not tell.
    host: Option<&'a Message>,
    /// Why not, if so.
    untold: Option<String>,
    /// What the guest sees alone.
    guest: &'a Alone,
}

/// Asks the host, and says what it did.
///
/// # Errors
/// What failed, on what, and what to do next.
pub fn run(args: Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if !args.command.is_empty() {
        return runtime.block_on(while_command_runs(&args));
    }
    if args.watch {
        return runtime.block_on(watch(&args));
    }
    once(&args)
}

impl Args {
    fn ways(&self) -> Ways {
        match &self.port {
            Some(port) => Ways::Port(port.clone()),
            None if self.vsock => Ways::Vsock,
            None => Ways::Any,
        }
    }
}

fn once(args: &Args) -> Result<ExitCode> {
    let told = args.ways().ask();
    let guest = Alone::look(LOOK)?;
    if args.json {
        let untold = told.as_ref().err().map(|error| format!("{error:#}"));
        print_json(&Seen { host: told.as_ref().ok(), untold, guest: &guest })?;
    }
    let (seconds, alone) = (guest.seconds, guest.lines());
    let message = match told {
        Ok(message) => message,
        Err(error) => {
            say(&untold(&error));
            if !args.json {
                print(&format!("What this VM sees on its own, in {seconds:.0} s\n{alone}"))?;
            }
            return Ok(ExitCode::from(NOT_JUDGED));
        }
    };
    if !args.json {
        let sentence = wrapped_at(COLUMNS, &words::sentence(&message), "", "");
        let lines = words::lines(&message);
        print(&format!(
            "{sentence}\n\nThe host says\n{lines}\nThis VM sees, in {seconds:.0} s\n{alone}"
        ))?;
    }
    write(args.textfile.as_deref(), &message)?;
    Ok(ExitCode::from(judged(&args.slo, &message)))
}

/// How objectives come out over the last minute.
fn judged(objectives: &[Objective], message: &Message) -> u8 {
    if message.is_stale() && !objectives.is_empty() {
        return NOT_JUDGED;
    }
    let minute = &message.last_60s;
    exit_code(objectives, minute, Known::all(minute.seconds), minute.seconds)
}

/// What to do where the host does not tell.
fn untold(error: &anyhow::Error) -> String {
    format!(
        "overcommit: the host tells this VM nothing: {error:#}\nAsk whoever runs the host for: \
         overcommit serve --guests NAME, and a channel to this VM (docs/guest-protocol.md). With \
         libvirt: <channel type='unix'><source mode='bind'/><target type='virtio' \
         name='org.overcommit.truth.0'/></channel>"
    )
}

/// For whoever collects metrics, which is another user.
fn write(path: Option<&Path>, message: &Message) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let failed = || format!("cannot write {}", path.display());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut file = tempfile::Builder::new();
    file.permissions(Permissions::from_mode(0o644));
    let file = file.tempfile_in(folder.unwrap_or(Path::new("."))).with_context(failed)?;
    fs::write(file.path(), figures::text(message)).with_context(failed)?;
    // Whole when it is there.
    file.persist(path).map_err(|error| error.error).with_context(failed)?;
    Ok(())
}

/// A line a second, until it is ended; how the last minute came out then.
async fn watch(args: &Args) -> Result<ExitCode> {
    let mut waiter = Waiter::new()?;
    let mut answers = asking(args.ways(), Instant::now())?;
    let (mut last, mut has_said) = (None, false);
    loop {
        let signal = tokio::select! {
            biased;
            signal = waiter.signal() => signal,
            answer = answers.recv() => {
                match answer.context("the thread that asks the host ended")?.0 {
                    Ok(message) => {
                        let line = if args.json {
                            serde_json::to_string(&message)?
                        } else {
                            words::line(&message)
                        };
                        print(&format!("{line}\n"))?;
                        write(args.textfile.as_deref(), &message)?;
                        last = Some(judged(&args.slo, &message));
                    }
                    Err(error) => {
                        last = None;
                        let is_first = !std::mem::replace(&mut has_said, true);
                        let said = format!("overcommit: {error:#}");
                        say(&if is_first { untold(&error) } else { said });
                    }
                }
                continue;
            }
        };
        return Ok(match last.unwrap_or(NOT_JUDGED) {
            0 => signalled(signal),
            judged => ExitCode::from(judged),
        });
    }
}

/// Runs COMMAND, and tells what the host took meanwhile.
async fn while_command_runs(args: &Args) -> Result<ExitCode> {
    let mut waiter = Waiter::new()?;
    let limits = raise_limit()?;
    let since = Instant::now();
    let mut load = match Load::start(&args.command, None, limits, args.json) {
        Ok(load) => load,
        Err(not_started) => {
            say(&format!("overcommit: error: {}", not_started.message));
            return Ok(ExitCode::from(not_started.code));
        }
    };
    let mut answers = Answers::since(since, args.ways())?;
    let (status, sent) = loop {
        tokio::select! {
            biased;
            status = load.wait() => break (status?, None),
            signal = waiter.signal() => break (load.end(signal).await?, Some(signal)),
            taken = answers.take() => taken?,
        }
    };
    let seconds = since.elapsed().as_secs_f64();
    answers.take_those_of(seconds, &mut waiter).await?;
    let (shares, known) = answers.meanwhile.until(seconds);
    if let Some(error) = answers.why.filter(|_| shares.seconds == 0.0) {
        say(&untold(&error));
    }
    tell(args, &shares, seconds)?;
    let (code, judged) = (code(status, sent), exit_code(&args.slo, &shares, known, seconds));
    Ok(ExitCode::from(if judged == BROKEN || code == 0 { judged } else { code }))
}

fn tell(args: &Args, shares: &Shares, seconds: f64) -> Result<()> {
    if args.json {
        return print_json(shares);
    }
    let share = |of: Option<f64>| of.map_or("an unknown part".to_owned(), percent);
    let told = format!(
        "While COMMAND ran ({seconds:.1} s, of which the host reported on {:.1} s), the host took {} \
         of this VM's vCPU time for memory and {} because it had no free CPU.",
        shares.seconds,
        share(shares.stall_share),
        share(shares.cpu_share)
    );
    print(&format!("{}\n", wrapped_at(COLUMNS, &told, "", "")))
}
