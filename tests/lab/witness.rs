//! Counts by the kernel's own tracer, which knows nothing of ours.

use anyhow::{Context, Result, ensure};
use overcommit::kernel::exit_reasons;
use overcommit_ebpf::exit::arm64_reason;
use overcommit_ebpf::layout::{ISA_ARM64, exit_key};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use testbed::host::read;
use testbed::results::figure;
use testbed::undo::Undo;

/// A histogram of ftrace over one field of a tracepoint.
pub(crate) struct Histogram {
    event: PathBuf,
    key: &'static str,
    _undo: Undo,
}

impl Histogram {
    /// Counts from now on.
    pub(crate) fn start(event: &str, key: &'static str) -> Result<Self> {
        Self::begin(event, key, String::new())
    }

    /// The same of what a filter lets through.
    pub(crate) fn start_if(event: &str, key: &'static str, filter: &str) -> Result<Self> {
        Self::begin(event, key, format!(" if {filter}"))
    }

    fn begin(event: &str, key: &'static str, filter: String) -> Result<Self> {
        let event = PathBuf::from("/sys/kernel/tracing/events").join(event);
        let trigger = event.join("trigger");
        let command = format!("hist:keys={key}:size=4096{filter}");
        let script = format!("echo '!{command}' >> {}", trigger.display());
        let undo = Undo::script("a histogram of ftrace", &script)?;
        // Opened otherwise it forgets the others.
        OpenOptions::new().append(true).open(&trigger)?.write_all(command.as_bytes())?;
        Ok(Self { event, key, _undo: undo })
    }

    /// How many in all.
    pub(crate) fn total(&self) -> Result<u64> {
        Ok(self.counts()?.values().sum())
    }

    /// How many of each value.
    pub(crate) fn counts(&self) -> Result<BTreeMap<u64, u64>> {
        let text = self.text()?;
        let rows = text.lines().filter(|line| line.starts_with("{ "));
        rows.map(|row| {
            let (key, count) = row.split_once("hitcount:").context("a row without a count")?;
            let value = key.split_once(self.key).context("a row without its key")?.1;
            let digits: String = value.chars().filter(char::is_ascii_digit).collect();
            Ok((digits.parse()?, count.trim().parse()?))
        })
        .collect()
    }

    /// How many have a function on their stack whose name contains that. The key is `stacktrace`.
    pub(crate) fn below(&self, function: &str) -> Result<u64> {
        let text = self.text()?;
        let mut sum = 0;
        for row in text.split("\n{ ").skip(1) {
            let (stack, rest) = row.split_once("hitcount:").context("a stack without a count")?;
            let count = rest.split_whitespace().next().context("a stack without its count")?;
            if stack.contains(function) {
                sum += count.parse::<u64>()?;
            }
        }
        Ok(sum)
    }

    fn text(&self) -> Result<String> {
        // There may be several of one event. Stacks are called `stacktrace` on Linux 6.1 and
        // `common_stacktrace` later.
        let all = read(self.event.join("hist"))?;
        let key = format!("{}:vals=", self.key);
        let mine = all.split("# event histogram").find(|text| text.contains(&key));
        let text = mine.with_context(|| format!("no histogram of {}:\n{all}", self.key))?;
        let dropped = text.lines().find_map(|line| line.trim().strip_prefix("Dropped:"));
        ensure!(dropped.is_none_or(|count| count.trim() == "0"), "ftrace dropped some:\n{text}");
        Ok(text.to_owned())
    }
}

/// Whether this is an Intel CPU.
pub(crate) fn is_intel() -> bool {
    Path::new("/sys/module/kvm_intel").exists()
}

/// Whether this is an arm64 CPU.
pub(crate) const IS_ARM64: bool = cfg!(target_arch = "aarch64");

/// The names of exits for the guest's memory, the usual one first.
pub(crate) fn memory_exits() -> &'static [&'static str] {
    if IS_ARM64 {
        &["exit.dabt_low", "exit.iabt_low"]
    } else if is_intel() {
        &["exit.ept_violation", "exit.ept_misconfig"]
    } else {
        &["exit.npf"]
    }
}

/// A figure of all exits for memory.
pub(crate) fn of_memory_exits(summary: &Value, key: &str) -> u64 {
    memory_exits().iter().filter_map(|name| figure(summary, name, key).ok()).sum()
}

/// Exits as ftrace counts them.
pub(crate) struct Exits {
    by_reason: Histogram,
    /// arm64: what kind of exit it was.
    by_code: Option<Histogram>,
}

/// arm64 has a class for this kind alone (`ARM_EXCEPTION_TRAP`).
const TRAP: u64 = 2;

impl Exits {
    /// Counts from now on.
    pub(crate) fn start() -> Result<Self> {
        const EVENT: &str = "kvm/kvm_exit";
        if !IS_ARM64 {
            return Ok(Self { by_reason: Histogram::start(EVENT, "exit_reason")?, by_code: None });
        }
        let by_reason = Histogram::start_if(EVENT, "esr_ec", "ret==2")?;
        Ok(Self { by_reason, by_code: Some(Histogram::start_if(EVENT, "ret", "ret!=2")?) })
    }

    /// How many of each, by our name: the kernel's own names of this CPU's exits stand in the format
    /// of kvm_exit's record, which on x86 has Intel's first, and on arm64 those of the kinds.
    pub(crate) fn counts(&self) -> Result<BTreeMap<String, u64>> {
        let format = read("/sys/kernel/tracing/events/kvm/kvm_exit/format")?;
        let mut tables = format.split("__print_symbolic(").skip(1);
        let table = if is_intel() { tables.next() } else { tables.last() };
        let names = names(table.context("no names in the format")?);
        let name = |number: u64| -> Result<String> {
            let name =
                names.get(&number).with_context(|| format!("exit {number:#x} has no name"))?;
            Ok(format!("exit.{name}"))
        };
        let counts = self.by_reason.counts()?.into_iter();
        let mut counts: BTreeMap<String, u64> =
            counts.map(|(number, count)| Ok((name(number)?, count))).collect::<Result<_>>()?;
        for (code, count) in
            self.by_code.as_ref().map(Histogram::counts).transpose()?.into_iter().flatten()
        {
            ensure!(code != TRAP, "the filter lets traps through");
            let name = exit_reasons::name(exit_key(ISA_ARM64, arm64_reason(code as u32, 0)));
            counts.insert(format!("exit.{name}"), count);
        }
        Ok(counts)
    }
}

/// `{ (0x01), "WFx" }, …` or `{ 120, "hlt" }, …` by number, in lower case.
fn names(table: &str) -> BTreeMap<u64, String> {
    let entries = table.split('{').filter_map(|entry| entry.split_once('}')?.0.split_once(','));
    let entry = |(number, name): (&str, &str)| {
        // Some are `((0x01UL))`.
        let number = number.trim_start_matches(|c: char| !c.is_ascii_digit());
        let (digits, radix) = number.strip_prefix("0x").map_or((number, 10), |hex| (hex, 16));
        let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
        let number = u64::from_str_radix(&digits[..end], radix);
        Some((number.ok()?, name.trim().trim_matches('"').to_lowercase()))
    };
    entries.filter_map(entry).collect()
}
