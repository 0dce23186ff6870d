//! VMs as their managers start them, by the managers' own test data.

use crate::Tests;
use anyhow::{Context, Result, ensure};
use overcommit::vm::cmdline::CommandLine;
use std::fs;
use std::path::{Path, PathBuf};
use testbed::target;

/// Its name, by which it is skipped where the data could not be fetched.
pub(crate) const LIBVIRT: &str = "command_lines_of_libvirt_are_read_as_it_means_them";

pub(crate) const TESTS: Tests = &[(LIBVIRT, libvirt)];

/// Command lines that libvirt 11.3 has there, at the least.
const LINES: usize = 1_083;
/// libvirt rounds the memory of a VM, of each of its nodes and of each device up to that; on POWER
/// to the other.
const ROUNDED: u64 = 1 << 20;
const ROUNDED_ON_POWER: u64 = 256 << 20;
/// Where a command line is not to be held against its domain: vCPUs that `-device` brings before
/// the VM runs, and nodes that are not what `-m` says, which QEMU would refuse.
const EXCEPTIONS: [(&str, &str); 2] =
    [("cpu-hotplug-startup", "vCPUs"), ("migrate-numa-unaligned", "memory")];

/// libvirt's command lines, each with the domain that it is of beside it, where
/// `cargo xtask test` puts them.
pub(crate) fn libvirts_data() -> PathBuf {
    target().join("managers/libvirt/tests/qemuxmlconfdata")
}

fn libvirt() -> Result<()> {
    let (mut lines, mut wrong) = (0, Vec::new());
    for path in glob::glob(&format!("{}/*.args", libvirts_data().display()))? {
        let path = path?;
        let domain = Domain::beside(&path)?;
        let words = words(&fs::read_to_string(&path)?);
        let line = CommandLine::parse(words.iter().map(String::as_bytes), |_| None);
        lines += 1;
        let file = path.display().to_string();
        let is_excepted = |what: &str| {
            EXCEPTIONS.iter().any(|(of, is)| file.contains(of) && what.starts_with(is))
        };
        let differences = domain.differences(&line).filter(|what| !is_excepted(what));
        wrong.extend(differences.map(|what| format!("{file}: {what}")));
    }
    println!("{lines} command lines");
    ensure!(lines >= LINES, "{lines} command lines");
    ensure!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// The words of a command as a shell splits them, from the program on.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut is_quoted) = (Vec::new(), None::<String>, false);
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\'' => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            '\\' if !is_quoted => match chars.next() {
                Some('\n') | None => {}
                Some(escaped) => word.get_or_insert_default().push(escaped),
            },
            white if white.is_whitespace() && !is_quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    let is_setting = |word: &String| !word.starts_with('/') && word.contains('=');
    words.into_iter().skip_while(is_setting).collect()
}

/// What the XML says.
struct Domain {
    name: String,
    uuid: Option<String>,
    vcpus: Option<u32>,
    accelerator: Option<&'static str>,
    memory_bytes: Option<u64>,
    /// By how much that may be rounded.
    rounded: u64,
}

impl Domain {
    fn beside(args: &Path) -> Result<Self> {
        let stem = args.file_stem().and_then(|stem| stem.to_str()).context("no name")?;
        let first = stem.split('.').next().unwrap_or(stem);
        let named = [stem, first].map(|name| args.with_file_name(format!("{name}.xml")));
        let path = named.iter().find(|path| path.exists()).context("no domain beside it")?;
        Self::read(&fs::read_to_string(path)?).with_context(|| path.display().to_string())
    }

    fn read(xml: &str) -> Result<Self> {
        let vcpu = element(xml, "vcpu").map(|(of, text)| attribute(of, "current").unwrap_or(text));
        let accelerator = match element(xml, "domain").and_then(|(of, _)| attribute(of, "type")) {
            Some("kvm") => Some("kvm"),
            Some("qemu") => Some("tcg"),
            Some("hvf") => Some("hvf"),
            _ => None,
        };
        let devices: Vec<Device> = xml.split("<memory model=").skip(1).map(Device::read).collect();
        let cell = |of: &str| bytes(of.split('>').next()?, attribute(of, "memory")?);
        // Where there are nodes, theirs is what counts.
        let cells: Vec<u64> = xml.split("<cell").skip(1).filter_map(cell).collect();
        let whole = element(xml, "memory").and_then(|(of, text)| bytes(of, text));
        let all: u64 = devices.iter().map(|device| device.size).sum();
        let without_devices = whole.map(|whole| whole.saturating_sub(all));
        let base = if cells.is_empty() { without_devices } else { Some(cells.iter().sum()) };
        let plugged: u64 = devices.iter().map(|device| device.plugged).sum();
        let is_power = element(xml, "type").and_then(|(of, _)| attribute(of, "arch"));
        let is_power = is_power.is_some_and(|arch| arch.starts_with("ppc"));
        let rounded = if is_power { ROUNDED_ON_POWER } else { ROUNDED };
        Ok(Self {
            name: plain(element(xml, "name").context("no name")?.1),
            uuid: element(xml, "uuid").map(|(_, text)| text.to_owned()),
            vcpus: vcpu.and_then(|text| text.trim().parse().ok()),
            accelerator,
            memory_bytes: base.map(|base| base + plugged),
            rounded: rounded * (1 + cells.len() + devices.len()) as u64,
        })
    }

    /// What a command line was misread as.
    fn differences(&self, line: &CommandLine) -> impl Iterator<Item = String> {
        let text = |bytes: &Option<Vec<u8>>| {
            bytes.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        };
        let told = |what: &str, read: String, meant: String| {
            (read != meant).then(|| format!("{what} is read as {read}, and is {meant}"))
        };
        let memory = line.memory_bytes.zip(self.memory_bytes);
        let is_rounded = memory.is_some_and(|(read, meant)| read.abs_diff(meant) < self.rounded);
        let accelerator = text(&line.accelerator);
        [
            told("name", format!("{:?}", text(&line.guest)), format!("{:?}", Some(&self.name))),
            told("uuid", format!("{:?}", text(&line.uuid)), format!("{:?}", self.uuid)),
            told("vCPUs", format!("{:?}", line.vcpus), format!("{:?}", self.vcpus)),
            told(
                "accelerator",
                format!("{:?}", accelerator.as_deref()),
                format!("{:?}", self.accelerator),
            ),
            (!is_rounded).then(|| format!("memory (read, meant): {memory:?}")),
        ]
        .into_iter()
        .flatten()
    }
}

/// A memory device.
struct Device {
    size: u64,
    /// What of it is RAM and there: nothing of persistent memory.
    plugged: u64,
}

impl Device {
    fn read(xml: &str) -> Self {
        let size = |name| element(xml, name).and_then(|(of, text)| bytes(of, text)).unwrap_or(0);
        let plugged = match xml.trim_start_matches(['\'', '"']) {
            dimm if dimm.starts_with("dimm") => size("size"),
            virtio if virtio.starts_with("virtio-mem") => size("requested"),
            _ => 0,
        };
        Self { size: size("size"), plugged }
    }
}

/// The first element of that name: its attributes and its text.
fn element<'a>(xml: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let start = format!("<{name}");
    let starts = xml.match_indices(&start).map(|(at, found)| at + found.len());
    let of = starts.map(|at| &xml[at..]).find(|rest| rest.starts_with([' ', '>']))?;
    let (attributes, rest) = of.split_once('>')?;
    Some((attributes, rest.split('<').next()?))
}

fn attribute<'a>(attributes: &'a str, name: &str) -> Option<&'a str> {
    let value = attributes.split_once(&format!(" {name}="))?.1;
    let quote = value.chars().next()?;
    value[1..].split(quote).next()
}

/// A size with its unit: KiB if there is none.
fn bytes(attributes: &str, text: &str) -> Option<u64> {
    let unit: u64 = match attribute(attributes, "unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1_000,
        "k" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    text.trim().parse::<u64>().ok()?.checked_mul(unit)
}

/// Text without XML's escapes.
fn plain(text: &str) -> String {
    let escapes = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    escapes.iter().fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}
