//! Objectives, marks and what is exported.

use crate::Tests;
use crate::input::expect;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{json, rows, run};
use testbed::{PATIENCE, await_some};

pub(crate) const TESTS: Tests = &[
    ("objectives_decide_the_exit_code", objectives),
    ("marks_bound_what_is_reported", marks),
    ("export_writes_what_was_recorded", export),
    ("what_is_too_short_is_compared_without_a_claim", compare),
];

/// Held and broken by any VM that starts during the recording.
const HELD: &str = "stall.share<100%";
const BROKEN: &str = "web-*:fault.minor:p50<1ns";

/// Records a VM from its start on; gives the exit code too.
fn record_a_start(dir: &Path, slo: &[&str]) -> Result<(PathBuf, Option<i32>)> {
    let folder = dir.join("run");
    let slo = slo.iter().flat_map(|objective| ["--slo", objective]);
    let options = ["--interval", "100ms"].into_iter().chain(slo);
    let mut recording = Recording::start(&folder, options)?;
    let mut guest = Vm::start(&Config::new("web-1", 16))?;
    guest.await_passes(1)?;
    recording.signal(Signal::SIGINT)?;
    let code = recording.wait()?.code();
    Ok((folder, code))
}

fn objectives() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let nobody = "nobody:stall.share<1%";
    let (folder, code) = record_a_start(dir.path(), &[HELD, nobody, BROKEN])?;
    ensure!(code == Some(3), "record ended with {code:?}");
    let summary = json(&folder, "summary.json")?;
    let judged = summary["objectives"].as_array().context("no objectives")?;
    let verdicts: Vec<&str> = judged.iter().filter_map(|j| j["verdict"].as_str()).collect();
    ensure!(verdicts == ["held", "not_judged", "broken"], "{judged:#?}");
    let broken = &judged[2];
    ensure!(broken["vm"] == "web-1" && broken["value_ns"].as_u64() > Some(1), "{broken:#}");
    ensure!(broken["intervals"]["broken"].as_u64() > Some(0), "{broken:#}");
    ensure!(broken["intervals"]["longest_broken_s"].as_f64() > Some(0.05), "{broken:#}");
    ensure!(
        judged[1]["why"].as_str().is_some_and(|why| why.contains("no recorded VM")),
        "{judged:#?}"
    );

    let text = folder.to_string_lossy().into_owned();
    let config = dir.path().join("slo.toml");
    fs::write(&config, format!("slo = [\"{BROKEN}\"]\n"))?;
    let config = config.to_string_lossy().into_owned();
    for (option, value, code, said) in [
        ("--slo", HELD, 0, "held"),
        ("--slo", nobody, 4, "not judged"),
        ("--slo", "web-1:fault.minor:rate<0/s", 3, " intervals, "),
        ("--slo", "web-1:fault.minor:max<1ns", 3, "BROKEN"),
        ("--config", config.as_str(), 3, "BROKEN"),
        ("--format", "text", 3, "BROKEN"),
    ] {
        let output = run(["report", &text, option, value])?;
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.code() == Some(code), "{option} {value}: {output:?}");
        ensure!(shown.contains(said), "{option} {value}: {shown}");
    }
    ensure!(json(&folder, "summary.json")? == summary, "report with other objectives wrote");
    fs::write(&config, "slo = [\"fault.major:p99<2\"]\n")?;
    expect(&run(["report", &text, "--config", &config])?, 2, "at character 17")?;
    beside_a_load(dir.path())
}

/// A load's own status goes before what could not be judged.
fn beside_a_load(dir: &Path) -> Result<()> {
    let _guest = Vm::start(&Config::new("web-1", 16))?;
    for (slo, load, code) in [
        (HELD, "exit 0", 0),
        (HELD, "exit 7", 7),
        ("nobody:stall.share<1%", "exit 0", 4),
        ("nobody:stall.share<1%", "exit 7", 7),
    ] {
        let folder = dir.join(format!("{code}-{}", load.replace(' ', "-"))).join(&slo[..2]);
        let folder = folder.to_string_lossy().into_owned();
        let output = run(["record", "-q", "--slo", slo, "--out", &folder, "--", "sh", "-c", load])?;
        ensure!(output.status.code() == Some(code), "{slo}, {load}: {output:?}");
        let run = &json(Path::new(&folder), "summary.json")?["run"];
        ensure!(load == format!("exit {}", run["command_status"]), "{run:#}");
        ensure!(run["command"][2] == load, "{run:#}");
    }
    Ok(())
}

fn marks() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    let text = folder.to_string_lossy().into_owned();
    let _guest = Vm::start(&Config::new("guest", 16))?;
    let recording = Recording::start(&folder, ["--interval", "50ms"])?;
    let await_more = || -> Result<()> {
        let lines = || rows(&folder, "vms.csv").map(|rows| rows.len());
        let before = lines()?;
        await_some("intervals", PATIENCE, || Ok((lines()? >= before + 5).then_some(())))
    };
    for mark in ["steady", "end"] {
        await_more()?;
        expect(&run(["mark", &text, mark])?, 0, &format!("marked {mark:?} at "))?;
    }
    await_more()?;
    expect(&run(["mark", &text, "two\nlines"])?, 1, "more than one line")?;
    recording.end()?;
    expect(&run(["mark", &text, "late"])?, 1, "not being recorded any more")?;
    expect(
        &run(["report", &text, "--from", "late"])?,
        1,
        "this recording has \"steady\", \"end\"",
    )?;

    let at = |name: &str| -> Result<f64> {
        let marks = rows(&folder, "marks.csv")?;
        let mark = marks.iter().find(|mark| mark["text"] == name).context("no such mark")?;
        Ok(mark["unix_s"].parse()?)
    };
    let (from, to) = (at("steady")?, at("end")?);
    let mut within = 0;
    let all = rows(&folder, "vms.csv")?;
    for row in &all {
        let start: f64 = row["start_unix_s"].parse()?;
        let length: f64 = row["length_s"].parse()?;
        within += u64::from(start >= from && start + length <= to);
    }
    let output = run(["report", &text, "--from", "steady", "--to", "end", "--format", "json"])?;
    let part: Value = serde_json::from_slice(&output.stdout)?;
    let whole = json(&folder, "summary.json")?;
    ensure!(part["intervals"] == within && within >= 3, "{within}: {part:#}");
    ensure!(part["from"] == "steady" && part["to"] == "end", "{part:#}");
    ensure!(whole["intervals"] == all.len(), "the summary is of a part: {whole:#}");
    ensure!(whole["from"].is_null() && whole["run"]["stopped_by"] == "interrupt", "{whole:#}");
    Ok(())
}

fn export() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (folder, _) = record_a_start(dir.path(), &[])?;
    let text = folder.to_string_lossy().into_owned();
    for format in ["hlog", "hgrm", "csv"] {
        let output = run(["export", &text, "--format", format, "--metric", "fault"])?;
        ensure!(output.status.success(), "{output:?}");
        let files = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(files.lines().count() == 2, "not one a metric: {files}");
    }
    let read = |name: &str| fs::read_to_string(folder.join(name));
    let tagged = read("vms/web-1/latency.hlog")?;
    let lines = tagged.lines().filter_map(|line| line.strip_prefix("Tag=fault.minor,"));
    let comments = tagged.lines().filter(|line| line.starts_with('#') || line.starts_with('"'));
    let expected: Vec<&str> = comments.chain(lines).collect();
    let exported = read("export/web-1/fault.minor.hlog")?;
    ensure!(exported.lines().eq(expected.iter().copied()), "{exported}\nnot\n{expected:#?}");
    ensure!(read("export/web-1/fault.minor.hgrm")? == read("vms/web-1/fault.minor.hgrm")?);
    let of_minor = |rows: Vec<std::collections::HashMap<String, String>>| {
        rows.into_iter().filter(|row| row["metric"] == "fault.minor").collect::<Vec<_>>()
    };
    let exported = rows(&folder, "export/web-1/fault.minor.csv")?;
    ensure!(!exported.is_empty() && exported == of_minor(rows(&folder, "intervals.csv")?));
    // Elsewhere, where the recording cannot be written to.
    let elsewhere = dir.path().join("elsewhere");
    let out = elsewhere.to_string_lossy().into_owned();
    let output = run(["export", &text, "--format", "hgrm", "--out", &out])?;
    ensure!(output.status.success(), "{output:?}");
    let hgrm = fs::read_to_string(elsewhere.join("web-1/fault.minor.hgrm"))?;
    ensure!(hgrm == read("vms/web-1/fault.minor.hgrm")?);
    expect(&run(["export", &text, "--format", "csv", "--out", &out])?, 1, "is not empty")?;
    expect(
        &run(["export", &text, "--format", "csv", "--vm", "db"])?,
        1,
        "the recording has the VMs web-1 and the metrics ",
    )
}

/// The claims themselves are tried on simulated recordings.
fn compare() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (folder, _) = record_a_start(dir.path(), &[])?;
    let text = folder.to_string_lossy().into_owned();
    let output = run(["compare", &text, &text, "--fail-on-regression"])?;
    // A gate that judged nothing is no green light.
    expect(&output, 4, "")?;
    expect(&run(["compare", &text, &text])?, 0, "")?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(printed.contains("fault.minor p99"), "{printed}");
    ensure!(printed.contains("not judged: it depends on the load"), "{printed}");
    ensure!(printed.starts_with("Cannot tell: ") && printed.contains("on both sides"), "{printed}");
    // A folder with recordings in it is all of them.
    let all = dir.path().to_string_lossy().into_owned();
    let output = run(["compare", &all, &text, "--json"])?;
    let compared: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(compared["compared"][0]["why_not"].is_string(), "{compared:#}");
    expect(&run(["compare", "/proc", &text])?, 1, "is not a recording and contains none")?;
    // Written by a version that is not there yet, and cut off in the middle.
    let run_json = folder.join("run.json");
    let newer = fs::read_to_string(&run_json)?.replace("overcommit.run/1", "overcommit.run/9");
    fs::write(&run_json, &newer)?;
    expect(&run(["compare", &text, &text])?, 1, "use the overcommit that recorded it")?;
    fs::write(&run_json, &newer[..newer.len() / 2])?;
    expect(&run(["compare", &text, &text])?, 1, "it is not a run.json")
}
