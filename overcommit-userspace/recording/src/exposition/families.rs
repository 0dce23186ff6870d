//! Which families a scrape has, and their samples.

use super::figures::{Figure, Known, LEFT_OUT};
use super::native::Native;
use super::page::{Family, Labels, Page, Sample};
use super::{Exposition, Vm};
use crate::model::columns::Value;
use crate::model::coverage::{Coverage, MetricCoverage};
use crate::model::metric::{self, BACKING, FAMILIES, MetricName};
use crate::model::run::{Run, RunVm};
use crate::model::state::State;
use crate::recent::{Board, VmRow};
use crate::slo::Judged;
use crate::summary::table::word;
use crate::summary::verdict::Fared;
use overcommit_ebpf::layout::Loss;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Metrics without sums over the host: how often guests leave is their own business.
const BY_VM_ALONE: [&str; 2] = ["exit", "idle"];

type Own = Vec<(&'static str, String)>;

impl Exposition {
    pub(super) fn families(&self, run: &Run, board: &Board) -> Page {
        let mut families = vec![build(run), self.intervals()];
        if self.options.aggregate {
            families.extend(self.sums(run));
        } else {
            families.extend(figures(&self.figures_of_host, &[(Labels::default(), &self.host)]));
            families.extend(self.of_vms(board));
        }
        // Few series: what may be known of each VM is not among them.
        let states = self.states().into_iter();
        families.extend(states.take(if self.options.aggregate { 2 } else { 3 }));
        families.extend(fared(board, self.options.aggregate));
        families.extend(coverage(run, self.unserved, self.options.aggregate));
        families.push(objectives(self, board));
        let mut page = Page { families };
        let [text, _] = page.series();
        page.families.push(gauge(
            "overcommit_series",
            "Number of series on this page, not counting this one, with classic buckets",
            vec![(Labels::default(), Sample::Number(text as f64))],
        ));
        page
    }

    /// Over all VMs.
    fn sums(&self, run: &Run) -> Vec<Family> {
        let since = UNIX_EPOCH + Duration::from_nanos(run.clocks.start.realtime_ns);
        let is_summed = |name: &MetricName| !BY_VM_ALONE.iter().any(|of| name.is_in(of));
        let sums = self.sums.iter().filter(|(name, _)| is_summed(name));
        let of = sums.map(|(name, of)| (Labels::default(), name, of, since));
        let mut families = latencies(of.collect());
        let is_missing = |cause: &Loss| !LEFT_OUT.contains(&&*format!("lost_{}", cause.name()));
        let lost = Loss::ALL.iter().zip(self.lost);
        let lost = lost.filter(|(cause, lost)| *lost > 0 && is_missing(cause));
        let sample = |(cause, lost): (&Loss, u64)| {
            let own = vec![("cause", cause.name().to_owned())];
            (Labels { own, ..Labels::default() }, Sample::Number(lost as f64))
        };
        families.push(Family::new(
            MetricType::Counter,
            "overcommit_not_counted",
            "What happened and was not counted",
            lost.map(sample).collect(),
        ));
        let stalls = [
            (
                "overcommit_vms_stall",
                "Time for which vCPUs of all VMs waited for memory, waits for a CPU in between included",
            ),
            (
                "overcommit_vms_stall_runq",
                "Part of the stall time in which a vCPU was runnable but had no CPU",
            ),
            ("overcommit_vms_vcpu_wall", "vCPUs × time, of all VMs"),
        ];
        families.extend(stalls.iter().zip(self.stalls).map(|((name, help), ns)| Family {
            unit: Some(Unit::Seconds),
            ..Family::new(
                MetricType::Counter,
                name,
                help,
                vec![(Labels::default(), Sample::Number(ns as f64 / 1e9))],
            )
        }));
        families
    }

    fn of_vms(&self, board: &Board) -> Vec<Family> {
        let mut families = vec![self.info(), self.verdicts(board)];
        let each = self.vms.values();
        let of_metrics = each.clone().flat_map(|vm| {
            let named = |(name, of)| (vm.labelled(Vec::new()), name, of, vm.since);
            vm.latencies.iter().map(named)
        });
        families.extend(latencies(of_metrics.collect()));
        let of_figures: Vec<_> = each.map(|vm| (vm.labelled(Vec::new()), &vm.figures)).collect();
        families.extend(figures(&self.figures_of_vms, &of_figures));
        families.push(state_set(
            "overcommit_vm_swap_state",
            "How much swapping hurts the VM: 1 for the state now",
            self.vms
                .values()
                .filter(|vm| vm.seen_ns == self.now_ns)
                .map(|vm| (Some(vm), vm.swap_state)),
        ));
        families
    }

    fn intervals(&self) -> Family {
        Family::new(
            MetricType::Counter,
            "overcommit_intervals",
            "Completed intervals; nothing is measured while this does not grow",
            vec![(Labels::default(), Sample::Number(self.intervals as f64))],
        )
    }

    fn info(&self) -> Family {
        let samples = self.vms.values().map(|vm| (vm.labelled(vm.about.clone()), Sample::Info));
        Family::new(
            MetricType::Info,
            "overcommit_vm",
            "Labels that describe each VM",
            samples.collect(),
        )
    }

    fn verdicts(&self, board: &Board) -> Family {
        let of = |row: &VmRow| {
            let vm = self.vms.get(&row.vm_id)?;
            let labels = vec![
                ("verdict", spelled(word(Some(&row.verdict.fared)))),
                ("cause", spelled(word(row.verdict.cause.as_ref()))),
            ];
            Some((vm.labelled(labels), Sample::Number(1.0)))
        };
        // A process that has become another VM is there twice: the worst counts, which comes first.
        let mut told = BTreeSet::new();
        let rows = board.vms.iter().filter(|row| told.insert(&row.vm_id));
        gauge(
            "overcommit_vm_verdict",
            "How the VM fared over the last minute, and why: always 1",
            rows.filter_map(of).collect(),
        )
    }

    fn states(&self) -> [Family; 3] {
        let host = &self.last;
        let overcommit = host.overcommit.map(|sum| sum.state).unwrap_or_default();
        [
            state_set(
                "overcommit_host_swap_state",
                "How much the host's swapping hurts: 1 for the state now",
                [(None, host.swap.state)].into_iter(),
            ),
            state_set(
                "overcommit_host_overcommit_state",
                "How near the host is to the edge: 1 for the state now",
                [(None, overcommit)].into_iter(),
            ),
            state_set(
                "overcommit_host_balloon_state",
                "How hard the host takes memory back: 1 for the state now",
                [(None, host.balloon)].into_iter(),
            ),
        ]
    }
}

impl Vm {
    fn labelled(&self, own: Own) -> Labels {
        Labels { of_vm: self.labels.clone(), own }
    }
}

/// What else is known of a VM; the words are those of libvirt's exporters, where they have some.
pub(super) fn about(vm: &RunVm) -> Own {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    vec![
        ("domain", vm.name.clone()),
        ("pid", vm.pid.to_string()),
        ("executable", vm.executable.clone()),
        ("accelerator", text(&vm.accelerator)),
        ("cgroup", text(&vm.cgroup)),
        ("proxmox_id", text(&vm.proxmox_id)),
    ]
}

fn build(run: &Run) -> Family {
    let labels = vec![
        ("version", run.tool_version.clone()),
        ("backend", run.backend.name.clone()),
        ("kernel", run.kernel.clone()),
    ];
    Family::new(
        MetricType::Info,
        "overcommit_build",
        "Version of overcommit, and where faults are seen",
        vec![(Labels { own: labels, ..Labels::default() }, Sample::Info)],
    )
}

/// What a family of metrics is called here, the label that tells its members apart, and a sentence
/// that stands alone.
fn spelling(of: &'static metric::Family) -> (String, Option<&'static str>, &'static str) {
    let (base, label, help) = match of.name {
        "fault" => (
            "fault",
            Some("kind"),
            "Page faults, start to completion; minor and major by the kernel's own rule",
        ),
        BACKING => {
            ("fault_backing", Some("backing"), "Page faults by what they took, start to completion")
        }
        "exit" => ("exit", Some("reason"), of.about),
        "stall.memory" => ("", None, "From an exit for memory to the next entry of that vCPU"),
        "idle" => (
            "",
            None,
            "From a halt to the next entry of that vCPU, unless the halt waits for memory",
        ),
        "reclaim" => ("", None, "Direct, memory cgroup or node reclaim, by or for a VM"),
        "memory.high" => ("", None, "Time for which memory.high held a thread of a VM back"),
        _ => ("", None, of.about),
    };
    (if base.is_empty() { of.name.replace('.', "_") } else { base.to_owned() }, label, help)
}

/// One histogram for each, those of one family together.
fn latencies(all: Vec<(Labels, &MetricName, &Native, SystemTime)>) -> Vec<Family> {
    let mut families = BTreeMap::<usize, Family>::new();
    for (mut labels, name, latencies, since) in all {
        let mut known = FAMILIES.iter().enumerate();
        let Some((place, of)) = known.find(|(_, family)| name.is_in(family.name)) else { continue };
        let member = name.as_str().strip_prefix(of.name).map(|rest| rest.trim_start_matches('.'));
        let (base, label, help) = spelling(of);
        labels.own.extend(label.zip(member.map(str::to_owned)));
        let family = families.entry(place).or_insert_with(|| Family {
            unit: Some(Unit::Seconds),
            ..Family::new(
                MetricType::Histogram,
                &format!("overcommit_{base}_duration"),
                help,
                Vec::new(),
            )
        });
        family.samples.push((labels, Sample::Latencies(latencies.clone(), since)));
    }
    families.into_values().collect()
}

/// Each figure of several records; those alike are one family.
fn figures<T>(all: &[Figure<T>], of: &[(Labels, &Vec<Option<Known>>)]) -> Vec<Family> {
    let mut families = Vec::<Family>::new();
    for (place, figure) in all.iter().enumerate() {
        let samples = of.iter().filter_map(|(labels, values)| {
            let mut labels = labels.clone();
            labels.own.extend(figure.label.clone());
            Some((labels, Sample::Number((*values.get(place)?)?.number)))
        });
        match families.iter_mut().find(|family| family.name == figure.name) {
            Some(family) => family.samples.extend(samples),
            None => families.push(Family {
                name: figure.name.clone(),
                help: figure.help.clone(),
                unit: figure.unit.clone(),
                kind: figure.kind,
                samples: samples.collect(),
            }),
        }
    }
    families
}

/// A sample for each state that one can be in.
fn state_set<'a, S: State>(
    name: &str,
    help: &str,
    of: impl Iterator<Item = (Option<&'a Vm>, S)>,
) -> Family {
    let samples = of.flat_map(|(vm, is)| {
        S::ALL.iter().map(move |state| {
            let own = vec![("state", state.name().to_owned())];
            let labels = match vm {
                Some(vm) => vm.labelled(own),
                None => Labels { own, ..Labels::default() },
            };
            (labels, Sample::Number(f64::from(u8::from(*state == is))))
        })
    });
    gauge(name, help, samples.collect())
}

/// How many VMs fared how; `only_some` leaves out what none did.
fn fared(board: &Board, only_some: bool) -> [Family; 2] {
    let all = [
        Fared::Ok,
        Fared::Unseen,
        Fared::Starved,
        Fared::Slowed,
        Fared::Thrashed,
        Fared::Crashed,
        Fared::Killed,
    ];
    let count = |fared: Fared| {
        let vms = board.vms.iter().filter(|row| row.verdict.fared == fared).count();
        let own = vec![("verdict", spelled(word(Some(&fared))))];
        let labels = Labels { own, ..Labels::default() };
        (!only_some || vms > 0).then_some((labels, Sample::Number(vms as f64)))
    };
    let running = board.vms.iter().filter(|row| row.is_running).count();
    [
        gauge(
            "overcommit_vms",
            "VMs seen in the last minute, by how they fared",
            all.into_iter().filter_map(count).collect(),
        ),
        gauge(
            "overcommit_vms_running",
            "VMs that were measured in the last interval",
            vec![(Labels::default(), Sample::Number(running as f64))],
        ),
    ]
}

/// How much is seen of each metric, unless all of it is and that goes without saying; and how many
/// VMs are not.
fn coverage(run: &Run, unserved: u64, is_full_known: bool) -> [Family; 2] {
    let of = |metric: &MetricCoverage| {
        let own = vec![
            ("metric", metric.metric.clone()),
            ("coverage", metric.coverage.name().to_owned()),
        ];
        (Labels { own, ..Labels::default() }, Sample::Number(1.0))
    };
    let seen = run.coverage.iter();
    let seen = seen.filter(|of| !is_full_known || of.coverage != Coverage::Full);
    let unserved = Sample::Number(unserved as f64);
    [
        gauge(
            "overcommit_metric_coverage",
            "How much is seen of each metric: always 1",
            seen.map(of).collect(),
        ),
        Family::new(
            MetricType::Counter,
            "overcommit_vms_not_recorded",
            "VMs of which nothing was counted because every place was taken",
            vec![(Labels::default(), unserved)],
        ),
    ]
}

fn objectives(of: &Exposition, board: &Board) -> Family {
    let is_aggregate = of.options.aggregate;
    // A VM that is gone is judged as long as the run knows it.
    let running: BTreeSet<&str> =
        board.vms.iter().filter(|row| row.is_running).map(|row| row.vm_id.as_str()).collect();
    let judged = board
        .objectives
        .iter()
        .filter(|judged| judged.vm_id.as_ref().is_none_or(|id| running.contains(id.as_str())));
    let labels = |judged: &Judged| {
        let own = vec![
            ("objective", judged.objective.clone()),
            ("verdict", spelled(word(Some(&judged.verdict)))),
        ];
        let vm = judged.vm_id.as_ref().and_then(|id| of.vms.get(id));
        vm.filter(|_| !is_aggregate).map_or_else(
            || Labels { own: own.clone(), ..Labels::default() },
            |vm| vm.labelled(own.clone()),
        )
    };
    let mut counts = BTreeMap::<Labels, usize>::new();
    judged.for_each(|judged| *counts.entry(labels(judged)).or_default() += 1);
    // An objective that was given twice is one.
    let number = |count: usize| if is_aggregate { count as f64 } else { 1.0 };
    let samples = counts.into_iter().map(|(labels, count)| (labels, Sample::Number(number(count))));
    gauge(
        "overcommit_objective",
        "Objectives over the last minute, by verdict; with --aggregate, the number of VMs",
        samples.collect(),
    )
}

fn gauge(name: &str, help: &str, samples: Vec<(Labels, Sample)>) -> Family {
    Family::new(MetricType::Gauge, name, help, samples)
}

fn spelled(value: Value) -> String {
    match value {
        Value::Word(word) => word.to_owned(),
        Value::Text(text) => text,
        _ => String::new(),
    }
}
