//! What others' licences ask for: each text once, with the crates that have it.

use crate::build::Arch;
use crate::plots;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use testbed::{root, run};

/// What the binary is built of.
const BUILT: [&str; 2] = ["overcommit-userspace", "overcommit-ebpf"];
/// How files are called that hold a licence or a notice.
const FILES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];
/// What musl asks for, whose libc is linked into the static binary.
const MUSL: &str = "Copyright \u{a9} 2005-2020 Rich Felker, et al.";

/// The notices of everybody whose work is in the binary of that architecture.
///
/// # Errors
/// Cargo does not say what it is made of, or a licence cannot be read.
pub(crate) fn text(arch: Arch) -> Result<String> {
    let metadata = run(Command::new("cargo").current_dir(root()).args([
        "metadata",
        "--format-version",
        "1",
        "--filter-platform",
        arch.static_target(),
    ]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata is no JSON")?;
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut without = Vec::new();
    for package in others(&metadata) {
        let of = |key: &str| package[key].as_str().unwrap_or_default();
        let name = format!("{} {} ({})", of("name"), of("version"), of("license"));
        let folder = Path::new(of("manifest_path")).parent().context("a package without folder")?;
        let found = licences(folder).with_context(|| format!("cannot read licences of {name}"))?;
        if found.is_empty() {
            without.push(name.clone());
        }
        for text in found {
            texts.entry(text).or_default().insert(name.clone());
        }
    }
    texts.entry(plots::licence()?).or_default().insert("uPlot (MIT)".to_owned());
    ensure!(texts.len() > 20, "only {} licences were found", texts.len());
    let unknown: Vec<&String> =
        without.iter().filter(|name| !name.contains("Apache-2.0")).collect();
    ensure!(unknown.is_empty(), "there is no text of the licence of {unknown:?}");
    page(&texts, &without)
}

fn page(texts: &BTreeMap<String, BTreeSet<String>>, without: &[String]) -> Result<String> {
    let mut page = "overcommit contains work of others, under these licences. Rust's standard \
                    library (MIT OR Apache-2.0, Copyright (c) The Rust Project Contributors) is \
                    linked into it, too; the text of the Apache License 2.0 is LICENSE-APACHE.\n"
        .to_owned();
    if !without.is_empty() {
        let names = without.join(", ");
        let _ = writeln!(page, "\nUnder that licence, without a text of their own: {names}.");
    }
    // Behind its first lines the MIT licence is the same for all.
    let ours = fs::read_to_string(root().join("LICENSE-MIT")).context("cannot read LICENSE-MIT")?;
    let (_, mit) = ours.split_once("Permission is").context("LICENSE-MIT is another licence")?;
    let musl = (format!("{MUSL}\n\nPermission is{mit}"), "musl (MIT)".to_owned());
    let others = texts.iter().map(|(text, names)| {
        (text.clone(), names.iter().map(String::as_str).collect::<Vec<_>>().join(", "))
    });
    for (text, names) in others.chain([musl]) {
        let _ = writeln!(page, "\n{}\n{names}:\n\n{}", "=".repeat(80), text.trim());
    }
    Ok(page)
}

/// Packages that are not ours and become part of the binary, by cargo's own resolution.
fn others(metadata: &Value) -> Vec<&Value> {
    let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let packages = metadata["packages"].as_array().map_or(&[][..], Vec::as_slice);
    let mut nodes = BTreeMap::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let is_linked =
            |of: &Value| list(&of["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
        let needs = list(&node["deps"]).into_iter().filter(is_linked);
        let needs: Vec<String> = needs.map(|of| text_of(&of["pkg"])).collect();
        nodes.insert(text_of(&node["id"]), needs);
    }
    let is_built = |package: &&Value| BUILT.contains(&package["name"].as_str().unwrap_or_default());
    let mut left: Vec<String> =
        packages.iter().filter(is_built).map(|package| text_of(&package["id"])).collect();
    let mut met = BTreeSet::new();
    while let Some(id) = left.pop() {
        if met.insert(id.clone()) {
            left.extend(nodes.remove(&id).unwrap_or_default());
        }
    }
    // Ours have no registry.
    let is_other =
        |package: &&Value| met.contains(&text_of(&package["id"])) && !package["source"].is_null();
    packages.iter().filter(is_other).collect()
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What lies in a package's folder.
fn licences(folder: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if path.is_file() && FILES.iter().any(|file| name.starts_with(file)) {
            texts.push(fs::read_to_string(&path)?.trim().replace("\r\n", "\n"));
        }
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_in_the_binary_has_their_notice() {
        let text = text(Arch::HOST).unwrap();
        for name in ["aya ", "hdrhistogram ", "tokio ", "rustix ", "uPlot (MIT)", "musl (MIT)"] {
            assert!(text.contains(name), "{name}");
        }
        assert!(text.contains("Permission is hereby granted"));
        // Neither ours nor what only tests have.
        assert!(!text.contains("overcommit-recording ") && !text.contains("proptest "));
    }
}
