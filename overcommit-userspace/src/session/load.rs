//! The load generator that a recording runs: `-- COMMAND`.

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, User, setgid, setgroups, setuid};
use overcommit_recording::format::text::reason;
use overcommit_recording::recording::Owner;
use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal, stderr, stdin};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::process::{Child, Command};

/// How long a command that was asked to end may take.
const GRACE: Duration = Duration::from_secs(5);

/// Why a command could not be started, with the code that a shell gives.
#[derive(Debug)]
pub struct NotStarted {
    /// 127: there is no such command; 126: it cannot be executed.
    pub code: u8,
    /// What to tell the user.
    pub message: String,
}

/// A running command.
pub struct Load {
    child: Child,
    /// Whom signals go to: the command's process group, or the command alone where it shares ours.
    to: Option<Pid>,
}

impl Load {
    /// Starts the command, as the user who ran sudo, with these limits on open files. Where stdout
    /// is for our own JSON, what it prints goes to stderr.
    ///
    /// It has a process group of its own, so that what it starts is signalled with it. At a
    /// terminal it shares ours: the terminal signals both, and in the background it could not
    /// read a password. It is sent SIGTERM should we be killed.
    ///
    /// # Errors
    /// Why it could not be started.
    pub fn start(
        words: &[OsString],
        owner: Option<Owner>,
        descriptors: (u64, u64),
        to_stderr: bool,
    ) -> Result<Self, NotStarted> {
        let program = words[0].to_string_lossy().into_owned();
        let not_started = |error: &std::io::Error| NotStarted {
            code: if error.kind() == ErrorKind::NotFound { 127 } else { 126 },
            message: format!("cannot run {program}: {}", reason(error)),
        };
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        if let Some(owner) = owner {
            become_user(&mut command, owner)
                .map_err(|error| NotStarted { code: 126, message: format!("{error:#}") })?;
        }
        let (soft, hard) = descriptors;
        // After the user was changed, which takes the signal back (prctl(2)).
        let restore = move || {
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
            Ok(set_pdeathsig(Signal::SIGTERM)?)
        };
        // SAFETY: between fork and exec only these two system calls are made.
        unsafe { command.pre_exec(restore) };
        if to_stderr {
            let stderr = stderr().as_fd().try_clone_to_owned();
            command.stdout(stderr.map_err(|error| not_started(&error))?);
        }
        let is_shared = stdin().is_terminal();
        if !is_shared {
            command.process_group(0);
        }
        let child = command.spawn().map_err(|error| not_started(&error))?;
        let pid = child.id().map(u32::cast_signed);
        let to = pid.map(|pid| Pid::from_raw(if is_shared { pid } else { -pid }));
        Ok(Self { child, to })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().await.context("cannot wait for the command")
    }

    /// Passes a signal on and waits for the end, which is forced in the end.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub async fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        let _ = self.send(signal);
        if let Ok(status) = tokio::time::timeout(GRACE, self.wait()).await {
            return status;
        }
        if self.send(Signal::SIGKILL) == Err(Errno::EPERM) {
            bail!("COMMAND goes on: it runs as another user, and this process may not end it");
        }
        self.wait().await
    }

    fn send(&self, signal: Signal) -> Result<(), Errno> {
        // Nobody else has its number before it was waited for. It may have ended by itself: a
        // terminal signals both.
        self.to.filter(|_| self.child.id().is_some()).map_or(Ok(()), |to| kill(to, signal))
    }
}

/// An error of ours must not leave the load running.
impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.send(Signal::SIGKILL);
    }
}

/// The code that a shell gives for a status. A command that ended by the signal that
/// it was sent ended as it should.
pub fn code(status: ExitStatus, sent: Option<Signal>) -> u8 {
    if status.signal().is_some() && status.signal() == sent.map(|signal| signal as i32) {
        return 0;
    }
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    u8::try_from(code.unwrap_or(1)).unwrap_or(1)
}

/// Has the child drop root for the user, the groups and the home included.
fn become_user(command: &mut Command, owner: Owner) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    let user =
        User::from_uid(uid)?.with_context(|| format!("there is no user {uid}, who ran sudo"))?;
    let groups = owner.groups()?;
    command.env("HOME", &user.dir).env("USER", &user.name).env("LOGNAME", &user.name);
    let drop_root = move || {
        setgroups(&groups)?;
        setgid(gid)?;
        setuid(uid)?;
        Ok(())
    };
    // SAFETY: between fork and exec only these three system calls are made.
    unsafe { command.pre_exec(drop_root) };
    Ok(())
}
