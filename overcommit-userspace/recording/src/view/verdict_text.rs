//! What became of each VM, the worst first: the first lines of a report.

use crate::format::text::percent;
use crate::model::exit::Exit;
use crate::model::run::EndedBy;
use crate::summary::verdict::{Fared, worst_first};
use crate::summary::{Summary, SummaryVm};
use crate::view::presence::when;
use crate::view::style::{bad, strong};
use crate::view::{fitted, wrapped};
use std::fmt::Write;

/// Columns of a name, at the most.
const NAME: usize = 20;

/// A paragraph for each VM that fared badly, and a line for all others.
pub fn lines(text: &mut String, summary: &Summary, name: impl Fn(&SummaryVm) -> String) {
    let of = |fared: Fared| summary.seen().filter(move |vm| vm.verdict.fared == fared);
    let (ok, unseen): (Vec<_>, Vec<_>) = (of(Fared::Ok).collect(), of(Fared::Unseen).collect());
    let mut bad: Vec<&SummaryVm> =
        summary.seen().filter(|vm| vm.verdict.fared > Fared::Unseen).collect();
    bad.sort_by(|a, b| worst_first(a, b));
    let names: Vec<String> = bad.iter().map(|vm| short(&name(vm))).collect();
    let width = names.iter().map(|name| textwrap::core::display_width(name)).max().unwrap_or(0);
    let indent = " ".repeat(width + 2);
    for (vm, name) in bad.iter().zip(&names) {
        let pad = " ".repeat(width - textwrap::core::display_width(name) + 2);
        let first = format!("{}{pad}", strong(name));
        let _ = writeln!(text, "{}", wrapped(&said(vm), &first, &indent));
        if let Some(advice) = &vm.verdict.advice {
            let _ = writeln!(text, "{}", wrapped(&format!("Try: {advice}."), &indent, &indent));
        }
    }
    let are_all = |vms: &[&SummaryVm]| vms.len() == summary.seen().count();
    if let Some(who) = some(&unseen, are_all(&unseen), &name) {
        let why = "not judged: vCPU threads, or too many page faults, were not seen.";
        let _ = writeln!(text, "{}", wrapped(&format!("{who}: {why}"), "", "  "));
    }
    let worst = ok.iter().map(|vm| vm.loss()).fold(0.0, f64::max);
    if let Some(who) = some(&ok, are_all(&ok), &name) {
        let lost = match ok.len() {
            1 => losses(ok[0]),
            _ => format!(
                "none waited more than {} of its vCPU time for memory or a CPU",
                percent(worst)
            ),
        };
        let _ = writeln!(text, "{}", wrapped(&format!("{who}: OK, {lost}."), "", "  "));
    }
}

/// A single VM by its name, several by their number.
fn some(vms: &[&SummaryVm], are_all: bool, name: &impl Fn(&SummaryVm) -> String) -> Option<String> {
    match vms {
        [] => None,
        [vm] => Some(name(vm)),
        many if are_all => Some(format!("All {} VMs", many.len())),
        many => Some(format!("{} other VMs", many.len())),
    }
}

/// How it fared, and why.
pub fn said(vm: &SummaryVm) -> String {
    let why = vm.verdict.why.as_deref().unwrap_or("not known");
    format!("{}. Cause: {why}.", what(vm))
}

/// How it fared: a word, and what it lost.
pub fn what(vm: &SummaryVm) -> String {
    let losses = losses(vm);
    match (vm.verdict.fared, vm.ended_by) {
        (fared @ (Fared::Killed | Fared::Crashed), by) => {
            let how = match by.and_then(EndedBy::short) {
                Some(short) => format!("{short} ran out of memory"),
                None => format!("it {}", vm.exit.map(Exit::words).unwrap_or_default()),
            };
            let when = when(vm.ended_unix_s.unwrap_or(0.0), vm.ended_s.unwrap_or(0.0));
            format!("{} {when}: {how}. Until then it {losses}", bad(fared.word()))
        }
        (fared, _) => format!("{}: {losses}", bad(fared.word())),
    }
}

/// What it lost, the larger part first.
fn losses(vm: &SummaryVm) -> String {
    if vm.stall.is_none() {
        return "lost an unknown part of its vCPU time".to_owned();
    }
    let (stall, cpu) = (vm.stall_share(), vm.cpu_share());
    let memory = format!("lost {} of its vCPU time to memory", percent(stall));
    let no_cpu = format!("spent {} waiting for a CPU", percent(cpu));
    match vm.cpu_wait {
        None => memory,
        Some(_) if cpu > stall => format!(
            "spent {} of its vCPU time waiting for a CPU and lost {} to memory",
            percent(cpu),
            percent(stall)
        ),
        Some(_) => format!("{memory} and {no_cpu}"),
    }
}

/// A name, cut if it is long.
pub fn short(name: &str) -> String {
    fitted(name, NAME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::evictions::{Aggressor, AggressorClass, Eviction, EvictionCounts};
    use crate::model::interval::{HostInterval, Interval, Place, Stall, StallSource, VmInterval};
    use crate::model::memory::MemoryUse;
    use crate::model::run::{EvictionSight, Run, RunVm};
    use crate::model::state::StateTimes;
    use crate::model::swap::{HostSwap, Memory, SwapState, VmSwap};
    use crate::summary::{Marks, Summing};
    use crate::view::style::plain;

    const MIB: u64 = 1 << 20;

    fn interval(vm: usize, stall: u64, cpu: u64, state: SwapState) -> VmInterval {
        let (source, vcpu_ns) = (StallSource::Faults, 1_000);
        let stall = Some(Stall { waited_ns: stall, vcpu_ns, source, ..Stall::default() });
        let times = StateTimes::of(state, 1_000_000_000);
        let swap = VmSwap { state, times, limit: Some(128 * MIB), rates: None };
        let (resident, swapped) = (128 * MIB, 79 * MIB);
        let memory = Some(MemoryUse { resident, swapped, ..MemoryUse::default() });
        VmInterval { vm, stall, cpu_wait_ns: Some(cpu), swap, memory, ..VmInterval::default() }
    }

    /// What is said of VMs by these names, one of which took pages of another; the one called
    /// doomed was killed.
    fn told(vms: Vec<(&str, VmInterval)>, took: (&str, usize)) -> String {
        let named = |(name, _): &(&str, VmInterval)| {
            let is_killed = *name == "doomed";
            RunVm {
                vm_id: format!("{name}-1"),
                name: (*name).to_owned(),
                ended_us: is_killed.then_some(4_000_000),
                ended_by: is_killed.then_some(EndedBy::OomCgroup),
                ..RunVm::default()
            }
        };
        let mut run =
            Run { vms: vms.iter().map(named).collect(), page_size: 4096, ..Run::default() };
        run.recorded.intervals = 1;
        run.evictions = Some(EvictionSight::default());
        let (id, name) = (format!("{}-1", took.0), took.0.to_owned());
        let aggressor = Aggressor { class: AggressorClass::Vm, id, name };
        let counts = EvictionCounts { written_pages: 9_000, ..EvictionCounts::default() };
        let evictions = vec![Eviction { victim: Some(took.1), aggressor, counts }];
        let available = Some(22 << 30);
        let memory = Some(Memory { total: 24 << 30, available, ..Memory::default() });
        let swap = HostSwap { memory, ..HostSwap::default() };
        let host = HostInterval { swap, ..HostInterval::default() };
        let mut summing = Summing::new(&run);
        let place = Place { length_ns: 5_000_000_000, ..Place::default() };
        let vms = vms.into_iter().map(|(_, vm)| vm).collect();
        summing.add(&Interval { place, host, vms, evictions });
        let mut text = String::new();
        lines(&mut text, &summing.summary(&run, Marks::default(), Vec::new()), |vm| vm.vm.clone());
        plain(&text)
    }

    /// Of five VMs, each of which fares otherwise.
    fn said() -> String {
        let vms = vec![
            ("calm", interval(0, 0, 1, SwapState::Healthy)),
            ("squeezed", interval(1, 833, 36, SwapState::Thrashing)),
            ("waiting", interval(2, 5, 400, SwapState::Healthy)),
            ("doomed", interval(3, 900, 10, SwapState::Thrashing)),
            ("quiet", interval(4, 2, 1, SwapState::Healthy)),
        ];
        told(vms, ("squeezed", 1))
    }

    /// Without a limit of its own.
    fn unlimited(mut vm: VmInterval) -> VmInterval {
        vm.swap.limit = None;
        vm
    }

    /// Without its figures and ends of lines.
    fn masked(text: &str) -> String {
        let text = text.replace(|letter: char| letter.is_ascii_digit(), "");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_readme_shows_what_is_said() {
        let readme = include_str!("../../../../README.md");
        let shown = |name: &str| {
            let begin = format!("    {name}  ");
            let block = readme.split("\n\n").find(|block| block.starts_with(&begin));
            let block = block.unwrap_or_else(|| panic!("nothing of {name}"));
            block.split("    calm").next().unwrap()
        };
        for name in ["squeezed", "waiting"] {
            assert!(masked(&said()).contains(&masked(shown(name))), "{}", shown(name));
        }
        let thrashes = || unlimited(interval(0, 529, 17, SwapState::Thrashing));
        let slowed = interval(1, 31, 2, SwapState::Healthy);
        let by_itself = told(vec![("batch-07", thrashes())], ("batch-07", 0));
        let by_other = told(vec![("batch-07", thrashes()), ("web-01", slowed)], ("batch-07", 1));
        let (batch, web) = shown("batch-07").split_once("    web-01").unwrap();
        assert!(masked(&by_itself).contains(&masked(batch)), "{by_itself}");
        assert!(masked(&by_other).contains(&masked(&format!("web-01{web}"))), "{by_other}");
        let killed = unlimited(interval(0, 44, 0, SwapState::Healthy));
        let killed = told(vec![("doomed", killed)], ("doomed", 0));
        assert!(masked(&killed).contains(&masked(shown("doomed"))), "{killed}");
    }

    #[test]
    fn the_worst_comes_first_and_who_is_ok_last() {
        assert_eq!(
            said(),
            "\
doomed    KILLED at 00:00:04 UTC, 4.0 s in: its cgroup ran out of memory. Until
          then it lost 90.0 % of its vCPU time to memory and spent 1.0 % waiting
          for a CPU. Cause: its cgroup's own limit of 128.0 MiB, not the host
          (never less than 22.0 GiB available).
          Try: raise its limit (memory.max; hard_limit in libvirt) above
          128.0 MiB, or give the guest less memory.
squeezed  THRASHED: lost 83.3 % of its vCPU time to memory and spent 3.6 %
          waiting for a CPU. Cause: its cgroup's own limit of 128.0 MiB, not the
          host (never less than 22.0 GiB available).
          Try: raise its limit (memory.max; hard_limit in libvirt) to 208.0 MiB
          or more, or give the guest less memory.
waiting   SLOWED: spent 40.0 % of its vCPU time waiting for a CPU and lost 0.5 %
          to memory. Cause: too few CPUs, or a CPU quota.
          Try: raise its CPU quota if its cgroup has one (cpu.max), run fewer
          vCPUs on this host, or move a VM to another.
2 other VMs: OK, none waited more than 0.2 % of its vCPU time for memory or a
  CPU.
"
        );
    }

    #[test]
    fn a_long_name_is_cut() {
        assert_eq!(short("a-name-of-twenty-cha"), "a-name-of-twenty-cha");
        assert_eq!(short("a-name-of-twenty-char"), "a-name-of-twenty-ch…");
    }
}
