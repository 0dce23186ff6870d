//! A recording that anybody may have made, and what users type.

use crate::host::in_memory;
use anyhow::Result;
use overcommit_recording::format::hlog::{self, LineReader};
use overcommit_recording::format::text;
use overcommit_recording::html::Library;
use overcommit_recording::model::pattern::Pattern;
use overcommit_recording::recording::{Folder, Recording, Span};
use overcommit_recording::report::{Format, View, rebuild};
use overcommit_recording::slo::{Objective, config};
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A recording of which everything is known.
const GOLDEN: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../overcommit-userspace/recording/golden/now");

/// Its files that are read, in the order of the first byte of the data.
const READ: [&str; 8] = [
    "run.json",
    "intervals.csv",
    "vms.csv",
    "host.csv",
    "evictions.csv",
    "slow-faults.csv",
    "vms/%3Ddb/latency.hlog",
    "vms/web%2C%20%2201%22/latency.hlog",
];

/// In the first byte of the data: the recording was cut off.
const CUT_OFF: u8 = 0x80;

/// Seeds of [`files`]: each file, of a whole recording and of one that was cut off.
pub(crate) fn golden() -> Result<Vec<Vec<u8>>> {
    let mut seeds = Vec::new();
    for (number, name) in READ.iter().enumerate() {
        let content = fs::read(Path::new(GOLDEN).join(name))?;
        for how in [0, CUT_OFF] {
            seeds.push([&[number as u8 | how], &content[..]].concat());
        }
    }
    Ok(seeds)
}

/// Seeds of [`histogram`].
pub(crate) fn golden_log() -> Result<Vec<Vec<u8>>> {
    let logs = READ.iter().filter(|name| name.ends_with(".hlog"));
    logs.map(|name| Ok(fs::read(Path::new(GOLDEN).join(name))?)).collect()
}

/// A copy of it in which files are exchanged.
struct Copy {
    dir: TempDir,
    /// What is in each of [`READ`].
    contents: Vec<Vec<u8>>,
}

impl Copy {
    fn new() -> std::io::Result<Self> {
        let dir = in_memory()?;
        let contents = READ.iter().map(|name| fs::read(Path::new(GOLDEN).join(name)));
        let copy = Self { dir, contents: contents.collect::<Result<_, _>>()? };
        for (name, content) in READ.iter().zip(&copy.contents) {
            let path = copy.path(name);
            fs::create_dir_all(path.parent().unwrap_or(&path))?;
            fs::write(path, content)?;
        }
        Ok(copy)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("run").join(name)
    }
}

thread_local! {
    static COPY: RefCell<Option<Copy>> = const { RefCell::new(None) };
}

/// A recording with another content of one file: the first byte says of which, and with [`CUT_OFF`]
/// whether the recording is one that was cut off.
pub(crate) fn files(data: &[u8]) {
    let Some((which, content)) = data.split_first() else { return };
    COPY.with_borrow_mut(|copy| {
        if copy.is_none() {
            *copy = Copy::new().ok();
        }
        let Some(copy) = copy else { return };
        let number = usize::from(which & !CUT_OFF) % READ.len();
        let path = copy.path(READ[number]);
        if fs::write(&path, content).is_ok() {
            if which & CUT_OFF != 0 && number != 0 {
                cut_off(copy);
            }
            read(&copy.path(""));
        }
        let _ = fs::write(path, &copy.contents[number]);
        let _ = fs::write(copy.path(READ[0]), &copy.contents[0]);
    });
}

fn cut_off(copy: &Copy) {
    let run = String::from_utf8_lossy(&copy.contents[0]).replacen("\"end\"", "\"ended\"", 1);
    let _ = fs::write(copy.path(READ[0]), run);
}

fn read(path: &Path) {
    let Ok(folder) = Folder::open(path) else { return };
    let library = Library { script: "", style: "" };
    for format in [Format::Text, Format::Json, Format::Html] {
        let _ = rebuild(&folder, &View::whole(format, true).drawn_by(library));
    }
    if let Ok(recording) = Recording::open(&folder) {
        let _ = recording.each_slow_fault(|_| Ok(()));
    }
    let _ = Span::between(&folder, Some("start"), Some("end"));
}

/// Lines of a log of histograms.
pub(crate) fn histogram(data: &[u8]) {
    let mut reader = LineReader::default();
    let _ = hlog::head_length(data);
    for line in data.split(|byte| *byte == b'\n') {
        let _ = hlog::metric(line);
        let _ = reader.values(hlog::untagged(line));
    }
}

/// What users write into options and a file of objectives.
pub(crate) fn options(data: &[u8]) {
    let typed = String::from_utf8_lossy(data);
    let _ = config::parse(&typed);
    for line in typed.lines() {
        let _ = Objective::parse(line);
        let _ = Pattern::parse(line);
        let _ = text::parse_interval(line);
        let _ = text::parse_duration(line);
    }
}
