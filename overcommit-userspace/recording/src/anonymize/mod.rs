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
        ensure!(
            !is_recording,
            "{} is still being recorded; copy it once it has ended",
            from.path().display()
        );
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
    use crate::model::run::{EvictionSight, Run};
    use crate::report::{Format, View, rebuild};
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    /// Stands in every text that a recording can hold.
    const SECRET: &str = "SECRET";

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

    /// With that word in all that anybody can call by a name.
    fn with_secrets(run: &mut Run) {
        let word = |what: &str| format!("{SECRET}-{what}");
        let why = || format!("monitor /run/{SECRET} x.sock: {SECRET}-vm-0 and /srv/{SECRET}");
        (run.host, run.boot_id) = (word("host"), word("boot"));
        let options = &mut run.options;
        options.vm = vec![word("pattern*"), word("vm-0")];
        options.slo = vec![format!("{SECRET}-vm-*:stall.share<1%")];
        options.labels = [(word("key"), word("value"))].into();
        options.command = vec![word("program"), word("argument")];
        (options.config, options.monitor) = (Some(word("config")), vec![word("monitor")]);
        run.not_counted.unserved = vec![word("unserved")];
        run.backend.refused = [("fentry".to_owned(), why())].into();
        run.backend.hooks.iter_mut().for_each(|hook| hook.missing = Some(why()));
        run.coverage[0].not_seen = vec![why()];
        run.evictions = Some(EvictionSight { written_absent: Some(why()), dropped_absent: None });
        let state = &mut run.host_state;
        (state.unreadable, state.discards_absent, state.kills_unreadable) =
            (Some(why()), Some(why()), Some(why()));
        state.swap_areas.iter_mut().flatten().for_each(|area| area.name = word("swap"));
        for (number, vm) in run.vms.iter_mut().enumerate() {
            (vm.name, vm.uuid) = (word(&format!("vm-{number}")), Some(word("uuid")));
            (vm.proxmox_id, vm.executable) = (Some(word("id")), word("sandboxd"));
            vm.cgroup = Some(format!("/{SECRET}/x"));
            (vm.balloon_unknown, vm.working_set_unknown) = (Some(why()), Some(why()));
            (vm.evictions_absent, vm.exits_absent) = (Some(why()), Some(why()));
            vm.faults_hidden = Some(why());
            let devices = &mut vm.swapins.as_mut().unwrap().from_device;
            *devices = [(word("swap"), 3)].into();
        }
    }

    #[test]
    fn a_copy_has_the_figures_and_no_name() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/now");
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("now"), dir.path().join("copy"));
        let copied = Command::new("cp").arg("-r").args([&golden, &from]).status().unwrap();
        assert!(copied.success());
        fs::write(from.join(MARKS), format!("unix_s,text\n1795483994.5,{SECRET}\n")).unwrap();
        for (file, name) in [
            (EVICTIONS, ",tar,"),
            (EVICTIONS, "=db"),
            (EVICTIONS, "kswapd0"),
            (SLOW_FAULTS, "CPU 0/KVM"),
            (SLOW_FAULTS, "nvme0n1"),
            (SLOW_FAULTS, "0x7f"),
            (SLOW_FAULTS, "=db"),
            (VMS, "nvme0n1"),
            (VMS, "=db"),
            (INTERVALS, "=db"),
        ] {
            let text = fs::read_to_string(from.join(file)).unwrap();
            assert!(text.contains(name), "{file} has no {name}");
            let secret = name.replace(name.trim_matches(','), SECRET);
            fs::write(from.join(file), text.replace(name, &secret)).unwrap();
        }
        let from = Folder::open(&from).unwrap();
        let to = Folder::create(&to, None).unwrap();
        let mut recording = Recording::open(&Folder::open(&golden).unwrap()).unwrap();
        with_secrets(&mut recording.run);
        recording.folder = from;
        Pseudonyms::default().copy(&recording, &to).unwrap();
        let report = rebuild(&to, &View::whole(Format::Json, true)).unwrap();
        let copied: serde_json::Value = serde_json::from_str(&report.text).unwrap();
        for (path, text) in texts(to.path()) {
            assert!(!text.contains(SECRET) && !path.contains(SECRET), "in {path}: {text}");
        }
        let original: serde_json::Value =
            serde_json::from_slice(&fs::read(golden.join("summary.json")).unwrap()).unwrap();
        for vm in 0..2 {
            let metrics = original["vms"][vm]["metrics"].as_array().unwrap();
            for (place, metric) in metrics.iter().enumerate() {
                for figure in ["metric", "count", "sum_ns", "p99_ns", "max_ns"] {
                    let copied = &copied["vms"][vm]["metrics"][place][figure];
                    assert_eq!(metric[figure], *copied, "{metric}");
                }
            }
            assert!(metrics.len() > 5);
            assert_eq!(original["vms"][vm]["stall"], copied["vms"][vm]["stall"]);
        }
        assert_eq!(copied["vms"][0]["vm"], "vm-1");
        assert_eq!(original["host"]["swap"], copied["host"]["swap"]);
    }
}
