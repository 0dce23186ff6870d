//! What a recording gets at its end, from its files alone, and how it is shown.

use crate::format::hgrm;
use crate::html::{Library, Plots};
use crate::model::run::Run;
use crate::model::totals::Totals;
use crate::recording::folder::{REPORT, SUMMARY_CSV, SUMMARY_JSON};
use crate::recording::reader::EVERY;
use crate::recording::{Folder, Recording, Span};
use crate::slo::Objective;
use crate::slo::judge::{Judging, NOT_JUDGED, exit_code};
use crate::summary::{Marks, Summing};
use crate::view::summary_text;
use anyhow::{Context, Error, Result, anyhow};
use clap::ValueEnum;

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table
    Text,
    /// What other programs read
    Json,
    /// A page with plots
    Html,
}

/// What of a recording is to be seen, and how.
pub struct View {
    /// How it is printed.
    pub format: Format,
    /// Whether every metric of every VM is, rather than what matters.
    pub is_full: bool,
    /// Which part.
    pub span: Span,
    /// The marks that it lies between.
    pub marks: Marks,
    /// Instead of those that it was recorded with, if there are any.
    pub objectives: Vec<Objective>,
    /// What draws the plots of report.html; without it there is no such file.
    pub library: Option<Library>,
}

impl View {
    /// The whole recording, by the objectives that it was recorded with.
    pub fn whole(format: Format, is_full: bool) -> Self {
        let (span, marks) = (Span::WHOLE, Marks::default());
        Self { format, is_full, span, marks, objectives: Vec::new(), library: None }
    }

    /// The same with report.html.
    pub fn drawn_by(self, library: Library) -> Self {
        Self { library: Some(library), ..self }
    }
}

/// A report.
pub struct Report {
    /// As the user asked for it.
    pub text: String,
    /// Exit code: of the objectives, and [`NOT_JUDGED`] of a recording in which there is no VM.
    pub code: u8,
    /// Why it says nothing of any VM, if so.
    pub nothing: Option<String>,
    /// Why the recording's own summary could not be written, if so.
    pub not_written: Option<Error>,
}

/// Writes what a recording gets at its end, from its logs alone, and gives the
/// report. A recording that still runs is only read, as is one of which only a part is
/// looked at, or against other objectives. What cannot be written is told beside the report.
///
/// # Errors
/// The folder is no recording, or cannot be read or mended.
pub fn rebuild(folder: &Folder, view: &View) -> Result<Report> {
    let recording = Recording::open(folder)?;
    let run = &recording.run;
    let as_recorded = view.span == Span::WHOLE && view.objectives.is_empty();
    let objectives = if view.objectives.is_empty() {
        Objective::recorded(run)?
    } else {
        view.objectives.clone()
    };
    let (mut summing, mut judging) = (Summing::new(run), Judging::new(objectives.clone()));
    let writes = !recording.is_recording && as_recorded;
    // A recording that is complete has had its page.
    let lacks_page = writes && folder.is_ours() && !folder.has(REPORT);
    let drawn = view.library.filter(|_| lacks_page || view.format == Format::Html);
    // Whatever the page may lack, the rest of the report does not hang on it.
    let mut plots = drawn.map(|_| Plots::new(run, folder));
    recording.each(view.span, EVERY, |interval| {
        summing.add(interval);
        judging.add(run, interval);
        plots.iter_mut().flatten().for_each(|plots| plots.add(interval));
        Ok(())
    })?;
    let judged = judging.judge(run, &summing.totals);
    let code = exit_code(&judged);
    let summary = summing.summary(run, view.marks.clone(), judged);
    let nothing = summary.nothing(run);
    let code = if code == 0 && nothing.is_some() { NOT_JUDGED } else { code };
    let json = summary.json()?;
    let page = plots
        .zip(drawn)
        .map(|(plots, library)| plots?.page(&recording, &summary, view.span, &objectives, library));
    let write = || {
        folder.refresh(SUMMARY_JSON, &json)?;
        folder.refresh(SUMMARY_CSV, &summary.csv()?)?;
        write_distributions(folder, run, &summing.totals)?;
        match &page {
            Some(Ok(page)) if lacks_page => folder.refresh(REPORT, page.as_bytes()),
            Some(Err(error)) => Err(anyhow!("report.html: {error:#}")),
            Some(Ok(_)) | None => Ok(()),
        }
    };
    let not_written = writes.then(write).and_then(Result::err);
    let text = match view.format {
        Format::Text => summary_text::text(run, &summary, view.is_full),
        Format::Json => String::from_utf8(json).context("summary.json is not UTF-8")?,
        Format::Html => page.context("this build has nothing to draw plots with")??,
    };
    Ok(Report { text, code, nothing, not_written })
}

fn write_distributions(folder: &Folder, run: &Run, totals: &Totals) -> Result<()> {
    for (vm, totals) in run.vms.iter().zip(&totals.vms) {
        for (name, metric) in totals.metrics.iter().filter(|(name, _)| name.is_plotted()) {
            let name = format!("vms/{}/{}.hgrm", vm.folder, name.as_str());
            folder.refresh(&name, hgrm::file(&metric.latencies).as_bytes())?;
        }
    }
    Ok(())
}
