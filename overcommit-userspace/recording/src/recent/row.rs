//! What a screen has in a line: of the host, and of each VM.

use crate::model::memory::{OvercommitState, Range};
use crate::model::run::{Run, RunVm};
use crate::model::state::State;
use crate::model::swap::SwapState;
use crate::recent::history::{History, Line, VmLine};
use crate::summary::SummaryVm;
use crate::summary::verdict::{CPU, STALL, VmVerdict};
use serde::Serialize;

/// The host, at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct HostRow {
    /// Its swap state.
    pub swap_state: &'static str,
    /// Since when, in seconds; at the most as long as can be looked back.
    pub swap_state_s: f64,
    /// Its overcommit state.
    pub overcommit_state: &'static str,
    /// MemAvailable.
    pub memory_available_bytes: Option<u64>,
    /// MemTotal.
    pub memory_total_bytes: Option<u64>,
    /// Read back from swap.
    pub swapped_in_bytes_per_s: Option<f64>,
    /// Written to swap.
    pub swapped_out_bytes_per_s: Option<f64>,
    /// Part of the time in which a task waited for memory, by the kernel's own account.
    pub psi_memory_some_share: Option<f64>,
    /// Part of it in which all did.
    pub psi_memory_full_share: Option<f64>,
    /// What the VMs are configured with.
    pub configured_bytes: Option<u64>,
    /// What they need.
    pub working_sets_bytes: Option<Range>,
    /// Whether that was measured, of all of them.
    pub working_sets_are_measured: bool,
    /// What they could have.
    pub capacity_bytes: Option<u64>,
}

impl HostRow {
    pub(super) fn of(run: &Run, history: &History, line: &Line, is_measured: bool) -> Self {
        let swap = line.host.swap;
        let same = |of: &&Line| of.host.swap.state == swap.state;
        let since_ns: u64 =
            history.lines_until(line).rev().take_while(same).map(|of| of.place.length_ns).sum();
        let overcommit = line.host.overcommit;
        let bytes = |pages: f64| pages * run.page_size as f64;
        let share = |ns: u64| (ns as f64 / line.place.length_ns.max(1) as f64).min(1.0);
        Self {
            swap_state: swap.state.name(),
            swap_state_s: since_ns as f64 / 1e9,
            overcommit_state: overcommit.map_or(OvercommitState::Unknown, |of| of.state).name(),
            memory_available_bytes: swap.memory.and_then(|memory| memory.available),
            memory_total_bytes: swap.memory.map(|memory| memory.total),
            swapped_in_bytes_per_s: swap.rates.and_then(|rates| rates.swapped_in).map(bytes),
            swapped_out_bytes_per_s: swap.rates.and_then(|rates| rates.swapped_out).map(bytes),
            psi_memory_some_share: line.host.pressure.some_ns.map(share),
            psi_memory_full_share: line.host.pressure.full_ns.map(share),
            configured_bytes: overcommit.and_then(|of| of.configured),
            working_sets_bytes: overcommit.and_then(|of| of.working_sets),
            working_sets_are_measured: is_measured,
            capacity_bytes: overcommit.and_then(|of| of.capacity),
        }
    }

    /// Whether its swapping hurts somebody.
    pub fn is_swapping(&self) -> bool {
        SwapState::from_name(self.swap_state).is_some_and(|state| state >= SwapState::Pressure)
    }
}

/// A VM, at one moment: figures are of the interval, the verdict is of the minute before its end.
#[derive(Clone, Debug, Serialize)]
pub struct VmRow {
    /// PID-STARTTIME.
    pub vm_id: String,
    /// Its name as shown, with the instance behind it where two VMs share it.
    pub vm: String,
    /// How it fared, why, and what to do.
    pub verdict: VmVerdict,
    /// Whether it took what another VM lacks, and was not hurt itself.
    pub is_cause: bool,
    /// For how long it has been hurt without a break, in seconds.
    pub hurt_s: f64,
    /// `stall.share`, from 0 to 1.
    pub stall_share: Option<f64>,
    /// `cpu.share`, from 0 to 1.
    pub cpu_share: Option<f64>,
    /// Major faults a second.
    pub major_faults_per_s: Option<f64>,
    /// Their median; `null` of too few.
    pub p50_ns: Option<u64>,
    /// Their quantile 0.99; `null` of too few.
    pub p99_ns: Option<u64>,
    /// The longest.
    pub max_ns: Option<u64>,
    /// Read back from swap; `null` where that is not seen.
    pub swapped_in_bytes_per_s: Option<f64>,
    /// Taken of it; `null` where that is not seen.
    pub lost_bytes_per_s: Option<f64>,
    /// Who took most of that.
    pub lost_to: Option<String>,
    /// What it needs.
    pub working_set_bytes: Option<Range>,
    /// Whether that was measured, and not bounded.
    pub working_set_is_measured: bool,
    /// What it was given.
    pub configured_bytes: Option<u64>,
    /// Whether it was there in the interval; figures of one that was not are unknown.
    pub is_running: bool,
    /// Its place in the recording.
    #[serde(skip)]
    pub place: usize,
}

impl VmRow {
    pub(super) fn of(
        run: &Run,
        history: &History,
        line: &Line,
        (place, vm): (usize, &RunVm),
        summary: &SummaryVm,
        is_only: bool,
    ) -> Self {
        let none = VmLine::default();
        let here = line.vm(place);
        let now = here.unwrap_or(&none);
        let bytes = |pages: f64| pages * run.page_size as f64;
        let is_hurt = |of: &&Line| {
            of.vm(place).is_some_and(|vm| vm.stall >= Some(STALL) || vm.cpu >= Some(CPU))
        };
        let hurt_ns: u64 =
            history.lines_until(line).rev().take_while(is_hurt).map(|of| of.place.length_ns).sum();
        let name = if is_only { vm.name.clone() } else { format!("{} ({})", vm.name, vm.vm_id) };
        let memory = &summary.memory;
        Self {
            vm_id: vm.vm_id.clone(),
            vm: name,
            verdict: summary.verdict.clone(),
            is_cause: false,
            hurt_s: hurt_ns as f64 / 1e9,
            stall_share: now.stall,
            cpu_share: now.cpu,
            major_faults_per_s: now.majors_per_s,
            p50_ns: now.p50_ns,
            p99_ns: now.p99_ns,
            max_ns: now.max_ns,
            swapped_in_bytes_per_s: now.swapped_in_per_s.map(bytes),
            lost_bytes_per_s: now.lost_per_s.map(bytes),
            lost_to: now.lost_to.clone(),
            working_set_bytes: memory.working_set_bytes,
            working_set_is_measured: memory.working_set_source.is_some_and(|by| by.is_measured()),
            configured_bytes: memory.configured_bytes.or(vm.memory_bytes),
            is_running: here.is_some(),
            place,
        }
    }
}
