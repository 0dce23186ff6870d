//! What a recording says of itself, beside its report.

use crate::commands::record::Args;
use crate::commands::whom::stopped;
use crate::session::load;
use crate::session::run::Early;
use crate::terminal::say;
use overcommit_recording::compare::LENGTH_S;
use overcommit_recording::format::text::vms;
use overcommit_recording::model::run::{Run, StoppedBy};
use overcommit_recording::recording::Folder;
use overcommit_recording::slo::judge::NOT_JUDGED;
use overcommit_recording::view::progress::length;
use std::fmt::Write;
use std::process::ExitCode;

/// VMs that are named one by one when a recording begins.
const NAMED: usize = 5;

/// What is recorded, where, and until when.
pub(super) fn begun_with(run: &Run, args: &Args, folder: &Folder) -> String {
    let names: Vec<&str> = run.vms.iter().map(|vm| vm.name.as_str()).collect();
    let names = match names.len() {
        1..=NAMED => format!(" ({})", names.join(", ")),
        _ => String::new(),
    };
    let time = args.duration.map(|time| format!(" for {}", length(time))).unwrap_or_default();
    let end = match (args.command.is_empty(), args.duration) {
        (false, _) => "it ends with the command",
        (true, Some(_)) => "Ctrl-C ends it early",
        (true, None) => "Ctrl-C ends it",
    };
    let (vms, folder) = (vms(run.vms.len()), folder.path().display());
    format!("recording {vms}{names} into {folder}{time}; {end}")
}

/// Told once, when it happens: the report has how many there were.
pub(super) fn unserved(run: &Run) -> String {
    let names = run.not_counted.unserved.join(", ");
    let names = if names.is_empty() { names } else { format!(" ({names})") };
    format!(
        "not every VM is recorded{names}: no slot was free, its user had reached the limit, or too \
         many had ended; the report counts them"
    )
}

/// Of a recording that has no room for more.
pub(super) fn full(why: StoppedBy, has_command: bool) -> String {
    let ends = match why {
        StoppedBy::MaxSize => "the recording has reached --max-size and ends here",
        _ => "the disk is nearly full: the recording ends here",
    };
    let goes_on = if has_command { "; COMMAND goes on" } else { "" };
    format!("{ends}{goes_on}")
}

/// Of a recording that an error ends.
pub(in crate::commands) fn failed(folder: &Folder) -> String {
    let path = folder.path().display();
    format!("recording failed; what was recorded can be read: overcommit report {path}")
}

/// What to do with a recording.
pub(super) fn next(folder: &Folder, run: &Run) -> String {
    let path = folder.path().display();
    let mut next = format!("\nRecorded in {path}. Every metric: overcommit report -v {path}\n");
    if run.clocks.length_s().is_some_and(|length_s| length_s < LENGTH_S) {
        let _ = writeln!(
            next,
            "To compare it with another one, record {LENGTH_S:.0} s of each, or use overcommit ab."
        );
    }
    next
}

/// What a recording that ended before it began says, and ends with.
pub(super) fn over(early: Early) -> ExitCode {
    match early {
        Early::Signal(signal) => stopped(signal),
        Early::LoadEnded(status) => {
            say("overcommit: error: COMMAND ended during --delay; nothing was recorded");
            let code = load::code(status, None);
            ExitCode::from(if code == 0 { NOT_JUDGED } else { code })
        }
    }
}
