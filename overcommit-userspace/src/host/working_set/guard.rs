//! A process that outlives a recorder that is killed, and puts DAMON back for it: the kernel goes on
//! looking at a process's memory for whoever began it, whether that is there or not.

use crate::host::working_set::damon;
use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// The subcommand that it runs.
pub const GUARD: &str = "damon-guard";

/// The process. Dropping it ends it: DAMON is put back already.
pub struct Guard {
    child: Child,
    life: Option<ChildStdin>,
}

impl Guard {
    /// Starts it; `stat` if the kernel's own use of DAMON was on.
    ///
    /// # Errors
    /// There can be no more processes.
    pub fn start(stat: bool) -> Result<Self> {
        let mut guard = Command::new("/proc/self/exe");
        // Neither a terminal's signal nor its end is meant for it.
        guard
            .arg0("overcommit")
            .arg(GUARD)
            .args(stat.then_some("--stat"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0);
        let mut child = guard.spawn().context("cannot start the process that guards DAMON")?;
        let life = child.stdin.take();
        Ok(Self { child, life })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mut life) = self.life.take() {
            let _ = life.write_all(b"done");
        }
        let _ = self.child.wait();
    }
}

/// Waits for the end of the recorder, and puts DAMON back unless that has done so.
///
/// # Errors
/// The kernel refuses.
pub fn run(stat: bool) -> Result<()> {
    // What ends all of a service at once is not to end this one first.
    let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
    signals.into_iter().collect::<SigSet>().thread_block().context("cannot block signals")?;
    let mut done = Vec::new();
    std::io::stdin().read_to_end(&mut done)?;
    if done.is_empty() { damon::put_back(Path::new("/sys"), stat) } else { Ok(()) }
}
