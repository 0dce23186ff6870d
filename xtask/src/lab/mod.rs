//! `cargo xtask lab`: the tests that need kernels with function hooks and real KVM
//! exits, in an emulated host with Debian's kernels.

mod image;
mod intel;
pub(crate) mod kernels;
mod machine;
mod qemu;

use crate::build;
use crate::setup::{TESTBED, Tool, give_to_user_behind_sudo, install, require_root};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use image::Image;
use intel::Bochs;
use kernels::Series;
use machine::IS_STUCK;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use testbed::attempt::STRICT;
use testbed::{payload, root, target};

/// Time that one lab may take from its first program on, so that one that hangs ends.
const LIMIT: Duration = Duration::from_secs(7200);
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
/// Bytes of the slow disk.
const DISK: u64 = 256 << 20;

/// What the lab needs beside the testbed.
const LAB: [Tool; 5] = [
    Tool { program: "busybox", package: "busybox-static" },
    Tool { program: "cpio", package: "cpio" },
    Tool { program: "depmod", package: "kmod" },
    Tool { program: "xz", package: "xz-utils" },
    Tool { program: "dpkg-deb", package: "dpkg" },
];

/// Options of `lab`.
#[derive(clap::Args)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    All,
    One(Series),
}

impl ValueEnum for Choice {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::One(Series::Linux6_1),
            Self::One(Series::Linux6_12),
            Self::One(Series::Linux7),
            Self::One(Series::Intel6_12),
            Self::All,
        ]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        match self {
            Self::All => {
                let value = clap::builder::PossibleValue::new("all");
                Some(value.help("Those of Debian on an AMD CPU"))
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
        Self::prepare(&Args {
            kernel: Choice::All,
            scenario: None,
            keep: false,
            kills: None,
            within_test: true,
            again,
        })
    }

    fn prepare(args: &Args) -> Result<Self> {
        install(&LAB)?;
        let keyring = Path::new(kernels::KEYRING).exists();
        ensure!(keyring, "install the package debian-archive-keyring");
        payload::assemble()?;
        let binary = scenario_binary()?;
        let chosen = match args.kernel {
            Choice::All => Series::AMD.to_vec(),
            Choice::One(series) => vec![series],
        };
        let is_intel = chosen.iter().any(|series| series.is_intel());
        ensure!(!(is_intel && args.keep), "recordings of the Intel lab cannot be kept");
        let parts = if args.scenario.is_none() && !is_intel { PARTS } else { 1 };
        // The newest first: it changes most.
        let labs = chosen.into_iter().rev();
        let labs = labs.flat_map(|series| (0..parts).map(move |part| (series, part)));
        labs.map(|(series, part)| prepare(series, (part, parts), args, &binary))
            .collect::<Result<_>>()
            .map(Self)
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

/// A kernel with all that it needs to run the scenarios, or a part of them.
struct Lab {
    series: Series,
    /// Before each line of its console: the series, with a letter for the part.
    label: String,
    image: Image,
    unproven: bool,
    /// A folder of its own.
    work: PathBuf,
    initramfs: PathBuf,
    emulator: Emulator,
    /// Whether only how scenarios end is printed.
    brief: bool,
}

/// What emulates its host.
enum Emulator {
    /// QEMU, under another name.
    Qemu(PathBuf),
    /// See there.
    Bochs(Bochs),
}

impl Lab {
    /// Runs the scenarios and says how that ended; failures of an unproven kernel are
    /// said alone.
    fn passes(&self) -> bool {
        let start = Instant::now();
        let mut result = self.run();
        // A lost timer interrupt, see `Series::arguments`; whatever is ours hangs twice.
        if let Err(error) = &result
            && format!("{error:#}").starts_with(IS_STUCK)
        {
            println!("{}: once more: {error:#}", self.label);
            result = self.run();
        }
        let (release, time) = (&self.image.release, start.elapsed().as_secs());
        let release = format!("{release} ({})", self.label);
        let kernel = if self.unproven { "unproven kernel" } else { "kernel" };
        match &result {
            Ok(()) => println!("{kernel} {release}: passed in {time} s"),
            Err(error) => println!("{kernel} {release}: {error:#}"),
        }
        result.is_ok() || self.unproven
    }

    fn run(&self) -> Result<()> {
        let disk = self.work.join("disk");
        let (command, ask) = match &self.emulator {
            Emulator::Qemu(emulator) => {
                fs::File::create(&disk)?.set_len(DISK)?;
                let host = qemu::Host {
                    emulator,
                    image: &self.image,
                    initramfs: &self.initramfs,
                    results: &self.work.join("results"),
                    disk: &disk,
                    cpus: self.series.cpus(),
                    cpu: self.series.cpu(),
                    arguments: self.series.arguments(),
                };
                (qemu::command(&host), qemu::ASK)
            }
            Emulator::Bochs(bochs) => (bochs.command(&disk)?, &[][..]),
        };
        let run = machine::Run {
            name: &self.label,
            complaints: &self.work.join("emulator.log"),
            console: &self.console(),
            brief: self.brief,
            limit: LIMIT,
            ask,
        };
        let status = machine::run(command, &run);
        // It may be gone.
        let _ = fs::remove_file(&disk);
        if status? != 0 {
            if self.brief {
                self.print_failures();
            }
            bail!("scenarios failed; all that it said is in {}", self.console().display());
        }
        Ok(())
    }

    fn console(&self) -> PathBuf {
        self.work.join("console.log")
    }

    /// What the harness says of failures, at its end.
    fn print_failures(&self) {
        let text = fs::read_to_string(self.console()).unwrap_or_default();
        let lines = text.lines().skip_while(|line| !line.ends_with(" failures:"));
        lines.for_each(|line| println!("{:>5} | {line}", self.label));
    }
}

fn prepare(series: Series, part: (u32, u32), args: &Args, binary: &Path) -> Result<Lab> {
    let (image, unproven) = image(series)?;
    let letter = (part.1 > 1).then(|| char::from(b'a' + part.0 as u8));
    let label = series.name().chars().chain(letter).collect::<String>();
    let work = target().join("lab").join(&label);
    let _ = fs::remove_dir_all(&work);
    let results = work.join("results");
    fs::create_dir_all(&results)?;
    let initramfs = image::initramfs(&image, &work)?;
    let mut command = String::new();
    if series.runs_linux_guests() {
        let files = [
            (payload::LINUX_KERNEL, &image.kernel),
            (payload::LINUX_INITRAMFS, &image::guest_initramfs(&work)?),
        ];
        for (variable, file) in files {
            command += &format!("export {variable}={}\n", quote(&file.display().to_string()));
        }
    }
    // The last CPU: one that can be taken offline.
    command += &format!("export {}={}\n", testbed::qemu::CPU, series.cpus() - 1);
    command += &format!("export {}=1\n", payload::WORKS);
    command += &format!("export OVERCOMMIT_LAB_PART={}/{}\n", part.0, part.1);
    command += &format!("export OVERCOMMIT_LAB_KERNEL={}\n", series.name());
    if args.within_test {
        command += "export OVERCOMMIT_LAB_SPREAD=1\n";
    }
    if !args.again {
        command += &format!("export {STRICT}=1\n");
    }
    command += &lab_command(args, binary);
    fs::write(results.join("command"), command)?;
    let emulator = if series.is_intel() {
        Emulator::Bochs(Bochs::prepare(&work, &image, &initramfs, binary)?)
    } else {
        Emulator::Qemu(qemu::emulator()?)
    };
    Ok(Lab { series, label, image, unproven, work, initramfs, emulator, brief: args.within_test })
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
    let initramfs = image::initramfs(&image, &work)?;
    Ok([(payload::LINUX_KERNEL, image.kernel), (payload::SHELL_INITRAMFS, initramfs)])
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// What the lab's shell runs.
fn lab_command(args: &Args, binary: &Path) -> String {
    let keep = if args.keep { "export OVERCOMMIT_LAB_KEEP=/run/results\n" } else { "" };
    let kills = args.kills.map(|kills| format!("export OVERCOMMIT_LAB_KILLS={kills}\n"));
    let kills = kills.unwrap_or_default();
    let filter = args.scenario.as_deref().map(quote).unwrap_or_default();
    let binary = quote(&binary.display().to_string());
    format!("{keep}{kills}exec {binary} --color=never --test-threads=1 {filter}\n")
}

/// The kernel of a series, fetched and unpacked once; and whether its packages are not proven.
fn image(series: Series) -> Result<(Image, bool)> {
    let cache = cache()?;
    let failed = || format!("cannot lock {}", cache.display());
    fs::create_dir_all(&cache).with_context(failed)?;
    // Another xtask would unpack into the same folder. Held until we are done.
    let lock = fs::File::create(cache.join("lock")).with_context(failed)?;
    lock.lock().with_context(failed)?;
    let packages = kernels::fetch(series, &cache)?;
    let modules = if series.is_intel() { &image::INTEL } else { &image::AMD };
    Ok((image::unpack(&packages, modules, &cache)?, packages.unproven))
}

/// Where what was fetched is kept: outside target/, `cargo clean` costs no download.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    Ok(base.context("neither XDG_CACHE_HOME nor HOME is set")?.join("overcommit-lab"))
}

/// Builds the scenarios.
fn scenario_binary() -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).args(["test", "--quiet", "--no-run", "--package"]);
    cargo.args(["overcommit-tests", "--test", "lab", "--release", "--message-format=json"]);
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "{cargo:?} failed: {}", output.status);
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let messages = messages.lines().filter_map(|line| serde_json::from_str(line).ok());
    let executable = |message: serde_json::Value| {
        (message["target"]["name"] == "lab")
            .then(|| message["executable"].as_str().map(PathBuf::from))?
    };
    messages.filter_map(executable).next_back().context("cargo built no scenarios")
}
