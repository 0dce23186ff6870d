//! `overcommit list`

use crate::commands::{require_hosts_pids, require_readable, require_root};
use crate::terminal::print;
use crate::vm::Discovery;
use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};
use overcommit_recording::model::vm::Vm;
use serde::Serialize;
use std::process::ExitCode;

/// Options of `list`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A VM as JSON.
#[derive(Serialize)]
struct Entry<'a> {
    vm_id: String,
    name: String,
    named_by: overcommit_recording::model::vm::NamedBy,
    uuid: &'a Option<String>,
    pid: i32,
    executable: &'a str,
    vcpus: Option<u32>,
    memory_bytes: Option<u64>,
    backing: Option<overcommit_recording::model::vm::Backing>,
    accelerator: &'a Option<String>,
    cgroup: &'a Option<String>,
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
    if args.json {
        let entries: Vec<Entry<'_>> = vms.iter().map(entry).collect();
        print(&format!("{}\n", serde_json::to_string_pretty(&entries)?))?;
    } else if !vms.is_empty() {
        print(&format!("{}\n", table(&vms).trim_fmt()))?;
    } else if readable.is_ok() {
        print("No VM runs on this host.\n")?;
    }
    readable.map(|()| ExitCode::SUCCESS)
}

fn entry(vm: &Vm) -> Entry<'_> {
    Entry {
        vm_id: vm.id.to_string(),
        name: vm.name.to_string(),
        named_by: vm.named_by,
        uuid: &vm.uuid,
        pid: vm.id.pid,
        executable: &vm.executable,
        vcpus: vm.vcpus,
        memory_bytes: vm.memory_bytes,
        backing: vm.backing(),
        accelerator: &vm.accelerator,
        cgroup: &vm.cgroup,
    }
}

fn table(vms: &[Vm]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "VM",
        "PID",
        "VCPUS",
        "MEMORY",
        "BACKED BY",
        "ACCEL",
        "UUID",
        "CGROUP",
        "NAMED BY",
    ]);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for vm in vms {
        table.add_row([
            vm.name.to_string(),
            vm.id.pid.to_string(),
            or_dash(vm.vcpus.map(|vcpus| vcpus.to_string())),
            or_dash(vm.memory_bytes.map(mebibytes)),
            or_dash(vm.backing().map(|backing| backing.to_string())),
            or_dash(vm.accelerator.clone()),
            or_dash(vm.uuid.clone()),
            or_dash(vm.cgroup.clone()),
            vm.named_by.describe().to_owned(),
        ]);
    }
    table
}

fn mebibytes(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 30) {
        format!("{} GiB", bytes >> 30)
    } else {
        format!("{} MiB", bytes >> 20)
    }
}
