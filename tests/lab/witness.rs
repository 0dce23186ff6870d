//! Counts by the kernel's own tracer, which knows nothing of ours.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use testbed::host::{read, write};
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
        let event = PathBuf::from("/sys/kernel/tracing/events").join(event);
        let trigger = event.join("trigger");
        let command = format!("hist:keys={key}:size=4096");
        let script = format!("echo '!{command}' > {}", trigger.display());
        let undo = Undo::script("a histogram of ftrace", &script)?;
        write(trigger, &command)?;
        Ok(Self { event, key, _undo: undo })
    }

    /// How many in all.
    pub(crate) fn total(&self) -> Result<u64> {
        Ok(self.counts()?.values().sum())
    }

    /// How many of each value.
    pub(crate) fn counts(&self) -> Result<BTreeMap<u64, u64>> {
        let text = read(self.event.join("hist"))?;
        let dropped = text.lines().find_map(|line| line.trim().strip_prefix("Dropped:"));
        ensure!(dropped.is_none_or(|count| count.trim() == "0"), "ftrace dropped some:\n{text}");
        let rows = text.lines().filter(|line| line.starts_with("{ "));
        rows.map(|row| {
            let (key, count) = row.split_once("hitcount:").context("a row without a count")?;
            let value = key.split_once(self.key).context("a row without its key")?.1;
            let digits: String = value.chars().filter(char::is_ascii_digit).collect();
            Ok((digits.parse()?, count.trim().parse()?))
        })
        .collect()
    }
}

/// Whether this is an Intel CPU.
pub(crate) fn is_intel() -> bool {
    Path::new("/sys/module/kvm_intel").exists()
}

/// The name of an exit for the guest's memory.
pub(crate) fn memory_exit() -> &'static str {
    if is_intel() { "exit.ept_violation" } else { "exit.npf" }
}

/// The kernel's own names of this CPU's exits, out of the format of kvm_exit's record, which has Intel's
/// first.
pub(crate) fn exit_names() -> Result<BTreeMap<u64, String>> {
    let format = read("/sys/kernel/tracing/events/kvm/kvm_exit/format")?;
    let mut tables = format.split("__print_symbolic(").skip(1);
    let table = if is_intel() { tables.next() } else { tables.last() };
    let table = table.context("no names in the format")?;
    let entries = table.split('{').filter_map(|entry| entry.split_once('}')?.0.split_once(','));
    let entry = |(number, name): (&str, &str)| {
        let number = match number.trim().strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => number.trim().parse(),
        };
        let number = number.ok()?;
        Some((number, name.trim().trim_matches('"').to_lowercase()))
    };
    Ok(entries.filter_map(entry).collect())
}
