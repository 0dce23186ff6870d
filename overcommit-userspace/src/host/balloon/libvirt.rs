//! Asks libvirt, which holds the monitors of its VMs, by its own program `virsh`:
//! that works with the libvirt that the host has, and can be given up when it hangs.

use crate::host::balloon::qmp::PATIENCE;
use anyhow::{Context, Result, anyhow, ensure};
use overcommit_recording::model::balloon::{Balloon, GuestMemory, Source};
use std::collections::BTreeMap;
use std::process::Stdio;
use tokio::process::Command;
use tokio::time::timeout;

/// `VIR_DOMAIN_STATS_BALLOON`, without waiting for a domain that is busy.
const ARGUMENTS: [&str; 6] =
    ["--connect", "qemu:///system", "--readonly", "domstats", "--balloon", "--nowait"];

/// Asks once: all running domains by name.
///
/// # Errors
/// There is no virsh, or libvirt does not answer in time.
pub async fn look() -> Result<BTreeMap<String, Balloon>> {
    let mut virsh = Command::new("virsh");
    virsh.args(ARGUMENTS).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE, virsh.output()).await;
    let output = output.map_err(|_| anyhow!("virsh did not answer within {PATIENCE:?}"))?;
    let output = output.context("cannot run virsh")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "virsh failed: {}", complaint.trim());
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

fn parse(text: &str) -> BTreeMap<String, Balloon> {
    let mut domains = BTreeMap::new();
    let mut name = None;
    let mut figures = BTreeMap::new();
    for line in text.lines().chain(["Domain: ''"]) {
        let line = line.trim();
        if let Some(next) = line.strip_prefix("Domain: '").and_then(|rest| rest.strip_suffix('\''))
        {
            let last = name.replace(next.to_owned());
            domains.extend(last.zip(balloon(&std::mem::take(&mut figures))));
        } else if let Some((key, figure)) = line.split_once('=')
            && let Ok(figure) = figure.parse::<u64>()
        {
            figures.insert(key, figure);
        }
    }
    domains
}

/// libvirt counts in KiB.
fn balloon(figures: &BTreeMap<&str, u64>) -> Option<Balloon> {
    let kibibytes = |name| figures.get(name).map(|figure| figure << 10);
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
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_with_and_without_reports() {
        let domains = parse(
            "Domain: 'web-01'\n  balloon.current=524288\n  balloon.maximum=1048576\n  \
             balloon.swap_in=0\n  balloon.unused=102400\n  balloon.available=500000\n  \
             balloon.usable=204800\n  balloon.last-update=1700000000\n  balloon.rss=70000\n\n\
             Domain: 'it's'\n  balloon.current=2048\n  balloon.maximum=2048\n\n\
             Domain: 'off'\n\n",
        );
        let web = domains["web-01"];
        assert_eq!((web.configured, web.ballooned), (Some(1 << 30), 512 << 20));
        assert_eq!(web.guest.unwrap().available, Some(200 << 20));
        assert_eq!((domains["it's"].ballooned, domains["it's"].guest), (0, None));
        assert_eq!(domains.len(), 2);
        assert!(parse("error: nonsense\n=\n").is_empty());
    }
}
