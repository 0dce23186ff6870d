//! VMs, CPUs and recordings that come and go.

use crate::Tests;
use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json as object;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use testbed::host::{MemoryCgroup, Setting, read, write};
use testbed::qemu::{Config, QEMU, Vm};
use testbed::record::Recording;
use testbed::results::{Killed, figure, json, lost, only_vm, rows, stand_in, vm, within_a_percent};
use testbed::undo::Undo;
use testbed::{PATIENCE, as_child, await_some, overcommit, run as output_of};

pub(crate) const TESTS: Tests = &[
    ("a_vm_that_lives_for_300_ms_is_recorded", short_life),
    ("a_micro_vm_is_recorded_from_its_first_instruction_on", before_kvm),
    ("vms_that_start_and_end_are_followed", start_and_end),
    ("a_vm_that_is_migrated_away_is_said_to_be", migrated_away),
    ("a_vm_that_the_kernel_kills_is_told_of", out_of_memory),
    ("a_vm_that_is_killed_at_a_limit_of_several_is_told_of", out_of_shared_memory),
    ("cpus_that_come_and_go_are_followed", cpu_hotplug),
    ("a_killed_recording_holds_every_finished_interval", killed),
    ("the_exit_code_tells_how_it_ended", exit_codes),
    ("nothing_is_left_behind", nothing_is_left),
    ("an_interrupted_demo_puts_the_host_back", interrupted_demo),
];

/// Faults of the children that have been waited for.
fn children_faults() -> Result<u64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok(u64::try_from(usage.minor_page_faults() + usage.major_page_faults())?)
}

fn short_life() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let recording = Recording::start(&dir.path().join("run"), ["--interval", "1s"])?;
    let mut vm = Command::new(QEMU);
    vm.args("-accel tcg -nodefaults -vga none -display none -S -name brief".split(' '));
    let before = children_faults()?;
    let mut vm = as_child(&mut vm, Signal::SIGKILL).spawn()?;
    std::thread::sleep(Duration::from_millis(300));
    vm.kill()?;
    vm.wait()?;
    let kernel = children_faults()? - before;
    let folder = recording.end()?;
    let brief = only_vm(&folder)?;
    ensure!(brief["vm"] == "brief", "{brief:#}");
    let run = json(&folder, "run.json")?;
    let earlier = run["vms"][0]["faults_before"].as_object().context("no faults_before")?;
    let earlier: u64 = earlier.values().filter_map(serde_json::Value::as_u64).sum();
    let counted = figure(&brief, "fault.minor", "count")? + figure(&brief, "fault.major", "count")?;
    println!("rusage {kernel}, before it was known {earlier}, counted {counted}");
    ensure!(earlier < kernel / 4, "{earlier} of {kernel} faults came before it was known");
    ensure!(counted + earlier <= kernel, "counted more than the kernel");
    within_a_percent("a brief VM", counted + earlier, kernel, lost(&brief))?;
    // What the programs add up as its threads exit, for the coverage.
    let by_exits = brief["faults_kernel"].as_u64().context("no faults_kernel")?;
    within_a_percent("a brief VM's threads", by_exits + earlier, kernel, 0)
}

/// Micro VMs open KVM when they are told what to run; they are VMs from their first instruction on.
fn before_kvm() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    let recording = Recording::start(&folder, ["--interval", "100ms"])?;
    let names = ["firecracker", "firecracker-v1.13.1-x86_64", "cloud-hypervisor-static"];
    let mut kernel = Vec::new();
    for name in names {
        let program = dir.path().join(name);
        fs::copy(stand_in(), &program)?;
        let before = children_faults()?;
        let mut vm = Command::new(program);
        vm.args(["bystander", "600000"]);
        let mut vm = as_child(&mut vm, Signal::SIGKILL).stdout(Stdio::null()).spawn()?;
        await_some("it in run.json", PATIENCE, || {
            let run = fs::read_to_string(folder.join("run.json"))?;
            Ok(run.contains(&format!("\"{name}-{}\"", vm.id())).then_some(()))
        })?;
        vm.kill()?;
        vm.wait()?;
        kernel.push(children_faults()? - before);
    }
    let folder = recording.end()?;
    let summary = json(&folder, "summary.json")?;
    let vms = summary["vms"].as_array().context("no VMs")?;
    ensure!(vms.len() == names.len(), "{summary:#}");
    for ((vm, name), kernel) in vms.iter().zip(names).zip(kernel) {
        let called = vm["vm"].as_str().context("no name")?;
        ensure!(called.starts_with(&format!("{name}-")), "{called} is {name}");
        let counted = figure(vm, "fault.minor", "count")? + figure(vm, "fault.major", "count")?;
        println!("{called}: rusage {kernel}, counted {counted}");
        ensure!(counted > 0 && counted <= kernel, "{counted} of {kernel} faults");
    }
    Ok(())
}

fn start_and_end() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let recording =
        Recording::start(&dir.path().join("run"), ["--vm", "wanted-*", "--interval", "100ms"])?;
    let mut unwanted = Vm::start(&Config::new("other", 16))?;
    unwanted.await_passes(1)?;
    for signal in [Signal::SIGSEGV, Signal::SIGTERM] {
        let mut vm = Vm::start(&Config::new("wanted-1", 16))?;
        vm.await_passes(1)?;
        let pid = vm.pid().cast_signed();
        kill(Pid::from_raw(pid), signal)?;
        await_some("its end", PATIENCE, || Ok(has_ended(pid).then_some(())))?;
    }
    let folder = recording.end()?;
    let run = json(&folder, "run.json")?;
    let vms = run["vms"].as_array().context("no VMs")?;
    ensure!(vms.len() == 2, "one name, two instances: {run:#}");
    ensure!(vms[0]["vm_id"] != vms[1]["vm_id"], "{run:#}");
    ensure!(vms[0]["folder"] == "wanted-1" && vms[1]["folder"] == "wanted-1~2", "{run:#}");
    ensure!(vms.iter().all(|vm| vm["ended_us"].is_u64()), "an end was not seen: {run:#}");
    // QEMU shuts down when it is asked to.
    let exits = [object!({ "signal": 11 }), object!({ "status": 0 })];
    ensure!(vms[0]["exit"] == exits[0] && vms[1]["exit"] == exits[1], "{run:#}");
    let summary = json(&folder, "summary.json")?;
    let fared = [&summary["vms"][0]["verdict"]["fared"], &summary["vms"][1]["verdict"]["fared"]];
    ensure!(fared[0] == "crashed" && fared[1] != "crashed", "{summary:#}");
    for vm in summary["vms"].as_array().context("no VMs")? {
        // 16 MiB are 4,096 first touches.
        let minors = figure(vm, "fault.minor", "count")?;
        ensure!(minors >= 4_000, "{minors} faults of an instance: {vm:#}");
    }
    Ok(())
}

const DIMM: u64 = 128 << 20;

/// A monitor of its own says that the VM runs elsewhere from now on.
fn migrated_away() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let more = ["-m", "slots=1,maxmem=1G", "-qmp", "unix:DIR/free,server=on,wait=off"];
    let mut guest = Vm::start(&Config { more: &more, ..Config::new("leaves", 16) })?;
    guest.await_passes(1)?;
    let folder = dir.path().join("run");
    let recording = Recording::start(&folder, ["--interval", "200ms", "--vm", "leaves"])?;
    guest.execute("migrate", object!({ "uri": "exec:cat > /dev/null" }))?;
    await_some("the end of the migration", PATIENCE, || {
        let status = guest.execute("query-status", object!({}))?;
        Ok((status["status"] == "postmigrate").then_some(()))
    })?;
    // Whoever knows of this has asked after the migration.
    let dimm = object!({ "qom-type": "memory-backend-ram", "id": "m0", "size": DIMM });
    guest.execute("object-add", dimm)?;
    guest.execute("device_add", object!({ "driver": "pc-dimm", "id": "d0", "memdev": "m0" }))?;
    await_some("a look", PATIENCE, || {
        let row = rows(&folder, "vms.csv")?.pop().unwrap_or_default();
        let configured = row.get("configured_bytes").and_then(|bytes| bytes.parse().ok());
        Ok(configured.filter(|bytes: &u64| *bytes >= DIMM))
    })?;
    guest.execute("quit", object!({}))?;
    await_some("word of its end", PATIENCE, || {
        let run = json(&folder, "run.json")?;
        Ok((run["vms"][0]["departure"] == "migrated").then_some(()))
    })?;
    let folder = recording.end()?;
    let report = output_of(Command::new(overcommit()).arg("report").arg(&folder))?;
    ensure!(report.contains("leaves was migrated away at "), "{report}");
    Ok(())
}

/// Whether the process is gone, or waits for its parent to notice.
fn has_ended(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.starts_with(" Z"))
}

/// The kernel kills it as soon as it works; that is said at once, and nothing is held of it.
fn out_of_memory() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    let cgroup = MemoryCgroup::new("doomed")?;
    cgroup.without_swap()?;
    let config = Config { cgroup: Some(&cgroup), stopped: true, ..Config::new("doomed", 256) };
    let mut guest = Vm::start(&config)?;
    let objectives = ["--slo", "doomed:fault.minor:p99<1h", "--slo", "stall.share<100%"];
    let options = ["--quiet", "--interval", "200ms", "--vm", "doomed", "--out"];
    let mut record = Command::new(overcommit());
    record.arg("record").args(options).arg(&folder).args(objectives);
    let told = dir.path().join("told");
    record.stderr(File::create(&told)?);
    let mut recording = as_child(&mut record, Signal::SIGTERM).spawn()?;
    await_some("intervals", PATIENCE, || {
        Ok((folder.join("vms.csv").exists() && !rows(&folder, "vms.csv")?.is_empty()).then_some(()))
    })?;
    cgroup.limit(128)?;
    guest.resume()?;
    await_some("word of its end", PATIENCE, || {
        let told = fs::read_to_string(&told)?;
        Ok(told.contains("doomed was KILLED").then_some(()))
    })?;
    kill(Pid::from_raw(recording.id().cast_signed()), Signal::SIGINT)?;
    let code = recording.wait()?.code();
    let told = fs::read_to_string(&told)?;
    println!("{told}");
    ensure!(told.contains("its cgroup ran out of memory"), "{told}");
    ensure!(code == Some(4), "{code:?}");
    let doomed = only_vm(&folder)?;
    ensure!(doomed["ended_by"] == "oom_cgroup" && doomed["ended_s"].is_f64(), "{doomed:#}");
    for judged in json(&folder, "summary.json")?["objectives"].as_array().context("none")? {
        let why = judged["why"].as_str().unwrap_or_default();
        ensure!(judged["verdict"] == "not_judged" && why.contains("ended early"), "{judged:#}");
    }
    Ok(())
}

/// Whose limit it was decides what helps.
fn out_of_shared_memory() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let slice = MemoryCgroup::new("slice")?;
    let (first, second) = (slice.child("doomed")?, slice.child("neighbour")?);
    [&slice, &first, &second].into_iter().try_for_each(MemoryCgroup::without_swap)?;
    let config = Config { cgroup: Some(&first), stopped: true, ..Config::new("doomed", 256) };
    let mut guest = Vm::start(&config)?;
    let config = Config { cgroup: Some(&second), stopped: true, ..Config::new("neighbour", 16) };
    let _neighbour = Vm::start(&config)?;
    let folder = dir.path().join("run");
    let recording = Recording::start(&folder, ["--interval", "200ms", "--vm", "doomed"])?;
    // By then it is known which cgroups are its own.
    await_some(
        "intervals",
        PATIENCE,
        || Ok((!rows(&folder, "vms.csv")?.is_empty()).then_some(())),
    )?;
    slice.limit(160)?;
    guest.resume()?;
    await_some("its end", PATIENCE, || {
        let by = json(&folder, "run.json")?["vms"][0]["ended_by"].clone();
        Ok(by.as_str().map(str::to_owned))
    })?;
    let doomed = only_vm(&recording.end()?)?;
    ensure!(doomed["ended_by"] == "oom_shared_cgroup", "{doomed:#}");
    ensure!(doomed["verdict"]["cause"] == "shared_limit", "{doomed:#}");
    Ok(())
}

fn cpu_hotplug() -> Result<()> {
    let switch = "/sys/devices/system/cpu/cpu1/online";
    ensure!(Path::new(switch).exists(), "CPU 1 cannot be switched off");
    let dir = tempfile::tempdir()?;
    let _small_pages = Setting::small_pages()?;
    let mut guest = Vm::start(&Config { stopped: true, ..Config::new("plugged", 192) })?;
    let _online = Undo::script("CPU 1", &format!("echo 1 > {switch}"))?;
    write(switch, "0")?;
    let recording = Recording::start(&dir.path().join("run"), ["--interval", "100ms"])?;
    let before = guest.faults()?;
    let await_scan = || -> Result<()> {
        let run = dir.path().join("run");
        let so_far = rows(&run, "vms.csv")?.len();
        await_some("scan after the CPU came", PATIENCE, || {
            Ok((rows(&run, "vms.csv")?.len() > so_far + 15).then_some(()))
        })
    };
    // Only what the new CPU sees can be counted now.
    write(switch, "1")?;
    await_scan()?;
    // Off and on between two scans: its events are dead, and it looks as before.
    write(switch, "0")?;
    write(switch, "1")?;
    await_scan()?;
    testbed::run(Command::new("taskset").args(["-acp", "1", &guest.pid().to_string()]))?;
    guest.resume()?;
    guest.await_passes(1)?;
    guest.stop()?;
    let folder = recording.end()?;
    let after = guest.faults()?;
    let plugged = vm(&folder, "plugged")?;
    let counted = figure(&plugged, "fault.minor", "count")?;
    ensure!(counted > 40_000, "{counted} faults on the CPU that came");
    within_a_percent("on a CPU that came", counted, after[0] - before[0], lost(&plugged))
}

fn killed() -> Result<()> {
    let guest = Vm::start(&Config::new("guest", 64))?;
    for round in 0..8u64 {
        let dir = tempfile::tempdir()?;
        let folder = dir.path().join("run");
        let mut recording =
            Recording::start(&folder, ["--interval", "20ms", "--slow-faults", "0ns"])?;
        let finished = || {
            let run = json(&folder, "run.json")?;
            anyhow::Ok(run["recorded"]["intervals"].as_u64().unwrap_or(0))
        };
        await_some("intervals", PATIENCE, || Ok((finished()? >= 3).then_some(())))?;
        // Moments that are not multiples of the interval.
        std::thread::sleep(Duration::from_millis(round * 7));
        recording.signal(Signal::SIGKILL)?;
        ensure!(recording.wait()?.signal() == Some(9));
        let finished = finished()?;

        // As a kill between two writes, or within one, leaves it.
        let complete = report(&folder)?;
        let rows_file = fs::read_to_string(folder.join("intervals.csv"))?;
        let (header, last) =
            rows_file.lines().next().zip(rows_file.lines().last()).context("no rows")?;
        let number = header.split(',').position(|name| name == "interval").context("no numbers")?;
        let mut next: Vec<&str> = last.split(',').collect();
        let finished_number = finished.to_string();
        next[number] = &finished_number;
        let unfinished = next.join(",") + "\n179548";
        let log = "vms/guest/latency.hlog";
        let torn = [
            ("intervals.csv", unfinished.as_bytes()),
            ("vms.csv", b"1795483995.0,1"),
            ("slow-faults.csv", b"1795483995.0,"),
            (log, b"Tag=fault.minor,99.000,0.020,0.1,HISTF"),
        ];
        for (name, torn) in torn {
            let mut file = fs::OpenOptions::new().append(true).open(folder.join(name))?;
            std::io::Write::write_all(&mut file, torn)?;
        }
        ensure!(report(&folder)? == complete, "a torn line changes the summary");
        ensure!(!fs::read_to_string(folder.join("vms.csv"))?.ends_with("0,1"), "it is not mended");

        ensure!(!fs::read_to_string(folder.join(log))?.ends_with("HISTF"), "it is not mended");
        let intervals: BTreeSet<String> =
            rows(&folder, "vms.csv")?.into_iter().map(|row| row["interval"].clone()).collect();
        ensure!(intervals.len() as u64 == finished, "{} of {finished} intervals", intervals.len());
    }
    drop(guest);
    end_is_as_a_kill()
}

/// The report of a recording, and the summary that it leaves.
fn report(folder: &Path) -> Result<(Vec<u8>, Vec<u8>)> {
    let output =
        Command::new(overcommit()).arg("report").arg(folder).arg("--format=json").output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok((output.stdout, fs::read(folder.join("summary.csv"))?))
}

/// The summary of a normal end, byte for byte, from what a kill would have left.
fn end_is_as_a_kill() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _guest = Vm::start(&Config::new("guest", 64))?;
    let folder = Recording::start(&dir.path().join("run"), ["--interval", "50ms"])?.end()?;
    let files = ["summary.json", "summary.csv"];
    let ended = files.map(|name| fs::read(folder.join(name)).unwrap_or_default());
    for name in files {
        fs::remove_file(folder.join(name))?;
    }
    let run = fs::read_to_string(folder.join("run.json"))?;
    let mut run: serde_json::Value = serde_json::from_str(&run)?;
    run["clocks"]["end"] = serde_json::Value::Null;
    fs::write(folder.join("run.json"), run.to_string())?;
    report(&folder)?;
    ensure!(files.map(|name| fs::read(folder.join(name)).unwrap_or_default()) == ended);
    Ok(())
}

fn exit_codes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _guest = Vm::start(&Config::new("guest", 16))?;
    let run = |name: &str, command: &[&str]| -> Result<i32> {
        let out = dir.path().join(name);
        let mut record = Command::new(overcommit());
        record.arg("record").arg("-q").arg("--out").arg(out).arg("--").args(command);
        record.status()?.code().context("killed")
    };
    ensure!(run("ok", &["true"])? == 0);
    ensure!(run("fails", &["sh", "-c", "exit 7"])? == 7);
    ensure!(run("dies", &["sh", "-c", "kill -9 $$"])? == 137);
    ensure!(run("missing", &["/nonexistent/load"])? == 127);
    let missing =
        Command::new(overcommit()).args(["record", "--", "/nonexistent/load"]).output()?;
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    ensure!(said.contains("cannot run /nonexistent/load: No such file"), "{said}");
    ensure!(!dir.path().join("missing").exists(), "an empty recording is left");
    ensure!(run("forbidden", &["/etc/passwd"])? == 126);

    let mut waiting = Command::new(overcommit());
    waiting.args(["record", "-q", "--wait", "--vm", "nobody", "--out"]);
    waiting.arg(dir.path().join("early"));
    let mut waiting = Killed(as_child(&mut waiting, Signal::SIGTERM).spawn()?);
    let handled = || read(format!("/proc/{}/status", waiting.0.id()));
    await_some("caught signals", PATIENCE, || {
        let status = handled()?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = u64::from_str_radix(caught.unwrap_or("0").trim(), 16)?;
        Ok((caught >> (Signal::SIGTERM as u64 - 1) & 1 == 1).then_some(()))
    })?;
    let pid = Pid::from_raw(waiting.0.id().cast_signed());
    kill(pid, Signal::SIGTERM)?;
    let status = waiting.0.wait()?;
    ensure!(status.code() == Some(143), "{status}");

    // A terminal that hangs up ends the load too.
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let folder = dir.path().join(signal.as_str());
        let mut recording = Recording::start(&folder, ["--", "sleep", "1000"])?;
        recording.signal(signal)?;
        ensure!(recording.wait()?.code() == Some(0), "{signal} is a normal end");
        ensure!(folder.join("summary.json").exists(), "no summary after {signal}");
    }
    Ok(())
}

/// Programs of ours that the kernel holds, whoever keeps them.
pub(crate) fn our_programs() -> usize {
    let ours = ["fault_start", "fault_minor", "fault_major", "process_exec", "process_exit"];
    let is_ours = |program: &aya::programs::ProgramInfo| {
        program.name_as_str().is_some_and(|name| ours.contains(&name))
    };
    aya::programs::loaded_programs().flatten().filter(is_ours).count()
}

fn nothing_is_left() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut recording = Recording::start(&dir.path().join("run"), [""; 0])?;
    ensure!(our_programs() >= 5, "{} programs were loaded", our_programs());
    recording.signal(Signal::SIGKILL)?;
    recording.wait()?;
    // The kernel frees them a moment later.
    await_some("end of the programs", PATIENCE, || Ok((our_programs() == 0).then_some(())))
}

/// What the demo changes: swap, cgroups, huge pages.
fn host_state() -> Result<(String, Vec<String>, String)> {
    let mut cgroups = Vec::new();
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/memory"] {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        cgroups.extend(names.filter(|name| name.starts_with("overcommit-")));
    }
    let huge_pages = read("/sys/kernel/mm/transparent_hugepage/enabled")?;
    Ok((read("/proc/swaps")?, cgroups, huge_pages))
}

fn interrupted_demo() -> Result<()> {
    let before = host_state()?;
    let xtask = testbed::target().join("debug/xtask");
    let mut demo = Command::new(xtask);
    demo.args(["demo", "--seconds", "60"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut demo = Killed(as_child(&mut demo, Signal::SIGTERM).spawn()?);
    let run_file = testbed::target().join("demo/run.json");
    let old = fs::read_to_string(&run_file).ok();
    await_some("recording of the demo", PATIENCE, || {
        let new = fs::read_to_string(&run_file).ok();
        Ok((new.is_some() && new != old).then_some(()))
    })?;
    ensure!(host_state()? != before, "the demo changes nothing");
    // Nobody reads any more what it says.
    drop(demo.0.stderr.take());
    kill(Pid::from_raw(demo.0.id().cast_signed()), Signal::SIGINT)?;
    let status = demo.0.wait()?;
    ensure!(status.code() == Some(130), "{status}");
    ensure!(host_state()? == before, "left behind: {:?}", host_state()?);
    let vms = Command::new(overcommit()).args(["list", "--json"]).output()?;
    let vms: serde_json::Value = serde_json::from_slice(&vms.stdout)?;
    ensure!(vms["vms"].as_array().is_some_and(Vec::is_empty), "a VM of the demo still runs");
    Ok(())
}
