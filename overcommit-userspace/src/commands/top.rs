//! `overcommit top`

use crate::commands::record::said::failed;
use crate::commands::subject::{Subject, raise_limit};
use crate::commands::whom::{find, selection};
use crate::commands::{WHERE, require_hosts_pids, require_root};
use crate::kernel::capability;
use crate::session::run::{Told, Until, follow};
use crate::session::wait::Waiter;
use crate::terminal::{has_colour, print, print_json, say, wants_ascii};
use crate::top::Update;
use crate::top::app::App;
use crate::top::look::Look;
use crate::top::replay::Replay;
use crate::top::terminal::show;
use anyhow::{Context, Result, anyhow, ensure};
use overcommit_recording::model::run::{Run, StoppedBy};
use overcommit_recording::recording::{Folder, Owner, Recording, Writer};
use overcommit_recording::report::{Format, View, rebuild};
use overcommit_recording::slo::Objective;
use std::io::{IsTerminal, stdin, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;

/// Columns of a screen that is printed, where there is no terminal.
const COLUMNS: u16 = 120;
/// Its lines beside those of VMs.
const LINES: u16 = 32;

/// Options of `top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  overcommit top
  overcommit top --vm 'web-*' --slo 'fault.major:p99<2ms' --slow-faults 2ms
  overcommit top --once --json
  overcommit top before                        replay a recording

Press ? for the keys.")]
pub struct Args {
    /// Replay this recording instead of watching the host
    #[arg(conflicts_with_all = ["out", "Subject"])]
    dir: Option<PathBuf>,
    #[command(flatten)]
    subject: Subject,
    /// Also record into this folder, new or empty
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
    fn print(&self, app: &mut App) -> Result<()> {
        let board = app.board().context("the recording has no interval")?;
        if self.json {
            return print_json(board);
        }
        let rows = LINES.saturating_add(u16::try_from(board.vms.len()).unwrap_or(u16::MAX));
        let columns = ratatui::crossterm::terminal::size().map_or(COLUMNS, |(columns, _)| columns);
        let columns = if stdout().is_terminal() { columns } else { COLUMNS };
        let mut text = String::new();
        // Keys are of no use there, nor are lines that fill a terminal.
        let lines = app.lines(columns, rows);
        let lines: Vec<String> =
            lines.iter().map(|line| line.to_string().trim_end().to_owned()).collect();
        for line in lines.iter().rev().skip(2).rev().filter(|line| !line.is_empty()) {
            text.push_str(line);
            text.push('\n');
        }
        print(&text)
    }
}

fn replay(args: &Args, recording: Recording) -> Result<ExitCode> {
    let objectives = recording.run.options.slo.iter().map(|text| Objective::parse(text));
    let objectives =
        objectives.collect::<Result<_>>().context("run.json has an objective that is none")?;
    let mut app = args.app(objectives);
    let mut replay = Replay::start(recording)?;
    if args.once {
        replay.all().try_for_each(|update| update.map(|update| app.take(update)))?;
        args.print(&mut app)?;
    } else {
        show(&mut app, &mut replay)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn watch(args: Args) -> Result<ExitCode> {
    let mut waiter = Waiter::new()?;
    raise_limit()?;
    let owner = Owner::behind_sudo()?;
    let subject = &args.subject;
    let selection = selection(subject)?;
    let objectives = subject.objectives.read();
    let room = match find(subject, false, &selection, &mut waiter).await? {
        Ok(room) => room,
        Err(code) => return Ok(code),
    };
    let folder = args.out.as_ref().map(|out| Folder::create(out, owner)).transpose()?;
    let discard = |_: &anyhow::Error| folder.iter().for_each(Folder::discard);
    let (session, host) = subject.attach(selection, room).inspect_err(discard)?;
    waiter.watch(session.events())?;
    capability::keep_what_records(owner.is_some())?;
    let begun = session.begin(subject.options(&objectives), &host);
    let mut session = begun.inspect_err(discard)?;
    let writer = folder.clone().map(|folder| Writer::create(folder, session.run()));
    let mut writer = writer.transpose().inspect_err(discard)?;
    let until = Until {
        interval: subject.interval,
        duration: None,
        slow_faults: subject.slow_faults.is_some(),
    };
    let mut app = args.app(objectives);
    let (sender, updates) = channel();
    let (enough, is_once) = (waiter.enough(), args.once);
    let of_screen = Arc::clone(&enough);
    let screen = std::thread::spawn(move || {
        let mut updates = updates;
        let shown = if is_once { Ok(()) } else { show(&mut app, &mut updates) };
        if !is_once {
            of_screen.notify_one();
        }
        // What has come meanwhile.
        updates.iter().for_each(|update| app.take(update));
        (app, shown)
    });
    let mut is_shown = false;
    let take = |run: &Run, told: Told<'_>| {
        match told {
            Told::Interval(interval) => {
                if let Some(writer) = &mut writer {
                    writer.write(run, interval)?;
                }
                if !is_shown {
                    let update = Update::Interval(Box::new((run.clone(), interval.clone())));
                    // The screen may be gone.
                    let _ = sender.send(update);
                }
                if is_once && !interval.place.partial {
                    is_shown = true;
                    enough.notify_one();
                }
            }
            Told::SlowFaults(faults) => {
                if let Some(writer) = &mut writer {
                    writer.write_slow_faults(run, faults)?;
                }
                let _ = sender.send(Update::SlowFaults(faults.to_vec()));
            }
            Told::Ended(_) => {}
        }
        Ok(())
    };
    let end = follow(&until, &mut session, &mut waiter, &mut None, take).await;
    drop(sender);
    let (mut app, shown) = screen.join().map_err(|_| anyhow!("the screen failed"))?;
    if let Some(folder) = &folder {
        end.as_ref().err().iter().for_each(|_| say(&format!("overcommit: {}", failed(folder))));
    }
    end?;
    let mut run = session.run().clone();
    drop(session);
    shown?;
    if args.once {
        args.print(&mut app)?;
    }
    if let (Some(writer), Some(folder)) = (writer, folder) {
        run.stopped_by = Some(StoppedBy::Interrupt);
        writer.write_run(&run)?;
        let report = rebuild(&folder, &View::whole(Format::Text, false))?;
        if !args.once {
            print(&report.text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
