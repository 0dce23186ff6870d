//! What is there on this kernel? For docs/kernels.md, which `cargo xtask kernels` makes of it.

use crate::Scenario;
use crate::counts::counts_agree;
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use testbed::overcommit;
use testbed::results::figure;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![("kernel_summary".to_owned(), Box::new(summary))]
}

/// What `check` says, and how many major faults of a squeezed VM each backend has counted, which are those
/// of the kernel. One line, which xtask looks for.
fn summary(dir: &Path) -> Result<()> {
    let output = Command::new(overcommit()).args(["check", "--json"]).output()?;
    let check: Value = serde_json::from_slice(&output.stdout)?;
    let backends = check["backends"].as_array().context("no backends")?;
    let mut counted = Map::new();
    for backend in backends {
        let name = backend["backend"].as_str().context("a backend without a name")?;
        let majors = if backend["refused"].is_null() {
            let folder = dir.join(name);
            fs::create_dir(&folder)?;
            let summary = counts_agree(&folder, name, false)?;
            json!({ "stalls": figure(&summary, "stall.memory", "count")?,
                "majors": figure(&summary, "fault.major", "count").unwrap_or(0) })
        } else {
            json!({ "refused": backend["refused"] })
        };
        counted.insert(name.to_owned(), majors);
    }
    let line = json!({ "release": check["kernel"], "auto": check["auto"], "counted": counted,
        "coverage": check["coverage"], "hooks": check["hooks"],
        "working_sets": check["working_sets"] });
    println!("kernel summary: {line}");
    Ok(())
}
