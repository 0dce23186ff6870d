//! Nothing knows what lies above it: each crate has floors, and a module names none of its own
//! floor or of a higher one.

use crate::root;
use std::fs;
use std::path::{Path, PathBuf};

/// From the ground up.
type Floors = &'static [&'static [&'static str]];

const RECORDING: Floors = &[
    &["model"],
    &["format"],
    &["recording", "slo"],
    &["summary", "compare"],
    &["recent"],
    &["view"],
    &["export", "exposition", "guest", "html"],
    &["report"],
    &["anonymize"],
];

const USERSPACE: Floors = &[
    &["kernel", "terminal"],
    &["vm"],
    &["probes", "host"],
    &["sampler"],
    &["session"],
    &["ab", "channel", "guest", "self_test", "serve", "top"],
    &["commands"],
];

fn floor(floors: Floors, module: &str) -> Option<usize> {
    floors.iter().position(|floor| floor.contains(&module))
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Modules of its crate that a file names.
fn named(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for rest in text.split("crate::").skip(1) {
        let list = rest.strip_prefix('{').and_then(|list| list.split(';').next());
        let mut depth = 0;
        // Commas within the braces of a path part no paths.
        let parts = list.unwrap_or(rest).split(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        });
        let parts = parts.take(if list.is_some() { usize::MAX } else { 1 });
        let name = |part: &'_ str| -> usize {
            part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len())
        };
        names.extend(parts.map(str::trim).map(|part| &part[..name(part)]));
    }
    names
}

/// Names that point up, or to the side.
fn wrong_names(crate_root: &str, floors: Floors) -> Vec<String> {
    let source = root().join(crate_root).join("src");
    let mut found = Vec::new();
    files(&source, &mut found);
    let mut wrong = Vec::new();
    for path in found {
        let within = path.strip_prefix(&source).unwrap();
        let module = within.components().next().unwrap().as_os_str().to_string_lossy();
        let module = module.trim_end_matches(".rs").to_owned();
        // What is tried in a test may come from anywhere.
        let is_test = ["golden.rs", "mutated.rs"].iter().any(|name| within.ends_with(name));
        if ["lib", "main"].contains(&module.as_str()) || is_test {
            continue;
        }
        let own = floor(floors, &module).unwrap_or_else(|| panic!("{module} has no floor"));
        let text = fs::read_to_string(&path).unwrap();
        for other in named(&text).into_iter().filter(|other| *other != module) {
            if floor(floors, other).is_some_and(|other| other >= own) {
                wrong.push(format!("{} → {other}", within.display()));
            }
        }
    }
    wrong
}

#[test]
fn no_module_knows_what_lies_above_it() {
    assert_eq!(wrong_names("overcommit-userspace/recording", RECORDING), [""; 0]);
    assert_eq!(wrong_names("overcommit-userspace", USERSPACE), [""; 0]);
}

#[test]
fn a_name_that_points_up_is_seen() {
    let text =
        "use crate::model::run::Run;\nuse crate::{kernel, session};\nlet x = crate::vm::y();";
    assert_eq!(named(text), ["model", "kernel", "session", "vm"]);
}
