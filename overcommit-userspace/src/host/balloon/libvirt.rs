//! Asks libvirt, which holds the monitors of its VMs, by its own program `virsh`:
//! that works with the libvirt that the host has, and can be given up when it hangs.

use crate::host::balloon::qmp::PATIENCE;
use anyhow::{Context, Result, anyhow, ensure};
use overcommit_recording::model::balloon::{Balloon, GuestMemory, LARGEST, Source};
use overcommit_recording::model::exit::Departure;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use tokio::process::Command;
use tokio::time::timeout;
use uuid::Uuid;

/// Domains that one virsh is asked about: its question is one argument, which the kernel keeps
/// below 128 KiB (`MAX_ARG_STRLEN`, include/uapi/linux/binfmts.h).
const AT_ONCE: usize = 500;
/// Where it may be: not by PATH, which may be that of a user who has become root.
const VIRSH: [&str; 3] =
    ["/usr/bin/virsh", "/usr/local/bin/virsh", "/run/current-system/sw/bin/virsh"];
const ARGUMENTS: [&str; 3] = ["--connect", "qemu:///system", "--readonly"];

/// Where libvirt keeps the process id of each VM that it started.
pub const PIDS: &str = "/run/libvirt/qemu";

/// Process ids of the VMs that libvirt itself started: any process may carry the uuid of one.
pub fn pids(dir: &Path) -> BTreeSet<i32> {
    let files = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = files.filter(|path| path.extension().is_some_and(|kind| kind == "pid"));
    files.filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok()).collect()
}

/// Asks once about the domains with these uuids. One that libvirt does not know is not in
/// the answer.
///
/// # Errors
/// There is no virsh, or libvirt does not answer in time.
pub async fn look(uuids: &[Uuid]) -> Result<BTreeMap<Uuid, Balloon>> {
    let mut found = BTreeMap::new();
    for uuids in uuids.chunks(AT_ONCE) {
        found.extend(parse(&ask("--balloon", uuids).await?));
    }
    Ok(found)
}

/// What became of these domains, as far as they do not run. A transient one is forgotten with its
/// end.
///
/// # Errors
/// See [`look`].
pub async fn departures(uuids: &[Uuid]) -> Result<BTreeMap<Uuid, Departure>> {
    let mut found = BTreeMap::new();
    for uuids in uuids.chunks(AT_ONCE) {
        let text = ask("--state", uuids).await?;
        let figures = figures(&text);
        let told = figures.iter().filter_map(|(uuid, of)| Some((*uuid, departure(of)?)));
        found.extend(told);
    }
    Ok(found)
}

async fn ask(what: &str, uuids: &[Uuid]) -> Result<String> {
    let virsh = VIRSH.iter().find(|path| Path::new(path).exists());
    let mut virsh = Command::new(virsh.context("there is no virsh on this host")?);
    virsh.args(ARGUMENTS).arg(question(what, uuids));
    virsh.env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE, virsh.output()).await;
    let output = output.map_err(|_| anyhow!("virsh did not answer within {PATIENCE:?}"))?;
    let output = output.context("cannot run virsh")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "virsh failed: {}", complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Commands for one virsh: each uuid, and what it tells of that domain without waiting for
/// one that is busy. The last one succeeds, so that only a lost connection is a failure.
fn question(what: &str, uuids: &[Uuid]) -> String {
    let ask = |uuid| format!("echo {uuid}; domstats {what} --nowait {uuid}; ");
    uuids.iter().map(ask).collect::<String>() + "echo"
}

/// The balloons in what virsh prints.
pub fn parse(text: &str) -> BTreeMap<Uuid, Balloon> {
    let figures = figures(text);
    figures.iter().filter_map(|(uuid, figures)| Some((*uuid, balloon(figures)?))).collect()
}

/// Whatever virsh gives as numbers, by domain.
fn figures(text: &str) -> BTreeMap<Uuid, BTreeMap<&str, u64>> {
    let mut figures = BTreeMap::<_, BTreeMap<_, _>>::new();
    let mut domain = None;
    for line in text.lines().map(str::trim) {
        if let Ok(uuid) = line.parse::<Uuid>() {
            domain = Some(uuid);
        } else if let (Some(uuid), Some((key, figure))) = (domain, line.split_once('='))
            && let Ok(figure) = figure.parse::<u64>()
        {
            figures.entry(uuid).or_default().insert(key, figure);
        }
    }
    figures
}

/// By `virDomainState` and `virDomainShutoffReason` (include/libvirt/libvirt-domain.h).
fn departure(figures: &BTreeMap<&str, u64>) -> Option<Departure> {
    const SHUT_OFF: u64 = 5;
    if figures.get("state.state") != Some(&SHUT_OFF) {
        return None;
    }
    match figures.get("state.reason")? {
        1 => Some(Departure::ShutDown),
        2 => Some(Departure::Destroyed),
        // So is a process that was killed, but that its exit tells (`processMonitorEOFEvent`,
        // src/qemu/qemu_driver.c).
        3 => Some(Departure::Panicked),
        4 => Some(Departure::Migrated),
        5 => Some(Departure::Saved),
        6 => Some(Departure::Failed),
        _ => None,
    }
}

/// libvirt counts in KiB.
fn balloon(figures: &BTreeMap<&str, u64>) -> Option<Balloon> {
    let kibibytes = |name| {
        let bytes = figures.get(name)?.saturating_mul(1 << 10);
        (bytes <= LARGEST).then_some(bytes)
    };
    let (configured, current) = (kibibytes("balloon.maximum")?, kibibytes("balloon.current")?);
    let updated = figures.get("balloon.last-update").filter(|seconds| **seconds > 0);
    Some(Balloon {
        configured: Some(configured),
        current: Some(current),
        ballooned: configured.saturating_sub(current),
        source: Source::Libvirt,
        guest: updated.map(|seconds| GuestMemory {
            total: kibibytes("balloon.available"),
            available: kibibytes("balloon.usable"),
            free: kibibytes("balloon.unused"),
            updated_unix_s: *seconds,
            asked_every_s: None,
        }),
    })
}

/// What a balloon took, of a VM that has that much memory beside virtio-mem and NVDIMMs.
/// libvirt's maximum has those in full (`virDomainDefPostParseMemory`), and its current of
/// virtio-mem what is plugged in and of an NVDIMM nothing (`qemuProcessHandleBalloonChange`).
///
/// # Errors
/// It has such devices, so that the difference of the two is no balloon.
pub fn told_apart(balloon: Balloon, base: Option<u64>) -> Result<Balloon, String> {
    match balloon.configured.zip(base) {
        Some((configured, base)) if configured > base => {
            Err("libvirt does not distinguish its balloon from its memory devices".to_owned())
        }
        _ => Ok(balloon),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_claims_a_uuid_is_not_of_libvirt() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("web.pid", "42\n"), ("web.xml", "43"), ("db.pid", "x")] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        assert_eq!(pids(dir.path()), BTreeSet::from([42]));
        assert!(pids(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn memory_devices_are_no_balloon() {
        let gib = |count: u64| Some(count << 30);
        let [configured, current] = [12, 4].map(gib);
        let source = Source::Libvirt;
        let balloon = Balloon { configured, current, ballooned: 8 << 30, source, guest: None };
        assert!(told_apart(balloon, gib(4)).is_err(), "8 GiB of virtio-mem");
        assert_eq!(told_apart(balloon, gib(12)), Ok(balloon));
        assert_eq!(told_apart(balloon, None), Ok(balloon));
    }

    #[test]
    fn domains_with_and_without_reports() {
        let [web, its, off] = [1, 2, 3].map(Uuid::from_u128);
        let domains = parse(&format!(
            "{web}\n\nDomain: 'web-01'\n  balloon.current=524288\n  balloon.maximum=1048576\n  \
             balloon.swap_in=0\n  balloon.unused=102400\n  balloon.available=500000\n  \
             balloon.usable=204800\n  balloon.last-update=1700000000\n  balloon.rss=70000\n\n\
             {its}\n\nDomain: 'it=1'\n  balloon.current=2048\n  balloon.maximum=2048\n\n\
             {off}\n\n\n",
        ));
        assert_eq!(domains.keys().collect::<Vec<_>>(), [&web, &its]);
        let web = domains[&web];
        assert_eq!((web.configured, web.ballooned), (Some(1 << 30), 512 << 20));
        assert_eq!(web.guest.unwrap().available, Some(200 << 20));
        assert_eq!((domains[&its].ballooned, domains[&its].guest), (0, None));
        assert!(parse("error: nonsense\n=\n").is_empty());
    }

    #[test]
    fn what_became_of_a_domain() {
        let uuid = Uuid::from_u128(1);
        let told = |state, reason| {
            let text = format!(
                "{uuid}\n\nDomain: 'web'\n  state.state={state}\n  state.reason={reason}\n"
            );
            departure(&figures(&text)[&uuid])
        };
        assert_eq!(told(5, 4), Some(Departure::Migrated));
        assert_eq!(told(5, 2), Some(Departure::Destroyed));
        assert_eq!(told(5, 0), None);
        assert_eq!(told(1, 1), None, "it runs again");
    }
}
