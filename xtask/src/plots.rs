//! The library that draws the report's plots: fetched once, held to its checksum, never part of the
//! sources.

use crate::setup::{NPM, install, on_path, quietly, require_root, sha256};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use testbed::target;

/// Its package.
const PACKAGE: &str = "uplot@1.6.32";
/// Its files, of which the binary carries the first two: as the package has them and as they lie in
/// target/, each with its SHA-256.
const FILES: [(&str, &str, &str); 3] = [
    (
        "package/dist/uPlot.iife.min.js",
        "uplot.js",
        "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    ),
    (
        "package/dist/uPlot.min.css",
        "uplot.css",
        "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    ),
    (
        "package/LICENSE",
        LICENCE,
        "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
    ),
];
/// Under which it is, in target/.
const LICENCE: &str = "uplot-licence.txt";

/// The text of its licence.
///
/// # Errors
/// It was not fetched.
pub(crate) fn licence() -> Result<String> {
    fs::read_to_string(target().join(LICENCE)).with_context(|| format!("cannot read {LICENCE}"))
}

/// Fetches it into target/, where it is not there yet.
///
/// # Errors
/// It cannot be had, or is another one.
pub(crate) fn fetch() -> Result<()> {
    let is_there = |(_, name, sum): &(&str, &str, &str)| {
        sha256(&target().join(name)).is_ok_and(|found| found == *sum)
    };
    if FILES.iter().all(is_there) {
        return Ok(());
    }
    let can_install = on_path(NPM.program) || require_root("build").is_ok();
    ensure!(
        can_install,
        "npm is missing, which fetches {PACKAGE} for the report's plots; install it"
    );
    install(&[NPM])?;
    let work = target().join("uplot");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    println!("fetching {PACKAGE} from npm");
    quietly(Command::new("npm").current_dir(&work).args(["pack", PACKAGE]))?;
    let packed = archive(&work)?;
    quietly(Command::new("tar").current_dir(&work).arg("xzf").arg(&packed))?;
    for (file, name, sum) in FILES {
        let found = sha256(&work.join(file))?;
        ensure!(found == sum, "{file} of {PACKAGE} has the checksum {found} instead of {sum}");
        fs::copy(work.join(file), target().join(name))
            .with_context(|| format!("cannot copy {name}"))?;
    }
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
}

fn archive(dir: &Path) -> Result<PathBuf> {
    let mut files = fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_archive = |path: &PathBuf| path.extension().is_some_and(|of| of == "tgz");
    files.find(is_archive).with_context(|| format!("npm packed nothing into {}", dir.display()))
}
