//! `cargo xtask kernels`: boots every kernel of the lab, has overcommit say and show what it sees there,
//! and writes docs/kernels.md of it.

use crate::build;
use crate::lab::Labs;
use crate::setup::{TESTBED, give_to_user_behind_sudo, install, require_root};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use testbed::root;

/// The scenario, and how the line begins in which it says what it found.
const SCENARIO: &str = "kernel_summary";
const SAID: &str = "kernel summary: ";

/// Boots them and writes the document.
///
/// # Errors
/// A kernel cannot be had or does not boot, or a count is wrong on one.
pub(crate) fn run() -> Result<()> {
    require_root("kernels")?;
    install(&TESTBED)?;
    build::all()?;
    let (labs, consoles) = Labs::everywhere(SCENARIO)?;
    let done = labs.run(&Mutex::new(()));
    let given = give_to_user_behind_sudo();
    done.and(given)?;
    let kernels: Vec<Value> = consoles.iter().map(|path| said(path)).collect::<Result<_>>()?;
    let path = root().join("docs/kernels.md");
    fs::write(&path, document(&kernels)).with_context(|| format!("cannot write {}", path.display()))
}

fn said(console: &Path) -> Result<Value> {
    let text = fs::read_to_string(console)
        .with_context(|| format!("cannot read {}", console.display()))?;
    let line = text.lines().find_map(|line| Some(line.split_once(SAID)?.1));
    let mut said: Value = serde_json::from_str(line.context("the lab said nothing")?)?;
    ensure!(said["coverage"].is_array(), "{said}");
    let lab = console.parent().and_then(Path::file_name).unwrap_or_default();
    said["lab"] = lab.to_string_lossy().into();
    Ok(said)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn document(kernels: &[Value]) -> String {
    let mut out = String::from(
        "# Kernels\n\nWhat overcommit can see on each kernel. `cargo xtask kernels` boots each one in the lab, \
         squeezes a VM on it and writes this file. For each backend, the table has the number of major \
         faults that it counted for the squeezed VM; the command fails unless that is the kernel's own \
         count.\n\n",
    );
    let columns = |cell: &dyn Fn(&Value) -> String| {
        kernels.iter().map(|kernel| format!(" {} |", cell(kernel))).collect::<String>()
    };
    let mut row = |name: &str, cell: &dyn Fn(&Value) -> String| {
        let _ = writeln!(out, "| {name} |{}", columns(cell));
    };
    row("kernel", &|kernel| {
        let release = text(&kernel["release"]).split(['+', '-']).next().unwrap_or_default();
        let cpu = match text(&kernel["lab"]).split_once('-') {
            Some((_, "intel")) => "Intel",
            Some((_, cpu)) => cpu,
            None => "AMD",
        };
        format!("{release}, {cpu}")
    });
    row("---", &|_| "---".to_owned());
    row("`--backend auto` chooses", &|kernel| format!("`{}`", text(&kernel["auto"])));
    for backend in ["fentry", "kprobe", "perf"] {
        let name = if backend == "perf" {
            "waits for memory that `perf` counted".to_owned()
        } else {
            format!("major faults that `{backend}` counted")
        };
        row(&name, &|kernel| {
            let counted = &kernel["counted"][backend];
            let figure = if backend == "perf" { &counted["stalls"] } else { &counted["majors"] };
            figure.as_u64().map_or("refused".to_owned(), |majors| majors.to_string())
        });
    }
    for metric in metrics(kernels) {
        row(&format!("`{metric}`"), &|kernel| {
            let found = coverage(kernel).find(|entry| text(&entry["metric"]) == metric);
            found.map_or("—".to_owned(), |entry| text(&entry["coverage"]).to_owned())
        });
    }
    row("working sets by", &|kernel| {
        let sources = kernel["working_sets"].as_array().into_iter().flatten();
        let sources = sources.filter(|source| source["refused"].is_null());
        let names: Vec<&str> = sources.map(|source| text(&source["source"])).collect();
        if names.is_empty() { "—".to_owned() } else { names.join(", ") }
    });
    out += "\n## What is not seen\n\nWith the backend that `auto` chooses.\n\n";
    for (what, labs) in unseen(kernels) {
        let is_everywhere = labs.len() == kernels.len();
        let on = if is_everywhere { "everywhere".to_owned() } else { labs.join(", ") };
        let _ = writeln!(out, "- {what} ({on})");
    }
    out += "\n## Functions that are hooked\n\n";
    let mut row = |cells: String| {
        let _ = writeln!(out, "|{cells}");
    };
    row(format!(" for |{}", columns(&|kernel| text(&kernel["release"]).to_owned())));
    row(format!(" --- |{}", columns(&|_| "---".to_owned())));
    for purpose in purposes(kernels) {
        let function = columns(&|kernel| {
            let hook = hooks(kernel).find(|hook| text(&hook["purpose"]) == purpose);
            let function = hook.map(|hook| text(&hook["function"])).unwrap_or_default();
            if function.is_empty() { "—".to_owned() } else { format!("`{function}`") }
        });
        row(format!(" {purpose} |{function}"));
    }
    out
}

fn coverage(kernel: &Value) -> impl Iterator<Item = &Value> {
    kernel["coverage"].as_array().into_iter().flatten()
}

fn hooks(kernel: &Value) -> impl Iterator<Item = &Value> {
    kernel["hooks"].as_array().into_iter().flatten()
}

/// Every metric, in the order of the first kernel that has it.
fn metrics(kernels: &[Value]) -> Vec<String> {
    in_order(kernels.iter().flat_map(coverage).map(|entry| text(&entry["metric"])))
}

fn purposes(kernels: &[Value]) -> Vec<String> {
    in_order(kernels.iter().flat_map(hooks).map(|hook| text(&hook["purpose"])))
}

fn in_order<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for name in names {
        if !all.iter().any(|known| known == name) {
            all.push(name.to_owned());
        }
    }
    all
}

/// What is not seen of which metric, and on which kernels.
fn unseen(kernels: &[Value]) -> BTreeMap<String, Vec<&str>> {
    let mut unseen: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for kernel in kernels {
        let lab = text(&kernel["lab"]);
        for entry in coverage(kernel) {
            for what in entry["not_seen"].as_array().into_iter().flatten() {
                let line = format!("`{}`: {}", text(&entry["metric"]), text(what));
                unseen.entry(line).or_default().push(lab);
            }
        }
    }
    unseen
}
