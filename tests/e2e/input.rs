//! Bad input gets a clear error, and nothing is lost.

use crate::Tests;
use anyhow::{Result, bail, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use testbed::host::Setting;
use testbed::overcommit;
use testbed::qemu::{Config, Vm};
use testbed::results::{json, run, self_tested};
use testbed::swap::ZramSwap;

pub(crate) const TESTS: Tests = &[
    ("another_user_is_told_what_to_type", not_root),
    ("bad_options_are_usage_errors", usage),
    ("an_unknown_vm_is_named_beside_those_that_run", unknown_vm),
    ("what_cannot_be_seen_is_not_said_to_be_none", blind),
    ("a_bad_folder_is_refused_before_anything_runs", bad_folders),
    ("a_kernel_without_btf_is_told_what_it_lacks", without_btf),
    ("a_kernel_with_shallow_stacks_is_told_what_to_set", shallow_stacks),
    ("a_refused_backend_comes_with_the_kernels_reason", refused_backend),
    ("what_is_no_recording_is_said_to_be_none", no_recording),
    ("list_and_check_tell_the_truth", list_and_check),
    ("check_proves_that_its_host_counts_rightly", self_test),
    ("an_option_without_effect_is_told", not_followed),
];

/// Fails unless it ended with that code and said that.
pub(crate) fn expect(output: &Output, code: i32, said: &str) -> Result<()> {
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "{}, not {code}: {errors}", output.status);
    ensure!(errors.contains(said), "{said:?} is not in: {errors}");
    ensure!(!errors.contains("panicked"), "{errors}");
    Ok(())
}

fn not_root() -> Result<()> {
    // Where another user may execute it.
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let copy = dir.path().join("overcommit");
    fs::copy(overcommit(), &copy)?;
    let output =
        Command::new(&copy).args(["record", "--vm", "a b"]).uid(65534).gid(65534).output()?;
    expect(&output, 1, "this needs root; run: sudo ")?;
    expect(&output, 1, "record --vm 'a b'")
}

fn usage() -> Result<()> {
    expect(&run(["record", "--duration", "0s"])?, 2, "longer than zero")?;
    expect(&run(["record", "--duration", "10"])?, 2, "has no unit")?;
    expect(&run(["record", "--interval", "1ms"])?, 2, "from 10ms to 1h")?;
    expect(&run(["record", "--label", "x"])?, 2, "KEY=VALUE")?;
    expect(&run(["record", "--vm", "web-["])?, 2, "not a pattern")?;
    expect(
        &run(["record", "--slo", "fault.mayor:p99<2ms"])?,
        2,
        "at character 1: there is no metric",
    )?;
    expect(&run(["record", "--slo", "fault.major:p99<2"])?, 2, "at character 17: the duration")?;
    expect(&run(["record", "--pid", "999999999"])?, 1, "--pid 999999999")
}

/// What cannot be seen is not "none".
fn blind() -> Result<()> {
    let _guest = Vm::start(&Config::new("unseen", 16))?;
    let binary = overcommit();
    let mut without_ptrace = Command::new("setpriv");
    without_ptrace.args(["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]);
    let mut other_pids = Command::new("unshare");
    other_pids.args(["--pid", "--fork", "--mount-proc"]);
    for (mut blind, said) in
        [(without_ptrace, "CAP_SYS_PTRACE is missing"), (other_pids, "--pid=host")]
    {
        expect(&blind.arg(&binary).arg("list").output()?, 1, said)?;
    }
    Ok(())
}

fn unknown_vm() -> Result<()> {
    let _guest = Vm::start(&Config::new("known", 16))?;
    let output = run(["record", "--vm", "unknown", "--out", "/nonexistent/x"])?;
    expect(&output, 1, "no VM is named unknown; running: known.")?;
    let hinted = |vm| run(["record", "--vm", vm, "--out", "/nonexistent/x"]);
    expect(&hinted("KNOWN")?, 1, "Did you mean known?")?;
    expect(&hinted("known,other")?, 1, "Give --vm once for each VM")?;
    expect(&hinted("")?, 2, "leave it out to mean every VM")?;
    expect(&run(["record", "--duration", "-5s"])?, 2, "-5s")?;
    let waits = run(["record", "--vm", "unknown", "--wait=300ms", "--out", "/nonexistent/x"])?;
    expect(&waits, 4, "waiting for unknown to run")?;
    expect(&waits, 4, "no VM named unknown was running within 300 ms")?;
    // A glob may match later; where nothing did, that is no success.
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run").to_string_lossy().into_owned();
    let output = run(["record", "--vm", "unknown*", "--duration", "300ms", "--out", &folder])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(said.contains("no VM matching unknown* ran"), "{output:?}");
    ensure!(output.status.code() == Some(4), "{output:?}");
    ensure!(run(["report", &folder])?.status.code() == Some(4));
    Ok(())
}

/// An option that cannot be followed is said to be so, with the VM, and stands in run.json.
fn not_followed() -> Result<()> {
    let _guest = Vm::start(&Config::new("plain", 16))?;
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run").to_string_lossy().into_owned();
    let monitors = ["nobody=/run/x", "plain=/nonexistent"].map(|of| format!("--monitor={of}"));
    let [nobody, plain] = &monitors;
    let time = "--duration=3s";
    let output = run(["record", "--guest-stats", nobody, plain, time, "--out", &folder])?;
    expect(&output, 0, "--monitor nobody=/run/x: no VM matches yet")?;
    expect(&output, 0, "--monitor plain=/nonexistent: there is no such socket for plain")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(said.contains("plain: --guest-stats: "), "{said}");
    let options = &json(Path::new(&folder), "run.json")?["options"];
    ensure!(options["guest_stats"] == true && options["working_set"] == "auto", "{options:#}");
    ensure!(options["monitor"][0] == "nobody=/run/x", "{options:#}");
    Ok(())
}

fn bad_folders() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    fs::create_dir(path("full"))?;
    fs::write(path("full/precious"), "data")?;
    expect(&run(["record", "--out", &path("full"), "--", "false"])?, 1, "not empty")?;
    ensure!(fs::read_to_string(path("full/precious"))? == "data");
    fs::write(path("file"), "data")?;
    expect(&run(["record", "--out", &path("file"), "--", "false"])?, 1, "that is a file")?;
    ensure!(fs::read_to_string(path("file"))? == "data");
    expect(&run(["record", "--out", "/proc/nowhere", "--", "false"])?, 1, "cannot make the folder")
}

fn without_btf() -> Result<()> {
    let script = r#"mount -t tmpfs none /sys/kernel/btf && exec "$0" record --duration 1s"#;
    let mut hidden = Command::new("unshare");
    hidden.args(["--mount", "sh", "-c", script]).arg(overcommit());
    expect(&hidden.output()?, 1, "CONFIG_DEBUG_INFO_BTF")
}

fn shallow_stacks() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _shallow = Setting::new("/proc/sys/kernel/perf_event_max_stack", "64")?;
    let out = dir.path().join("run").display().to_string();
    let said = "perf_event_max_stack is 64, and has to be 127 or more";
    expect(&run(["record", "--out", &out, "--duration", "1s"])?, 1, said)
}

fn refused_backend() -> Result<()> {
    let check: serde_json::Value = serde_json::from_slice(&run(["check", "--json"])?.stdout)?;
    for backend in check["backends"].as_array().into_iter().flatten() {
        let name = backend["backend"].as_str().unwrap_or_default();
        let Some(reason) = backend["refused"].as_str() else {
            continue;
        };
        let output = run(["record", "--backend", name, "--duration", "1s"])?;
        expect(&output, 1, reason)?;
        expect(&output, 1, "use --backend auto")?;
    }
    for source in check["working_sets"].as_array().into_iter().flatten() {
        let name = source["source"].as_str().unwrap_or_default();
        if let Some(reason) = source["refused"].as_str() {
            let output = run(["record", "--working-set", name, "--duration", "1s"])?;
            expect(&output, 1, &format!("--working-set {name}: {reason}; use --working-set auto"))?;
        }
    }
    Ok(())
}

fn no_recording() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().to_string_lossy().into_owned();
    expect(&run(["report", &path])?, 1, "is not a recording: it has no run.json")?;
    fs::write(dir.path().join("run.json"), r#"{"schema":"overcommit.run/9"}"#)?;
    expect(&run(["report", &path])?, 1, "use the overcommit that recorded it")?;
    fs::write(dir.path().join("run.json"), "{")?;
    expect(&run(["report", &path])?, 1, "not a run.json")
}

fn self_test() -> Result<()> {
    let _swap = ZramSwap::new(512)?;
    self_tested()
}

fn list_and_check() -> Result<()> {
    let guest = Vm::start(&Config { vcpus: 2, ..Config::new("a,b", 64) })?;
    let list: serde_json::Value = serde_json::from_slice(&run(["list", "--json"])?.stdout)?;
    let entry = &list["vms"][0];
    ensure!(list["schema"] == "overcommit.list/1", "{list:#}");
    ensure!(entry["name"] == "a,b" && entry["pid"] == guest.pid(), "{list:#}");
    ensure!(entry["vm_id"] == guest.id()?, "{list:#}");
    ensure!(entry["vcpus"] == 2 && entry["memory_bytes"] == (128u64 << 20), "{list:#}");
    ensure!(entry["backing"] == "anonymous", "{list:#}");
    ensure!(entry["resident_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{list:#}");
    ensure!(entry["accelerator"] == Config::new("", 1).accel, "{list:#}");
    let guest_is_tcg = entry["accelerator"] == "tcg";
    let check: serde_json::Value = serde_json::from_slice(&run(["check", "--json"])?.stdout)?;
    let code = match check["reach"].as_str() {
        Some("full") => 0,
        Some("part") => 4,
        reach => bail!("a VM can be recorded here, and check says {reach:?}"),
    };
    let text = run(["check"])?;
    expect(&text, code, "")?;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    ensure!(text.starts_with("VMs on this host can be recorded in "), "{text}");
    ensure!((code == 0) != text.contains("Not seen"), "{text}");
    let vms = &check["host"]["vms"];
    ensure!(vms["running"] == 1 && vms["under_tcg"] == usize::from(guest_is_tcg), "{vms}");
    ensure!(check["host"]["memory_bytes"].as_u64().is_some_and(|ram| ram > 0), "{check:#}");
    ensure!(text.contains("\nHost\n  RAM "), "{text}");
    let tried = check["programs"].as_array().map_or(0, Vec::len);
    ensure!(tried == 9, "{tried} kinds of program were tried: {check:#}");
    let is_absent = |entry: &&serde_json::Value| entry["coverage"] == "absent";
    let coverage = check["coverage"].as_array().into_iter().flatten();
    ensure!(coverage.filter(is_absent).all(|entry| entry["not_seen"][0].is_string()), "{check:#}");
    Ok(())
}
