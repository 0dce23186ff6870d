//! VMs that were not there all the time: what they are said to be is of less than the whole run.

use crate::format::text::time_of_day;
use crate::model::exit::{Departure, Exit};
use crate::model::run::{EndedBy, Run, RunVm};
use crate::summary::verdict::Fared;
use crate::summary::{Summary, SummaryVm};
use crate::view::wrapped;
use std::fmt::Write;

/// VMs of a kind that are named one by one.
const NAMED: usize = 5;
/// Time after the start in which every VM that runs is found, in seconds.
const FOUND_S: f64 = 2.0;

/// How a VM ended, and when: told at once.
pub fn ended(run: &Run, vm: &RunVm) -> String {
    let ended_us = vm.ended_us.unwrap_or(0);
    let when = when(ended_us as f64 / 1e6, run.after_start_s(ended_us));
    let name = &vm.name;
    let short = vm.ended_by.and_then(EndedBy::short);
    match (short, vm.exit.filter(|exit| exit.is_failure())) {
        (Some(short), _) => {
            format!("{name} was KILLED {when}: {short} ran out of memory; see dmesg")
        }
        (_, Some(exit)) => format!("{name} CRASHED {when}: it {}", exit.words()),
        _ => {
            let is_vm = vm.accelerator.is_some();
            format!("{name} {}", how(run, vm.exit, vm.departure, is_vm, &when))
        }
    }
}

/// When it ended: by the clock, and after the recording's start.
pub fn when(unix_s: f64, after_s: f64) -> String {
    format!("at {}, {after_s:.1} s in", time_of_day(unix_s))
}

/// How a VM ended that neither crashed nor ran out of memory.
fn how(
    run: &Run,
    exit: Option<Exit>,
    departure: Option<Departure>,
    is_vm: bool,
    when: &str,
) -> String {
    if let Some(words) = departure.and_then(Departure::words) {
        return format!("{words} {when}");
    }
    match exit {
        // As QEMU ends however it is asked to.
        Some(Exit::Status(_)) if is_vm => format!("was shut down or migrated away {when}"),
        Some(exit @ Exit::Status(_)) => format!("{} {when}", exit.words()),
        Some(exit @ Exit::Signal(_)) => {
            let not_by = match unless_killed(run) {
                why if why.is_empty() => ", not by the kernel's OOM killer".to_owned(),
                why => why,
            };
            format!("{} {when}{not_by}", exit.words())
        }
        None => format!("ended {when}{}", unless_killed(run)),
    }
}

/// A line for each VM that ended, other than by a crash or by being killed, or came late; of many, their number.
pub fn lines(text: &mut String, run: &Run, summary: &Summary, name: impl Fn(&SummaryVm) -> String) {
    let ended = |vm: &&SummaryVm| vm.ended_s.is_some() && vm.verdict.fared < Fared::Crashed;
    let ended: Vec<&SummaryVm> = summary.seen().filter(ended).collect();
    some(text, &ended, "ended while they were recorded", |vm| {
        let when = when(vm.ended_unix_s.unwrap_or(0.0), vm.ended_s.unwrap_or(0.0));
        format!("{} {}", name(vm), how(run, vm.exit, vm.departure, vm.is_vm, &when))
    });
    let stopped: Vec<&SummaryVm> = summary.seen().filter(|vm| vm.stopped_s > 0.0).collect();
    some(text, &stopped, "were stopped for a while", |vm| {
        format!("{} was stopped for {:.1} s, by SIGSTOP or a debugger", name(vm), vm.stopped_s)
    });
    let late: Vec<&SummaryVm> = summary.seen().filter(|vm| vm.started_s > FOUND_S).collect();
    some(text, &late, "started during the recording", |vm| {
        format!("{} started after {:.1} s", name(vm), vm.started_s)
    });
}

/// What is not known of a VM that ended, for all that was seen.
fn unless_killed(run: &Run) -> String {
    let why = run.host_state.kills_unreadable.as_ref();
    why.map_or_else(String::new, |why| {
        format!(
            "; overcommit could not see whether the kernel killed it because memory ran out ({why})"
        )
    })
}

fn some(text: &mut String, vms: &[&SummaryVm], what: &str, each: impl Fn(&SummaryVm) -> String) {
    if vms.len() > NAMED {
        let _ = writeln!(text, "{} VMs {what}.", vms.len());
        return;
    }
    for vm in vms {
        let _ = writeln!(text, "{}", wrapped(&format!("{}.", each(vm)), "", "  "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::interval::{Interval, Place, VmInterval};
    use crate::summary::{Marks, Summing};

    fn vm(name: &str, first_seen_s: u64, ended: Option<(u64, Option<EndedBy>)>) -> RunVm {
        RunVm {
            name: name.to_owned(),
            first_seen_us: first_seen_s * 1_000_000,
            ended_us: ended.map(|(s, _)| s * 1_000_000),
            ended_by: ended.and_then(|(_, by)| by),
            ..RunVm::default()
        }
    }

    /// Of a recording of that many seconds.
    fn said(vms: Vec<RunVm>, length_s: u64) -> String {
        let mut run = Run { vms, ..Run::default() };
        run.clocks.start.realtime_ns = 100_000_000_000;
        let place = Place {
            start_us: 100_000_000,
            length_ns: length_s * 1_000_000_000,
            ..Place::default()
        };
        let vms = (0..run.vms.len()).map(|vm| VmInterval { vm, ..VmInterval::default() }).collect();
        let mut summing = Summing::new(&run);
        summing.add(&Interval { place, vms, ..Interval::default() });
        let mut text = String::new();
        let summary = summing.summary(&run, Marks::default(), Vec::new());
        lines(&mut text, &run, &summary, |vm| vm.vm.clone());
        text
    }

    #[test]
    fn who_was_not_there_all_the_time_is_named() {
        let vms = vec![
            vm("left", 100, Some((107, None))),
            vm("late", 103, None),
            vm("web", 100, Some((104, Some(EndedBy::OomCgroup)))),
            vm("newer", 100, Some((106, Some(EndedBy::Other)))),
            vm("calm", 101, None),
        ];
        let late = "late started after 3.0 s.\n";
        let left =
            "left ended at 00:01:47 UTC, 7.0 s in.\nnewer ended at 00:01:46 UTC, 6.0 s in.\n";
        assert_eq!(said(vms.clone(), 10), format!("{left}{late}"));
        assert_eq!(said(vms, 4), late, "what comes after the part that is looked at is none of it");
        let many = (0..6).map(|n| vm(&n.to_string(), 100, Some((101, None)))).collect();
        assert_eq!(said(many, 10), "6 VMs ended while they were recorded.\n");
        let web = vm("web", 100, Some((104, Some(EndedBy::OomCgroup))));
        let told =
            "web was KILLED at 00:01:44 UTC, 104.0 s in: its cgroup ran out of memory; see dmesg";
        assert_eq!(ended(&Run::default(), &web), told);
    }

    #[test]
    fn a_crash_and_a_regular_end_are_told_apart() {
        let ended = |exit| {
            let accelerator = Some("kvm".to_owned());
            let vm = vm("web", 100, Some((104, None)));
            let vm = RunVm { exit: Some(exit), accelerator, ..vm };
            ended(&Run::default(), &vm)
        };
        let when = "at 00:01:44 UTC, 104.0 s in";
        let crashed = format!("web CRASHED {when}: it was killed by SIGSEGV");
        assert_eq!(ended(Exit::Signal(11)), crashed);
        assert_eq!(ended(Exit::Status(1)), format!("web CRASHED {when}: it exited with status 1"));
        assert_eq!(ended(Exit::Status(0)), format!("web was shut down or migrated away {when}"));
        let killed = format!("web was killed by SIGKILL {when}, not by the kernel's OOM killer");
        assert_eq!(ended(Exit::Signal(9)), killed);
    }

    #[test]
    fn what_its_manager_says_of_an_end_is_said() {
        let vm = vm("web", 100, Some((104, None)));
        let exit = Some(Exit::Status(0));
        let vm = RunVm { exit, departure: Some(Departure::Migrated), ..vm };
        let told = "web was migrated away at 00:01:44 UTC, 104.0 s in";
        assert_eq!(ended(&Run::default(), &vm), told);
    }

    #[test]
    fn an_end_that_nobody_explains_is_not_said_to_be_regular() {
        let mut run = Run::default();
        run.host_state.kills_unreadable = Some("/dev/kmsg: permission denied".to_owned());
        let told = "web ended at 00:01:44 UTC, 104.0 s in; overcommit could not see whether the \
            kernel killed it because memory ran out (/dev/kmsg: permission denied)";
        assert_eq!(ended(&run, &vm("web", 100, Some((104, None)))), told);
    }
}
