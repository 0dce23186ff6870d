//! The kernels of the lab: Debian's, in versions known by their checksums, kept in
//! a cache so that the lab runs without a network.

use crate::setup::{quietly, show};
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Series {
    /// Debian 12
    #[value(name = "6.1")]
    Linux6_1,
    /// Debian 13
    #[value(name = "6.12")]
    Linux6_12,
    /// Debian 13's backports of 2025
    #[value(name = "6.16")]
    Linux6_16,
    /// The same of 2026: a kernel with long-term support
    #[value(name = "6.18")]
    Linux6_18,
    /// Debian 13's backports
    #[value(name = "7.x")]
    Linux7,
    /// Debian 13 on an Intel CPU, emulated by Bochs: some scenarios, and a few minutes each
    #[value(name = "6.12-intel")]
    Intel6_12,
}

/// A Debian package in the version that the tests are known to pass with.
struct Pinned {
    name: &'static str,
    version: &'static str,
    sha256: &'static str,
}

impl Series {
    /// Those that the tests run on, oldest first.
    pub(crate) const TESTED: [Self; 3] = [Self::Linux6_1, Self::Linux6_12, Self::Linux7];

    /// Every one, as docs/kernels.md has them.
    pub(crate) const ALL: [Self; 6] = [
        Self::Linux6_1,
        Self::Linux6_12,
        Self::Intel6_12,
        Self::Linux6_16,
        Self::Linux6_18,
        Self::Linux7,
    ];

    /// As on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Linux6_1 => "6.1",
            Self::Linux6_12 => "6.12",
            Self::Linux6_16 => "6.16",
            Self::Linux6_18 => "6.18",
            Self::Linux7 => "7.x",
            Self::Intel6_12 => "6.12-intel",
        }
    }

    /// CPUs that it boots with here: under emulation 6.1 hangs at detaching and 7.3
    /// panics while booting with more than one.
    pub(crate) const fn cpus(self) -> u32 {
        match self {
            Self::Linux6_12 => 2,
            _ => 1,
        }
    }

    /// More arguments of its kernel. 7.3 with one CPU stood still now and then while its guest
    /// ran on: the emulation had lost the interrupt of a timer that is set anew only when it
    /// comes. One that ticks by itself survives that.
    pub(crate) const fn arguments(self) -> &'static str {
        match self {
            Self::Linux7 => "nohz=off highres=off lapic=notscdeadline",
            _ => "",
        }
    }

    /// The model of its CPUs. Where it can be, without cmpxchg16b: TCG computes its flags from
    /// stale ones (QEMU before 8.0, helper_cmpxchg16b_unlocked), and an interrupt right after it
    /// kills the kernel. A Linux guest of 6.1 was not seen to boot without it.
    pub(crate) const fn cpu(self) -> &'static str {
        if self.runs_linux_guests() { "EPYC,+svm" } else { "EPYC,+svm,-cx16" }
    }

    /// Whether a whole Linux guest is tried in it, which is its own kernel. With two
    /// emulated CPUs most such guests hang while they boot.
    pub(crate) const fn runs_linux_guests(self) -> bool {
        matches!(self, Self::Linux6_1)
    }

    /// Whether the newest kernel of its suites is of it, and may stand in for the pinned one.
    const fn is_newest(self) -> bool {
        !matches!(self, Self::Linux6_16 | Self::Linux6_18)
    }

    /// Whether its CPU is Intel's, which Bochs emulates.
    pub(crate) const fn is_intel(self) -> bool {
        matches!(self, Self::Intel6_12)
    }

    /// Where it comes from: archive and suite.
    const fn suites(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Linux6_1 => &[("debian", "bookworm"), ("debian-security", "bookworm-security")],
            Self::Linux6_12 | Self::Intel6_12 => {
                &[("debian", "trixie"), ("debian-security", "trixie-security")]
            }
            Self::Linux6_16 | Self::Linux6_18 | Self::Linux7 => &[("debian", "trixie-backports")],
        }
    }

    const fn pinned(self) -> &'static [Pinned] {
        match self {
            Self::Linux6_1 => &[Pinned {
                name: "linux-image-6.1.0-56-amd64",
                version: "6.1.192-2",
                sha256: "a86e2049672f52354c4536a089203b6c82639420424d31c91cf31a181fd4d8f1",
            }],
            Self::Linux6_12 | Self::Intel6_12 => &[Pinned {
                name: "linux-image-6.12.117+deb13-amd64",
                version: "6.12.117-1",
                sha256: "ca712d36790184f6ac125ce2b20ea4e2202ae6bb7817b7de268f1f0115ccda73",
            }],
            Self::Linux6_16 => &[Pinned {
                name: "linux-image-6.16.12+deb13-amd64",
                version: "6.16.12-1~bpo13+1",
                sha256: "a54583c502202b9ec1709d6dc952870cd32eb92b29a32756f0fd240b514ed1f2",
            }],
            Self::Linux6_18 => &[Pinned {
                name: "linux-image-6.18.15+deb13-amd64",
                version: "6.18.15-1~bpo13+1",
                sha256: "d38a7af6260782a47cd615ad717347a528b45f076245b4deabb3f1ecf8459186",
            }],
            Self::Linux7 => &[
                Pinned {
                    name: "linux-binary-7.3.4+deb13-amd64",
                    version: "7.3.4-1~bpo13+1",
                    sha256: "7e3248d03a84dcdda88c567aa8c4038f2e7795d2dd167b112c56f8901b6f513f",
                },
                Pinned {
                    name: "linux-modules-7.3.4+deb13-amd64",
                    version: "7.3.4-1~bpo13+1",
                    sha256: "b3ea01922c9f133767a83cf6891c19b3693858ded617bf22d1e34f95382c08ea",
                },
            ],
        }
    }
}

/// Debian packages of one kernel, on disk.
pub(crate) struct Packages {
    /// The .deb files.
    pub(crate) files: Vec<PathBuf>,
    /// Set if these are not the versions that the tests are known to pass with.
    pub(crate) unproven: bool,
}

/// The pinned packages from the cache, else from the mirror; where the mirror has
/// dropped them, the newest.
///
/// # Errors
/// Neither cache nor mirror has any, or a checksum is wrong.
pub(crate) fn fetch(series: Series, cache: &Path) -> Result<Packages> {
    let debs = cache.join("debs");
    fs::create_dir_all(&debs).with_context(|| format!("cannot make {}", debs.display()))?;
    let pinned: Vec<PathBuf> = series.pinned().iter().map(|p| debs.join(file_name(p))).collect();
    let missing = |path: &&PathBuf| !path.exists();
    let newest = debs.join(format!("newest-{}", series.name()));
    if pinned.iter().any(|path| !path.exists()) {
        let apt = Apt::new(series, cache)?;
        if let Err(error) = apt.update() {
            // What ran last time runs again.
            return listed(&newest, &debs).ok_or_else(|| {
                let (name, debs) = (series.name(), debs.display());
                anyhow!("kernel {name} is not in {debs}, and cannot be fetched: {error:#}")
            });
        }
        for package in series.pinned().iter().filter(|p| missing(&&debs.join(file_name(p)))) {
            let wanted = format!("{}={}", package.name, package.version);
            if !apt.has(&wanted) {
                let name = series.name();
                ensure!(series.is_newest(), "the mirror has dropped kernel {name}: {wanted}");
                apt.fetch_newest(&debs, &newest)?;
                return listed(&newest, &debs).context("the newest kernel is not there");
            }
            apt.download(&[wanted], &debs)?;
        }
    }
    for (package, path) in series.pinned().iter().zip(&pinned) {
        verify(path, package.sha256)?;
    }
    Ok(Packages { files: pinned, unproven: false })
}

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

/// apt's name of the file: it writes the epoch's colon, and only that, as %3a.
fn file_name(package: &Pinned) -> String {
    format!("{}_{}_amd64.deb", package.name, package.version)
}

fn verify(path: &Path, sha256: &str) -> Result<()> {
    let sum = testbed::run(Command::new("sha256sum").arg(path))?;
    if sum.starts_with(sha256) {
        return Ok(());
    }
    fs::remove_file(path)?;
    bail!("{} had the wrong checksum and is removed; run again", path.display())
}

/// What [`Apt::fetch_newest`] has fetched, if it ever did.
fn listed(list: &Path, debs: &Path) -> Option<Packages> {
    let names = fs::read_to_string(list).ok()?;
    let files = names.lines().map(|name| debs.join(name)).collect();
    Some(Packages { files, unproven: true })
}

/// apt with lists and sources of its own: nothing on the system changes.
struct Apt {
    state: PathBuf,
    suites: usize,
}

impl Apt {
    fn new(series: Series, cache: &Path) -> Result<Self> {
        let state = cache.join("apt").join(series.name());
        for dir in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(state.join(dir))?;
        }
        let mirrors = mirrors()?;
        let mut sources = String::new();
        for (archive, suite) in series.suites() {
            let mirror = mirrors.get(*archive);
            let mirror = mirror.with_context(|| {
                format!("this system's package sources have no archive {archive}")
            })?;
            sources += &format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        }
        fs::write(state.join("sources.list"), sources)?;
        Ok(Self { state, suites: series.suites().len() })
    }

    fn command(&self, program: &str) -> Command {
        let state = self.state.display();
        let mut command = Command::new(program);
        for option in [
            format!("Dir::State={state}"),
            format!("Dir::State::Lists={state}/lists"),
            "Dir::State::Status=/dev/null".to_owned(),
            format!("Dir::Cache={state}"),
            format!("Dir::Etc::SourceList={state}/sources.list"),
            "Dir::Etc::SourceParts=-".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Retries=2".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    fn update(&self) -> Result<()> {
        let mut update = self.command("apt-get");
        let output = update.args(["-qq", "update", "--error-on=any"]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let reason = said.lines().next().unwrap_or("it does not say why");
        ensure!(output.status.success(), "apt-get update fails: {reason}");
        let lists = fs::read_dir(self.state.join("lists"))?.count();
        ensure!(lists > self.suites, "apt-get update fetched no package lists");
        Ok(())
    }

    fn has(&self, package: &str) -> bool {
        let mut show = self.command("apt-cache");
        // It ends well where it knows the package in another version.
        testbed::run(show.args(["show", "--quiet", package])).is_ok_and(|text| !text.is_empty())
    }

    fn download(&self, packages: &[String], debs: &Path) -> Result<()> {
        println!("downloading {}", packages.join(" "));
        let mut download = self.command("apt-get");
        show(download.args(["-qq", "download"]).args(packages).current_dir(debs))
    }

    /// The newest kernel of the suites, for what the mirror has dropped.
    fn fetch_newest(&self, debs: &Path, list: &Path) -> Result<()> {
        let packages: Vec<String> = self.kernel_packages()?.into_iter().collect();
        let new = debs.join("newest");
        let _ = fs::remove_dir_all(&new);
        fs::create_dir_all(&new)?;
        self.download(&packages, &new)?;
        let mut names = Vec::new();
        for entry in fs::read_dir(&new)? {
            let entry = entry?;
            fs::rename(entry.path(), debs.join(entry.file_name()))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        Ok(fs::write(list, names.join("\n"))?)
    }

    /// What the metapackage brings: image, binary and modules, as the release
    /// splits them.
    fn kernel_packages(&self) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        let mut open = vec!["linux-image-amd64".to_owned()];
        while let Some(package) = open.pop() {
            let mut depends = self.command("apt-cache");
            depends.args(["depends", "--quiet", "--important", &package]);
            for line in testbed::run(&mut depends)?.lines() {
                let name = line.trim().trim_start_matches("Depends: ");
                let parts = ["linux-image-", "linux-binary-", "linux-modules-"];
                let is_part = parts.iter().any(|part| {
                    name.strip_prefix(part).is_some_and(|rest| rest.starts_with(char::is_numeric))
                });
                if is_part && found.insert(name.to_owned()) {
                    open.push(name.to_owned());
                }
            }
        }
        ensure!(!found.is_empty(), "linux-image-amd64 brings no kernel");
        Ok(found)
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
