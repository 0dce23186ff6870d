//! What the README tells people to type works as it stands there.

use crate::Tests;
use anyhow::{Context, Result, ensure};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use testbed::qemu::{Config, Vm};
use testbed::{overcommit, root, run, target};

pub(crate) const TESTS: Tests = &[("the_readme_works_as_it_stands", as_it_stands)];

/// How a command of ours begins there.
const OURS: &str = "sudo target/release/overcommit";

/// Exit codes of those that may end with another than 0 here: a part of the metrics is absent, an
/// objective is broken or has too few samples.
const CODES: [(&str, &[i32]); 3] =
    [("check", &[0, 4]), ("record --slo", &[0, 3, 4]), ("report load --slo", &[0, 3, 4])];

/// The load: it marks its own steady state, as the README's second line does from elsewhere.
const LOAD: &str = "#!/bin/sh
sleep 1
OVERCOMMIT mark load steady
sleep 2
";

/// Like k6's, for every second of an hour around now.
const REQUESTS: &str = r#"import time
print("metric_name,timestamp,metric_value")
now = int(time.time())
for second in range(now - 1800, now + 1800):
    print(f"http_req_duration,{second},{second % 7}")
    print(f"vus,{second},50")
"#;

fn as_it_stands() -> Result<()> {
    let readme = fs::read_to_string(root().join("README.md"))?;
    let dir = tempfile::tempdir()?;
    let _guest = Vm::start(&Config::new("web-01", 16))?;
    let script = dir.path().join("load-test.sh");
    let overcommit = overcommit().to_string_lossy().into_owned();
    fs::write(&script, LOAD.replace("OVERCOMMIT", &overcommit))?;
    fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    let commands = readme.lines().filter_map(|line| line.strip_prefix("    ")?.strip_prefix(OURS));
    let commands: Vec<&str> = commands.map(str::trim).collect();
    ensure!(commands.len() >= 10, "{commands:#?}");
    for command in commands {
        if command.starts_with("mark ") {
            let marked = fs::read_to_string(dir.path().join("load/marks.csv"))?;
            ensure!(marked.contains("steady"), "{marked}");
        } else {
            works(dir.path(), &overcommit, command)?;
        }
    }
    let (_, python) = readme.split_once("```python\n").context("no Python")?;
    let (python, _) = python.split_once("```").context("the Python does not end")?;
    let interpreter = target().join("readers/python/bin/python");
    let requests = run(Command::new(&interpreter).args(["-c", REQUESTS]))?;
    fs::write(dir.path().join("load.csv"), requests)?;
    let said = run(Command::new(&interpreter).args(["-c", python]).current_dir(dir.path()))?;
    let rows = said.lines().filter(|line| line.starts_with("20")).count();
    ensure!(said.contains("web-01") && said.contains("p99 in ms") && rows >= 2, "{said}");
    Ok(())
}

/// Runs a command for less time, and where there is nothing to be stopped by.
fn works(dir: &Path, overcommit: &str, command: &str) -> Result<()> {
    // `ab` and `serve` have tests of their own, and take minutes or never end.
    let command = if command.starts_with("ab ") || command.starts_with("serve") {
        format!("{command} --help")
    } else if command == "top" {
        // It has a test of its own in a terminal; here is none.
        "top --once".to_owned()
    } else {
        command.replace("--duration 10m", "--duration 2s")
    };
    let shell = format!("{overcommit} {command}");
    let output = Command::new("sh").args(["-c", &shell]).current_dir(dir).output()?;
    let allowed = CODES.iter().find(|(begins, _)| command.starts_with(begins));
    let allowed = allowed.map_or(&[0][..], |(_, codes)| codes);
    let is_as_told = output.status.code().is_some_and(|code| allowed.contains(&code));
    ensure!(is_as_told, "{command}: {output:?}");
    Ok(())
}
