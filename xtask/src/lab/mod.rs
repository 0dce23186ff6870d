//! `cargo xtask lab`: the tests that need kernels with function hooks and real KVM
//! exits, in an emulated host with Debian's kernels.

pub(crate) mod apt;
mod arm64;
mod boot;
mod image;
mod intel;
mod kernels;
mod machine;
mod qemu;
mod tree;

use crate::build::{self, Arch};
use crate::setup::{TESTBED, Tool, find, give_to_user_behind_sudo, install, require_root};
use anyhow::{Context, Result, ensure};
use boot::Lab;
use clap::ValueEnum;
use image::Image;
use kernels::{Machine, Series};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use testbed::payload::{self, Processor};
use testbed::target;
use tree::Binaries;

/// Labs among which the scenarios of a kernel are divided, so that no CPU waits for the
/// last kernel alone.
const PARTS: u32 = 2;
/// Labs at a time for each CPU: they wait a good part of their time, and nothing in them depends
/// on how much of a CPU they get.
const A_CPU: usize = 2;
/// Labs at a time at the most, each of which takes 3 GiB.
const AT_ONCE: usize = 4;
/// CPUs for each lab that runs beside other tests, which a machine full of labs makes slow.
const CPUS_BESIDE: usize = 1;

/// What the lab needs beside the testbed.
const LAB: [Tool; 5] = [
    Tool { program: "busybox", package: "busybox-static" },
    Tool { program: "cpio", package: "cpio" },
    Tool { program: "depmod", package: "kmod" },
    Tool { program: "xz", package: "xz-utils" },
    Tool { program: "dpkg-deb", package: "dpkg" },
];

/// Options of `lab`.
#[derive(Default, clap::Args)]
pub(crate) struct Args {
    /// Which kernel
    #[arg(long, value_enum, default_value_t = Choice::All)]
    kernel: Choice,
    /// Only scenarios whose name holds this
    #[arg(long)]
    scenario: Option<String>,
    /// Keep the recordings of scenarios in target/lab
    #[arg(long)]
    keep: bool,
    /// How many recorders the scenario kills_leave_nothing kills
    #[arg(long)]
    kills: Option<u32>,
    /// Whether it is a part of `test`: only how scenarios end is printed, and some run on some kernels
    /// alone
    #[arg(skip)]
    within_test: bool,
    /// Whether a scenario that fails is run once more
    #[arg(skip)]
    again: bool,
}

/// `--kernel`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Choice {
    #[default]
    All,
    One(Series),
}

impl ValueEnum for Choice {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::One(Series::Linux6_1),
            Self::One(Series::Linux6_12),
            Self::One(Series::Intel6_12),
            Self::One(Series::Linux6_16),
            Self::One(Series::Linux6_18),
            Self::One(Series::Linux7),
            Self::One(Series::Arm6_1),
            Self::One(Series::Arm6_12),
            Self::All,
        ]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        match self {
            Self::All => {
                let value = clap::builder::PossibleValue::new("all");
                Some(value.help("6.1, 6.12 and 7.x, as in the tests"))
            }
            Self::One(series) => series.to_possible_value(),
        }
    }
}

/// Runs the scenarios on the kernels.
///
/// # Errors
/// A kernel cannot be had, does not boot, or a scenario fails on one that is
/// pinned.
pub(crate) fn run(args: &Args) -> Result<()> {
    require_root("lab")?;
    ensure!(Arch::HOST == Arch::X86_64, "the lab needs an x86-64 machine");
    install(&TESTBED)?;
    build::all()?;
    let done = Labs::prepare(args).and_then(|labs| labs.run(&Mutex::new(())));
    let given = give_to_user_behind_sudo();
    done.and(given)
}

/// Labs that are ready to boot.
pub(crate) struct Labs(Vec<Lab>);

impl Labs {
    /// Every scenario on the kernels that matter to it, for `test`: only how each ends is printed,
    /// and one that fails may be run `again`.
    ///
    /// # Errors
    /// A kernel cannot be had, or something cannot be built.
    pub(crate) fn spread(again: bool) -> Result<Self> {
        Self::prepare(&Args { within_test: true, again, ..Args::default() })
    }

    fn prepare(args: &Args) -> Result<Self> {
        let chosen = match args.kernel {
            Choice::All => Series::TESTED.to_vec(),
            Choice::One(series) => vec![series],
        };
        Self::of(&chosen, args)
    }

    /// One scenario on every kernel there is; the labs, and where each writes its console.
    ///
    /// # Errors
    /// As [`Self::spread`].
    pub(crate) fn everywhere(scenario: &str) -> Result<(Self, Vec<PathBuf>)> {
        let scenario = Some(scenario.to_owned());
        let args = Args { scenario, again: true, ..Args::default() };
        let labs = Self::of(&Series::ALL, &args)?;
        let consoles = labs.0.iter().rev().map(Lab::console).collect();
        Ok((labs, consoles))
    }

    fn of(chosen: &[Series], args: &Args) -> Result<Self> {
        install(&LAB)?;
        payload::assemble(Processor::X86)?;
        let has = |machine| chosen.iter().any(|series| series.machine() == machine);
        ensure!(!(has(Machine::Intel) && args.keep), "recordings of the Intel lab cannot be kept");
        if has(Machine::Arm64) {
            arm64::prepare()?;
        }
        let mut binaries: Vec<(Arch, Binaries)> = Vec::new();
        for arch in chosen.iter().map(|series| series.machine().arch()) {
            if binaries.iter().all(|(of, _)| *of != arch) {
                binaries.push((arch, Binaries::build(arch)?));
            }
        }
        let are_all = chosen.iter().all(|series| series.machine() == Machine::Amd);
        let parts = if args.scenario.is_none() && are_all { PARTS } else { 1 };
        let prepare = |(series, part): (Series, u32)| {
            let arch = series.machine().arch();
            let of_arch = binaries.iter().find(|(of, _)| *of == arch);
            let (_, binaries) = of_arch.context("nothing was built for this architecture")?;
            boot::prepare(series, (part, parts), args, binaries)
        };
        // The newest first: it changes most.
        let labs = chosen.iter().copied().rev();
        let labs = labs.flat_map(|series| (0..parts).map(move |part| (series, part)));
        labs.map(prepare).collect::<Result<_>>().map(Self)
    }

    /// Boots them, some at a time; few of them while somebody holds `others`.
    ///
    /// # Errors
    /// A kernel does not boot, or a scenario fails on one that is pinned.
    pub(crate) fn run(self, others: &Mutex<()>) -> Result<()> {
        let failed = Mutex::new(Vec::new());
        let waiting = Mutex::new(self.0.into_iter());
        let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
        let cpus = std::thread::available_parallelism()?.get();
        let at_once = (cpus * A_CPU).min(AT_ONCE);
        let beside = cpus.div_ceil(CPUS_BESIDE);
        std::thread::scope(|scope| {
            for worker in 0..at_once {
                let (failed, next) = (&failed, &next);
                scope.spawn(move || {
                    if worker >= beside {
                        drop(others.lock());
                    }
                    while let Some(lab) = next() {
                        if !lab.passes() {
                            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                            failed.push(format!("{} ({})", lab.image.release, lab.label));
                        }
                    }
                });
            }
        });
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        ensure!(failed.is_empty(), "failed on {}", failed.join(", "));
        Ok(())
    }
}

/// Kernel and initramfs of a Linux guest on this machine itself, which shares its root,
/// each with the variable of the environment that says where it is.
///
/// # Errors
/// The kernel cannot be had.
pub(crate) fn guest_files() -> Result<[(&'static str, PathBuf); 2]> {
    install(&LAB)?;
    let (image, _) = image(Series::Linux6_12)?;
    let work = target().join("guest");
    fs::create_dir_all(&work)?;
    let initramfs = image::initramfs(&image, &find("busybox")?, &work)?;
    Ok([(payload::LINUX_KERNEL, image.kernel), (payload::SHELL_INITRAMFS, initramfs)])
}

/// The kernel of a series, fetched and unpacked once; and whether its packages are not proven.
fn image(series: Series) -> Result<(Image, bool)> {
    let cache = cache()?;
    let _lock = lock(&cache)?;
    let packages = kernels::fetch(series, &cache)?;
    let modules = match series.machine() {
        Machine::Amd => &image::AMD,
        Machine::Intel => &image::INTEL,
        Machine::Arm64 => &image::ARM64,
    };
    Ok((image::unpack(&packages, modules, &cache)?, packages.unproven))
}

/// Keeps others from the cache while it is held: another xtask would unpack into the same folder.
fn lock(cache: &Path) -> Result<fs::File> {
    let failed = || format!("cannot lock {}", cache.display());
    fs::create_dir_all(cache).with_context(failed)?;
    let lock = fs::File::create(cache.join("lock")).with_context(failed)?;
    lock.lock().with_context(failed)?;
    Ok(lock)
}

/// Where what was fetched is kept: outside target/, `cargo clean` costs no download.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    Ok(base.context("neither XDG_CACHE_HOME nor HOME is set")?.join("overcommit-lab"))
}
