//! Writes a recording, interval by interval.

use crate::format::{csv, hlog};
use crate::host::Host;
use crate::model::clock::Clocks;
use crate::model::coverage::{Coverage, MetricCoverage};
use crate::model::interval::{FileFaults, Interval};
use crate::model::name::{FOLDER_MAX, Name};
use crate::model::run::{HostState, NotCounted, Recorded, RunFile, RunVm};
use crate::model::slow_fault::SlowFault;
use crate::model::swap::SwapSources;
use crate::model::swapins::SwapinTotals;
use crate::recording::folder::{
    EVICTIONS, Folder, HOST, INTERVALS, LATENCY_LOG, MARKS, RUN_FILE, SLOW_FAULTS, VMS,
};
use crate::recording::slow_faults::SlowRow;
use crate::recording::{evictions, host, intervals, slow_faults, span, vms};
use crate::sampler::roster::Member;
use anyhow::{Context, Result};
use overcommit_ebpf::layout::{Loss, Metric};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;

/// Adds to the logs of a recording.
pub struct Writer {
    folder: Folder,
    run: RunFile,
    intervals: File,
    vms: File,
    host: File,
    evictions: File,
    slow_faults: Option<File>,
    /// By VM; closed when it has ended.
    latency_logs: Vec<Option<File>>,
    folders: BTreeSet<String>,
    base_us: u64,
}

impl Writer {
    /// Writes the heads of the logs and the first run.json.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn create(folder: Folder, run: RunFile) -> Result<Self> {
        let mut intervals = folder.append(INTERVALS)?;
        intervals.write_all(&csv::header(&intervals::COLUMNS))?;
        let mut vms = folder.append(VMS)?;
        let columns = vms::columns();
        vms.write_all(&csv::header(&columns))?;
        let mut host = folder.append(HOST)?;
        host.write_all(&csv::header(&host::COLUMNS))?;
        let mut evictions = folder.append(EVICTIONS)?;
        evictions.write_all(&csv::header(&evictions::COLUMNS))?;
        folder.append(MARKS)?.write_all(&csv::header(&span::COLUMNS))?;
        let mut slow_faults = None;
        if run.options.slow_faults_ns.is_some() {
            let mut file = folder.append(SLOW_FAULTS)?;
            file.write_all(&csv::header(&slow_faults::columns()))?;
            slow_faults = Some(file);
        }
        let base_us = run.clocks.start.realtime_ns / 1_000;
        let writer = Self {
            folder,
            run,
            intervals,
            vms,
            host,
            evictions,
            slow_faults,
            latency_logs: Vec::new(),
            folders: BTreeSet::new(),
            base_us,
        };
        writer.write_run_file()?;
        Ok(writer)
    }

    /// The folder of the recording.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// What run.json says.
    pub fn run(&self) -> &RunFile {
        &self.run
    }

    /// Adds an interval to all logs, then says so in run.json.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(
        &mut self,
        interval: &Interval,
        members: &[Member],
        not_counted: NotCounted,
        coverage: Vec<MetricCoverage>,
    ) -> Result<()> {
        self.run.coverage = coverage;
        self.follow(members)?;
        for sample in &interval.vms {
            let mut lines = Vec::new();
            for metric in &sample.metrics {
                lines.extend(hlog::line(
                    interval.offset_ns,
                    interval.length_ns,
                    &metric.name,
                    &metric.latencies,
                )?);
            }
            let log = &mut self.latency_logs[sample.member];
            if let Some(file) = log {
                file.write_all(&lines).context("cannot write a latency.hlog")?;
            }
            if members[sample.member].ended_ns.is_some() {
                *log = None;
            }
            let vm = &mut self.run.vms[sample.member];
            for (cause, count) in Loss::ALL.iter().zip(sample.not_counted) {
                *vm.not_counted.entry(cause.name().to_owned()).or_default() += count;
            }
        }
        let rows = vms::rows(interval, &self.run.vms, &self.run.coverage)?;
        self.vms.write_all(&rows).context("cannot write vms.csv")?;
        let rows = host::row(interval)?;
        self.host.write_all(&rows).context("cannot write host.csv")?;
        let rows = evictions::rows(interval, &self.run.vms, self.run.sees_drops())?;
        self.evictions.write_all(&rows).context("cannot write evictions.csv")?;
        let rows = intervals::rows(interval, &self.run.vms)?;
        self.intervals.write_all(&rows).context("cannot write intervals.csv")?;
        self.run.not_counted = not_counted;
        self.run.recorded = Recorded { intervals: interval.number + 1 };
        self.write_run_file()
    }

    /// Adds slow faults. One of a VM that is not recorded is left out.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_slow_faults(
        &mut self,
        members: &[Member],
        faults: Vec<SlowFault>,
        now: &Clocks,
    ) -> Result<()> {
        self.follow(members)?;
        let vms = &self.run.vms;
        let rows: Vec<SlowRow<'_>> = faults
            .into_iter()
            .filter_map(|told| {
                // The latest, should the PID have been used again.
                let pid = told.fault.vm_tgid.cast_signed();
                Some(SlowRow { vm: vms.iter().rev().find(|vm| vm.pid == pid)?, told })
            })
            .collect();
        let rows = slow_faults::rows(&rows, &self.run.coverage, now)?;
        let Some(file) = &mut self.slow_faults else {
            return Ok(());
        };
        file.write_all(&rows).context("cannot write slow-faults.csv")
    }

    /// Notes where the state of the host and of each VM comes from.
    pub fn note_host(&mut self, host: &Host, discards_absent: Option<String>) {
        self.run.host_state =
            HostState { unreadable: host.unreadable().map(str::to_owned), discards_absent };
        for (member, vm) in self.run.vms.iter_mut().enumerate() {
            if vm.ended_us.is_none() {
                vm.swap_sources = host.swap_sources(member);
                let unknown = host.unknown(member);
                vm.balloon_unknown = unknown.balloon;
                vm.working_set_unknown = unknown.working_set;
                let shares = || "it has no memory cgroup of its own".to_owned();
                vm.evictions_absent = host.cgroup_id(member).is_none().then(shares);
            }
        }
    }

    /// Notes that the time of day was set.
    pub fn note_step(&mut self, now: Clocks) {
        self.run.clocks.steps.push(now);
    }

    /// Writes the last run.json.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self, end: Clocks, not_counted: NotCounted) -> Result<RunFile> {
        self.run.clocks.end = Some(end);
        self.run.not_counted = not_counted;
        self.write_run_file()?;
        Ok(self.run)
    }

    /// Takes over what is new about the VMs.
    fn follow(&mut self, members: &[Member]) -> Result<()> {
        for (index, member) in members.iter().enumerate() {
            if index == self.run.vms.len() {
                let folder = self.free_folder(&member.vm.name);
                let mut log = self.folder.append(&format!("vms/{folder}/{LATENCY_LOG}"))?;
                log.write_all(&hlog::header(self.base_us)?)
                    .context("cannot write a latency.hlog")?;
                self.latency_logs.push(Some(log));
                self.run.vms.push(run_vm(member, folder));
            }
            let vm = &mut self.run.vms[index];
            vm.ended_us = member.ended_ns.map(|ns| ns / 1_000);
            vm.vcpus_known_by = member.vcpus_known_by.map(str::to_owned);
            vm.vcpu_times.clone_from(&member.vcpu_times);
            vm.exits_absent.clone_from(&member.exits_absent);
            vm.swapins.clone_from(&member.swapins);
            vm.file_faults = member.file_faults;
            vm.seen = member.seen;
            vm.coverage = member.seen.coverage();
            vm.accelerator.clone_from(&member.vm.accelerator);
            vm.backing = member.vm.backing();
            vm.cgroup.clone_from(&member.vm.cgroup);
        }
        note_partial(&mut self.run.coverage, &self.run.vms);
        Ok(())
    }

    /// The name's folder, or `~2` … behind it if another VM has that. Case is
    /// folded: some file systems do.
    fn free_folder(&mut self, name: &Name) -> String {
        let first = name.folder();
        let numbered = (2..).map(|number: u64| {
            let suffix = format!("~{number}");
            // The name is ASCII, and the whole is to stay as short.
            let room = FOLDER_MAX - suffix.len();
            format!("{}{suffix}", &first[..first.len().min(room)])
        });
        let is_free = |folder: &String| !self.folders.contains(&folder.to_lowercase());
        let folder = std::iter::once(first.clone()).chain(numbered).find(is_free).unwrap_or(first);
        self.folders.insert(folder.to_lowercase());
        folder
    }

    fn write_run_file(&self) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(&self.run)?;
        text.push(b'\n');
        self.folder.replace(RUN_FILE, &text)
    }
}

/// `fault.*` of the whole recording is as partial as its worst VM.
fn note_partial(coverage: &mut [MetricCoverage], vms: &[RunVm]) {
    let full = vms.iter().all(|vm| vm.coverage == Coverage::Full);
    for entry in coverage.iter_mut().filter(|entry| entry.metric.starts_with("fault.")) {
        entry.coverage = if full { Coverage::Full } else { Coverage::Partial };
    }
}

fn run_vm(member: &Member, folder: String) -> RunVm {
    let vm = &member.vm;
    let before = Metric::FAULTS
        .map(|metric| (metric.name().to_owned(), member.faults_before[metric as usize]));
    RunVm {
        vm_id: vm.id.to_string(),
        name: vm.name.to_string(),
        named_by: vm.named_by,
        uuid: vm.uuid.clone(),
        pid: vm.id.pid,
        folder,
        executable: vm.executable.clone(),
        vcpus: vm.vcpus,
        memory_bytes: vm.memory_bytes,
        backing: vm.backing(),
        accelerator: vm.accelerator.clone(),
        cgroup: vm.cgroup.clone(),
        first_seen_us: member.first_seen_ns / 1_000,
        ended_us: None,
        faults_before: BTreeMap::from(before),
        vcpus_known_by: None,
        vcpu_times: Vec::new(),
        swapins: SwapinTotals::default(),
        file_faults: FileFaults::default(),
        exits_absent: None,
        swap_sources: SwapSources::default(),
        balloon_unknown: None,
        working_set_unknown: None,
        evictions_absent: None,
        seen: member.seen,
        coverage: Coverage::Full,
        not_counted: BTreeMap::new(),
    }
}
