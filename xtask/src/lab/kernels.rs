//! The kernels of the lab: Debian's, in versions known by their checksums, kept in
//! a cache so that the lab runs without a network.

use crate::build::Arch;
use crate::lab::apt::{Apt, Suite};
use crate::setup::sha256;
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

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
    /// Debian 12 on an arm64 CPU: some scenarios
    #[value(name = "6.1-arm64")]
    Arm6_1,
    /// Debian 13 on an arm64 CPU: some scenarios
    #[value(name = "6.12-arm64")]
    Arm6_12,
}

/// What emulates a kernel's host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    /// QEMU, with AMD's virtualization.
    Amd,
    /// Bochs, with Intel's.
    Intel,
    /// QEMU, with arm64's.
    Arm64,
}

impl Machine {
    /// Its architecture, as Debian calls it.
    pub(crate) const fn debian(self) -> &'static str {
        match self {
            Self::Amd | Self::Intel => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The same for Rust.
    pub(crate) const fn arch(self) -> Arch {
        match self {
            Self::Amd | Self::Intel => Arch::X86_64,
            Self::Arm64 => Arch::Aarch64,
        }
    }
}

/// Debian 13.
pub(crate) const TRIXIE: &[Suite] = &[("debian", "trixie"), ("debian-security", "trixie-security")];

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
    pub(crate) const ALL: [Self; 8] = [
        Self::Linux6_1,
        Self::Linux6_12,
        Self::Intel6_12,
        Self::Linux6_16,
        Self::Linux6_18,
        Self::Linux7,
        Self::Arm6_1,
        Self::Arm6_12,
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
            Self::Arm6_1 => "6.1-arm64",
            Self::Arm6_12 => "6.12-arm64",
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
        match self.machine() {
            Machine::Arm64 => "max,pauth-impdef=on",
            _ if self.runs_linux_guests() => "EPYC,+svm",
            _ => "EPYC,+svm,-cx16",
        }
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

    /// What emulates its host.
    pub(crate) const fn machine(self) -> Machine {
        match self {
            Self::Intel6_12 => Machine::Intel,
            Self::Arm6_1 | Self::Arm6_12 => Machine::Arm64,
            _ => Machine::Amd,
        }
    }

    const fn suites(self) -> &'static [Suite] {
        match self {
            Self::Linux6_1 | Self::Arm6_1 => {
                &[("debian", "bookworm"), ("debian-security", "bookworm-security")]
            }
            Self::Linux6_12 | Self::Intel6_12 | Self::Arm6_12 => TRIXIE,
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
            Self::Arm6_1 => &[Pinned {
                name: "linux-image-6.1.0-56-arm64",
                version: "6.1.192-2",
                sha256: "6f4ed2d1cb9106bc977c2b1960008f175e2eed5740340634b7894e65ef5acc82",
            }],
            Self::Arm6_12 => &[Pinned {
                name: "linux-image-6.12.117+deb13-arm64",
                version: "6.12.117-1",
                sha256: "73805585385c78e048e63fdfba66da36bab724c2cdebd96a3055a8a4f1ae287a",
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
    let place = |package: &Pinned| debs.join(file_name(package, series.machine()));
    let pinned: Vec<PathBuf> = series.pinned().iter().map(place).collect();
    let newest = debs.join(format!("newest-{}", series.name()));
    if pinned.iter().any(|path| !path.exists()) {
        let apt = Apt::new(series.name(), series.machine().debian(), series.suites(), cache)?;
        if let Err(error) = apt.update() {
            // What ran last time runs again.
            return listed(&newest, &debs).ok_or_else(|| {
                let (name, debs) = (series.name(), debs.display());
                anyhow!("kernel {name} is not in {debs}, and cannot be fetched: {error:#}")
            });
        }
        for package in series.pinned().iter().filter(|package| !place(package).exists()) {
            let wanted = format!("{}={}", package.name, package.version);
            if !apt.has(&wanted) {
                let name = series.name();
                ensure!(series.is_newest(), "the mirror has dropped kernel {name}: {wanted}");
                fetch_newest(&apt, series, &debs, &newest)?;
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

/// apt's name of the file: it writes the epoch's colon, and only that, as %3a.
fn file_name(package: &Pinned, machine: Machine) -> String {
    format!("{}_{}_{}.deb", package.name, package.version, machine.debian())
}

fn verify(path: &Path, expected: &str) -> Result<()> {
    if sha256(path)? == expected {
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

/// The newest kernel of the suites, for what the mirror has dropped.
fn fetch_newest(apt: &Apt, series: Series, debs: &Path, list: &Path) -> Result<()> {
    let packages: Vec<String> = kernel_packages(apt, series)?.into_iter().collect();
    let new = debs.join("newest");
    let _ = fs::remove_dir_all(&new);
    fs::create_dir_all(&new)?;
    apt.download(&packages, &new)?;
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
fn kernel_packages(apt: &Apt, series: Series) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let all = format!("linux-image-{}", series.machine().debian());
    let mut open = vec![all.clone()];
    while let Some(package) = open.pop() {
        let mut depends = apt.command("apt-cache");
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
    ensure!(!found.is_empty(), "{all} brings no kernel");
    Ok(found)
}
