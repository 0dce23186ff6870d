//! What holds for a whole recording: run.json is this.

use crate::model::clock::Clocks;
use crate::model::cost::Cost;
use crate::model::coverage::{Coverage, MetricCoverage, Seen, coverage_of};
use crate::model::exit::{self, Departure, Exit};
use crate::model::interval::FileFaults;
use crate::model::metric::MetricName;
use crate::model::name::{FOLDER_MAX, Name};
use crate::model::start::StartPhase;
use crate::model::swap::{SwapArea, SwapSources};
use crate::model::swapins::Swapins;
use crate::model::vcpus::VcpuTime;
use crate::model::vm::{Backing, NamedBy, Vm};
use overcommit_ebpf::layout::{FaultBacking, Metric};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Name and major version of the format.
pub const SCHEMA: &str = "overcommit.run";
/// See [`SCHEMA`].
pub const MAJOR: u32 = 1;

/// VMs of a recording at the most: what is read of one has a bound, and so has what is written.
pub const VMS_MAX: usize = 10_000;

/// VMs that ended and are kept in a recording, at the most.
pub const ENDED_VMS_KEPT: usize = 500;

/// run.json. Durations and times in the unit of their name's end.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Run {
    /// `overcommit.run/1`.
    pub schema: String,
    /// UUIDv7.
    pub run_id: String,
    /// Version of overcommit.
    pub tool_version: String,
    /// Host name.
    pub host: String,
    /// Kernel release.
    pub kernel: String,
    /// /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
    /// The process that records, as PID-STARTTIME.
    pub recorder: String,
    /// What the user asked for.
    pub options: Options,
    /// Where faults are seen.
    pub backend: BackendChoice,
    /// The moments that fix all times.
    pub clocks: RunClocks,
    /// How far the logs go.
    pub recorded: Recorded,
    /// Every VM recorded.
    pub vms: Vec<RunVm>,
    /// Each metric, over all VMs.
    pub coverage: Vec<MetricCoverage>,
    /// What could not be counted on the whole host.
    pub not_counted: NotCounted,
    /// Where the state of the host comes from.
    #[serde(default)]
    pub host_state: HostState,
    /// What is seen of evictions; `None` of a version that did not look.
    #[serde(default)]
    pub evictions: Option<EvictionSight>,
    /// Bytes of a page of the host.
    #[serde(default = "small_page")]
    pub page_size: u64,
    /// How COMMAND ended, as a shell has it: 128 and the number of a signal that killed it.
    #[serde(default)]
    pub command_status: Option<u8>,
    /// Why it ended, if it did.
    #[serde(default)]
    pub stopped_by: Option<StoppedBy>,
    /// What it took of the host; `None` where that was not measured.
    #[serde(default)]
    pub cost: Option<Cost>,
}

/// What versions that did not say so were run with.
const fn small_page() -> u64 {
    4096
}

/// See [`Run::host_state`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    /// Why it could not be read, if so.
    pub unreadable: Option<String>,
    /// Why what VMs give back is not seen, where nobody says it.
    #[serde(default)]
    pub discards_absent: Option<String>,
    /// Why it is not known whom the kernel killed, if so.
    #[serde(default)]
    pub kills_unreadable: Option<String>,
    /// Where pages could be swapped to when it began; `None` of a version that did not look.
    #[serde(default)]
    pub swap_areas: Option<Vec<SwapArea>>,
}

/// See [`Run::evictions`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EvictionSight {
    /// Why written pages are not seen, if so.
    pub written_absent: Option<String>,
    /// Why pages that are dropped without being written are not seen, if so.
    pub dropped_absent: Option<String>,
}

/// See [`Run::options`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Options {
    /// `--interval`
    pub interval_ns: u64,
    /// `--duration`
    pub duration_ns: Option<u64>,
    /// `--delay`
    pub delay_ns: u64,
    /// `--vm`
    pub vm: Vec<String>,
    /// `--wait`
    #[serde(default)]
    pub wait: bool,
    /// How long at most, if that was said.
    #[serde(default)]
    pub wait_limit_ns: Option<u64>,
    /// `--backend`
    #[serde(default)]
    pub backend: String,
    /// `--pid`
    pub pid: Vec<i32>,
    /// `--slow-faults`
    pub slow_faults_ns: Option<u64>,
    /// `--causes`
    #[serde(default)]
    pub causes: bool,
    /// `--slo` and `--config`
    #[serde(default)]
    pub slo: Vec<String>,
    /// `--label`
    pub labels: BTreeMap<String, String>,
    /// The command that was run.
    pub command: Vec<String>,
    /// `--config`
    #[serde(default)]
    pub config: Option<String>,
    /// `--monitor`, each as it was given.
    #[serde(default)]
    pub monitor: Vec<String>,
    /// `--guest-stats`
    #[serde(default)]
    pub guest_stats: bool,
    /// `--working-set`
    #[serde(default)]
    pub working_set: String,
}

/// See [`Run::backend`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BackendChoice {
    /// Its name.
    pub name: String,
    /// Where the latency of a fault begins.
    pub fault_starts_at: String,
    /// The better ones and why they were refused.
    pub refused: BTreeMap<String, String>,
    /// The kernel's functions that it hooks.
    #[serde(default)]
    pub hooks: Vec<HookState>,
}

/// What became of a hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookState {
    /// What it is for, by name.
    pub purpose: String,
    /// The function, if one is hooked.
    pub function: Option<String>,
    /// How it is hooked: `fentry` or `kprobe`.
    pub by: Option<String>,
    /// Why it is not.
    pub missing: Option<String>,
}

/// See [`Run::clocks`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RunClocks {
    /// When counting began.
    pub start: Clocks,
    /// After each step of the time of day.
    pub steps: Vec<Clocks>,
    /// When it ended; missing after a kill.
    pub end: Option<Clocks>,
}

impl RunClocks {
    /// For how long was counted, in seconds; `None` of a recording that did not end.
    pub fn length_s(&self) -> Option<f64> {
        let end = self.end?;
        Some(end.monotonic_ns.saturating_sub(self.start.monotonic_ns) as f64 / 1e9)
    }
}

/// See [`Run::recorded`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Intervals that are complete in all logs: those with a lower number.
    pub intervals: u64,
}

/// A VM of the recording.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RunVm {
    /// PID-STARTTIME, the instance.
    pub vm_id: String,
    /// Its name as shown.
    pub name: String,
    /// How it got the name.
    pub named_by: NamedBy,
    /// QEMU's uuid.
    pub uuid: Option<String>,
    /// Proxmox's number for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxmox_id: Option<String>,
    /// Process id.
    pub pid: i32,
    /// Its folder below `vms`.
    pub folder: String,
    /// File name of its executable.
    pub executable: String,
    /// vCPUs at the start.
    pub vcpus: Option<u32>,
    /// Memory configured.
    pub memory_bytes: Option<u64>,
    /// What backs the memory.
    pub backing: Option<Backing>,
    /// `kvm`, `tcg`, …
    pub accelerator: Option<String>,
    /// Its memory cgroup.
    pub cgroup: Option<String>,
    /// When counting began.
    pub first_seen_us: u64,
    /// When it ended, if it did.
    pub ended_us: Option<u64>,
    /// Why, where the kernel says so.
    #[serde(default)]
    pub ended_by: Option<EndedBy>,
    /// How its process did; `None` if that was not seen, or it executed another program.
    #[serde(default, deserialize_with = "exit::known")]
    pub exit: Option<Exit>,
    /// What its monitor or libvirt said of its end.
    #[serde(default)]
    pub departure: Option<Departure>,
    /// The kernel's counters when counting began, by metric: not in this recording.
    pub faults_before: BTreeMap<String, u64>,
    /// How its vCPU threads are known: `name`, `kvm_run`, or not at all.
    pub vcpus_known_by: Option<String>,
    /// Where each vCPU's time out of its guest went; empty if no exit was seen.
    #[serde(default)]
    pub vcpu_times: Vec<VcpuTime>,
    /// Where swapped pages came from; `None` where that is not seen.
    #[serde(default)]
    pub swapins: Option<Swapins>,
    /// Where pages of files came from; `None` where that is not seen.
    #[serde(default)]
    pub file_faults: Option<FileFaults>,
    /// Its faults in the first seconds after its first vCPU ran; `None` of one that had started before, or
    /// where that is not seen.
    #[serde(default)]
    pub start: Option<Vec<StartPhase>>,
    /// Where its rates of swapping come from.
    #[serde(default)]
    pub swap_sources: SwapSources,
    /// Why nobody says what it gave back.
    #[serde(default)]
    pub balloon_unknown: Option<String>,
    /// Why its working set is not measured but bounded.
    #[serde(default)]
    pub working_set_unknown: Option<String>,
    /// Why it is in the eviction matrix as an aggressor alone, if so.
    #[serde(default)]
    pub evictions_absent: Option<String>,
    /// Why nothing is known of its exits.
    #[serde(default)]
    pub exits_absent: Option<String>,
    /// Why faults of it can be missed that the kernel's own counters miss too.
    #[serde(default)]
    pub faults_hidden: Option<String>,
    /// Faults counted against the kernel's counters.
    pub seen: Seen,
    /// Of `fault.*`, measured.
    pub coverage: Coverage,
    /// By cause.
    pub not_counted: BTreeMap<String, u64>,
}

/// Why a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoppedBy {
    /// The time of `--duration` was over.
    Duration,
    /// COMMAND ended.
    Command,
    /// SIGINT, as Ctrl-C sends it.
    Interrupt,
    /// SIGHUP: its terminal hung up.
    Hangup,
    /// SIGTERM.
    Terminate,
    /// Its files had reached `--max-size`.
    MaxSize,
    /// Little was left of its disk.
    DiskFull,
    /// What a later version knows.
    #[serde(other)]
    Other,
}

impl StoppedBy {
    /// In words that follow "ended".
    pub const fn words(self) -> &'static str {
        match self {
            Self::Duration => "by --duration",
            Self::Command => "with the command",
            Self::Interrupt => "by Ctrl-C",
            Self::Hangup => "when its terminal hung up",
            Self::Terminate => "by SIGTERM",
            Self::MaxSize => "at --max-size",
            Self::DiskFull => "because its disk was nearly full",
            Self::Other => "",
        }
    }
}

/// Why a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// The kernel killed it: the memory cgroup that it was in was out of memory.
    OomCgroup,
    /// The kernel killed it: a memory cgroup around its own, with others in it, was out of memory.
    OomSharedCgroup,
    /// The kernel killed it: the host was out of memory.
    OomHost,
    /// What a later version knows.
    #[serde(other)]
    Other,
}

impl EndedBy {
    /// What ran out of memory, if something did.
    pub const fn short(self) -> Option<&'static str> {
        match self {
            Self::OomCgroup => Some("its cgroup"),
            Self::OomSharedCgroup => Some("a parent cgroup"),
            Self::OomHost => Some("the host"),
            Self::Other => None,
        }
    }
}

/// See [`Run::not_counted`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotCounted {
    /// Runs of each program that the kernel skipped, over all processes.
    pub programs_skipped: BTreeMap<String, u64>,
    /// VMs that could not be recorded because every slot was taken.
    pub vms_without_slot: u64,
    /// Names of some of them.
    #[serde(default)]
    pub unserved: Vec<String>,
    /// VMs that were recorded, ended and are not kept: this number is all that is left of them.
    #[serde(default)]
    pub vms_left_out: u64,
}

impl RunVm {
    /// A VM that was just found, which is to have a folder of its own.
    pub fn found(vm: &Vm, others: &[Self], now: &Clocks, faults_before: [u64; 2]) -> Self {
        let names = Metric::FAULTS.map(|metric| metric.name().to_owned());
        let mut found = Self {
            vm_id: vm.id.to_string(),
            name: vm.name.to_string(),
            named_by: vm.named_by,
            uuid: vm.uuid.clone(),
            proxmox_id: vm.proxmox_id.clone(),
            pid: vm.id.pid,
            folder: free_folder(&vm.name, others),
            executable: vm.executable.clone(),
            vcpus: vm.vcpus,
            memory_bytes: vm.memory_bytes,
            first_seen_us: now.realtime_ns / 1_000,
            faults_before: names.into_iter().zip(faults_before).collect(),
            ..Self::default()
        };
        found.follow(vm);
        found
    }

    /// With a folder that no VM ever had, not even one that is left out by now.
    pub fn with_folder_of_its_own(mut self) -> Self {
        self.folder = with_suffix(&self.folder, &format!("~{}", self.vm_id));
        self
    }

    /// Whether it is known to have failed, or to have been killed for its memory.
    pub fn was_lost(&self) -> bool {
        self.ended_by.is_some() || self.exit.is_some_and(Exit::is_failure)
    }

    /// Takes over what is known of it by now.
    pub fn follow(&mut self, vm: &Vm) {
        self.accelerator.clone_from(&vm.accelerator);
        self.vcpus = vm.vcpus;
        self.backing = vm.backing();
        self.cgroup.clone_from(&vm.cgroup);
    }

    /// Why a metric of it misses what the kernel's own counters miss too, if so.
    fn hidden(&self, metric: &MetricName) -> Option<&str> {
        let is_of_faults = metric.is_always_written() || *metric == FaultBacking::Hugetlb.into();
        self.faults_hidden.as_deref().filter(|_| is_of_faults)
    }

    /// How much of a metric is seen of it at best.
    pub fn at_best(&self, metric: &MetricName) -> Coverage {
        self.hidden(metric).map_or(Coverage::Full, |_| Coverage::Partial)
    }
}

/// A folder that none of the others has: the name's, or `~2` … behind it. Case is folded: some
/// file systems do.
pub(crate) fn free_folder(name: &Name, others: &[RunVm]) -> String {
    let first = name.folder();
    let numbered = (2..).map(|number: u64| with_suffix(&first, &format!("~{number}")));
    let taken: BTreeSet<String> = others.iter().map(|vm| vm.folder.to_ascii_lowercase()).collect();
    let is_free = |folder: &String| !taken.contains(&folder.to_ascii_lowercase());
    std::iter::once(first.clone()).chain(numbered).find(is_free).unwrap_or_default()
}

/// The name of a folder with something behind it, and as short as one may be: it is ASCII.
fn with_suffix(folder: &str, suffix: &str) -> String {
    let room = FOLDER_MAX.saturating_sub(suffix.len());
    format!("{}{suffix}", &folder[..folder.len().min(room)])
}

impl Run {
    /// How much of a metric can be seen of a VM; why not all, if that is known.
    pub fn coverage_of(&self, vm: &RunVm, metric: &MetricName) -> (Coverage, Option<String>) {
        let absent =
            |why: &str| (Coverage::Absent, Some(format!("{} is absent: {why}", metric.as_str())));
        if metric.is_of_exits()
            && let Some(why) = &vm.exits_absent
        {
            return absent(why);
        }
        match coverage_of(&self.coverage, metric) {
            Coverage::Absent => {
                let entry = self.coverage.iter().find(|entry| metric.is_in(&entry.metric));
                absent(entry.and_then(|entry| entry.not_seen.first()).map_or("", String::as_str))
            }
            coverage => (coverage.max(vm.at_best(metric)), vm.hidden(metric).map(str::to_owned)),
        }
    }

    /// A moment in Unix microseconds, in seconds after the start.
    pub fn after_start_s(&self, at_us: u64) -> f64 {
        at_us.saturating_sub(self.clocks.start.realtime_ns / 1_000) as f64 / 1e6
    }

    /// The schema that this version writes.
    pub fn schema() -> String {
        format!("{SCHEMA}/{MAJOR}")
    }

    /// Whether pages that are dropped without being written are seen.
    pub fn sees_drops(&self) -> bool {
        self.evictions.as_ref().is_some_and(|sight| sight.dropped_absent.is_none())
    }
}
