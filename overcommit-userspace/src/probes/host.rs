//! What does this kernel allow? Asked by trying, not by version.

use crate::kernel::capability::{self, CapabilitySet};
use crate::probes::functions::open_tracepoint;
use crate::probes::object::Sizes;
use crate::probes::{Kernel, object, tracefs};
use anyhow::{Result, anyhow};
use aya::programs::perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent};
use aya::programs::{
    BtfTracePoint, FEntry, FExit, Iter, KProbe, PerfEvent, RawTracePoint, TracePoint,
};
use aya::{Btf, Ebpf};
use nix::errno::Errno;
use procfs::sys::kernel::Version;
use procfs::{ConfigSetting, Current, KernelConfig};
use serde::Serialize;
use std::error::Error;
use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};

/// The function that the function hooks are tried on.
pub(super) const FUNCTION: &str = "handle_mm_fault";

/// A kind of program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Function entry by trampoline.
    Fentry,
    /// Function exit by trampoline.
    Fexit,
    /// Function entry by breakpoint.
    Kprobe,
    /// Function exit by breakpoint.
    Kretprobe,
    /// Perf's software events.
    PerfEvent,
    /// Tracepoints by their record.
    Tracepoint,
    /// Tracepoints by their arguments.
    RawTracepoint,
    /// Tracepoints by their typed arguments.
    BtfTracepoint,
    /// Iterators over tasks.
    Iterator,
}

impl Kind {
    /// All kinds, best first.
    pub const ALL: [Self; 9] = [
        Self::Fentry,
        Self::Fexit,
        Self::Kprobe,
        Self::Kretprobe,
        Self::PerfEvent,
        Self::Tracepoint,
        Self::RawTracepoint,
        Self::BtfTracepoint,
        Self::Iterator,
    ];

    /// The name in the field.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Fexit => "fexit",
            Self::Kprobe => "kprobe",
            Self::Kretprobe => "kretprobe",
            Self::PerfEvent => "perf_event",
            Self::Tracepoint => "tracepoint",
            Self::RawTracepoint => "raw_tracepoint",
            Self::BtfTracepoint => "btf_tracepoint",
            Self::Iterator => "iter/task",
        }
    }
}

/// The answer to one trial: the kernel's reason if it refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trial {
    /// What was tried.
    pub kind: Kind,
    /// Why it was refused; `None` if it was allowed.
    pub refusal: Option<String>,
}

/// What the host gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostProbe {
    /// Why there is no BTF, if there is none.
    pub btf: Option<String>,
    /// Each kind of program that was tried.
    pub trials: Vec<Trial>,
    /// Why tracefs cannot be used, if it cannot.
    pub tracefs: Option<String>,
    /// How programs can be preempted, if they can or if that cannot be told.
    pub preemption: Option<String>,
}

impl HostProbe {
    /// Tries one trivial program of each of these kinds, for a moment: that of a classic tracepoint takes
    /// a tenth of a second to be gone.
    pub fn run(kernel: Result<&Kernel>, kinds: &[Kind]) -> Self {
        let tracefs = tracefs_refusal();
        let preemption = preemption();
        let none = |why: String| -> Vec<Trial> {
            let refused = |kind: &Kind| Trial { kind: *kind, refusal: Some(why.clone()) };
            kinds.iter().map(refused).collect()
        };
        let (btf, trials) = match kernel.map(|kernel| trials(kernel, kinds)) {
            Ok(Ok(trials)) => (None, trials),
            Ok(Err(error)) if error_number(&error) == Some(Errno::EPERM) => {
                (None, none(not_permitted()))
            }
            Ok(Err(error)) => (None, none(format!("{error:#}"))),
            Err(error) => (Some(format!("{error:#}")), none(format!("{error:#}"))),
        };
        Self { btf, trials, tracefs, preemption }
    }

    /// Why programs of this kind are refused; `None` if they are allowed.
    pub fn refusal(&self, kind: Kind) -> Option<&str> {
        match self.trials.iter().find(|trial| trial.kind == kind) {
            Some(trial) => trial.refusal.as_deref(),
            None => Some("not tried"),
        }
    }
}

fn tracefs_refusal() -> Option<String> {
    let root = match tracefs::mount_point() {
        Ok(root) => root,
        Err(error) => return Some(error.to_string()),
    };
    let path = root.join("kprobe_events");
    let opened = OpenOptions::new().append(true).open(&path);
    opened.err().map(|error| format!("cannot write {}: {error}", path.display()))
}

/// How the kernel preempts kernel code, unless it does not.
///
/// The mode in force stands in debugfs (`sched/preempt`, kernel/sched/debug.c). A kernel that is
/// locked down hides it, and lets nobody change what it began with.
fn preemption() -> Option<String> {
    let debugfs = tracefs::mounted("debugfs").map(|root| root.join("sched/preempt"));
    let mode = debugfs.and_then(|path| fs::read_to_string(path).ok());
    if let Some(mode) = mode.as_deref().and_then(|text| text.split(['(', ')']).nth(1)) {
        return ["full", "lazy"].contains(&mode).then(|| format!("preemption {mode}"));
    }
    let version = fs::read_to_string("/proc/sys/kernel/version").unwrap_or_default();
    let model = version.split_whitespace().find(|word| word.starts_with("PREEMPT"))?;
    let is_as_it_began = model == "PREEMPT_DYNAMIC" && lockdown().is_some();
    let mode = is_as_it_began.then(|| {
        let config = KernelConfig::current().map(|config| config.0).unwrap_or_default();
        let is_set = |option: &str| config.get(option) == Some(&ConfigSetting::Yes);
        // As from then on for each CPU that can preempt lazily: x86 and arm64 among them.
        let is_lazy = Version::current().is_ok_and(|kernel| kernel >= Version::new(7, 0, 0));
        let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        mode_at_boot(&command_line, is_set, is_lazy)
    });
    match mode.flatten() {
        Some("none" | "voluntary") => None,
        Some(mode) => Some(format!("preemption {mode}")),
        None => Some(model.to_owned()),
    }
}

/// What a kernel that can choose begins with: what its command line says, else what it was built
/// with (`setup_preempt_mode` and `preempt_dynamic_init`, kernel/sched/core.c, 6.1 to 6.18). One that
/// knows lazy and full alone ignores the others (`sched_dynamic_mode`). `None` if neither can be
/// told.
fn mode_at_boot(
    command_line: &str,
    is_set: impl Fn(&str) -> bool,
    is_lazy: bool,
) -> Option<&'static str> {
    const MODES: [(&str, &str); 4] = [
        ("none", "CONFIG_PREEMPT_NONE"),
        ("voluntary", "CONFIG_PREEMPT_VOLUNTARY"),
        ("lazy", "CONFIG_PREEMPT_LAZY"),
        ("full", "CONFIG_PREEMPT"),
    ];
    // What is behind the dashes is for init.
    let words = command_line.split_whitespace().take_while(|word| *word != "--");
    let asked = words.filter_map(|word| word.strip_prefix("preempt="));
    let known = if is_lazy { &MODES[2..] } else { &MODES[..] };
    let asked = asked.filter_map(|mode| known.iter().find(|(name, _)| *name == mode)).last();
    let built = || MODES.iter().find(|(_, option)| is_set(option));
    asked.or_else(built).map(|(name, _)| *name)
}

fn trials(kernel: &Kernel, kinds: &[Kind]) -> Result<Vec<Trial>> {
    let mut ebpf = object::load(kernel, Sizes::TRIAL)?;
    let mut attempt = |kind| {
        let refused = attempt(&mut ebpf, kind, &kernel.btf).err();
        refused.map(|error| reason(kind, &error))
    };
    Ok(kinds.iter().map(|kind| Trial { kind: *kind, refusal: attempt(*kind) }).collect())
}

/// Loads and attaches the trial program of a kind, and takes it away again.
fn attempt(ebpf: &mut Ebpf, kind: Kind, btf: &Btf) -> Result<()> {
    let name = match kind {
        Kind::Iterator => "trial_iterator".to_owned(),
        kind => format!("trial_{}", kind.name()),
    };
    let program = ebpf.program_mut(&name).ok_or_else(|| anyhow!("no program {name}"))?;
    match kind {
        Kind::Fentry => {
            let program: &mut FEntry = program.try_into()?;
            program.load(FUNCTION, btf)?;
            program.attach()?;
            program.unload()?;
        }
        Kind::Fexit => {
            let program: &mut FExit = program.try_into()?;
            program.load(FUNCTION, btf)?;
            program.attach()?;
            program.unload()?;
        }
        Kind::Kprobe | Kind::Kretprobe => {
            let program: &mut KProbe = program.try_into()?;
            program.load()?;
            program.attach(FUNCTION, 0)?;
            program.unload()?;
        }
        Kind::PerfEvent => {
            let program: &mut PerfEvent = program.try_into()?;
            program.load()?;
            program.attach(
                PerfEventConfig::Software(SoftwareEvent::PageFaults),
                PerfEventScope::CallingProcess { cpu: None },
                SamplePolicy::Period(1),
                false,
            )?;
            program.unload()?;
        }
        Kind::Tracepoint => {
            let program: &mut TracePoint = program.try_into()?;
            program.load()?;
            let root = tracefs::mount_point()?;
            let id = tracefs::tracepoint_id(&root, "sched/sched_process_exec")?;
            drop(open_tracepoint(id, program.fd()?.as_fd().as_raw_fd())?);
            program.unload()?;
        }
        Kind::RawTracepoint => {
            let program: &mut RawTracePoint = program.try_into()?;
            program.load()?;
            program.attach("sched_process_exec")?;
            program.unload()?;
        }
        Kind::BtfTracepoint => {
            let program: &mut BtfTracePoint = program.try_into()?;
            program.load("sched_process_exec", btf)?;
            program.attach()?;
            program.unload()?;
        }
        Kind::Iterator => {
            let program: &mut Iter = program.try_into()?;
            program.load("task", btf)?;
            program.attach()?;
            program.unload()?;
        }
    }
    Ok(())
}

/// Why, in words: by the kernel's error number where there is one.
fn reason(kind: Kind, error: &anyhow::Error) -> String {
    let is_breakpoint = matches!(kind, Kind::Kprobe | Kind::Kretprobe);
    match error_number(error) {
        Some(Errno::EPERM) => not_permitted(),
        Some(Errno::EACCES) if let Some(level) = needs_admin() => {
            format!("EACCES: CAP_SYS_ADMIN is missing, as kernel.perf_event_paranoid is {level}")
        }
        // perf has no such source of events.
        Some(Errno::ENOENT) if is_breakpoint => {
            "this kernel has no kprobes (CONFIG_KPROBES)".into()
        }
        Some(Errno::UnknownErrno) if raw_number(error) == Some(ENOTSUPP) => {
            "ENOTSUPP: the kernel does not support it".to_owned()
        }
        Some(errno) => format!("{errno:?}: {}", errno.desc()),
        None => format!("{error:#}").lines().next().unwrap_or_default().to_owned(),
    }
}

fn held_or_none() -> CapabilitySet {
    capability::held().unwrap_or(CapabilitySet::empty())
}

/// The level of perf_event_paranoid that asks for more than this process has.
fn needs_admin() -> Option<i32> {
    let is_admin = held_or_none().contains(CapabilitySet::SYS_ADMIN);
    capability::asks_for_admin().filter(|_| !is_admin)
}

/// Who forbids it, of those that can be told.
fn not_permitted() -> String {
    let held = held_or_none();
    let lacks = |one| !held.intersects(CapabilitySet::SYS_ADMIN | one);
    let needed = [("CAP_BPF", CapabilitySet::BPF), ("CAP_PERFMON", CapabilitySet::PERFMON)];
    let missing: Vec<&str> =
        needed.into_iter().filter(|(_, one)| lacks(*one)).map(|(name, _)| name).collect();
    if !missing.is_empty() {
        return format!("{} is missing", missing.join(" and "));
    }
    match lockdown() {
        Some(mode) => format!("EPERM: the kernel is locked down ({mode}), as with Secure Boot"),
        None => "refused (EPERM) although no capability is missing: a seccomp filter, a security \
              module or a restricted kernel; try a distribution's kernel"
            .to_owned(),
    }
}

/// A number of the kernel's own (include/linux/errno.h), which gets out of eBPF all the same.
const ENOTSUPP: i32 = 524;

/// How the kernel is locked down, if it is.
fn lockdown() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    let mode = text.split(['[', ']']).nth(1)?;
    (mode != "none").then(|| mode.to_owned())
}

/// The error number at the bottom of a chain of errors.
pub fn error_number(error: &anyhow::Error) -> Option<Errno> {
    raw_number(error).map(Errno::from_raw)
}

fn raw_number(error: &anyhow::Error) -> Option<i32> {
    let number = |error: &(dyn Error + 'static)| {
        error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error)
    };
    error.chain().find_map(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_goes_before_what_the_kernel_was_built_with() {
        let voluntary = |option: &str| option == "CONFIG_PREEMPT_VOLUNTARY";
        let mode = |command_line| mode_at_boot(command_line, voluntary, false);
        assert_eq!(mode("quiet preempt=none preempt=full"), Some("full"), "the last one counts");
        assert_eq!(mode("preempt=lazy preempt=nonsense"), Some("lazy"));
        assert_eq!(mode("quiet -- preempt=full"), Some("voluntary"));
        assert_eq!(mode_at_boot("quiet", |option| option == "CONFIG_PREEMPT", false), Some("full"));
        assert_eq!(mode_at_boot("quiet", |_| false, false), None);
        let lazy = |option: &str| option == "CONFIG_PREEMPT_LAZY";
        assert_eq!(mode_at_boot("preempt=none", lazy, true), Some("lazy"), "it is refused");
        assert_eq!(mode_at_boot("preempt=none", |_| false, true), None);
    }

    #[test]
    fn an_error_of_the_kernels_own_has_its_name() {
        let error = anyhow::Error::new(std::io::Error::from_raw_os_error(ENOTSUPP));
        assert_eq!(reason(Kind::Fentry, &error), "ENOTSUPP: the kernel does not support it");
    }
}
