//! Whom a recording is of: the VMs that the options name, once they run.

use crate::commands::require_readable;
use crate::commands::signalled;
use crate::commands::subject::{Subject, Ways, ways};
use crate::sampler::roster::Selection;
use crate::session::wait::{self, Waiter, Woken};
use crate::terminal::say;
use crate::vm::Discovery;
use crate::vm::owner::Room;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use overcommit_recording::format::text::readable;
use overcommit_recording::model::pattern::Pattern;
use overcommit_recording::model::vm::Vm;
use overcommit_recording::slo::judge::NOT_JUDGED;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// Time until it is said again whom it waits for.
const REMIND: Duration = Duration::from_secs(60);

/// Those that the options name.
///
/// # Errors
/// A process is not there, or is a thread of one.
pub(super) fn selection(args: &Subject) -> Result<Selection> {
    let discovery = Discovery::new("/proc");
    for pid in &args.pid {
        discovery.describe(*pid).with_context(|| format!("--pid {pid}"))?;
        let path = format!("/proc/{pid}/status");
        let status = std::fs::read_to_string(&path).with_context(|| format!("--pid {pid}"))?;
        let leads = status.lines().any(|line| line == format!("Tgid:\t{pid}"));
        ensure!(leads, "--pid {pid} is a thread; give the id of its process");
    }
    Ok(Selection { patterns: args.vm.clone(), pids: args.pid.clone() })
}

/// Tells a user who stopped it that there is nothing.
pub(super) fn stopped(signal: Signal) -> ExitCode {
    say("overcommit: stopped before recording began; nothing was recorded");
    signalled(signal)
}

/// What was found of the host, before anything is attached.
pub(super) struct Found {
    /// How many VMs there is to be room for.
    pub(super) room: Room,
    /// What was learnt of the host's processes.
    pub(super) discovery: Discovery,
    /// How VMs can be recorded. `None` where VMs were waited for: what is read of the kernel takes some
    /// tens of MiB.
    pub(super) ways: Option<Result<Ways>>,
}

/// The VMs that run, once every VM that is named does. A signal may come first, or the end of the
/// time to wait: the exit code then.
///
/// # Errors
/// A VM that is named does not run, or VMs cannot be looked for.
pub(super) async fn find(
    args: &Subject,
    is_quiet: bool,
    selection: &Selection,
    waiter: &mut Waiter,
) -> Result<Result<Found, ExitCode>> {
    let start = Instant::now();
    let mut discovery = Discovery::new("/proc");
    // Either takes a good part of what passes until a recording begins.
    let look = || args.wait.is_none().then(|| ways(args.backend));
    let (mut scanned, ways) = scan_beside(&mut discovery, look)?;
    let (mut told, mut waited) = (false, None::<Instant>);
    loop {
        let vms = scanned.take().map_or_else(|| discovery.scan(), Ok)?;
        match require_readable(&discovery) {
            Err(error) if vms.is_empty() => return Err(error),
            Err(error) if !told => say(&format!("overcommit: {error}")),
            _ => {}
        }
        let missing = |pattern: &&Pattern| !vms.iter().any(|vm| pattern.matches(vm));
        let (exact, globs): (Vec<_>, Vec<_>) =
            selection.patterns.iter().filter(missing).partition(|pattern| pattern.is_exact());
        if let Some(pattern) = exact.first()
            && args.wait.is_none()
        {
            bail!("no VM is named {pattern}; {} {}", running(&vms), hint(pattern, &vms));
        }
        if !told {
            for doubt in args.host.doubts(&vms) {
                say(&format!("overcommit: {doubt}"));
            }
        }
        if !is_quiet && !told {
            for pattern in &globs {
                say(&format!(
                    "overcommit: no VM matches {pattern} yet; VMs that start will be recorded"
                ));
            }
            if vms.is_empty() && args.vm.is_empty() && args.pid.is_empty() {
                say("overcommit: no VM is running; VMs that start will be recorded");
            }
        }
        if !exact.is_empty() && !is_quiet && waited.is_none_or(|then| then.elapsed() >= REMIND) {
            let names: Vec<String> = exact.iter().map(|pattern| pattern.to_string()).collect();
            say(&format!("overcommit: waiting for {} to run; Ctrl-C ends it", names.join(", ")));
            waited = Some(Instant::now());
        }
        told = true;
        if exact.is_empty() {
            let room = Room::for_vms(&vms, |vm| discovery.login_user(vm));
            return Ok(Ok(Found { room, discovery, ways }));
        }
        if let (Some(pattern), Some(Some(limit))) = (exact.first(), args.wait)
            && start.elapsed() >= limit
        {
            let limit = readable(limit.as_nanos() as u64);
            say(&format!("overcommit: error: no VM named {pattern} was running within {limit}"));
            return Ok(Err(ExitCode::from(NOT_JUDGED)));
        }
        if let Woken::Signal(signal) = waiter.rest(wait::SCAN).await {
            return Ok(Err(stopped(signal)));
        }
    }
}

/// Looks at every process for the first time, and does something else beside it. `None` of what was found
/// where there can be no thread, or it panicked: the next look is the first then.
fn scan_beside<T>(
    discovery: &mut Discovery,
    other: impl FnOnce() -> T,
) -> Result<(Option<Vec<Vm>>, T)> {
    thread::scope(|scope| {
        let scanned = thread::Builder::new().spawn_scoped(scope, || discovery.scan());
        let other = other();
        let scanned = scanned.ok().and_then(|scanned| scanned.join().ok());
        Ok((scanned.transpose()?, other))
    })
}

/// What to type instead of a pattern that means no VM.
fn hint(pattern: &Pattern, vms: &[Vm]) -> String {
    if let Some(vm) = vms.iter().find(|vm| pattern.is_nearly(vm)) {
        return format!("Did you mean {}?", vm.name);
    }
    if pattern.to_string().contains(',') {
        return "Give --vm once for each VM".to_owned();
    }
    "Use --wait to wait for it".to_owned()
}

fn running(vms: &[Vm]) -> String {
    if vms.is_empty() {
        return "no VM is running on this host.".to_owned();
    }
    let names: Vec<String> = vms.iter().map(|vm| vm.name.to_string()).collect();
    format!("running: {}.", names.join(", "))
}
