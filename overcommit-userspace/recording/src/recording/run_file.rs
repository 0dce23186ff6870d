//! run.json: what was recorded, how, and how far the logs go.

use crate::model::run::{MAJOR, Run, SCHEMA, VMS_MAX};
use crate::recording::folder::{Folder, RUN_FILE};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use std::fs;
use std::io::ErrorKind;

/// Reads run.json. Fields of later versions are ignored.
///
/// # Errors
/// The folder is no recording, or one of a newer major version.
pub fn read(folder: &Folder) -> Result<Run> {
    let text = folder.content(RUN_FILE).map_err(|error| {
        match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
            Some(ErrorKind::NotFound) => {
                anyhow!("{} is not a recording: it has no run.json", folder.path().display())
            }
            _ => error,
        }
    })?;
    let text = String::from_utf8(text).context("it is not UTF-8");
    let failed = || format!("cannot read {}", folder.file(RUN_FILE).display());
    text.and_then(|text| parse(&text)).with_context(failed)
}

fn parse(text: &str) -> Result<Run> {
    #[derive(Deserialize)]
    struct Header {
        schema: String,
    }
    let header: Header = serde_json::from_str(text).context("it is not a run.json")?;
    let version = header.schema.strip_prefix(SCHEMA).and_then(|rest| rest.strip_prefix('/'));
    let major = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    match major {
        Some(major) if major <= MAJOR => bounded(serde_json::from_str(text)?),
        Some(_) => bail!(
            "it has the format {}; this version reads {SCHEMA}/{MAJOR} at most: \
                          use the overcommit that recorded it",
            header.schema
        ),
        None => bail!("its schema is {:?}, not {SCHEMA}/{MAJOR}", header.schema),
    }
}

/// One that a recorder can have written: nobody is to run out of memory over it.
fn bounded(run: Run) -> Result<Run> {
    let vms = run.vms.len();
    ensure!(vms <= VMS_MAX, "it has {vms} VMs, and a recording has {VMS_MAX} at most");
    Ok(run)
}

/// Whether the process that records still runs.
pub fn is_recording(run: &Run) -> bool {
    if run.clocks.end.is_some() {
        return false;
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let Some((pid, ticks)) = run.recorder.split_once('-') else { return false };
    boot.trim() == run.boot_id && started(pid).is_some_and(|started| started == ticks)
}

/// When a process started, in clock ticks after boot: field 22 of /proc/PID/stat. Its name, in
/// brackets, may hold anything.
fn started(pid: &str) -> Option<String> {
    let pid: u32 = pid.parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(22 - 3).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::run::RunVm;

    #[test]
    fn a_newer_format_is_refused_and_a_foreign_one_named() {
        let refused = |text: &str| format!("{:#}", parse(text).unwrap_err());
        assert!(refused(r#"{"schema":"overcommit.run/2"}"#).contains("use the overcommit that"));
        assert!(refused(r#"{"schema":"other/1"}"#).contains("not overcommit.run/1"));
        assert!(refused("{").contains("not a run.json"));
    }

    #[test]
    fn there_is_a_bound_of_vms() {
        let of = |vms| Run { vms: vec![RunVm::default(); vms], ..Run::default() };
        assert!(bounded(of(VMS_MAX)).is_ok());
        assert!(bounded(of(VMS_MAX + 1)).unwrap_err().to_string().contains("10000 at most"));
    }
}
