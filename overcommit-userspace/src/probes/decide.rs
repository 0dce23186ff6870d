//! Which backend, and why not a better one? Pure: from what the host gives and
//! what the user wants.

use crate::probes::host::{HostProbe, Kind};
use clap::ValueEnum;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;

/// Where faults are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// Trampolines on the kernel's functions.
    Fentry,
    /// Breakpoints on the kernel's functions.
    Kprobe,
    /// Perf's software events.
    Perf,
}

impl Backend {
    /// Best first.
    pub const ALL: [Self; 3] = [Self::Fentry, Self::Kprobe, Self::Perf];

    /// Its name on the command line and in run.json.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Perf => "perf",
        }
    }

    /// The kinds of program that it needs.
    const fn needs(self) -> &'static [Kind] {
        match self {
            Self::Fentry => &[Kind::Fentry, Kind::Fexit, Kind::RawTracepoint, Kind::Iterator],
            Self::Kprobe => &[Kind::Kprobe, Kind::Kretprobe, Kind::RawTracepoint, Kind::Iterator],
            Self::Perf => &[Kind::PerfEvent, Kind::RawTracepoint, Kind::Iterator],
        }
    }

    /// Where the backend's latency begins, for run.json.
    pub const fn fault_starts_at(self) -> &'static str {
        match self {
            Self::Fentry | Self::Kprobe => {
                "handle_mm_fault, or the wait for the mmap lock before it"
            }
            Self::Perf => "page fault handler of the architecture, before the mmap lock",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `--backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wanted {
    /// The first that the kernel allows.
    Auto,
    /// fentry and fexit on handle_mm_fault.
    Fentry,
    /// kprobe and kretprobe on handle_mm_fault.
    Kprobe,
    /// Perf's software events.
    Perf,
}

impl Wanted {
    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Fentry => Backend::Fentry.name(),
            Self::Kprobe => Backend::Kprobe.name(),
            Self::Perf => Backend::Perf.name(),
        }
    }

    /// The kinds of program on which the choice depends.
    pub fn kinds(self) -> Vec<Kind> {
        let backends = Backend::ALL.into_iter().filter(|backend| self.allows(*backend));
        let kinds: BTreeSet<Kind> = backends.flat_map(|backend| backend.needs()).copied().collect();
        kinds.into_iter().collect()
    }

    /// Whether that backend may be chosen.
    fn allows(self, backend: Backend) -> bool {
        self.only().is_none_or(|only| only == backend)
    }

    const fn only(self) -> Option<Backend> {
        match self {
            Self::Auto => None,
            Self::Fentry => Some(Backend::Fentry),
            Self::Kprobe => Some(Backend::Kprobe),
            Self::Perf => Some(Backend::Perf),
        }
    }
}

/// Why a backend is not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Which.
    pub backend: Backend,
    /// Why.
    pub reason: String,
}

/// The choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The backend to attach.
    pub backend: Backend,
    /// The better ones that were refused.
    pub refused: Vec<Refusal>,
}

/// Why a backend cannot be used on this host; `None` if it can.
pub fn refusal(host: &HostProbe, backend: Backend) -> Option<String> {
    let refused = backend.needs().iter().find_map(|kind| Some((kind, host.refusal(*kind)?)));
    match refused {
        Some((kind, reason)) if kind.name() == backend.name() => Some(reason.to_owned()),
        Some((kind, reason)) => Some(format!("{}: {reason}", kind.name())),
        None if backend == Backend::Kprobe => host.tracefs.clone(),
        None => None,
    }
}

/// Why one that can be used is not the best here; `None` if nothing speaks against it.
fn drawback(host: &HostProbe, backend: Backend) -> Option<String> {
    let preemption = host.preemption.as_ref()?;
    (backend == Backend::Fentry && refusal(host, Backend::Kprobe).is_none()).then(|| {
        format!("fentry programs miss calls on a preemptible kernel ({preemption}); kprobes do not")
    })
}

/// Takes the best backend, or the one that is wanted.
///
/// # Errors
/// The backends that were asked for, each with its reason.
pub fn decide(host: &HostProbe, wanted: Wanted) -> Result<Decision, Vec<Refusal>> {
    let mut refused = Vec::new();
    for backend in Backend::ALL {
        if !wanted.allows(backend) {
            continue;
        }
        let drawback = || drawback(host, backend).filter(|_| wanted.only().is_none());
        match refusal(host, backend).or_else(drawback) {
            None => return Ok(Decision { backend, refused }),
            Some(reason) => refused.push(Refusal { backend, reason }),
        }
    }
    Err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::host::Trial;

    /// A host that gives everything but what is named.
    fn host(without: &[Kind]) -> HostProbe {
        let refusal = |kind| without.contains(&kind).then(|| "EPERM".to_owned());
        let trials = Kind::ALL.into_iter().map(|kind| Trial { kind, refusal: refusal(kind) });
        HostProbe { btf: None, trials: trials.collect(), tracefs: None, preemption: None }
    }

    #[test]
    fn what_no_backend_needs_is_not_tried() {
        let untried = [Kind::Tracepoint, Kind::BtfTracepoint];
        let auto = Wanted::Auto.kinds();
        assert_eq!(auto.len(), Kind::ALL.len() - untried.len());
        assert!(auto.iter().all(|kind| !untried.contains(kind)));
        assert_eq!(Wanted::Perf.kinds(), [Kind::PerfEvent, Kind::RawTracepoint, Kind::Iterator]);
    }

    #[test]
    fn each_capability_that_perf_needs_is_missed() {
        for kind in Kind::ALL {
            let decision = decide(&host(&[kind]), Wanted::Perf);
            let needed = matches!(kind, Kind::PerfEvent | Kind::RawTracepoint | Kind::Iterator);
            assert_eq!(decision.is_err(), needed, "{kind:?}");
        }
    }

    #[test]
    fn auto_says_why_the_better_ones_were_refused() {
        let decision = decide(&host(&[Kind::Fexit, Kind::Kprobe]), Wanted::Auto).unwrap();
        assert_eq!(decision.backend, Backend::Perf);
        let reasons: Vec<&str> = decision.refused.iter().map(|r| r.reason.as_str()).collect();
        assert_eq!(reasons, ["fexit: EPERM", "EPERM"]);
    }

    #[test]
    fn preemption_speaks_against_fentry_where_kprobe_can_be_had() {
        let preempted =
            |without: &[Kind]| HostProbe { preemption: Some("lazy".to_owned()), ..host(without) };
        let backend = |host, wanted| decide(&host, wanted).unwrap().backend;
        assert_eq!(backend(host(&[]), Wanted::Auto), Backend::Fentry);
        assert_eq!(backend(preempted(&[]), Wanted::Auto), Backend::Kprobe);
        assert_eq!(backend(preempted(&[]), Wanted::Fentry), Backend::Fentry);
        assert_eq!(backend(preempted(&[Kind::Kretprobe]), Wanted::Auto), Backend::Fentry);
        let decision = decide(&preempted(&[]), Wanted::Auto).unwrap();
        assert!(decision.refused[0].reason.contains("lazy"), "{decision:?}");
    }

    #[test]
    fn kprobe_needs_tracefs() {
        let without =
            HostProbe { tracefs: Some("not mounted".to_owned()), ..host(&[Kind::Fentry]) };
        assert_eq!(decide(&without, Wanted::Auto).unwrap().backend, Backend::Perf);
    }

    #[test]
    fn nothing_left_names_them_all() {
        let refused = decide(&host(&Kind::ALL), Wanted::Auto).unwrap_err();
        assert_eq!(refused.len(), Backend::ALL.len());
    }
}
