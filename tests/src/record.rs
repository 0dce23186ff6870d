//! Runs `overcommit record` as a user would.

use crate::undo::Undo;
use crate::{PATIENCE, as_child, await_some, overcommit};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// Runs `overcommit record` to its end, its output shown.
///
/// # Errors
/// It fails.
pub fn show(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<()> {
    let mut command = Command::new(overcommit());
    command.arg("record").args(arguments);
    let mut child =
        as_child(&mut command, Signal::SIGINT).spawn().context("cannot run overcommit")?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let _undo = Undo::call("a recording", move || {
        // Gone already in the regular case; reaped by whoever waits below.
        if kill(pid, Signal::SIGINT).is_err() {
            return Ok(());
        }
        await_some("end of the recording", PATIENCE, || Ok(kill(pid, None).is_err().then_some(())))
    });
    let status = child.wait()?;
    ensure!(status.success(), "overcommit record failed: {status}");
    Ok(())
}

/// A recording that runs.
pub struct Recording {
    child: Child,
    folder: PathBuf,
    _undo: Undo,
}

impl Recording {
    /// Starts it and waits until it counts.
    ///
    /// # Errors
    /// It ends instead.
    pub fn start(
        folder: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Self> {
        Self::begin(folder, arguments)?.once_ready()
    }

    /// As [`Self::start`]; what it says goes to that file.
    ///
    /// # Errors
    /// It ends instead.
    pub fn start_told(
        folder: &Path,
        told: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Self> {
        Self::spawn(folder, arguments, File::create(told)?.into())?.once_ready()
    }

    fn once_ready(mut self) -> Result<Self> {
        let ready = self.folder.with_extension("ready");
        await_some("recording", PATIENCE, || {
            let ended = self.child.try_wait()?;
            ensure!(ended.is_none(), "overcommit record ended: {ended:?}");
            Ok(ready.exists().then_some(()))
        })?;
        std::fs::remove_file(ready)?;
        Ok(self)
    }

    /// Starts it, and waits for nothing.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn begin(
        folder: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Self> {
        Self::spawn(folder, arguments, Stdio::inherit())
    }

    fn spawn(
        folder: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        told: Stdio,
    ) -> Result<Self> {
        let ready = folder.with_extension("ready");
        let mut command = Command::new(overcommit());
        command.args(["record", "--quiet", "--out"]).arg(folder).arg("--ready-file").arg(&ready);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(told);
        let child = as_child(&mut command, Signal::SIGTERM)
            .spawn()
            .context("cannot run overcommit; cargo xtask build")?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let undo = Undo::call("a recording", move || {
            // Gone already, and reaped, in the regular case.
            if kill(pid, Signal::SIGTERM).is_err() {
                return Ok(());
            }
            // Until then kvm's tracepoints are in use.
            await_some("end of the recording", PATIENCE, || {
                let ended = waitpid(pid, Some(WaitPidFlag::WNOHANG));
                Ok((ended != Ok(WaitStatus::StillAlive)).then_some(()))
            })
        });
        Ok(Self { child, folder: folder.to_owned(), _undo: undo })
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().cast_signed()), signal)?)
    }

    /// The recorder's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }

    /// Ends it as Ctrl-C does, and gives how it ended.
    ///
    /// # Errors
    /// It is gone.
    pub fn interrupted(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGINT)?;
        self.wait()
    }

    /// Ends it as Ctrl-C does, and gives its folder.
    ///
    /// # Errors
    /// It fails.
    pub fn end(mut self) -> Result<PathBuf> {
        self.signal(Signal::SIGINT)?;
        let status = self.wait()?;
        ensure!(status.success(), "overcommit record failed: {status}");
        Ok(self.folder.clone())
    }
}
