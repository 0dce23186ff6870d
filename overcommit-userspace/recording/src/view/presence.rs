//! VMs that were not there all the time: what they are said to be is of less than the whole run.

use crate::model::run::{EndedBy, Run, RunVm};
use crate::summary::verdict::Fared;
use crate::summary::{Summary, SummaryVm};
use std::fmt::Write;

/// VMs of a kind that are named one by one.
const NAMED: usize = 5;
/// Time after the start in which every VM that runs is found, in seconds.
const FOUND_S: f64 = 2.0;

/// How a VM ended, and when: told at once.
pub fn ended(run: &Run, vm: &RunVm) -> String {
    let after_s = run.after_start_s(vm.ended_us.unwrap_or(0));
    let name = &vm.name;
    match vm.ended_by {
        Some(EndedBy::OomCgroup) => {
            format!(
                "{name} was KILLED after {after_s:.1} s: its cgroup ran out of memory; see dmesg"
            )
        }
        Some(EndedBy::OomHost) => {
            format!("{name} was KILLED after {after_s:.1} s: the host ran out of memory; see dmesg")
        }
        Some(EndedBy::Other) | None => {
            format!("{name} ended after {after_s:.1} s{}", unless_killed(run))
        }
    }
}

/// A line for each VM that ended, other than by being killed, or came late; of many, their number.
pub fn lines(text: &mut String, run: &Run, summary: &Summary) {
    let ended = |vm: &&SummaryVm| vm.ended_s.is_some() && vm.verdict.fared != Fared::Killed;
    let ended: Vec<&SummaryVm> = summary.seen().filter(ended).collect();
    some(text, &ended, "ended while they were recorded", |vm| {
        format!("{} ended after {:.1} s{}", vm.vm, vm.ended_s.unwrap_or(0.0), unless_killed(run))
    });
    let stopped: Vec<&SummaryVm> = summary.seen().filter(|vm| vm.stopped_s > 0.0).collect();
    some(text, &stopped, "were stopped for a while", |vm| {
        format!("{} was stopped for {:.1} s, by SIGSTOP or a debugger", vm.vm, vm.stopped_s)
    });
    let late: Vec<&SummaryVm> = summary.seen().filter(|vm| vm.started_s > FOUND_S).collect();
    some(text, &late, "started during the recording", |vm| {
        format!("{} started after {:.1} s", vm.vm, vm.started_s)
    });
}

/// What is not known of a VM that ended, for all that was seen.
fn unless_killed(run: &Run) -> String {
    let why = run.host_state.kills_unreadable.as_ref();
    why.map_or_else(String::new, |why| {
        format!("; whether the kernel killed it could not be seen ({why})")
    })
}

fn some(text: &mut String, vms: &[&SummaryVm], what: &str, each: impl Fn(&SummaryVm) -> String) {
    if vms.len() > NAMED {
        let _ = writeln!(text, "{} VMs {what}.", vms.len());
        return;
    }
    for vm in vms {
        let _ = writeln!(text, "{}.", each(vm));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::interval::{Interval, Place, VmInterval};
    use crate::summary::Summing;

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
        lines(&mut text, &run, &summing.summary(&run, true, Vec::new()));
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
        let left = "left ended after 7.0 s.\nnewer ended after 6.0 s.\n";
        assert_eq!(said(vms.clone(), 10), format!("{left}{late}"));
        assert_eq!(said(vms, 4), late, "what comes after the part that is looked at is none of it");
        let many = (0..6).map(|n| vm(&n.to_string(), 100, Some((101, None)))).collect();
        assert_eq!(said(many, 10), "6 VMs ended while they were recorded.\n");
        let web = vm("web", 100, Some((104, Some(EndedBy::OomCgroup))));
        let told = "web was KILLED after 104.0 s: its cgroup ran out of memory; see dmesg";
        assert_eq!(ended(&Run::default(), &web), told);
    }

    #[test]
    fn an_end_that_nobody_explains_is_not_said_to_be_regular() {
        let mut run = Run::default();
        run.host_state.kills_unreadable = Some("/dev/kmsg: permission denied".to_owned());
        let told = "web ended after 104.0 s; whether the kernel killed it could not be seen \
            (/dev/kmsg: permission denied)";
        assert_eq!(ended(&run, &vm("web", 100, Some((104, None)))), told);
    }
}
