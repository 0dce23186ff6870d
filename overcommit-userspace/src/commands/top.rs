//! `overcommit top`

use crate::commands::record::room::Room;
use crate::commands::record::said::failed;
use crate::commands::record::stopped_by;
use crate::commands::subject::{Subject, raise_limit};
use crate::commands::whom::{find, selection, stopped};
use crate::commands::{PLOTS, WHERE, require_hosts_pids, require_root, signalled};
use crate::session::run::{End, GO_ON, Told, Until, follow};
use crate::session::wait::{Over, Waiter, Woken};
use crate::terminal::{has_colour, print, print_json, say, wants_ascii};
use crate::top::Update;
use crate::top::app::App;
use crate::top::look::Look;
use crate::top::replay::Replay;
use crate::top::terminal::{Living, show};
use anyhow::{Context, Result, anyhow, ensure};
use overcommit_recording::model::run::{Run, StoppedBy};
use overcommit_recording::recording::{Folder, Owner, Recording, Writer, span};
use overcommit_recording::report::{Format, View, rebuild};
use overcommit_recording::slo::Objective;
use overcommit_recording::slo::judge::exit_code;
use std::io::{IsTerminal, stdin, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Columns of a screen that is printed, where there is no terminal.
const COLUMNS: u16 = 120;
/// Its lines beside those of VMs.
const LINES: u16 = 32;
/// Intervals and slow faults that may wait for the screen; where it does not keep up, it misses some.
const WAITING: usize = 64;
/// Time that the screen has to end in: a terminal that does not answer holds nobody up.
const GRACE: Duration = Duration::from_secs(2);

/// Options of `top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  overcommit top
  overcommit top --vm 'web-*' --slo 'fault.major:p99<2ms' --slow-faults 2ms
  overcommit top --once --json
  overcommit top before                        replay a recording

Press ? for the keys. With --once it exits with 3 if an objective was broken in the last minute, and
with 4 if one could not be judged.")]
pub struct Args {
    /// Replay this recording instead of watching the host
    #[arg(conflicts_with_all = ["out", "interval", "vm", "wait", "pid", "backend", "slow_faults",
        "causes", "exits", "monitor", "guest_stats", "working_set", "verbose", "without"])]
    dir: Option<PathBuf>,
    #[command(flatten)]
    subject: Subject,
    /// Also record into this folder, new or empty; marks are written there too
    #[arg(long, help_heading = WHERE, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print one screen after the first whole interval and exit; of a recording, its last screen
    #[arg(long, help_heading = WHERE)]
    once: bool,
    /// With --once: print what the screen shows as JSON
    #[arg(long, help_heading = WHERE, requires = "once")]
    json: bool,
    /// Draw with ASCII characters only, as in the locale C
    #[arg(long, help_heading = WHERE)]
    ascii: bool,
}

/// Shows the screen.
///
/// # Errors
/// What failed, on what, and what to do next.
pub fn run(args: Args) -> Result<ExitCode> {
    let is_terminal = stdin().is_terminal() && stdout().is_terminal();
    ensure!(args.once || is_terminal, "top needs a terminal; to print one screen, use --once");
    ensure!(
        args.once || !args.subject.verbose,
        "--verbose would print over the screen; use it with --once, or with record"
    );
    if let Some(dir) = &args.dir {
        return replay(&args, Recording::open(&Folder::open(dir)?)?);
    }
    require_root()?;
    require_hosts_pids()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(watch(args))
}

impl Args {
    fn app(&self, objectives: Vec<Objective>) -> App {
        let look = Look { ascii: self.ascii || wants_ascii(), colour: has_colour() && !self.once };
        App::new(look, objectives, self.dir.is_some())
    }

    /// Prints a screen with all VMs on it.
    fn print(&self, app: &mut App) -> Result<ExitCode> {
        let board = app.board().context("there is no whole interval to show")?;
        let code = ExitCode::from(exit_code(&board.objectives));
        if self.json {
            print_json(board)?;
            return Ok(code);
        }
        let rows = LINES.saturating_add(u16::try_from(board.vms.len()).unwrap_or(u16::MAX));
        let columns = ratatui::crossterm::terminal::size().map_or(COLUMNS, |(columns, _)| columns);
        let columns = if stdout().is_terminal() { columns } else { COLUMNS };
        let lines = app.printed(columns, rows);
        let lines = lines.iter().map(|line| line.to_string().trim_end().to_owned() + "\n");
        // Lines that fill a terminal are of no use here.
        print(&lines.filter(|line| line != "\n").collect::<String>())?;
        Ok(code)
    }
}

fn replay(args: &Args, recording: Recording) -> Result<ExitCode> {
    let mut objectives = args.subject.objectives.read();
    if objectives.is_empty() {
        objectives = Objective::recorded(&recording.run)?;
    }
    let mut app = args.app(objectives);
    // What of them cannot be read the report says.
    if let Ok(marks) = span::marks(&recording.folder) {
        app.take(Update::Marks(marks));
    }
    if args.once {
        Replay::last(&recording)?.into_iter().for_each(|update| app.take(update));
        app.end();
        return args.print(&mut app);
    }
    show(&mut app, &mut Replay::start(recording))?;
    Ok(ExitCode::SUCCESS)
}

async fn watch(args: Args) -> Result<ExitCode> {
    let mut waiter = Waiter::new()?;
    raise_limit()?;
    let owner = Owner::behind_sudo()?;
    let subject = &args.subject;
    let selection = selection(subject)?;
    let objectives = subject.objectives.read();
    let found = match find(subject, false, &selection, &mut waiter).await? {
        Ok(found) => found,
        Err(code) => return Ok(code),
    };
    let folder = args.out.as_ref().map(|out| Folder::create(out, owner)).transpose()?;
    let discard = || folder.iter().for_each(Folder::discard);
    let disk = folder.as_ref().map(|folder| Room::new(folder, None)).transpose();
    let disk = disk.inspect_err(|_| discard())?;
    let begin = || {
        let session =
            subject.begin(selection, found, &mut waiter, owner.is_some(), folder.is_some())?;
        let writer = folder.clone().map(|folder| Writer::create(folder, session.run()));
        Ok::<_, anyhow::Error>((session, writer.transpose()?))
    };
    let (mut session, mut writer) = begin().inspect_err(|_| discard())?;
    if let Woken::Signal(signal) = waiter.rest(Duration::ZERO).await {
        discard();
        return Ok(stopped(signal));
    }
    let until = Until {
        interval: subject.interval,
        duration: None,
        slow_faults: subject.slow_faults.is_some(),
    };
    let enough = waiter.enough();
    let (sender, updates) = sync_channel(WAITING);
    let app = args.app(objectives);
    // Of `--once` there is no screen, and what has come is looked at in the end.
    let (screen, once) = match args.once {
        true => (None, Some((app, updates))),
        false => {
            let living = Living::new(updates, folder.clone());
            (Some(Screen::start(app, living, Arc::clone(&enough))), None)
        }
    };
    let mut has_whole = false;
    let take = |run: &Run, told: Told<'_>| {
        if let Some(writer) = &mut writer {
            match told {
                Told::Interval(interval) => writer.write(run, interval)?,
                Told::SlowFaults(faults) => writer.write_slow_faults(run, faults)?,
                Told::Ended(_) => {}
            }
        }
        match told {
            // What comes after it is a part of an interval.
            Told::Interval(interval) if !(args.once && has_whole) => {
                has_whole |= !interval.place.partial;
                let _ = sender.try_send(Update::interval(&Arc::new(run.clone()), interval));
                if args.once && has_whole {
                    enough.notify_one();
                }
            }
            Told::SlowFaults(faults) => {
                let _ = sender.try_send(Update::slow_faults(run, faults));
            }
            Told::Interval(_) | Told::Ended(_) => {}
        }
        let recording = writer.as_ref().zip(disk.as_ref());
        recording.map_or(GO_ON, |(writer, disk)| disk.goes_on(writer, run))
    };
    let end = follow(&until, &mut session, &mut waiter, &mut None, take).await;
    if let (Err(_), Some(folder)) = (&end, &folder) {
        say(&format!("overcommit: {}", failed(folder)));
    }
    let run = session.run().clone();
    drop((sender, session));
    let shown = screen.map_or(Ok(()), Screen::end);
    let end = end?;
    let report = writer.zip(folder).map(|(writer, folder)| conclude(writer, &folder, run, &end));
    let report = report.transpose()?;
    shown?;
    match (once, end) {
        (Some(_), End::Signal(signal)) if !has_whole => Ok(signalled(signal)),
        (Some((mut app, updates)), _) => {
            updates.iter().for_each(|update| app.take(update));
            args.print(&mut app)
        }
        (None, end) => {
            report.map_or(Ok(()), |report| print(&report))?;
            let is_full = matches!(end, End::Full(StoppedBy::DiskFull));
            ensure!(!is_full, "the recording ended early: its disk is nearly full");
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Ends a recording, and gives its report.
fn conclude(writer: Writer, folder: &Folder, mut run: Run, end: &End) -> Result<String> {
    run.stopped_by = Some(stopped_by(end));
    writer.write_run(&run)?;
    let report = rebuild(folder, &View::whole(Format::Text, false).drawn_by(PLOTS))?;
    report.not_written.map_or(Ok(report.text), Err)
}

/// A thread that shows what comes.
struct Screen(JoinHandle<Result<()>>);

impl Screen {
    fn start(mut app: App, mut living: Living, enough: Arc<Notify>) -> Self {
        Self(std::thread::spawn(move || {
            // However it ends, nobody records for a screen that is gone.
            let _over = Over(enough);
            show(&mut app, &mut living)
        }))
    }

    /// Waits for its end, which is near: nothing will come any more.
    fn end(self) -> Result<()> {
        let start = Instant::now();
        while !self.0.is_finished() {
            ensure!(start.elapsed() < GRACE, "the terminal does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.0.join().map_err(|_| anyhow!("the screen failed; see above"))?
    }
}

#[cfg(test)]
mod tests {
    use crate::commands::Cli;
    use clap::Parser;

    #[test]
    fn a_recording_is_replayed_as_it_was_recorded() {
        let parsed = |words: &str| {
            Cli::try_parse_from(["overcommit", "top"].into_iter().chain(words.split(' '))).is_ok()
        };
        assert!(parsed("before") && parsed("before --slo stall.share<1% --once --json"));
        let not_of_a_recording = [
            "--out x",
            "--interval 1s",
            "--vm x",
            "--wait",
            "--pid 1",
            "--backend perf",
            "--causes",
            "--exits off",
            "--slow-faults 1ms",
            "--monitor a=/b",
            "--guest-stats",
            "--working-set auto",
            "-v",
        ];
        for option in not_of_a_recording {
            assert!(parsed(option), "{option}");
            assert!(!parsed(&format!("before {option}")), "{option}");
        }
    }
}
