//! The testbed: real VMs, real swap, real memory cgroups, and everything put back
//! as it was on every way out.

pub mod host;
pub mod payload;
pub mod qemu;
pub mod record;
pub mod results;
pub mod scenario;
pub mod squeeze;
pub mod swap;
pub mod undo;

use anyhow::{Context, Result, ensure};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The workspace.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// Where builds go.
pub fn target() -> PathBuf {
    root().join("target")
}

/// The program under test.
pub fn overcommit() -> PathBuf {
    target().join("release/overcommit")
}

/// Runs a command to its end; its output is shown if it fails.
///
/// # Errors
/// It cannot be started, or fails.
pub fn run(command: &mut Command) -> Result<String> {
    // Apart from the terminal's Ctrl-C: what puts the host back must not be cut off.
    let output =
        command.process_group(0).output().with_context(|| format!("cannot run {command:?}"))?;
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
