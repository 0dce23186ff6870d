//! run.json: what was recorded, how, and how far the logs go.

use crate::clock::Clocks;
use crate::host::watch::SwapSources;
use crate::metrics::MetricCoverage;
use crate::probes::functions::HookState;
use crate::sampler::FileFaults;
use crate::sampler::coverage::{Coverage, Seen};
use crate::sampler::swapins::SwapinTotals;
use crate::sampler::vcpus::VcpuTime;
use crate::vm::memory::Backing;
use crate::vm::{NamedBy, VmId};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Name and major version of the format.
const SCHEMA: &str = "overcommit.run";
/// See [`SCHEMA`].
const MAJOR: u32 = 1;

/// run.json. Durations and times in the unit of their name's end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunFile {
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
}

/// See [`RunFile::host_state`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    /// Why it could not be read, if so.
    pub unreadable: Option<String>,
    /// Why what VMs give back is not seen, where nobody says it.
    #[serde(default)]
    pub discards_absent: Option<String>,
}

/// See [`RunFile::evictions`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EvictionSight {
    /// Why written pages are not seen, if so.
    pub written_absent: Option<String>,
    /// Why pages that are dropped without being written are not seen, if so.
    pub dropped_absent: Option<String>,
}

/// See [`RunFile::options`].
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
}

/// See [`RunFile::backend`].
#[derive(Clone, Debug, Serialize, Deserialize)]
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

/// See [`RunFile::clocks`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RunClocks {
    /// When counting began.
    pub start: Clocks,
    /// After each step of the time of day.
    pub steps: Vec<Clocks>,
    /// When it ended; missing after a kill.
    pub end: Option<Clocks>,
}

/// See [`RunFile::recorded`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Intervals that are complete in all logs: those with a lower number.
    pub intervals: u64,
}

/// A VM of the recording.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunVm {
    /// PID-STARTTIME, the instance.
    pub vm_id: String,
    /// Its name as shown.
    pub name: String,
    /// How it got the name.
    pub named_by: NamedBy,
    /// QEMU's uuid.
    pub uuid: Option<String>,
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
    /// The kernel's counters when counting began, by metric: not in this recording.
    pub faults_before: BTreeMap<String, u64>,
    /// How its vCPU threads are known: `name`, `kvm_run`, or not at all.
    pub vcpus_known_by: Option<String>,
    /// Where each vCPU's time out of its guest went; empty if no exit was seen.
    #[serde(default)]
    pub vcpu_times: Vec<VcpuTime>,
    /// Where swapped pages came from.
    #[serde(default)]
    pub swapins: SwapinTotals,
    /// Where pages of files came from.
    #[serde(default)]
    pub file_faults: FileFaults,
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
    /// Why nothing is known of the exits of a VM under KVM.
    #[serde(default)]
    pub exits_absent: Option<String>,
    /// Faults counted against the kernel's counters.
    pub seen: Seen,
    /// Of `fault.*`, measured.
    pub coverage: Coverage,
    /// By cause.
    pub not_counted: BTreeMap<String, u64>,
}

/// See [`RunFile::not_counted`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotCounted {
    /// Runs of each program that the kernel skipped, over all processes.
    pub programs_skipped: BTreeMap<String, u64>,
    /// VMs that could not be recorded because every slot was taken.
    pub vms_without_slot: u64,
}

impl RunFile {
    /// The schema that this version writes.
    pub fn schema() -> String {
        format!("{SCHEMA}/{MAJOR}")
    }

    /// Reads run.json. Fields of later versions are ignored.
    ///
    /// # Errors
    /// The folder is no recording, or one of a newer major version.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(super::folder::RUN_FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("{} is no recording: it has no run.json", dir.display())
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        Self::parse(&text).with_context(|| format!("cannot read {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Header {
            schema: String,
        }
        let header: Header = serde_json::from_str(text).context("it is not a run.json")?;
        let version = header.schema.strip_prefix(SCHEMA).and_then(|rest| rest.strip_prefix('/'));
        let major = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
        match major {
            Some(major) if major <= MAJOR => Ok(serde_json::from_str(text)?),
            Some(_) => bail!(
                "it has the format {}; this version reads {SCHEMA}/{MAJOR} at most: \
                              use the overcommit that recorded it",
                header.schema
            ),
            None => bail!("its schema is {:?}, not {SCHEMA}/{MAJOR}", header.schema),
        }
    }

    /// Whether pages that are dropped without being written are seen.
    pub fn sees_drops(&self) -> bool {
        self.evictions.as_ref().is_some_and(|sight| sight.dropped_absent.is_none())
    }

    /// Whether the process that records still runs.
    pub fn is_recording(&self) -> bool {
        if self.clocks.end.is_some() || boot_id().ok().as_ref() != Some(&self.boot_id) {
            return false;
        }
        let Some((pid, ticks)) = self.recorder.split_once('-') else {
            return false;
        };
        let Ok(pid) = pid.parse() else { return false };
        process_id(pid).is_ok_and(|id| id.start_ticks.to_string() == ticks)
    }
}

/// The kernel's id of this boot.
///
/// # Errors
/// /proc cannot be read.
pub fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {path}"))?
        .trim()
        .to_owned())
}

/// Which run of a process that is.
///
/// # Errors
/// There is no such process.
pub fn process_id(pid: i32) -> Result<VmId> {
    let stat = procfs::process::Process::new(pid)?.stat()?;
    Ok(VmId { pid, start_ticks: stat.starttime })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_format_is_refused_and_a_foreign_one_named() {
        let refused = |text: &str| format!("{:#}", RunFile::parse(text).unwrap_err());
        assert!(refused(r#"{"schema":"overcommit.run/2"}"#).contains("use the overcommit that"));
        assert!(refused(r#"{"schema":"other/1"}"#).contains("not overcommit.run/1"));
        assert!(refused("{").contains("not a run.json"));
    }
}
