//! VMs that were not there all the time: what they are said to be is of less than the whole run,
//! and one that was killed matters more than any figure.

use crate::model::run::{EndedBy, Run, RunVm};
use std::fmt::Write;

/// VMs of a kind that are named one by one.
const NAMED: usize = 5;
/// Time after the start in which every VM that runs is found, in microseconds.
const FOUND_US: u64 = 2_000_000;

/// How a VM ended, and when.
pub fn ended(run: &Run, vm: &RunVm) -> String {
    let after_s = run.after_start_s(vm.ended_us.unwrap_or(0));
    match vm.ended_by {
        Some(EndedBy::OomCgroup) => {
            format!("{} was KILLED after {after_s:.1} s: its cgroup ran out of memory", vm.name)
        }
        Some(EndedBy::OomHost) => {
            format!("{} was KILLED after {after_s:.1} s: the host ran out of memory", vm.name)
        }
        Some(EndedBy::Other) | None => format!("{} ended after {after_s:.1} s", vm.name),
    }
}

/// A line for each VM that ended, other than by being killed, or came late; of many, their number.
pub fn lines(text: &mut String, run: &Run) {
    let has_ended = |vm: &&RunVm| vm.ended_us.is_some() && vm.ended_by.is_none();
    let ended_itself: Vec<&RunVm> = run.vms.iter().filter(has_ended).collect();
    some(text, &ended_itself, "ended while they were recorded", |vm| ended(run, vm));
    let start_us = run.clocks.start.realtime_ns / 1_000;
    let late: Vec<&RunVm> =
        run.vms.iter().filter(|vm| vm.first_seen_us > start_us + FOUND_US).collect();
    some(text, &late, "started during the recording", |vm| {
        format!("{} started after {:.1} s", vm.name, run.after_start_s(vm.first_seen_us))
    });
}

fn some(text: &mut String, vms: &[&RunVm], what: &str, each: impl Fn(&RunVm) -> String) {
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

    fn vm(name: &str, first_seen_s: u64, ended: Option<(u64, Option<EndedBy>)>) -> RunVm {
        RunVm {
            name: name.to_owned(),
            first_seen_us: first_seen_s * 1_000_000,
            ended_us: ended.map(|(s, _)| s * 1_000_000),
            ended_by: ended.and_then(|(_, by)| by),
            ..RunVm::default()
        }
    }

    fn said(vms: Vec<RunVm>) -> String {
        let mut run = Run { vms, ..Run::default() };
        run.clocks.start.realtime_ns = 100_000_000_000;
        let mut text = String::new();
        lines(&mut text, &run);
        text
    }

    #[test]
    fn who_was_not_there_all_the_time_is_named() {
        let vms = vec![
            vm("left", 100, Some((107, None))),
            vm("late", 103, None),
            vm("web", 100, Some((104, Some(EndedBy::OomCgroup)))),
            vm("db", 100, Some((109, Some(EndedBy::OomHost)))),
            vm("calm", 101, None),
        ];
        assert_eq!(
            said(vms),
            "left ended after 7.0 s.\n\
             late started after 3.0 s.\n"
        );
        let web = vm("web", 100, Some((104, Some(EndedBy::OomCgroup))));
        let run = Run::default();
        let said_at_once = "web was KILLED after 104.0 s: its cgroup ran out of memory";
        assert_eq!(ended(&run, &web), said_at_once);
        let many = (0..6).map(|n| vm(&n.to_string(), 100, Some((101, None)))).collect();
        assert_eq!(said(many), "6 VMs ended while they were recorded.\n");
    }
}
