//! One file a subcommand; each only reads its options and prints.

pub mod ab;
pub mod anonymize;
pub mod check;
pub mod compare;
pub mod export;
pub mod guest;
pub mod list;
pub mod manual;
pub mod mark;
pub mod record;
pub mod report;
mod self_test;
pub mod serve;
mod subject;
pub mod top;
mod whom;

use crate::host::survey::Options as HostOptions;
use crate::host::working_set::guard::{self, GUARD};
use crate::host::working_set::{self, Wanted};
use crate::kernel::capability::CapabilitySet;
use crate::kernel::{self, capability};
use crate::probes::stats::{self, STATS};
use crate::self_test::{FAULTS, faults};
use crate::terminal::show_reading;
use crate::vm::Discovery;
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use nix::sys::signal::Signal;
use overcommit_recording::format::text::without_numbers;
use overcommit_recording::html::Library;
use overcommit_recording::model::pattern::Pattern;
use overcommit_recording::model::vm::Vm;
use overcommit_recording::recording::{Folder, Span, single};
use overcommit_recording::slo::{Objective, config};
use overcommit_recording::summary::Marks;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What draws the report's plots: uPlot, by Leon Sorokin, under the MIT licence.
const PLOTS: Library = Library {
    script: include_str!(env!("OVERCOMMIT_UPLOT_SCRIPT")),
    style: include_str!(env!("OVERCOMMIT_UPLOT_STYLE")),
};

/// Exit code of a failure.
pub const FAILED: u8 = 1;

/// What has this host done to its VMs?
#[derive(Debug, Parser)]
#[command(name = "overcommit", version, about, max_term_width = 100)]
#[command(long_about = "Records the page-fault and swap latency that this host injects into each \
    of its KVM/QEMU virtual machines.\n\nRun it as root on the host, during a load test.")]
#[command(after_help = "Examples:
  overcommit check                             what can this host record?
  overcommit record --duration 5m --out before record every VM for five minutes
  overcommit report before                     print its verdict again
  overcommit top                               watch the VMs live
  overcommit serve                             metrics for Prometheus
  overcommit compare before after              is a difference real?")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Record the latency of each VM's page faults and swap-ins into files
    Record(record::Args),
    /// Print the verdict and figures of a recording, even one that was cut off
    Report(report::Args),
    /// Watch the VMs of this host, or replay a recording, on a live screen
    Top(top::Args),
    /// Serve every VM's figures as metrics for Prometheus
    Serve(serve::Args),
    /// Inside a VM: ask the host what it took from this VM
    Guest(guest::Args),
    /// Compare two recordings and say whether a difference is real
    Compare(compare::Args),
    /// Record two commands alternately, several times, and compare them
    Ab(ab::Args),
    /// Write a recording in formats that other programs read
    Export(export::Args),
    /// Copy a recording without names, to pass it on
    Anonymize(anonymize::Args),
    /// Mark the start of a load phase in a running recording
    Mark(mark::Args),
    /// List the VMs that run on this host
    List(list::Args),
    /// Check what this host can record, and what to enable for more detail
    Check(check::Args),
    /// Print a script that makes a shell complete commands and options
    Completions(manual::Completions),
    /// Write man pages
    #[command(hide = true)]
    ManPages(manual::ManPages),
    /// The process of `check --self-test` that takes faults
    #[command(name = FAULTS, hide = true)]
    SelfTestFaults,
    /// The process of a recorder that has its eBPF programs timed
    #[command(name = STATS, hide = true)]
    ProgramStats {
        /// Their numbers
        programs: Vec<u32>,
    },
    /// The process that puts DAMON back for a recorder that is killed
    #[command(name = GUARD, hide = true)]
    DamonGuard {
        /// Turn the kernel's own use of DAMON on again
        #[arg(long)]
        stat: bool,
    },
}

impl Cli {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// What failed, on what, and what to do next.
    pub fn run(self) -> Result<ExitCode> {
        let is_silent = match &self.command {
            Command::Record(args) => args.is_quiet(),
            // A screen shows it itself.
            command => matches!(command, Command::Top(_)),
        };
        if !is_silent {
            show_reading();
        }
        match self.command {
            Command::Record(args) => record::run(args),
            Command::Report(args) => report::run(&args),
            Command::Top(args) => top::run(args),
            Command::Serve(args) => serve::run(args),
            Command::Guest(args) => guest::run(args),
            Command::Compare(args) => compare::run(&args),
            Command::Ab(args) => ab::run(&args),
            Command::Export(args) => export::run(&args),
            Command::Anonymize(args) => anonymize::run(&args),
            Command::Mark(args) => mark::run(&args),
            Command::List(args) => list::run(&args),
            Command::Check(args) => check::run(&args),
            Command::Completions(args) => manual::completions(&args),
            Command::ManPages(args) => manual::man_pages(&args),
            Command::SelfTestFaults => faults::run().map(|()| ExitCode::SUCCESS),
            Command::ProgramStats { programs } => stats::run(&programs).map(|()| ExitCode::SUCCESS),
            Command::DamonGuard { stat } => guard::run(stat).map(|()| ExitCode::SUCCESS),
        }
    }
}

/// Headings of the options in help: which VMs, for how long, into which files.
const WHICH: &str = "Which VMs";
const WHEN: &str = "When";
const WHERE: &str = "Output";
const JUDGE: &str = "Objectives";
const DEPTH: &str = "What to measure";

/// Options that say what VMs must meet.
#[derive(Debug, clap::Args)]
struct ObjectiveArgs {
    /// What VMs must meet: [VM:]METRIC:QUANTILE<DURATION, such as fault.major:p99<2ms (QUANTILE
    /// may be max), [VM:]METRIC:rate<COUNT/s, or [VM:]stall.share<PERCENT% (or cpu.share); VM
    /// is as in --vm; may be repeated
    #[arg(long, help_heading = JUDGE, value_name = "OBJECTIVE", value_parser = parse_objective)]
    slo: Vec<Objective>,
    /// More of them, from a TOML file: slo = ["OBJECTIVE", ...]
    #[arg(long, help_heading = JUDGE, value_name = "FILE", value_parser = parse_config)]
    config: Option<Config>,
}

/// A file of objectives, and what it holds.
#[derive(Clone, Debug)]
struct Config {
    path: PathBuf,
    objectives: Vec<Objective>,
}

fn parse_config(path: &str) -> Result<Config, String> {
    let path = PathBuf::from(path);
    let objectives = single::read(&path).and_then(|text| config::parse(&text));
    let objectives = objectives.map_err(|error| without_numbers(&format!("{error:#}")))?;
    Ok(Config { path, objectives })
}

impl ObjectiveArgs {
    fn read(&self) -> Vec<Objective> {
        let of_file = self.config.iter().flat_map(|config| &config.objectives);
        of_file.chain(&self.slo).cloned().collect()
    }
}

/// clap shows the outermost message of an error alone.
fn parse_objective(text: &str) -> Result<Objective, String> {
    Objective::parse(text).map_err(|error| format!("{error:#}"))
}

/// Options that say how the host and its VMs are looked at.
#[derive(Debug, clap::Args)]
struct HostArgs {
    /// Also ask the QMP monitor at SOCKET about VMs that match PATTERN; if a VM has several monitors,
    /// the first that answers is used; may be repeated
    #[arg(long, help_heading = DEPTH, value_name = "PATTERN=SOCKET", value_parser = parse_monitor)]
    monitor: Vec<(Pattern, PathBuf)>,
    /// Have guests with a balloon report their own view of memory, every 2 s, until the end
    #[arg(long, help_heading = DEPTH)]
    guest_stats: bool,
    /// What to measure working sets with
    #[arg(long, help_heading = DEPTH, value_enum, default_value_t)]
    working_set: Wanted,
}

impl HostArgs {
    /// Fails if what shall measure working sets cannot be used on this host.
    fn require_working_set(&self, mglru_sees_guests: bool) -> Result<()> {
        let wanted = self.working_set;
        working_set::require(Path::new("/sys"), wanted, mglru_sees_guests).map_err(|why| {
            anyhow!("--working-set {}: {why:#}; use --working-set auto", spelled(wanted))
        })
    }

    /// What of the monitors cannot be followed as yet, of the VMs that run.
    fn doubts(&self, vms: &[Vm]) -> Vec<String> {
        let doubt = |((pattern, socket), option): (&(Pattern, PathBuf), String)| {
            let Some(vm) = vms.iter().find(|vm| pattern.matches(vm)) else {
                return Some(format!("--monitor {option}: no VM matches yet"));
            };
            let is_there = socket.exists();
            (!is_there)
                .then(|| format!("--monitor {option}: there is no such socket for {}", vm.name))
        };
        self.monitor.iter().zip(self.monitors()).filter_map(doubt).collect()
    }

    /// Each monitor as it was given.
    fn monitors(&self) -> Vec<String> {
        let spelled = |(of, at): &(Pattern, PathBuf)| format!("{of}={}", at.display());
        self.monitor.iter().map(spelled).collect()
    }

    fn read(&self, mglru_sees_guests: bool) -> HostOptions {
        HostOptions {
            monitors: self.monitor.clone(),
            guest_stats: self.guest_stats,
            working_set: self.working_set,
            mglru_sees_guests,
        }
    }
}

fn parse_monitor(text: &str) -> Result<(Pattern, PathBuf)> {
    let (pattern, path) = text.split_once('=').context("a monitor is PATTERN=SOCKET")?;
    Ok((Pattern::parse(pattern)?, PathBuf::from(path)))
}

/// A value as on the command line.
fn spelled(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Options that choose a part of a recording; by default all of it.
#[derive(Debug, Default, clap::Args)]
struct SpanArgs {
    /// Only whole intervals after this mark, the first of that name
    #[arg(long, value_name = "MARK")]
    from: Option<String>,
    /// Only whole intervals before this mark, the first of that name after --from
    #[arg(long, value_name = "MARK")]
    to: Option<String>,
}

impl SpanArgs {
    fn read(&self, folder: &Folder) -> Result<Span> {
        Span::between(folder, self.from.as_deref(), self.to.as_deref())
    }

    fn marks(&self) -> Marks {
        Marks { from: self.from.clone(), to: self.to.clone() }
    }
}

/// Stops a user who may not trace the host with the one line to type. Root without a capability
/// is told where it is needed.
fn require_root() -> Result<()> {
    let held = capability::held()?;
    let missing = capability::LEAST.iter().filter(|(_, one)| !held.contains(*one));
    let missing: Vec<&str> = missing.map(|(name, _)| *name).collect();
    if kernel::is_root() || missing.is_empty() {
        return Ok(());
    }
    let words: Vec<String> = std::env::args().map(|word| quoted(&word)).collect();
    let words = words.join(" ");
    if missing.len() == capability::LEAST.len() {
        bail!("this needs root; run: sudo {words}");
    }
    bail!("{} is missing; grant it, or run: sudo {words}", missing.join(" and "))
}

/// Inode of the PID namespace that the kernel begins with (`PROC_PID_INIT_INO`,
/// include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Fails in a PID namespace of our own: VMs of the host have no PIDs there, and the kernel tells
/// the programs the host's.
fn require_hosts_pids() -> Result<()> {
    let own = std::fs::read_link("/proc/self/ns/pid").context("cannot read /proc/self/ns/pid")?;
    ensure!(
        own == Path::new(FIRST_PID_NAMESPACE),
        "this runs in a PID namespace of its own and cannot see the host's VMs; in a container, \
         start it with --pid=host (Kubernetes: hostPID: true)"
    );
    Ok(())
}

/// Fails if processes could not be looked into for want of a capability: any of them can be a VM.
fn require_readable(discovery: &Discovery) -> Result<()> {
    let count = discovery.unreadable();
    ensure!(
        count == 0 || capability::held()?.contains(CapabilitySet::SYS_PTRACE),
        "{count} processes could not be read, and any of them could be a VM: CAP_SYS_PTRACE is missing"
    );
    Ok(())
}

/// A folder's name made of the host and the time.
fn default_out(prefix: &str) -> Result<PathBuf> {
    let host = kernel::host_name()?;
    let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    Ok(PathBuf::from(format!("{prefix}-{host}-{time}")))
}

/// The exit code of what a signal ended.
fn signalled(signal: Signal) -> ExitCode {
    ExitCode::from(128 + signal as u8)
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quoted("--vm=web-01"), "--vm=web-01");
        assert_eq!(quoted("web-*"), "'web-*'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
