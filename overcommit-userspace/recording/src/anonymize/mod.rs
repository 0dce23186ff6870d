//! A copy of a recording that names nobody: what was measured stays, on whom goes.
//!
//! `names` gives pseudonyms, `run` is run.json with them, `rows` the tables. Histogram logs name
//! nobody.

mod names;
mod rows;
mod run;

pub use names::Pseudonyms;

use crate::recording::folder::{
    EVICTIONS, HOST, INTERVALS, LATENCY_LOG, MARKS, RUN_FILE, SLOW_FAULTS, VMS,
};
use crate::recording::{Folder, Recording};
use anyhow::{Context, Result, ensure};

impl Pseudonyms {
    /// Copies a recording into a new folder. What a recording gets at its end is not copied: it is
    /// made of the copy by [`crate::report::rebuild`].
    ///
    /// # Errors
    /// It still runs, cannot be read, or the copy cannot be written.
    pub fn copy(&mut self, recording: &Recording, to: &Folder) -> Result<()> {
        let Recording { run, folder: from, is_recording } = recording;
        ensure!(!is_recording, "{} is still being recorded; copy it then", from.path().display());
        let anonymous = run::anonymous(run, self)?;
        for (vm, copy) in run.vms.iter().zip(&anonymous.vms) {
            let [source, target] = [vm, copy].map(|vm| format!("vms/{}/{LATENCY_LOG}", vm.folder));
            let failed = || format!("cannot copy {}", from.file(&source).display());
            std::io::copy(&mut from.read(&source)?, &mut to.append(&target)?)
                .with_context(failed)?;
        }
        for name in [INTERVALS, VMS, HOST, EVICTIONS, SLOW_FAULTS, MARKS] {
            if from.has(name) {
                rows::copy(from, to, name, self)?;
            }
        }
        // The last, so that half a copy is no recording.
        let mut text = serde_json::to_vec_pretty(&anonymous)?;
        text.push(b'\n');
        to.replace(RUN_FILE, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Format, View, rebuild};
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    /// Every name in a recording that has each of its figures.
    const NAMES: [&str; 10] = [
        "web, \"01\"",
        "web, \\\"01\\\"",
        "web, \"\"01\"\"",
        "web%2C",
        "=db",
        "kvm-01",
        "000000000042",
        "ramp",
        "./load",
        "0x7f00",
    ];

    fn texts(dir: &Path) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(texts(&path));
            } else {
                found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
            }
        }
        found
    }

    #[test]
    fn a_copy_has_the_figures_and_no_name() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/now");
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("now"), dir.path().join("copy"));
        let copied = Command::new("cp").arg("-r").args([&golden, &from]).status().unwrap();
        assert!(copied.success());
        fs::write(from.join(MARKS), "unix_s,text\n1795483994.5,ramp\n").unwrap();
        let from = Folder::open(&from).unwrap();
        let to = Folder::create(&to, None).unwrap();
        let recording = Recording::open(&from).unwrap();
        Pseudonyms::default().copy(&recording, &to).unwrap();
        let of = |folder: &Folder| rebuild(folder, &View::whole(Format::Json, true)).unwrap();
        let (report, copied) = (of(&from), of(&to));
        for (path, text) in texts(to.path()) {
            for name in NAMES {
                assert!(!text.contains(name) && !path.contains(name), "{name} in {path}: {text}");
            }
        }
        let figures = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap() };
        let (report, copied) = (figures(&report.text), figures(&copied.text));
        for vm in 0..2 {
            assert_eq!(report["vms"][vm]["metrics"], copied["vms"][vm]["metrics"]);
            assert_eq!(report["vms"][vm]["stall"], copied["vms"][vm]["stall"]);
        }
        assert_eq!(copied["vms"][0]["vm"], "vm-1");
        assert_eq!(copied["vms"][1]["uuid"], "00000000-0000-4000-8000-000000000002");
        assert_eq!(report["host"]["swap"], copied["host"]["swap"]);
    }
}
