//! run.json without names.
//!
//! Structs are taken apart as a whole, so that a new field has to be thought of here.

use crate::anonymize::names::{Kind, Pseudonyms};
use crate::model::name::Name;
use crate::model::run::{
    BackendChoice, EvictionSight, HostState, Options, Run, RunVm, free_folder,
};
use crate::slo::Objective;
use anyhow::Result;
use std::collections::BTreeSet;

/// The run of a recording, with pseudonyms.
///
/// # Errors
/// It has an objective that is none.
pub(super) fn anonymous(run: &Run, names: &mut Pseudonyms) -> Result<Run> {
    let mut copy = Run { vms: Vec::with_capacity(run.vms.len()), ..run.clone() };
    for of in &run.vms {
        let mut vm = of.clone();
        rename_vm(&mut vm, &copy.vms, names);
        copy.vms.push(vm);
    }
    copy.options.slo = objectives(run, &copy.vms)?;
    let Run {
        schema: _,
        run_id: _,
        tool_version: _,
        host,
        kernel: _,
        boot_id,
        recorder: _,
        options,
        backend,
        clocks: _,
        recorded: _,
        vms,
        coverage,
        not_counted,
        host_state,
        evictions,
        page_size: _,
        command_status: _,
        stopped_by: _,
        cost: _,
    } = &mut copy;
    *host = names.of(Kind::Host, host);
    boot_id.clear();
    rename_options(options, &run.vms, names);
    not_counted.unserved.iter_mut().for_each(|vm| *vm = names.of(Kind::Vm, vm));
    for area in host_state.swap_areas.iter_mut().flatten() {
        area.name = names.of_device(&area.name);
    }
    // Only now: it needs to know all names.
    vms.iter_mut().for_each(|vm| scrub(reasons_of(vm), names));
    scrub(coverage.iter_mut().flat_map(|metric| &mut metric.not_seen), names);
    scrub(reasons_of_host(host_state), names);
    scrub(reasons_of_backend(backend), names);
    if let Some(EvictionSight { written_absent, dropped_absent }) = evictions {
        scrub([written_absent, dropped_absent].into_iter().flatten(), names);
    }
    Ok(copy)
}

fn scrub<'a>(texts: impl IntoIterator<Item = &'a mut String>, names: &Pseudonyms) {
    texts.into_iter().for_each(|text| *text = names.scrub(text));
}

/// Replaces what a VM is called.
fn rename_vm(vm: &mut RunVm, others: &[RunVm], names: &mut Pseudonyms) {
    let RunVm {
        vm_id: _,
        name,
        named_by: _,
        uuid,
        proxmox_id,
        pid: _,
        folder,
        executable,
        vcpus: _,
        memory_bytes: _,
        backing: _,
        accelerator: _,
        cgroup,
        first_seen_us: _,
        ended_us: _,
        ended_by: _,
        exit: _,
        departure: _,
        faults_before: _,
        vcpus_known_by: _,
        vcpu_times: _,
        swapins,
        file_faults: _,
        start: _,
        swap_sources: _,
        // Scrubbed once all names are known, see `reasons_of`.
        balloon_unknown: _,
        working_set_unknown: _,
        evictions_absent: _,
        exits_absent: _,
        faults_hidden: _,
        seen: _,
        coverage: _,
        not_counted: _,
    } = vm;
    *name = names.of(Kind::Vm, name);
    *folder = free_folder(&Name::new(name.clone()), others);
    *uuid = names.of_some(Kind::Uuid, uuid.as_ref());
    *proxmox_id = None;
    *executable = names.of_program(executable);
    *cgroup = names.of_some(Kind::Cgroup, cgroup.as_ref());
    if let Some(swapins) = swapins {
        let from = std::mem::take(&mut swapins.from_device);
        swapins.from_device =
            from.into_iter().map(|(device, pages)| (names.of_device(&device), pages)).collect();
    }
}

fn reasons_of(vm: &mut RunVm) -> impl Iterator<Item = &mut String> {
    let reasons = [
        &mut vm.balloon_unknown,
        &mut vm.working_set_unknown,
        &mut vm.evictions_absent,
        &mut vm.exits_absent,
        &mut vm.faults_hidden,
    ];
    reasons.into_iter().flatten()
}

fn reasons_of_host(state: &mut HostState) -> impl Iterator<Item = &mut String> {
    let HostState { unreadable, discards_absent, kills_unreadable, swap_areas: _ } = state;
    [unreadable, discards_absent, kills_unreadable].into_iter().flatten()
}

fn reasons_of_backend(backend: &mut BackendChoice) -> impl Iterator<Item = &mut String> {
    let BackendChoice { name: _, fault_starts_at: _, refused, hooks } = backend;
    refused.values_mut().chain(hooks.iter_mut().filter_map(|hook| hook.missing.as_mut()))
}

/// Replaces what the user called things when asking for the recording; objectives are replaced
/// already.
fn rename_options(options: &mut Options, vms: &[RunVm], names: &mut Pseudonyms) {
    let Options {
        interval_ns: _,
        duration_ns: _,
        delay_ns: _,
        vm,
        wait: _,
        wait_limit_ns: _,
        backend: _,
        pid: _,
        slow_faults_ns: _,
        causes: _,
        slo: _,
        labels,
        command,
        config,
        monitor,
        guest_stats: _,
        working_set: _,
    } = options;
    for pattern in vm {
        let is_name = vms.iter().any(|vm| vm.name == *pattern);
        *pattern = names.of(if is_name { Kind::Vm } else { Kind::Pattern }, pattern);
    }
    labels.clear();
    monitor.clear();
    *config = None;
    command.truncate(1);
    command.iter_mut().for_each(|program| *program = "COMMAND".to_owned());
}

/// Those of the recording: one that names VMs becomes one for each VM that it is for.
fn objectives(run: &Run, vms: &[RunVm]) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for objective in Objective::recorded(run)? {
        let Some(bound) = objective.without_vms() else {
            texts.push(objective.to_string());
            continue;
        };
        let meant = run.vms.iter().zip(vms).filter(|(vm, _)| objective.is_for(vm));
        // A name that several have is for all of them.
        let is_only = |name: &str| vms.iter().filter(|vm| vm.name == name).count() == 1;
        let meant: BTreeSet<&str> = meant
            .map(|(_, vm)| match &vm.uuid {
                Some(uuid) if !is_only(&vm.name) => uuid.as_str(),
                _ => vm.name.as_str(),
            })
            .collect();
        if meant.is_empty() {
            texts.push(format!("nobody:{bound}"));
        }
        texts.extend(meant.into_iter().map(|name| format!("{name}:{bound}")));
    }
    Ok(texts)
}
