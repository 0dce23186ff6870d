//! `overcommit serve --guests` and `overcommit guest`: what guests are told, and what they cannot do.

use crate::Tests;
use crate::serve::capabilities_of;
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use testbed::qemu::{Config, Vm};
use testbed::results::{StandIn, median, run};
use testbed::serving::{PORT, Serving};
use testbed::{PATIENCE, await_some, overcommit};

pub(crate) const TESTS: Tests = &[
    ("hostile_guests_hold_up_nobody", hostile),
    ("a_client_of_vhostmd_reads_our_port", vhostmd),
    ("a_guest_is_told_again_after_stops_resets_and_unplugs", come_and_go),
    ("a_guest_is_told_after_it_has_moved_to_another_qemu", moves),
    ("without_a_channel_a_guest_is_told_what_to_ask_for", alone),
];

/// The ports that there are, by name.
const OWN: &str = "org.overcommit.truth.0";
const VHOSTMD: &str = "org.github.vhostmd.1";
/// Connections of a hostile guest.
const CONNECTIONS: usize = 1000;
/// CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE.
const CONNECTS: u64 = 1 << 1 | 1 << 2 | 1 << 19;
/// How much longer or shorter an interval may be for them; by itself a tenth on a machine that has
/// something else to do.
const DISTURBED: f64 = 0.25;

/// A process that passes for a VM, with a port whose guest's end is ours.
struct Guest {
    _process: StandIn,
    port: PathBuf,
}

impl Guest {
    fn start(dir: &Path, name: &str, port: &str) -> Result<Self> {
        let place = dir.join(name);
        let path = place.to_str().context("a path that is no text")?;
        let chardev = format!("socket,id=truth,path={path},server=on,wait=off");
        let device = format!("virtserialport,chardev=truth,name={port}");
        let arguments =
            ["port", "0", path, "-name", name, "-chardev", &chardev, "-device", &device];
        let process = StandIn::as_qemu(dir, &arguments)?;
        Ok(Self { _process: process, port: place.with_extension("guest") })
    }

    fn connect(&self) -> Result<UnixStream> {
        let stream = UnixStream::connect(&self.port)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(Duration::from_millis(100)))?;
        Ok(stream)
    }

    /// What it is told.
    fn ask(&self) -> Result<Value> {
        let mut stream = self.connect()?;
        stream.write_all(b"\nGET 1\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the host says {line:?}"))
    }

    /// Waits until it is told figures.
    fn await_told(&self) -> Result<Value> {
        await_some("figures of a guest", PATIENCE, || {
            Ok(Some(self.ask()?).filter(|told| told["schema"] == SCHEMA && told["error"].is_null()))
        })
    }
}

const SCHEMA: &str = "overcommit.guest/1";

/// A folder that others may look into, and a server.
fn serving(options: &[&str]) -> Result<(tempfile::TempDir, Serving)> {
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let mut serving = Serving::start(dir.path(), options)?;
    serving.await_told(|text| text.contains("telling guests").then_some(()))?;
    Ok((dir, serving))
}

/// One that connects over and over, one that asks all the time and takes nothing, and one that is
/// not to be told at all.
fn hostile() -> Result<()> {
    let (dir, serving) = serving(&["--guests-only", "--guests", "web", "--guests", "evil-*"])?;
    let start = |name| Guest::start(dir.path(), name, OWN);
    let (web, restless, mute) = (start("web")?, start("evil-1")?, start("evil-2")?);
    let unasked = start("db")?;
    for guest in [&web, &restless, &mute] {
        guest.await_told()?;
    }
    let mut deaf = mute.connect()?;
    let mut sent = 0;
    // Until nobody takes any more.
    let full = loop {
        match deaf.write(&b"GET 1\n".repeat(500)) {
            Ok(length) => sent += length,
            Err(error) => break error,
        }
        ensure!(sent < 64 << 20, "it may send without end");
    };
    ensure!(full.kind() == ErrorKind::WouldBlock, "{full}");
    // Meanwhile intervals are as long as ever.
    let is_over = AtomicBool::new(false);
    let flooded = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let mut number = 0;
            while number < CONNECTIONS || !is_over.load(Relaxed) {
                let mut stream = restless.connect()?;
                let _ = stream.write_all(&[b'x'; 100][..number % 100]);
                number += 1;
            }
            anyhow::Ok(())
        });
        let lengths = lengths(&web);
        is_over.store(true, Relaxed);
        flood.join().map_err(|_| anyhow!("the flood panicked"))??;
        lengths
    });
    let lengths = flooded?;
    let middle = median(lengths.clone());
    ensure!((middle - 1.0).abs() <= DISTURBED, "intervals of {lengths:?} s");
    ensure!(capabilities_of(serving.pid(), "guests")? == 0, "it holds capabilities");
    let connecting = capabilities_of(serving.pid(), "guest-ports")?;
    ensure!(connecting & !CONNECTS == 0, "it holds capabilities {connecting:x}");
    restless.await_told()?;
    // Nobody is at the other end of its port.
    let mut stream = unasked.connect()?;
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    stream.write_all(b"GET\n")?;
    let read = stream.read(&mut [0; 10]).map_err(|error| error.kind());
    ensure!(read == Err(ErrorKind::WouldBlock), "a guest that is not to be told reads {read:?}");
    serving.end()
}

/// Lengths of whole intervals, in seconds: that in which a VM comes is short, and told with the next.
fn lengths(guest: &Guest) -> Result<Vec<f64>> {
    let (mut last, mut lengths) = (Value::Null, Vec::new());
    await_some("intervals", PATIENCE, || {
        let told = guest.await_told()?;
        if last != told["unix_s"] {
            last = told["unix_s"].clone();
            lengths.extend(told["last_1s"]["seconds"].as_f64());
        }
        Ok((lengths.len() >= 7).then_some(()))
    })?;
    Ok(lengths.split_off(2))
}

/// As libmetrics' `get_virtio_metrics` reads it: the request as a whole, and an answer that ends
/// with an empty line.
fn vhostmd() -> Result<()> {
    let (dir, serving) = serving(&["--guests-only", "--guests", "*"])?;
    let guest = Guest::start(dir.path(), "web", VHOSTMD)?;
    let ask = |request: &[u8]| -> Result<String> {
        let mut stream = guest.connect()?;
        stream.write_all(request)?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\n\n") {
            let mut bytes = [0; 512];
            let length = stream.read(&mut bytes)?;
            ensure!(length > 0, "the channel is closed");
            answer.extend_from_slice(&bytes[..length]);
        }
        Ok(String::from_utf8(answer)?)
    };
    let told = await_some("metrics of the VM", PATIENCE, || {
        let told = ask(b"GET /metrics/XML\n\n")?;
        Ok(told.contains("ResidentMemory").then_some(told))
    })?;
    println!("{told}");
    ensure!(told.starts_with("<metrics>\n") && told.ends_with("</metrics>\n\n"), "{told}");
    for name in ["HostName", "VirtualizationVendor", "TotalCPUTime", "MajorFaultRate"] {
        ensure!(told.contains(&format!("    <name>{name}</name>\n    <value>")), "{told}");
    }
    ensure!(ask(b"GET /metrics/XML\r\n\r\n")?.starts_with("<metrics>"), "no answer to CR LF");
    ensure!(ask(b"GET /metrics/JSON\n\n")? == "INVALID REQUEST\n\n", "an answer to anything");
    serving.end()
}

/// Asks once a second, and notes what comes of it.
const WATCHES: &str = "echo asks now; while :; do OVERCOMMIT guest --json > /run/results/now 2>&1
echo \"code $?\" >> /run/results/now; mv /run/results/now /run/results/last; done";

/// A Linux guest: it is stopped and reset, its port is unplugged and plugged in, the server starts
/// anew.
fn come_and_go() -> Result<()> {
    let script = WATCHES.replace("OVERCOMMIT", &overcommit().display().to_string());
    let mut vm = Vm::start(&Config { more: &PORT, ..Config::shell("web", 256, &script) })?;
    let last = |vm: &Vm| fs::read_to_string(vm.dir().join("results/last")).unwrap_or_default();
    let until = |vm: &Vm, what: &str| {
        await_some(&format!("{what} in a guest"), PATIENCE, || {
            let last = last(vm);
            Ok(last.contains(what).then_some(last))
        })
        .with_context(|| last(vm))
    };
    until(&vm, "the host does not listen")?;
    let (_dir, first) = serving(&["--guests-only", "--guests", "web"])?;
    let told = until(&vm, "code 0")?;
    ensure!(told.contains(SCHEMA) && told.contains("\"untold\": null"), "{told}");
    vm.stop()?;
    std::thread::sleep(Duration::from_secs(4));
    fs::remove_file(vm.dir().join("results/last"))?;
    vm.resume()?;
    until(&vm, "code 0")?;
    // It would end instead.
    vm.execute("set-action", json!({ "reboot": "reset" }))?;
    vm.execute("system_reset", json!({}))?;
    await_some("boot of the guest", PATIENCE, || {
        Ok((vm.serial()?.matches("asks now").count() > 1).then_some(()))
    })?;
    fs::remove_file(vm.dir().join("results/last"))?;
    until(&vm, "code 0")?;
    vm.execute("device_del", json!({ "id": "port" }))?;
    until(&vm, "has no port")?;
    let port = json!({ "driver": "virtserialport", "id": "port", "chardev": "truth", "name": OWN });
    vm.execute("device_add", port)?;
    until(&vm, "code 0")?;
    first.end()?;
    until(&vm, "the host does not listen")?;
    let (_dir, second) = serving(&["--guests-only", "--guests", "web"])?;
    until(&vm, "code 0")?;
    second.end()
}

/// Leaves all that it shares with this machine, with which no guest can move, and asks from then on.
const LEAVES: &str = "mkdir /dev/shm/own && cp OVERCOMMIT /dev/shm/own/overcommit
for library in $(ldd OVERCOMMIT | grep -o '/[^ ]*'); do
mkdir -p /dev/shm/own${library%/*}; cp -L $library /dev/shm/own$library; done
exec chroot /proc/1/root /bin/sh -c 'umount -l /root; umount -l /lower
for place in proc sys dev; do mkdir /dev/shm/own/$place; mount --bind /$place /dev/shm/own/$place; done
while :; do chroot /dev/shm/own /overcommit guest --json; echo \"code $?\"; sleep 1; done'";

/// A Linux guest moves from one QEMU to another, which has a port of its own.
fn moves() -> Result<()> {
    let script = LEAVES.replace("OVERCOMMIT", &overcommit().display().to_string());
    let awaits = [&PORT[..], &["-incoming", "defer"]].concat();
    let start = |more| Vm::start(&Config { more, ..Config::shell("web", 256, &script) });
    let told = |vm: &Vm| {
        await_some("figures in the guest", PATIENCE, || {
            Ok(vm.serial()?.contains("code 0").then_some(()))
        })
        .with_context(|| vm.serial().unwrap_or_default())
    };
    let (_dir, serving) = serving(&["--guests-only", "--guests", "web"])?;
    let mut from = start(&PORT)?;
    told(&from)?;
    let mut to = start(&awaits)?;
    let place = json!({ "uri": format!("unix:{}/moves", to.dir().display()) });
    to.execute("migrate-incoming", place.clone())?;
    from.execute("migrate", place)?;
    await_some("the move of the guest", PATIENCE, || {
        let moved = from.execute("query-migrate", json!({}))?;
        ensure!(moved["status"] != "failed", "{moved}");
        Ok((moved["status"] == "completed").then_some(()))
    })?;
    drop(from);
    told(&to)?;
    serving.end()
}

/// This machine has no such port.
fn alone() -> Result<()> {
    let output = run(["guest", "--port", "/nonexistent/port"])?;
    let (told, said) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.code() == Some(4), "{}", output.status);
    ensure!(said.contains("cannot open /nonexistent/port"), "{said}");
    ensure!(said.contains("Ask whoever runs the host for: overcommit serve --guests"), "{said}");
    for figure in ["steal", "longest pause", "major faults", "memory PSI", "ballooned"] {
        ensure!(told.contains(figure), "{told}");
    }
    let slo = ["guest", "--port", "/nonexistent", "--slo", "stall.share<1%", "--", "true"];
    ensure!(run(slo)?.status.code() == Some(4), "an objective is held where nobody tells");
    let fails = run(["guest", "--port", "/nonexistent", "--", "sh", "-c", "exit 7"])?;
    ensure!(fails.status.code() == Some(7), "{}", fails.status);
    let latency = run(["guest", "--slo", "fault.major:p99<2ms"])?;
    ensure!(latency.status.code() == Some(2), "{}", latency.status);
    Ok(())
}
