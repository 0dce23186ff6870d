//! Prometheus, which scrapes `overcommit serve` in a test: Debian's packages, unpacked and not
//! installed, as that would start it.

use crate::lab::{self, apt};
use crate::setup::{quietly, show};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use testbed::target;

/// A newer one than this system has, with its checksum: for x86-64.
const NEWER: (&str, &str) = (
    "pool/main/p/prometheus/prometheus_3.5.3+ds1-6_amd64.deb",
    "593bcced02d8082688ea034dfc543848ad145c5f793aae5aad756c4dbdfa98da",
);

/// Puts this system's below `target/prometheus/system`, and a newer one, should the mirror have it,
/// beside it.
///
/// # Errors
/// This system has none.
pub(crate) fn fetch() -> Result<()> {
    let folder = target().join("prometheus");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    if cfg!(target_arch = "x86_64") {
        let (place, sha256) = NEWER;
        let name = place.rsplit('/').next().unwrap_or(place).trim_end_matches(".deb");
        let package = || apt::fetch_file(place, sha256, &lab::cache()?);
        if let Err(error) = unpacked(&folder.join(name), package) {
            println!("no newer Prometheus is tried: {error:#}");
        }
    }
    unpacked(&folder.join("system"), of_system)
}

/// The package that this system would install.
fn of_system() -> Result<PathBuf> {
    let folder = target().join("prometheus/package");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let mut download = Command::new("apt-get");
    download.args(["-o", "APT::Sandbox::User=root", "download", "prometheus"]).current_dir(&folder);
    quietly(&mut download)?;
    let package = fs::read_dir(&folder)?.flatten().next();
    Ok(package.context("apt-get downloaded no package")?.path())
}

fn unpacked(folder: &Path, package: impl FnOnce() -> Result<PathBuf>) -> Result<()> {
    if folder.exists() {
        return Ok(());
    }
    let unfinished = folder.with_file_name("unfinished");
    let _ = fs::remove_dir_all(&unfinished);
    let package = package()?;
    show(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&unfinished))?;
    fs::rename(&unfinished, folder).with_context(|| format!("cannot make {}", folder.display()))
}
