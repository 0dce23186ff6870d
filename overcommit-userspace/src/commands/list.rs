//! `overcommit list`

use crate::commands::{require_hosts_pids, require_readable, require_root};
use crate::host::memory_cgroup::{Hierarchy, Limit};
use crate::host::memory_use::Held;
use crate::host::vm_processes::VmProcesses;
use crate::terminal::{print, print_json};
use crate::vm::Discovery;
use anyhow::Result;
use comfy_table::{CellAlignment, Table};
use overcommit_recording::format::text::readable_bytes;
use overcommit_recording::model::vm::{Backing, NamedBy, Vm};
use overcommit_recording::view::plain_table;
use overcommit_recording::view::verdict_text::short;
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;

/// Options of `list`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Also print uuid, memory cgroup, what backs the memory, and where the name came from
    #[arg(short, long)]
    verbose: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct List<'a> {
    schema: &'static str,
    vms: &'a [Entry<'a>],
}

/// A VM as JSON.
#[derive(Serialize)]
struct Entry<'a> {
    vm_id: String,
    name: String,
    named_by: NamedBy,
    uuid: Option<&'a str>,
    /// Proxmox's number for it.
    proxmox_id: Option<&'a str>,
    pid: i32,
    executable: &'a str,
    vcpus: Option<u32>,
    memory_bytes: Option<u64>,
    backing: Option<Backing>,
    accelerator: Option<&'a str>,
    cgroup: Option<&'a str>,
    /// Whether its memory cgroup is its alone.
    has_own_cgroup: bool,
    /// What it holds in RAM, QEMU's own memory included.
    resident_bytes: Option<u64>,
    /// Its private memory on swap; empty where its memory is shared.
    swapped_bytes: Option<u64>,
    /// The least limit of its own memory cgroups.
    limit_bytes: Option<u64>,
}

/// Prints the VMs that run.
///
/// # Errors
/// Not root, or /proc cannot be read.
pub fn run(args: &Args) -> Result<ExitCode> {
    require_root()?;
    require_hosts_pids()?;
    let mut discovery = Discovery::new("/proc");
    let vms = discovery.scan()?;
    let readable = require_readable(&discovery);
    let hierarchy = Hierarchy::find(Path::new("/proc"));
    let processes = VmProcesses::new(Path::new("/proc"));
    let entry = |vm| entry(vm, hierarchy.as_ref(), &processes);
    let entries: Vec<Entry<'_>> = vms.iter().map(entry).collect();
    if args.json {
        let list = List { schema: "overcommit.list/1", vms: &entries };
        print_json(&list)?;
    } else if !entries.is_empty() {
        print(&format!("{}\n", table(&entries, args.verbose).trim_fmt()))?;
    } else if readable.is_ok() {
        print("No VM is running on this host.\n")?;
    }
    readable.map(|()| ExitCode::SUCCESS)
}

fn entry<'a>(vm: &'a Vm, hierarchy: Option<&Hierarchy>, processes: &VmProcesses) -> Entry<'a> {
    let (proc, pid) = (processes.proc(), vm.id.pid);
    let own = hierarchy.and_then(|hierarchy| hierarchy.own(processes, vm));
    let held = Held::read(proc, pid);
    Entry {
        vm_id: vm.id.to_string(),
        name: vm.name.to_string(),
        named_by: vm.named_by,
        uuid: vm.uuid.as_deref(),
        proxmox_id: vm.proxmox_id.as_deref(),
        pid,
        executable: &vm.executable,
        vcpus: vm.vcpus,
        memory_bytes: vm.memory_bytes,
        backing: vm.backing(),
        accelerator: vm.accelerator.as_deref(),
        cgroup: vm.cgroup.as_deref(),
        has_own_cgroup: own.is_some(),
        resident_bytes: held.map(Held::bytes),
        swapped_bytes: held.filter(|_| vm.backing() == Some(Backing::Anonymous)).map(Held::swapped),
        limit_bytes: own
            .and_then(|own| Limit::least(&own.with_own_around(processes, pid)))
            .map(|limit| limit.bytes),
    }
}

fn table(vms: &[Entry<'_>], is_full: bool) -> Table {
    let mut table = plain_table();
    let mut header = vec!["VM", "PID", "VCPUS", "MEMORY", "HELD", "SWAPPED", "LIMIT", "ACCEL"];
    if is_full {
        header.extend(["BACKED BY", "PROXMOX ID", "UUID", "CGROUP", "ITS OWN", "NAMED BY"]);
    }
    table.set_header(header);
    for vm in vms {
        let bytes = |bytes: Option<u64>| bytes.map_or_else(dash, readable_bytes);
        let name = if is_full { vm.name.clone() } else { short(&vm.name) };
        let mut row = vec![
            name,
            vm.pid.to_string(),
            vm.vcpus.map_or_else(dash, |vcpus| vcpus.to_string()),
            bytes(vm.memory_bytes),
            bytes(vm.resident_bytes),
            bytes(vm.swapped_bytes),
            bytes(vm.limit_bytes),
            vm.accelerator.map_or_else(dash, str::to_owned),
        ];
        if is_full {
            row.extend([
                vm.backing.map_or_else(dash, |backing| backing.to_string()),
                vm.proxmox_id.map_or_else(dash, str::to_owned),
                vm.uuid.map_or_else(dash, str::to_owned),
                vm.cgroup.map_or_else(dash, str::to_owned),
                if vm.has_own_cgroup { "yes" } else { "no" }.to_owned(),
                vm.named_by.describe().to_owned(),
            ]);
        }
        table.add_row(row);
    }
    for column in table.column_iter_mut().filter(|column| (1..7).contains(&column.index)) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn dash() -> String {
    "-".to_owned()
}
