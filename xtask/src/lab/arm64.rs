//! What an emulated host with an arm64 CPU needs beside a kernel: a root of Debian's packages for it,
//! with the project's programs.

use crate::lab::apt::Apt;
use crate::lab::kernels::{Machine, TRIXIE};
use crate::lab::tree::{Binaries, Tree};
use crate::setup::{Tool, install, show};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use testbed::payload::{self, Processor};

/// What emulates it, and what its guests are made with.
pub(crate) const QEMU: &str = "qemu-system-aarch64";
const TOOLS: [Tool; 2] = [
    Tool { program: QEMU, package: "qemu-system-arm" },
    Tool { program: "aarch64-linux-gnu-as", package: "binutils-aarch64-linux-gnu" },
];

/// What the scenarios run, where busybox does not do.
const PACKAGES: [&str; 5] = ["qemu-system-arm", "util-linux", "mount", "dash", "busybox-static"];

/// Where busybox lies in the root.
const BUSYBOX: &str = "usr/bin/busybox";

/// Installs the tools and assembles the guests.
///
/// # Errors
/// Something cannot be had.
pub(crate) fn prepare() -> Result<()> {
    install(&TOOLS)?;
    payload::assemble(Processor::Arm64)
}

/// The root of one lab, and the busybox in it.
///
/// # Errors
/// The packages cannot be had, or a file cannot be copied.
pub(crate) fn root(work: &Path, binaries: &Binaries) -> Result<(PathBuf, PathBuf)> {
    let packages = packages()?;
    let tree = Tree::new(&work.join("root"))?;
    let mut copy = Command::new("cp");
    show(copy.args(["--archive", "--reflink=auto"]).arg(packages.join(".")).arg(&tree.path))?;
    tree.put_busybox(&tree.path.join(BUSYBOX))?;
    tree.put_project(binaries)?;
    let busybox = tree.path.join(BUSYBOX);
    Ok((tree.path, busybox))
}

/// Debian's packages, unpacked in the cache once. They are those of the day on which they were fetched:
/// apt knows them by the archive's signature.
fn packages() -> Result<PathBuf> {
    let cache = super::cache()?;
    let _lock = super::lock(&cache)?;
    let (place, packages) = (cache.join("root-arm64"), PACKAGES.join(" "));
    let list = place.with_extension("packages");
    if fs::read_to_string(&list).is_ok_and(|were| were == packages) {
        return Ok(place);
    }
    let apt = Apt::new("arm64", Machine::Arm64.debian(), TRIXIE, &cache)?;
    apt.update()?;
    let files = apt.download_whole(&PACKAGES)?;
    let _ = fs::remove_file(&list);
    let tree = Tree::new(&place)?;
    files.iter().try_for_each(|file| unpack(file, &tree.path))?;
    fs::write(list, packages)?;
    Ok(place)
}

/// Unpacks a package; links to folders that are there stay.
fn unpack(package: &Path, tree: &Path) -> Result<()> {
    let mut read = Command::new("dpkg-deb");
    read.arg("--fsys-tarfile").arg(package).stdout(Stdio::piped());
    let mut reader = read.spawn().context("cannot run dpkg-deb")?;
    let archive = reader.stdout.take().context("dpkg-deb has no output")?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--keep-directory-symlink", "--directory"]).arg(tree);
    let unpacked = show(tar.stdin(archive));
    let status = reader.wait()?;
    unpacked.with_context(|| format!("cannot unpack {}", package.display()))?;
    ensure!(status.success(), "cannot read {}: {status}", package.display());
    Ok(())
}
