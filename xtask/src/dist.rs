//! What is handed to users: for each architecture a tarball, a .deb and an .rpm of the static binary
//! with its man pages, completions, units, rules and dashboard; what it is made of; checksums.

use crate::build::{self, Arch};
use crate::notices;
use crate::setup::{Crate, find, quietly, sha256, show};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use testbed::{root, run, target};

const CARGO_DEB: Crate = Crate::of("cargo-deb", "3.8.0");
const CARGO_RPM: Crate = Crate::of("cargo-generate-rpm", "0.21.1");
const CARGO_SBOM: Crate = Crate::of("cargo-cyclonedx", "0.5.9");

/// The package whose manifest describes the packages.
const PACKAGE: &str = "overcommit-userspace";
/// Folder below target/dist that the packages' manifest takes its files from.
const STAGE: &str = "stage";
/// What others' licences ask for.
const NOTICES: &str = "LICENSES-THIRD-PARTY.txt";
/// Crates without which it would not be what it is: a list without them is no list.
const PLAUSIBLE: [&str; 4] = ["aya", "hdrhistogram", "overcommit-recording", "tokio"];
/// What is as it is in the project.
const AS_IS: [&str; 9] = [
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "docs",
    "dist/grafana",
    "dist/prometheus",
    "dist/systemd",
];

/// Makes it all below target/dist.
///
/// # Errors
/// A tool cannot be had, or a step fails.
pub(crate) fn make() -> Result<()> {
    let dist = target().join("dist");
    let _ = fs::remove_dir_all(&dist);
    fs::create_dir_all(&dist).with_context(|| format!("cannot make {}", dist.display()))?;
    let host = build::static_binary(Arch::HOST)?;
    for arch in Arch::value_variants() {
        let stage = staged(&dist, *arch, &host)?;
        packed(&dist, *arch, &stage)?;
        bill_of_materials(&dist, *arch)?;
    }
    inspect(&dist)?;
    fs::remove_dir_all(dist.join(STAGE))?;
    checksums(&dist)
}

/// Puts what an architecture's packages hold into one folder.
fn staged(dist: &Path, arch: Arch, host: &Path) -> Result<PathBuf> {
    let stage = dist.join(STAGE);
    let _ = fs::remove_dir_all(&stage);
    fs::create_dir_all(&stage)?;
    fs::copy(build::static_binary(arch)?, stage.join("overcommit"))?;
    for name in AS_IS {
        show(Command::new("cp").arg("-r").arg(root().join(name)).arg(&stage))?;
    }
    run(Command::new(host).arg("man-pages").arg(stage.join("man")))?;
    fs::write(stage.join(NOTICES), notices::text(arch)?)?;
    fs::create_dir(stage.join("completions"))?;
    for (shell, name) in
        [("bash", "overcommit"), ("zsh", "_overcommit"), ("fish", "overcommit.fish")]
    {
        let script = run(Command::new(host).args(["completions", shell]))?;
        fs::write(stage.join("completions").join(name), script)?;
    }
    Ok(stage)
}

/// A tarball that is the same whoever makes it, and the packages.
fn packed(dist: &Path, arch: Arch, stage: &Path) -> Result<()> {
    let name = format!("overcommit-{}-linux-{}", env!("CARGO_PKG_VERSION"), arch.name());
    let mut tar = Command::new("tar");
    tar.args(["--create", "--gzip", "--sort=name", "--mtime=@0", "--owner=0", "--group=0"]);
    tar.args(["--numeric-owner", "--mode=u=rwX,go=rX"]);
    tar.arg(format!("--transform=s,^\\.,{name},")).arg("--directory").arg(stage);
    show(tar.arg("--file").arg(dist.join(format!("{name}.tar.gz"))).arg("."))?;
    let target = arch.static_target();
    let mut deb = Command::new(CARGO_DEB.path()?);
    deb.current_dir(root()).args(["--no-build", "--no-strip", "--package", PACKAGE]);
    quietly(deb.args(["--target", target, "--output"]).arg(dist))?;
    let mut rpm = Command::new(CARGO_RPM.path()?);
    rpm.current_dir(root()).args(["--package", PACKAGE, "--target", target]);
    quietly(rpm.args(["--auto-req", "disabled", "--output"]).arg(dist))
}

/// Has lintian read the packages for Debian, where it is installed: each of its tags is mended, or
/// explained in dist/deb/lintian-overrides.
fn inspect(dist: &Path) -> Result<()> {
    let changelog = fs::read_to_string(root().join("dist/deb/changelog"))?;
    let version = env!("CARGO_PKG_VERSION");
    let is_of_it = changelog.starts_with(&format!("overcommit ({version}-1)"));
    ensure!(is_of_it, "dist/deb/changelog does not begin with {version}");
    let Ok(lintian) = find("lintian") else {
        println!("lintian is not installed: the .deb packages were not checked");
        return Ok(());
    };
    let mut command = Command::new(lintian);
    command.args(["--allow-root", "--fail-on", "error,warning"]);
    let packages = glob::glob(&dist.join("*.deb").to_string_lossy())?;
    show(command.args(packages.collect::<Result<Vec<_>, _>>()?))
}

/// Which crates the binary is made of, by CycloneDX.
fn bill_of_materials(dist: &Path, arch: Arch) -> Result<()> {
    let name = format!("overcommit-{}-{}.cdx", env!("CARGO_PKG_VERSION"), arch.name());
    let mut sbom = Command::new(CARGO_SBOM.path()?);
    sbom.args(["cyclonedx", "--format", "json", "--override-filename", &name]);
    sbom.args(["--target", arch.static_target(), "--manifest-path"]);
    quietly(sbom.arg(root().join(PACKAGE).join("Cargo.toml")))?;
    let file = format!("{name}.json");
    // It is written beside each manifest of the workspace.
    let written = run(Command::new("git").current_dir(root()).args([
        "ls-files",
        "--others",
        "--",
        &format!("*{file}"),
    ]))?;
    for path in written.lines() {
        let path = root().join(path);
        if path.parent().is_some_and(|folder| folder.ends_with(PACKAGE)) {
            fs::copy(&path, dist.join(&file))?;
        }
        fs::remove_file(path)?;
    }
    let text = fs::read_to_string(dist.join(&file)).context("no list of materials was written")?;
    for name in PLAUSIBLE {
        ensure!(text.contains(&format!("\"name\": \"{name}\"")), "{file} does not name {name}");
    }
    Ok(())
}

/// `SHA256SUMS`, as `sha256sum --check` takes it.
fn checksums(dist: &Path) -> Result<()> {
    let mut sums = String::new();
    let mut files: Vec<PathBuf> = fs::read_dir(dist)?.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        sums += &format!("{}  {name}\n", sha256(&file)?);
        println!("made {}", file.display());
    }
    fs::write(dist.join("SHA256SUMS"), sums).context("cannot write SHA256SUMS")
}
