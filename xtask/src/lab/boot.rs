//! One kernel with its part of the scenarios: what it boots with, and how that ends.

use crate::lab::image::{self, Image};
use crate::lab::intel::Bochs;
use crate::lab::kernels::{Machine, Series};
use crate::lab::machine::{self, HANGS, IS_STUCK};
use crate::lab::tree::Binaries;
use crate::lab::{Args, arm64, qemu};
use crate::setup::find;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use testbed::attempt::STRICT;
use testbed::{payload, target};

/// Time that one lab may take from its first program on, so that one that hangs ends.
const LIMIT: Duration = Duration::from_secs(7200);
/// Time that each scenario may take in `test`; the longest is over in a fifth of it beside three
/// others on two CPUs.
const LIMIT_OF_SCENARIO: Duration = Duration::from_secs(900);
/// Bytes of the slow disk.
const DISK: u64 = 256 << 20;

/// A kernel with all that it needs to run the scenarios, or a part of them.
pub(crate) struct Lab {
    series: Series,
    /// Before each line of its console: the series, with a letter for the part.
    pub(crate) label: String,
    pub(crate) image: Image,
    unproven: bool,
    /// A folder of its own.
    work: PathBuf,
    /// What it shares of this machine.
    root: PathBuf,
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
    pub(crate) fn passes(&self) -> bool {
        let start = Instant::now();
        let mut result = self.run();
        // A lost timer interrupt, see `Series::arguments`; whatever is ours hangs twice.
        if let Err(error) = &result
            && [IS_STUCK, HANGS].iter().any(|how| format!("{error:#}").starts_with(how))
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
                    is_arm64: self.series.machine() == Machine::Arm64,
                    root: &self.root,
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
            scenario: if self.brief { LIMIT_OF_SCENARIO } else { LIMIT },
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

    pub(crate) fn console(&self) -> PathBuf {
        self.work.join("console.log")
    }

    /// What the harness says of failures, at its end.
    fn print_failures(&self) {
        let text = fs::read_to_string(self.console()).unwrap_or_default();
        let lines = text.lines().skip_while(|line| !line.ends_with(" failures:"));
        lines.for_each(|line| println!("{:>5} | {line}", self.label));
    }
}

pub(crate) fn prepare(
    series: Series,
    part: (u32, u32),
    args: &Args,
    binaries: &Binaries,
) -> Result<Lab> {
    let (image, unproven) = super::image(series)?;
    let letter = (part.1 > 1).then(|| char::from(b'a' + part.0 as u8));
    let label = series.name().chars().chain(letter).collect::<String>();
    let work = target().join("lab").join(&label);
    let _ = fs::remove_dir_all(&work);
    let results = work.join("results");
    fs::create_dir_all(&results)?;
    let (root, busybox) = match series.machine() {
        Machine::Arm64 => arm64::root(&work, binaries)?,
        Machine::Amd | Machine::Intel => (PathBuf::from("/"), find("busybox")?),
    };
    let initramfs = image::initramfs(&image, &busybox, &work)?;
    let mut command = String::new();
    // A run of all tests goes without: on AMD they may hang, on arm64 they take too long.
    if !args.within_test {
        for (variable, file) in linux_guest(series, &image, &initramfs, &root, &work)? {
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
    command += &lab_command(args, &binaries.scenarios);
    fs::write(results.join("command"), command)?;
    let emulator = match series.machine() {
        Machine::Intel => Emulator::Bochs(Bochs::prepare(&work, &image, &initramfs, binaries)?),
        Machine::Amd => Emulator::Qemu(qemu::emulator(testbed::qemu::QEMU)?),
        Machine::Arm64 => Emulator::Qemu(qemu::emulator(arm64::QEMU)?),
    };
    let brief = args.within_test;
    Ok(Lab { series, label, image, unproven, work, root, initramfs, emulator, brief })
}

/// What a Linux guest of that kernel boots, where the lab sees it, by the variable that says so: one with
/// a shell on arm64. The emulated AMD processor interrupts such a guest sooner or later where it must not,
/// and the guest waits for itself, see `testbed::qemu::IN_BOOT`: 6.1 alone has one, without a shell.
fn linux_guest(
    series: Series,
    image: &Image,
    initramfs: &Path,
    root: &Path,
    work: &Path,
) -> Result<Vec<(&'static str, PathBuf)>> {
    if series.machine() == Machine::Arm64 {
        let files =
            [(payload::LINUX_KERNEL, &*image.kernel), (payload::SHELL_INITRAMFS, initramfs)];
        // Its root is not this machine's.
        let put = |(variable, file): (&'static str, &Path)| {
            fs::copy(file, root.join(variable))
                .with_context(|| format!("cannot copy {}", file.display()))?;
            Ok((variable, Path::new("/").join(variable)))
        };
        return files.into_iter().map(put).collect();
    }
    if series.runs_linux_guests() {
        let initramfs = image::guest_initramfs(work)?;
        let kernel = image.kernel.clone();
        return Ok(vec![(payload::LINUX_KERNEL, kernel), (payload::LINUX_INITRAMFS, initramfs)]);
    }
    Ok(Vec::new())
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
