//! Debian's packages and files, from this system's mirrors; nothing on the system changes.

use crate::setup::{quietly, show};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// apt's own way to fetch a file by its checksum.
const FETCH: &str = "/usr/lib/apt/apt-helper";

/// A file of Debian's archive by its place there, from the cache or the mirror.
///
/// # Errors
/// Neither has it, or its checksum is wrong.
pub(crate) fn fetch_file(place: &str, sha256: &str, cache: &Path) -> Result<PathBuf> {
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let file = cache.join(place.rsplit('/').next().unwrap_or(place));
    if !file.exists() {
        let mirrors = mirrors()?;
        let mirror = mirrors.get("debian").context("this system has no Debian mirror")?;
        let mut fetch = Command::new(FETCH);
        fetch.args(["download-file", &format!("{}/{place}", mirror.trim_end_matches('/'))]);
        let part = file.with_extension("part");
        quietly(fetch.arg(&part).arg(format!("SHA256:{sha256}")))?;
        fs::rename(&part, &file)?;
    }
    Ok(file)
}

/// apt with lists and sources of its own: nothing on the system changes.
pub(crate) struct Apt {
    state: PathBuf,
    /// As Debian calls it.
    arch: &'static str,
    suites: usize,
}

/// Where packages come from: archive and suite.
pub(crate) type Suite = (&'static str, &'static str);

impl Apt {
    /// With its state in a folder of that name in the cache.
    ///
    /// # Errors
    /// This system has no such archive among its sources.
    pub(crate) fn new(
        name: &str,
        arch: &'static str,
        suites: &[Suite],
        cache: &Path,
    ) -> Result<Self> {
        let keyring = Path::new(KEYRING).exists();
        ensure!(keyring, "install the package debian-archive-keyring");
        let state = cache.join("apt").join(name);
        for dir in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(state.join(dir))?;
        }
        // apt puts its locks beside it.
        fs::write(state.join("status"), "")?;
        let mirrors = mirrors()?;
        let mut sources = String::new();
        for (archive, suite) in suites {
            let mirror = mirrors.get(*archive);
            let mirror = mirror.with_context(|| {
                format!("this system's package sources have no archive {archive}")
            })?;
            sources += &format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        }
        fs::write(state.join("sources.list"), sources)?;
        Ok(Self { state, arch, suites: suites.len() })
    }

    /// A command of apt on that state.
    pub(crate) fn command(&self, program: &str) -> Command {
        let state = self.state.display();
        let mut command = Command::new(program);
        for option in [
            format!("Dir::State={state}"),
            format!("Dir::State::Lists={state}/lists"),
            format!("Dir::State::Status={state}/status"),
            format!("Dir::Cache={state}"),
            format!("Dir::Etc::SourceList={state}/sources.list"),
            "Dir::Etc::SourceParts=-".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            format!("APT::Architecture={}", self.arch),
            format!("APT::Architectures={}", self.arch),
            "Acquire::Retries=2".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    /// Fetches the lists of packages.
    ///
    /// # Errors
    /// The mirror does not give them.
    pub(crate) fn update(&self) -> Result<()> {
        let mut update = self.command("apt-get");
        let output = update.args(["-qq", "update", "--error-on=any"]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let reason = said.lines().next().unwrap_or("it does not say why");
        ensure!(output.status.success(), "apt-get update fails: {reason}");
        let lists = fs::read_dir(self.state.join("lists"))?.count();
        ensure!(lists > self.suites, "apt-get update fetched no package lists");
        Ok(())
    }

    /// Whether there is a package, in the version behind `=`.
    pub(crate) fn has(&self, package: &str) -> bool {
        let mut show = self.command("apt-cache");
        // It ends well where it knows the package in another version.
        testbed::run(show.args(["show", "--quiet", package])).is_ok_and(|text| !text.is_empty())
    }

    /// Fetches packages into a folder.
    ///
    /// # Errors
    /// The mirror does not give one.
    pub(crate) fn download(&self, packages: &[String], debs: &Path) -> Result<()> {
        println!("downloading {}", packages.join(" "));
        let mut download = self.command("apt-get");
        show(download.args(["-qq", "download"]).args(packages).current_dir(debs))
    }

    /// Fetches packages with all that they depend on; gives their files.
    ///
    /// # Errors
    /// The mirror does not give one.
    pub(crate) fn download_whole(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        println!("downloading {} for {}", packages.join(" "), self.arch);
        let files = || glob::glob(&format!("{}/archives/*.deb", self.state.display()));
        files()?.flatten().try_for_each(fs::remove_file)?;
        let mut install = self.command("apt-get");
        install.args(["-qq", "--yes", "--download-only", "--no-install-recommends", "install"]);
        quietly(install.args(packages))?;
        Ok(files()?.flatten().collect())
    }
}

/// The archives' keys, of the package debian-archive-keyring.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The system's own mirror of each archive.
pub(crate) fn mirrors() -> Result<BTreeMap<String, String>> {
    let mut targets = Command::new("apt-get");
    let text = testbed::run(targets.args(["indextargets", "--format", "$(REPO_URI)"]))?;
    let archive = |uri: &str| uri.trim_end_matches('/').rsplit('/').next().map(str::to_owned);
    Ok(text.lines().filter_map(|uri| Some((archive(uri)?, uri.to_owned()))).collect())
}
