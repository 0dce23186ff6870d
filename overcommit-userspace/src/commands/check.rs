//! `overcommit check`

use crate::commands::{FAILED, require_hosts_pids, require_readable, require_root, self_test};
use crate::host::inventory::Inventory;
use crate::host::oom::OomKills;
use crate::host::working_set::{Capabilities, Wanted as WantedSource};
use crate::kernel;
use crate::kernel::capability::{self, CapabilitySet};
use crate::probes::decide::{Backend, Wanted, decide, refusal};
use crate::probes::footprint::KernelMemory;
use crate::probes::host::{HostProbe, Kind, Trial};
use crate::probes::object::Sizes;
use crate::probes::sight::Sight;
use crate::probes::{Kernel, Probes, sight, tracefs};
use crate::sampler::roster::Selection;
use crate::session::Want;
use crate::terminal::{print, print_json};
use crate::vm::Discovery;
use crate::vm::owner::Room;
use anyhow::{Result, anyhow};
use overcommit_recording::format::text::readable_bytes;
use overcommit_recording::model::coverage::{Coverage, MetricCoverage, absent};
use overcommit_recording::model::memory::Source;
use overcommit_recording::model::run::HookState;
use overcommit_recording::slo::judge::NOT_JUDGED;
use overcommit_recording::view::facts;
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Capabilities that matter, and what for.
const CAPABILITIES: [(&str, CapabilitySet, &str); 7] = [
    ("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN, "cgroups, tracefs"),
    ("CAP_BPF", CapabilitySet::BPF, "eBPF"),
    ("CAP_PERFMON", CapabilitySet::PERFMON, "kernel memory, perf events of all processes"),
    ("CAP_SYS_PTRACE", CapabilitySet::SYS_PTRACE, "other processes' descriptors and memory maps"),
    ("CAP_DAC_READ_SEARCH", CapabilitySet::DAC_READ_SEARCH, "tracefs, where only root may read it"),
    ("CAP_CHECKPOINT_RESTORE", CapabilitySet::CHECKPOINT_RESTORE, "which memory is in huge pages"),
    (
        "CAP_SYSLOG",
        CapabilitySet::SYSLOG,
        "VMs that the kernel kills, if kernel.dmesg_restrict is 1",
    ),
];

/// Options of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Also print everything that was tried, and the coverage of each metric
    #[arg(short, long)]
    verbose: bool,
    /// Prove that what is counted on this host is right: a process takes faults of known number,
    /// kind and length under each backend (some seconds)
    #[arg(long, conflicts_with = "verbose")]
    self_test: bool,
}

/// How much of the VMs can be recorded on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Reach {
    /// Every metric, and measured working sets.
    Full,
    /// Some metrics are absent, or working sets are bounds.
    Part,
    /// Nothing: no backend is allowed.
    Nothing,
}

impl Reach {
    const fn code(self) -> u8 {
        match self {
            Self::Full => 0,
            Self::Part => NOT_JUDGED,
            Self::Nothing => FAILED,
        }
    }
}

/// All that `check` finds.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    reach: Reach,
    kernel: String,
    /// Why there is no usable BTF.
    btf_missing: Option<String>,
    /// Kernel fields that the programs need and BTF lacks.
    layout_missing: Option<String>,
    kvm: Kvm,
    tracefs: Option<PathBuf>,
    /// Why there is none.
    tracefs_missing: Option<String>,
    capabilities: Vec<Capability>,
    programs: Vec<Trial>,
    backends: Vec<BackendReport>,
    /// How kernel code is preempted, if it is: trampolines miss calls then.
    preemption: Option<String>,
    /// The kernel's functions that the backend hooks.
    hooks: Vec<HookState>,
    /// What `--backend auto` takes.
    auto: Option<Backend>,
    coverage: Vec<MetricCoverage>,
    /// Why it cannot be seen that the kernel kills a VM, if so.
    kills_unreadable: Option<String>,
    /// What working sets can be measured with.
    working_sets: [WorkingSetSource; 2],
    /// What the host has, and which VMs run on it.
    host: Inventory,
    /// What it takes to record them; `None` where no backend is allowed.
    kernel_memory: Option<KernelMemory>,
}

#[derive(Serialize)]
struct WorkingSetSource {
    source: Source,
    /// Why it cannot be used.
    refused: Option<String>,
}

#[derive(Serialize)]
struct Kvm {
    device: bool,
    tracepoints: bool,
}

#[derive(Serialize)]
struct Capability {
    name: &'static str,
    held: bool,
    purpose: &'static str,
}

#[derive(Serialize)]
struct BackendReport {
    backend: Backend,
    /// Why it cannot be used.
    refused: Option<String>,
}

/// Prints what this host can give.
///
/// # Errors
/// Not root, in a PID namespace of its own, or /proc cannot be read.
pub fn run(args: &Args) -> Result<ExitCode> {
    require_root()?;
    require_hosts_pids()?;
    if args.self_test {
        return self_test::run(args.json);
    }
    let report = look()?;
    if args.json {
        print_json(&report)?;
    } else {
        print(&summary(&report))?;
        print(&if args.verbose { details(&report) } else { NEXT.to_owned() })?;
    }
    Ok(ExitCode::from(report.reach.code()))
}

fn look() -> Result<Report> {
    let mut discovery = Discovery::new("/proc");
    let vms = discovery.scan()?;
    require_readable(&discovery)?;
    let kernel = Kernel::read();
    let host = HostProbe::run(kernel.as_ref().map_err(|error| anyhow!("{error:#}")), &Kind::ALL);
    let auto = decide(&host, Wanted::Auto).ok().map(|decision| decision.backend);
    let layout = kernel.as_ref().ok().map(|kernel| kernel.layout.offsets());
    let (tracefs, tracefs_missing) = match tracefs::mount_point() {
        Ok(path) => (Some(path), None),
        Err(error) => (None, Some(error.to_string())),
    };
    // Attached for a moment, for what only attaching tells.
    let sight = match (kernel.as_ref(), auto) {
        (Ok(kernel), Some(backend)) => {
            Probes::attach(kernel, backend, &[], Sizes::TRIAL)?.0.sight()
        }
        _ => Sight::none(sight::NO_BACKEND),
    };
    let backends = Backend::ALL
        .map(|backend| BackendReport { backend, refused: refusal(&host, backend) })
        .into();
    let coverage = sight::declared(&sight);
    let working_sets =
        working_sets(kernel.as_ref().is_ok_and(|kernel| kernel.layout.mglru_sees_guests));
    let want = Want::new(&Selection::default(), Room::for_vms(&vms, |vm| discovery.login_user(vm)));
    let memory = |backend| KernelMemory::for_vms(want.sizes(backend)?, vms.len());
    let kernel_memory = auto.map(memory).transpose()?;
    let reach = match auto {
        None => Reach::Nothing,
        Some(_) if absent(&coverage).is_empty() && is_measured(&working_sets) => Reach::Full,
        Some(_) => Reach::Part,
    };
    Ok(Report {
        schema: "overcommit.check/1",
        reach,
        kernel: kernel::release()?,
        layout_missing: layout.and_then(Result::err).map(|error| format!("{error:#}")),
        kvm: Kvm {
            device: Path::new("/dev/kvm").exists(),
            tracepoints: tracefs.as_ref().is_some_and(|root| root.join("events/kvm").exists()),
        },
        tracefs,
        tracefs_missing,
        capabilities: capabilities()?,
        programs: host.trials,
        btf_missing: host.btf,
        backends,
        auto,
        hooks: sight.hooks.clone(),
        preemption: host.preemption,
        coverage,
        kills_unreadable: OomKills::follow().1,
        working_sets,
        host: Inventory::read(Path::new("/proc"), Path::new("/sys"), &vms),
        kernel_memory,
    })
}

fn working_sets(mglru_sees_guests: bool) -> [WorkingSetSource; 2] {
    let can = Capabilities::probe(Path::new("/sys"), WantedSource::Auto, mglru_sees_guests);
    [(Source::Damon, can.damon), (Source::Mglru, can.mglru)]
        .map(|(source, can)| WorkingSetSource { source, refused: can.err() })
}

fn is_measured(sources: &[WorkingSetSource]) -> bool {
    sources.iter().any(|source| source.refused.is_none())
}

fn capabilities() -> Result<Vec<Capability>> {
    let held = capability::held()?;
    let capability = |(name, one, purpose)| Capability { name, held: held.contains(one), purpose };
    Ok(CAPABILITIES.into_iter().map(capability).collect())
}

/// How the summary ends.
const NEXT: &str = "\nDetails:                               overcommit check -v
Verify the counters against this kernel: overcommit check --self-test\n";

/// Whether this host can be recorded, what is not seen then, and why. Writing to a String cannot
/// fail.
fn summary(report: &Report) -> String {
    let how = match report.reach {
        Reach::Full => "can be recorded in full",
        Reach::Part => "can be recorded in part",
        Reach::Nothing => "cannot be recorded",
    };
    let by = report.auto.map_or_else(String::new, |backend| format!(" with backend {backend}"));
    let mut out = format!("VMs on this host {how}{by} (Linux {}).\n", report.kernel);
    let is_measured = is_measured(&report.working_sets);
    let mut gaps: Vec<(String, String)> = Vec::new();
    if report.reach == Reach::Part {
        gaps = facts::absent(&report.coverage);
        let bounds = ("measured working sets".to_owned(), "bounds are given instead".to_owned());
        gaps.extend((!is_measured).then_some(bounds));
    }
    if report.auto == Some(Backend::Perf) && report.kvm.device {
        let faults = "KVM resolves most faults of a guest itself; their time is in stall.memory";
        gaps.push(("most fault.minor, fault.major of VMs on KVM".to_owned(), faults.to_owned()));
    }
    let kills = report.kills_unreadable.iter();
    gaps.extend(kills.map(|why| ("VMs that the kernel kills".to_owned(), why.clone())));
    facts::list(&mut out, "Not seen", &gaps);
    let backends = report.backends.iter().map(|by| (by.backend.name(), by.refused.as_deref()));
    let better = backends.take_while(|(_, refused)| refused.is_some());
    let sources = report.working_sets.iter().filter(|_| !is_measured);
    let sources = sources.map(|by| (by.source.name(), by.refused.as_deref()));
    let refused = better.chain(sources);
    let refused = refused.filter_map(|(name, why)| Some((name.to_owned(), why?.to_owned())));
    facts::list(&mut out, "In the way", &refused.collect::<Vec<_>>());
    let mut facts = report.host.facts();
    let memory = report.kernel_memory.map(|memory| {
        let [start, most] = [memory.start_bytes, memory.most_bytes].map(readable_bytes);
        format!("takes {start} of kernel memory at the start, {most} at most")
    });
    facts.add("recording", memory);
    facts.write(&mut out, "Host");
    out
}

/// All of the report as people read it. Writing to a String cannot fail.
fn details(report: &Report) -> String {
    let mut out = "\n".to_owned();
    let missing =
        |reason: &Option<String>| reason.as_ref().map_or("yes".to_owned(), |r| format!("no: {r}"));
    let _ = writeln!(out, "Kernel        {}", report.kernel);
    let _ = writeln!(out, "BTF           {}", missing(&report.btf_missing));
    let _ = writeln!(out, "Kernel fields {}", missing(&report.layout_missing));
    let _ = writeln!(out, "/dev/kvm      {}", if report.kvm.device { "yes" } else { "no" });
    match &report.tracefs {
        Some(path) => {
            let kvm = if report.kvm.tracepoints { "with" } else { "without" };
            let _ = writeln!(out, "tracefs       {}, {kvm} tracepoints of kvm", path.display());
        }
        None => {
            let _ = writeln!(out, "tracefs       {}", missing(&report.tracefs_missing));
        }
    }
    let preemption = report.preemption.as_deref().unwrap_or("none in kernel code");
    let _ = writeln!(out, "Preemption    {preemption}");
    let _ = writeln!(out, "\nCapabilities");
    for capability in &report.capabilities {
        let held = if capability.held { "yes" } else { "no " };
        let _ = writeln!(out, "  {:<22} {held}  {}", capability.name, capability.purpose);
    }
    let _ = writeln!(out, "\nPrograms, one of each kind tried");
    for trial in &report.programs {
        let _ = writeln!(out, "  {:<16} {}", trial.kind.name(), missing(&trial.refusal));
    }
    let _ = writeln!(out, "\nBackends");
    for backend in &report.backends {
        let taken = if report.auto == Some(backend.backend) { "  <- auto" } else { "" };
        let _ =
            writeln!(out, "  {:<16} {}{taken}", backend.backend.name(), missing(&backend.refused));
    }
    if !report.hooks.is_empty() {
        let _ = writeln!(out, "\nHooks on the kernel's functions");
    }
    for hook in &report.hooks {
        let how = match (&hook.function, &hook.by, &hook.missing) {
            (Some(function), Some(by), None) => format!("{function} by {by}"),
            (.., missing) => missing.clone().unwrap_or_default(),
        };
        let _ = writeln!(out, "  {:<16} {how}", hook.purpose);
    }
    let _ = writeln!(out, "\nWorking sets, bounded where neither can be used");
    for source in &report.working_sets {
        let _ = writeln!(out, "  {:<16} {}", source.source.name(), missing(&source.refused));
    }
    let _ = writeln!(out, "\nCoverage");
    for metric in &report.coverage {
        let of_threads = metric.coverage == Coverage::Full && !metric.not_seen.is_empty();
        let but = if of_threads { " for the VM's own threads; not seen:" } else { "" };
        let _ = writeln!(out, "  {:<16} {}{but}", metric.metric, metric.coverage.name());
        for text in &metric.not_seen {
            let _ = writeln!(out, "  {:<16}   {text}", "");
        }
    }
    out
}
