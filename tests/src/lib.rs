//! The testbed: real VMs, real swap, real memory cgroups, and everything put back
//! as it was on every way out.

pub mod attempt;
pub mod browser;
pub mod host;
#[cfg(test)]
mod layers;
pub mod payload;
pub mod qemu;
pub mod record;
pub mod results;
pub mod scenario;
pub mod serving;
pub mod squeeze;
pub mod swap;
pub mod undo;

use anyhow::{Context, Result, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long anything may take that is waited for: on the slowest machine it comes before that, so
/// that only what never comes fails.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The checkout that this program was built from and runs in. It is looked for at run time: a
/// build may have been copied with its checkout.
pub fn root() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    // cargo says where the package is that it runs.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    let is_root = |dir: &&Path| dir.join("overcommit-ebpf/Cargo.toml").exists();
    let dirs = package.ancestors().chain(program.ancestors());
    let dirs = dirs.filter(|dir| dir.is_absolute());
    dirs.into_iter().find(is_root).unwrap_or(Path::new(".")).to_owned()
}

/// Where builds go.
pub fn target() -> PathBuf {
    root().join("target")
}

/// The program under test.
pub fn overcommit() -> PathBuf {
    target().join("release/overcommit")
}

/// Says in the environment that a process was started by [`as_child`].
const IS_CHILD: &str = "OVERCOMMIT_IS_CHILD";

/// Prepares a command: its process finds what root runs, also where a user's path came through
/// sudo, and gets that signal from the kernel as soon as the thread that starts it is gone, so
/// that nothing outlives us, not even after SIGKILL.
pub fn as_child(command: &mut Command, signal: Signal) -> &mut Command {
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env(IS_CHILD, "1");
    // SAFETY: between fork and exec one system call is made, and no memory allocated.
    unsafe { command.pre_exec(move || Ok(set_pdeathsig(signal)?)) }
}

/// Runs a command to its end; its output is shown if it fails.
///
/// # Errors
/// It cannot be started, or fails.
pub fn run(command: &mut Command) -> Result<String> {
    // Apart from the terminal's Ctrl-C: what puts the host back must not be cut off.
    let output = as_child(command, Signal::SIGKILL)
        .process_group(0)
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?} failed ({}):\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

/// Looks again and again until there is something to see.
///
/// # Errors
/// Nothing came in time, or looking fails.
pub fn await_some<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        ensure!(Instant::now() < end, "no {what} within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
