//! run.json without names.
//!
//! Structs are taken apart as a whole, so that a new field has to be thought of here.

use crate::anonymize::names::{Kind, Pseudonyms};
use crate::model::name::Name;
use crate::model::run::{
    BackendChoice, EvictionSight, HostState, NotCounted, Options, Run, RunVm, free_folder,
};
use crate::slo::Objective;
use anyhow::Result;
use std::collections::BTreeSet;

/// The run of a recording, with pseudonyms.
///
/// # Errors
/// It has an objective that is none.
pub(super) fn anonymous(run: &Run, names: &mut Pseudonyms) -> Result<Run> {
    let mut vms = Vec::new();
    for of in &run.vms {
        let vm = vm(of, &vms, names);
        vms.push(vm);
    }
    let host = names.of(Kind::Host, &run.host);
    // Only now: it needs to know all names.
    vms.iter_mut().for_each(|vm| scrub_reasons(vm, names));
    let slo = objectives(run, &vms)?;
    let Run {
        schema,
        run_id,
        tool_version,
        host: _,
        kernel,
        boot_id: _,
        recorder,
        options,
        backend,
        clocks,
        recorded,
        vms: _,
        mut coverage,
        not_counted,
        host_state,
        evictions,
        page_size,
        command_status,
        stopped_by,
        cost,
    } = run.clone();
    for metric in &mut coverage {
        scrub_all(&mut metric.not_seen, names);
    }
    Ok(Run {
        schema,
        run_id,
        tool_version,
        host,
        kernel,
        boot_id: String::new(),
        recorder,
        options: Options { slo, ..options_of(options, &run.vms, names) },
        backend: backend_of(backend, names),
        clocks,
        recorded,
        vms,
        coverage,
        not_counted: NotCounted {
            unserved: not_counted.unserved.iter().map(|vm| names.of(Kind::Vm, vm)).collect(),
            ..not_counted
        },
        host_state: state_of(host_state, names),
        evictions: evictions.map(|EvictionSight { written_absent, dropped_absent }| {
            let scrub = |why: Option<String>| why.map(|why| names.scrub(&why));
            EvictionSight {
                written_absent: scrub(written_absent),
                dropped_absent: scrub(dropped_absent),
            }
        }),
        page_size,
        command_status,
        stopped_by,
        cost,
    })
}

fn scrub_all(texts: &mut [String], names: &Pseudonyms) {
    texts.iter_mut().for_each(|text| *text = names.scrub(text));
}

/// Of each VM what it is called is replaced; reasons are scrubbed once all names are known.
fn vm(of: &RunVm, others: &[RunVm], names: &mut Pseudonyms) -> RunVm {
    let RunVm {
        vm_id,
        name,
        named_by,
        uuid,
        proxmox_id: _,
        pid,
        folder: _,
        executable,
        vcpus,
        memory_bytes,
        backing,
        accelerator,
        cgroup,
        first_seen_us,
        ended_us,
        ended_by,
        exit,
        departure,
        faults_before,
        vcpus_known_by,
        vcpu_times,
        swapins,
        file_faults,
        start,
        swap_sources,
        balloon_unknown,
        working_set_unknown,
        evictions_absent,
        exits_absent,
        faults_hidden,
        seen,
        coverage,
        not_counted,
    } = of.clone();
    let name = names.of(Kind::Vm, &name);
    RunVm {
        folder: free_folder(&Name::new(name.clone()), others),
        name,
        uuid: names.of_some(Kind::Uuid, uuid.as_ref()),
        proxmox_id: None,
        executable: names.of_program(&executable),
        cgroup: names.of_some(Kind::Cgroup, cgroup.as_ref()),
        swapins: swapins.map(|mut swapins| {
            let from = std::mem::take(&mut swapins.from_device);
            swapins.from_device =
                from.into_iter().map(|(device, pages)| (names.of_device(&device), pages)).collect();
            swapins
        }),
        vm_id,
        named_by,
        pid,
        vcpus,
        memory_bytes,
        backing,
        accelerator,
        first_seen_us,
        ended_us,
        ended_by,
        exit,
        departure,
        faults_before,
        vcpus_known_by,
        vcpu_times,
        file_faults,
        start,
        swap_sources,
        balloon_unknown,
        working_set_unknown,
        evictions_absent,
        exits_absent,
        faults_hidden,
        seen,
        coverage,
        not_counted,
    }
}

fn scrub_reasons(vm: &mut RunVm, names: &Pseudonyms) {
    let reasons = [
        &mut vm.balloon_unknown,
        &mut vm.working_set_unknown,
        &mut vm.evictions_absent,
        &mut vm.exits_absent,
        &mut vm.faults_hidden,
    ];
    for reason in reasons.into_iter().flatten() {
        *reason = names.scrub(reason);
    }
}

/// What the user asked for, without what they called it.
fn options_of(options: Options, vms: &[RunVm], names: &mut Pseudonyms) -> Options {
    let Options {
        interval_ns,
        duration_ns,
        delay_ns,
        vm,
        wait,
        wait_limit_ns,
        backend,
        pid,
        slow_faults_ns,
        causes,
        slo: _,
        labels: _,
        command,
        config: _,
        monitor: _,
        guest_stats,
        working_set,
    } = options;
    let pattern = |pattern: &String| match vms.iter().any(|vm| vm.name == *pattern) {
        true => names.of(Kind::Vm, pattern),
        false => names.of(Kind::Pattern, pattern),
    };
    Options {
        interval_ns,
        duration_ns,
        delay_ns,
        vm: vm.iter().map(pattern).collect(),
        wait,
        wait_limit_ns,
        backend,
        pid,
        slow_faults_ns,
        causes,
        slo: Vec::new(),
        labels: std::collections::BTreeMap::new(),
        command: command.first().map(|_| "COMMAND".to_owned()).into_iter().collect(),
        config: None,
        monitor: Vec::new(),
        guest_stats,
        working_set,
    }
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

fn backend_of(backend: BackendChoice, names: &Pseudonyms) -> BackendChoice {
    let BackendChoice { name, fault_starts_at, mut refused, mut hooks } = backend;
    refused.values_mut().for_each(|why| *why = names.scrub(why));
    for why in hooks.iter_mut().filter_map(|hook| hook.missing.as_mut()) {
        *why = names.scrub(why);
    }
    BackendChoice { name, fault_starts_at, refused, hooks }
}

fn state_of(state: HostState, names: &mut Pseudonyms) -> HostState {
    let HostState { unreadable, discards_absent, kills_unreadable, mut swap_areas } = state;
    for area in swap_areas.iter_mut().flatten() {
        area.name = names.of_device(&area.name);
    }
    let scrub = |why: Option<String>| why.map(|why| names.scrub(&why));
    HostState {
        unreadable: scrub(unreadable),
        discards_absent: scrub(discards_absent),
        kills_unreadable: scrub(kills_unreadable),
        swap_areas,
    }
}
