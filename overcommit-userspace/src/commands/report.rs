//! `overcommit report`

use crate::commands::{ObjectiveArgs, PLOTS, SpanArgs};
use crate::terminal::{print, say};
use anyhow::Result;
use overcommit_recording::recording::{Folder, run_file, single};
use overcommit_recording::report::{Format, View, rebuild};
use overcommit_recording::view::style::plain;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `report`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  overcommit report before
  overcommit report load --from steady --to end -v
  overcommit report load --slo 'stall.share<1%' --json
  overcommit report load --format html --out load.html")]
pub struct Args {
    /// Folder of the recording
    dir: PathBuf,
    /// How to print it
    #[arg(long, default_value = "text")]
    format: Format,
    /// Print it as JSON, as --format json does
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Print every metric of every VM
    #[arg(short, long)]
    verbose: bool,
    /// Write to a file instead of the terminal
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    objectives: ObjectiveArgs,
    #[command(flatten)]
    span: SpanArgs,
}

/// Prints a recording from its files.
///
/// # Errors
/// The folder is no recording, or cannot be read or mended.
pub fn run(args: &Args) -> Result<ExitCode> {
    let folder = Folder::open(&args.dir)?;
    // Before marks are looked for in it.
    run_file::read(&folder)?;
    let view = View {
        format: if args.json { Format::Json } else { args.format },
        is_full: args.verbose,
        span: args.span.read(&folder)?,
        marks: args.span.marks(),
        objectives: args.objectives.read(),
        library: Some(PLOTS),
    };
    let report = rebuild(&folder, &view)?;
    match &args.out {
        Some(path) => single::put(path, plain(&report.text).as_bytes())?,
        None => print(&report.text)?,
    }
    if let Some(error) = report.not_written {
        say(&format!("overcommit: the summary is not written into the recording: {error:#}"));
    }
    Ok(ExitCode::from(report.code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::story::{LENGTH, SECOND_NS, START_US, interval, run, slow_fault};
    use overcommit_recording::model::clock::Clocks;
    use overcommit_recording::model::run::{Run, RunClocks};
    use overcommit_recording::model::slow_fault::SlowFault;
    use overcommit_recording::recording::Writer;
    use overcommit_recording::recording::span::{self, Mark};
    use std::fs;

    /// The invented host of `top`'s screens, recorded.
    fn record(folder: &Folder) {
        let at = |second: u64| Clocks {
            realtime_ns: START_US * 1_000 + second * SECOND_NS,
            monotonic_ns: second * SECOND_NS,
            boottime_ns: second * SECOND_NS,
        };
        let clocks = RunClocks { start: at(0), ..RunClocks::default() };
        let mut run = Run { schema: Run::schema(), clocks, ..run() };
        run.vms.iter_mut().for_each(|vm| vm.folder = vm.vm_id.clone());
        let mut writer = Writer::create(folder.clone(), &run).unwrap();
        for number in 0..LENGTH {
            run.recorded.intervals = number + 1;
            writer.write(&run, &interval(number)).unwrap();
        }
        let faults: Vec<SlowFault> = (0..4).map(slow_fault).collect();
        writer.write_slow_faults(&run, &faults).unwrap();
        for (second, text) in [(60, "ramp"), (180, "batch starts")] {
            let mark = Mark { at_us: START_US + second * 1_000_000, text: text.to_owned() };
            span::add(folder, &mark).unwrap();
        }
        run.clocks.end = Some(at(LENGTH));
        writer.write_run(&run).unwrap();
    }

    /// The picture of it is `docs/report.svg`, which `cargo xtask docs` makes of the page that this
    /// leaves where `OVERCOMMIT_STORY_PAGE` says.
    #[test]
    fn the_picture_of_an_invented_host_has_the_title_of_its_page() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::create(&dir.path().join("story"), None).unwrap();
        record(&folder);
        let view = View::whole(Format::Html, false).drawn_by(PLOTS);
        let page = rebuild(&folder, &view).unwrap().text;
        if let Some(path) = std::env::var_os("OVERCOMMIT_STORY_PAGE") {
            return fs::write(path, page).unwrap();
        }
        let title = page.split("<h1>").nth(1).and_then(|rest| rest.split("</h1>").next()).unwrap();
        let picture = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/report.svg");
        let picture = fs::read_to_string(picture).unwrap();
        assert!(picture.contains(title), "{title} is not in docs/report.svg: cargo xtask docs");
    }
}
