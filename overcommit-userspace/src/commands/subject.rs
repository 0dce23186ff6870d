//! What `record` and `top` have in common: which VMs, what of them, and how it is attached.

use crate::commands::whom::Found;
use crate::commands::{DEPTH, HostArgs, ObjectiveArgs, WHEN, WHERE, WHICH, spelled};
use crate::host::survey::Options as HostOptions;
use crate::kernel::capability;
use crate::probes::Kernel;
use crate::probes::decide::{Decision, Wanted, decide};
use crate::probes::host::HostProbe;
use crate::probes::kvm::Exits;
use crate::sampler::roster::{Roster, Selection};
use crate::session::wait::Waiter;
use crate::session::{RunningSession, Session, Want};
use anyhow::{Context, Result, anyhow};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use overcommit_recording::format::text::{parse_duration, parse_interval, parse_positive_duration};
use overcommit_recording::model::pattern::Pattern;
use overcommit_recording::model::run::Options;
use overcommit_recording::slo::Objective;
use std::time::Duration;

/// Options that say which VMs are looked at, and what of them.
#[derive(Debug, clap::Args)]
pub(super) struct Subject {
    /// Length of an interval, 10ms to 1h
    #[arg(long, help_heading = WHEN, value_name = "D", allow_hyphen_values = true)]
    #[arg(default_value = "1s", value_parser = parse_interval)]
    pub(super) interval: Duration,
    /// Only VMs whose name or uuid matches PATTERN, which may be a glob; id:100 for Proxmox,
    /// namespace/name for KubeVirt; may be repeated
    #[arg(long, help_heading = WHICH, value_name = "PATTERN", value_parser = Pattern::parse)]
    pub(super) vm: Vec<Pattern>,
    /// Wait until every VM named by --vm runs, at most D if given
    #[arg(long, help_heading = WHICH, value_name = "D", num_args = 0..=1, require_equals = true)]
    #[arg(value_parser = parse_positive_duration)]
    pub(super) wait: Option<Option<Duration>>,
    /// Include this process, even if it is not a VM; may be repeated
    #[arg(short, long, help_heading = WHICH, value_name = "PID")]
    pub(super) pid: Vec<i32>,
    /// Where to see faults
    #[arg(long, help_heading = DEPTH, default_value = "auto")]
    pub(super) backend: Wanted,
    #[command(flatten)]
    pub(super) objectives: ObjectiveArgs,
    /// Also report each fault of at least D individually (slow-faults.csv); measures sleep, as
    /// --causes does
    #[arg(long, help_heading = DEPTH, value_name = "D", allow_hyphen_values = true)]
    #[arg(value_parser = parse_duration)]
    pub(super) slow_faults: Option<Duration>,
    /// Also measure sleep inside faults; runs an eBPF program at every context switch of the host
    #[arg(long, help_heading = DEPTH)]
    pub(super) causes: bool,
    /// Which guest exits to trace
    #[arg(long, help_heading = DEPTH, value_name = "WHICH", default_value = "all")]
    pub(super) exits: Exits,
    #[command(flatten)]
    pub(super) host: HostArgs,
    /// Print the debug log of the eBPF programs
    #[arg(short, long, help_heading = WHERE)]
    pub(super) verbose: bool,
    /// Do without a function or structure of the kernel, as on one that does not have it
    #[arg(long, value_name = "NAME", hide = true)]
    pub(super) without: Vec<String>,
}

impl Subject {
    /// Attaches to the VMs that are selected; how the host is to be looked at comes with it. `cost`
    /// where it is to be measured what that costs.
    ///
    /// # Errors
    /// What this host lacks, or the kernel refuses.
    pub(super) fn attach(
        &self,
        selection: Selection,
        found: Found,
        cost: bool,
    ) -> Result<(Session, HostOptions)> {
        let (kernel, decision) = found.ways.unwrap_or_else(|| ways(self.backend))?;
        self.host.require_working_set(kernel.layout.mglru_sees_guests)?;
        let mut want = Want::new(&selection, found.room);
        (want.slow_faults, want.verbose) = (self.slow_faults, self.verbose);
        (want.causes, want.exits, want.cost) = (self.causes, self.exits, cost);
        want.without.clone_from(&self.without);
        let roster = Roster::new(found.discovery, selection);
        let host = self.host.read(kernel.layout.mglru_sees_guests);
        let attached = Session::attach(&kernel, decision, roster, want);
        // Some tens of MiB.
        drop(kernel);
        Ok((attached?, host))
    }

    /// Attaches, gives up what is not needed any more, and begins to count. `for_user` where a
    /// recording is for a user who ran sudo; `cost` as there.
    ///
    /// # Errors
    /// As [`Self::attach`]; or the kernel refuses something else.
    pub(super) fn begin(
        &self,
        selection: Selection,
        found: Found,
        waiter: &mut Waiter,
        for_user: bool,
        cost: bool,
    ) -> Result<RunningSession> {
        let (session, host) = self.attach(selection, found, cost)?;
        waiter.watch(session.events())?;
        capability::keep_what_records(for_user)?;
        session.begin(self.options(&self.objectives.read()), &host)
    }

    /// As run.json has them.
    pub(super) fn options(&self, objectives: &[Objective]) -> Options {
        Options {
            interval_ns: ns(self.interval),
            vm: self.vm.iter().map(Pattern::to_string).collect(),
            wait: self.wait.is_some(),
            wait_limit_ns: self.wait.flatten().map(ns),
            backend: self.backend.name().to_owned(),
            pid: self.pid.clone(),
            slow_faults_ns: self.slow_faults.map(ns),
            causes: self.causes,
            slo: objectives.iter().map(Objective::to_string).collect(),
            config: self.objectives.config.as_ref().map(|config| config.path.display().to_string()),
            monitor: self.host.monitors(),
            guest_stats: self.host.guest_stats,
            working_set: spelled(self.host.working_set),
            ..Options::default()
        }
    }
}

/// The kernel, and how faults are seen on it.
pub(super) type Ways = (Kernel, Decision);

/// How faults can be seen here.
///
/// # Errors
/// No way is allowed, or not the one that is wanted.
pub(super) fn ways(wanted: Wanted) -> Result<Ways> {
    let kernel = Kernel::read().context("no backend works here")?;
    let decision = choose(&kernel, wanted)?;
    Ok((kernel, decision))
}

/// A length of time as run.json has it.
pub(super) fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Three descriptors a CPU and two a VM: more than the usual limit allows on a large host. Gives the
/// limits of before.
pub(super) fn raise_limit() -> Result<(u64, u64)> {
    let before = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, before.1, before.1)
        .context("cannot raise the limit on open files to its hard limit")?;
    Ok(before)
}

fn choose(kernel: &Kernel, wanted: Wanted) -> Result<Decision> {
    let host = HostProbe::run(Ok(kernel), &wanted.kinds());
    decide(&host, wanted).map_err(|refused| {
        let hint =
            if wanted == Wanted::Auto { "see overcommit check" } else { "use --backend auto" };
        // One reason for all is said once.
        let same = refused.first().filter(|first| {
            refused.len() > 1 && refused.iter().all(|other| other.reason.ends_with(&first.reason))
        });
        let why = same.map_or_else(
            || {
                let each = refused.iter().map(|r| format!("backend {}: {}", r.backend, r.reason));
                each.collect::<Vec<_>>().join("; ")
            },
            |one| format!("no backend works here: {}", one.reason),
        );
        anyhow!("{why}; {hint}")
    })
}
