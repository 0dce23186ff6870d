//! Two VMs, one of them squeezed, side by side.

use crate::build;
use crate::setup::{TESTBED, give_to_user_behind_sudo, install, require_root};
use anyhow::Result;
use std::ffi::OsStr;
use testbed::host::{MemoryCgroup, Setting};
use testbed::qemu::{Config, Vm};
use testbed::swap::ZramSwap;
use testbed::{record, root, undo};

/// Options of `demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds to record
    #[arg(long, default_value_t = 15)]
    seconds: u32,
}

/// MiB that each guest walks.
const WALK: u64 = 192;
/// MiB that the squeezed one gets.
const SQUEEZED: u64 = 128;

/// Shows them.
///
/// # Errors
/// Something cannot be set up, or the recording fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    require_root("demo")?;
    install(&TESTBED)?;
    build::all()?;
    let _owner = undo::Undo::call("ownership", give_to_user_behind_sudo);
    let folder = root().join("target/demo");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    show_two_vms(args, &folder)?;
    println!("\nswap, cgroup and VMs of the demo are gone again");
    Ok(())
}

fn show_two_vms(args: &Args, folder: &std::path::Path) -> Result<()> {
    println!(
        "two VMs walk {WALK} MiB each; \"squeezed\" may hold {SQUEEZED} MiB and swaps to zram, \
         \"calm\" is left alone"
    );
    let _small_pages = Setting::small_pages()?;
    let cgroup = MemoryCgroup::new("demo")?;
    let _swap = ZramSwap::new(1024)?;
    cgroup.limit(SQUEEZED)?;
    let squeezed = Config { cgroup: Some(&cgroup), ..Config::new("squeezed", WALK) };
    let mut squeezed = Vm::start(&squeezed)?;
    let mut calm = Vm::start(&Config::new("calm", WALK))?;
    squeezed.await_passes(1)?;
    calm.await_passes(1)?;
    let seconds = format!("{}s", args.seconds);
    let folder = folder.as_os_str();
    let only = ["--vm", "squeezed", "--vm", "calm", "--duration", &seconds, "--out"];
    record::show(only.map(OsStr::new).into_iter().chain([folder]))
}
