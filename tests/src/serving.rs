//! Runs `overcommit serve` as a user would.

use crate::{PATIENCE, as_child, await_some, overcommit};
use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// By which a VM has a port to its host, see [`Config::more`](crate::qemu::Config::more).
pub const PORT: [&str; 6] = [
    "-device",
    "virtio-serial",
    "-chardev",
    "socket,id=truth,path=DIR/truth,server=on,wait=off",
    "-device",
    "virtserialport,id=port,chardev=truth,name=org.overcommit.truth.0",
];

/// A server that runs. Dropping it ends it.
pub struct Serving {
    child: Child,
    told: PathBuf,
}

impl Serving {
    /// Starts it with these options; what it says goes to a file in that folder.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(dir: &Path, options: &[&str]) -> Result<Self> {
        Self::spawn(dir, Command::new(overcommit()), options)
    }

    /// By a command that ends with ours.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(dir: &Path, mut command: Command, options: &[&str]) -> Result<Self> {
        let told = dir.join("told");
        command.arg("serve").args(options);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&told)?);
        let child = as_child(&mut command, Signal::SIGTERM).spawn()?;
        Ok(Self { child, told })
    }

    /// Waits until it has said something in which that is found.
    ///
    /// # Errors
    /// It ends instead.
    pub fn await_told<T>(&mut self, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        await_some("word of overcommit serve", PATIENCE, || {
            let text = fs::read_to_string(&self.told)?;
            ensure!(self.child.try_wait()?.is_none(), "overcommit serve ended: {text}");
            Ok(find(&text))
        })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as systemd does.
    ///
    /// # Errors
    /// It fails.
    pub fn end(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Its number may be another's once it is waited for.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}
