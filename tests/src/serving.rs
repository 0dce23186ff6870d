//! Runs `overcommit serve` as a user would.

use crate::{PATIENCE, as_child, await_some, overcommit};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
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

/// A server whose metrics can be asked for.
pub struct Server {
    serving: Serving,
    address: String,
}

impl Server {
    /// Starts one with these options, and waits for its first interval.
    ///
    /// # Errors
    /// It ends instead.
    pub fn start(dir: &Path, more: &[&str]) -> Result<Self> {
        Self::spawn(dir, Command::new(overcommit()), more)
    }

    /// By a command that ends with ours.
    ///
    /// # Errors
    /// It ends instead.
    pub fn spawn(dir: &Path, command: Command, more: &[&str]) -> Result<Self> {
        let options = [&["--listen", "127.0.0.1:0"], more].concat();
        let mut serving = Serving::spawn(dir, command, &options)?;
        let address = serving.await_told(|text| {
            let place = text.split("http://").nth(1).and_then(|rest| rest.split('/').next());
            place.map(str::to_owned)
        })?;
        let server = Self { serving, address };
        await_some("an interval", PATIENCE, || {
            Ok(server.get("/-/ready", "")?.starts_with("HTTP/1.1 200").then_some(()))
        })?;
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.serving.pid()
    }

    /// A connection to it.
    ///
    /// # Errors
    /// It does not listen.
    pub fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// The whole answer.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, path: &str, headers: &str) -> Result<String> {
        let mut stream = self.connect()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// The metrics as text.
    ///
    /// # Errors
    /// It gives none.
    pub fn metrics(&self) -> Result<String> {
        let answer = self.get("/metrics", "")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
        ensure!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        Ok(body.to_owned())
    }

    /// Ends it as systemd does.
    ///
    /// # Errors
    /// It fails.
    pub fn end(self) -> Result<()> {
        self.serving.end()
    }
}
