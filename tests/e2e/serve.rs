//! `overcommit serve`, scraped by a real Prometheus.

use crate::Tests;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{figure, vm};
use testbed::serving::Server;
use testbed::squeeze::Squeeze;
use testbed::undo::Running;
use testbed::{PATIENCE, await_some, overcommit, root, run, target};

pub(crate) const PROMETHEUS: &str = "prometheus_has_the_figures_of_a_recording";

pub(crate) const TESTS: Tests = &[
    (PROMETHEUS, scraped),
    ("clients_that_hang_hold_up_nobody", hostile),
    ("sums_of_a_host_are_few_series", aggregate),
    ("units_of_systemd_hold_what_it_takes", units),
];

/// Two that count the same faults time each other's programs: the outer one has the inner one's time
/// in each fault.
const NESTED_S: f64 = 300e-9;

/// Prometheus of this system, and a newer one where it could be fetched.
fn prometheus() -> Vec<PathBuf> {
    let programs = target().join("prometheus/*/usr/bin/prometheus");
    glob::glob(&programs.to_string_lossy()).into_iter().flatten().flatten().collect()
}

/// The folder of this system's.
pub(crate) fn of_system() -> PathBuf {
    target().join("prometheus/system/usr/bin")
}

/// Starts a Prometheus that scrapes every two seconds; where it answers stands beside it.
fn scrape(program: &Path, dir: &Path, target: &str) -> Result<(Running, String)> {
    fs::create_dir_all(dir)?;
    let config = format!(
        "global: {{ scrape_interval: 2s }}\nscrape_configs:\n- job_name: overcommit\n  \
         static_configs: [ {{ targets: ['{target}'] }} ]\n"
    );
    let file = dir.join("prometheus.yml");
    fs::write(&file, config)?;
    // A port that is free now.
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let mut command = Command::new(program);
    command.arg(format!("--config.file={}", file.display()));
    command.arg(format!("--storage.tsdb.path={}", dir.join("data").display()));
    command.arg(format!("--web.listen-address={address}"));
    command.arg("--enable-feature=native-histograms");
    command.stdout(Stdio::null()).stderr(File::create(dir.join("told"))?);
    let running = Running::start("Prometheus", &mut command, |child| {
        Ok(kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL)?)
    })?;
    Ok((running, address))
}

/// The number that a query gives, if it gives one.
fn ask(address: &str, query: &str) -> Result<Option<f64>> {
    let answer = answer_to(address, query)?.unwrap_or_default();
    let number = answer["data"]["result"][0]["value"][1].as_str();
    Ok(number.and_then(|number| number.parse().ok()))
}

/// What Prometheus says to a query, if it answers yet.
fn answer_to(address: &str, query: &str) -> Result<Option<Value>> {
    let Ok(mut stream) = TcpStream::connect(address) else { return Ok(None) };
    stream.set_read_timeout(Some(PATIENCE))?;
    let spelled: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let head = "Host: x\r\nConnection: close\r\n";
    write!(stream, "GET /api/v1/query?query={spelled} HTTP/1.0\r\n{head}\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok(serde_json::from_str(body).ok())
}

/// Each query of the dashboard is one that Prometheus understands.
fn dashboard(address: &str) -> Result<()> {
    let text = fs::read_to_string(root().join("dist/grafana/overcommit.json"))?;
    let dashboard: Value = serde_json::from_str(&text)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let mut asked = 0;
    for query in targets.filter_map(|target| target["expr"].as_str()) {
        let chosen = [("$instance", ".*"), ("$vm", ".*"), ("$__rate_interval", "1m")];
        let spelled =
            chosen.iter().fold(query.to_owned(), |query, (name, value)| query.replace(name, value));
        let answer = answer_to(address, &spelled)?.context("no answer")?;
        ensure!(answer["status"] == "success", "{spelled}: {answer}");
        asked += 1;
    }
    ensure!(asked >= panels.len(), "{asked} queries");
    Ok(())
}

/// A VM that swaps is recorded and scraped at the same time: the same faults, so the same figures.
fn scraped() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let squeeze = Squeeze::new()?;
    // As many as it takes: 160 make p99 of such a VM as much as 9 % coarse.
    let more = ["--native-buckets", "4096"];
    let server = Server::start(dir.path(), &more)?;
    let all = prometheus();
    let mut scrapers = Vec::new();
    for (number, program) in all.iter().enumerate() {
        scrapers.push(scrape(program, &dir.path().join(number.to_string()), server.address())?);
    }
    let recording = Recording::start(&dir.path().join("run"), ["--interval", "500ms"])?;
    let guest = Vm::start(&squeeze.config("squeezed"))?;
    guest.await_majors(3_000)?;
    guest.freeze()?;
    let folder = recording.end()?;
    let recorded = vm(&folder, "squeezed")?;
    let of = "overcommit_fault_duration_seconds{vm=\"squeezed\",kind=\"major\"}";
    let majors = figure(&recorded, "fault.major", "count")?;
    for (program, (_running, address)) in all.iter().zip(&scrapers) {
        let count = format!("histogram_count({of})");
        let seen = await_some("scrape of all that happened", PATIENCE, || {
            let is_all = |seen: &f64| (seen - majors as f64).abs() <= 0.01 * majors as f64;
            Ok(ask(address, &count)?.filter(is_all))
        })?;
        println!("{}: {seen} major faults of {majors}", program.display());
        for (quantile, name) in [(0.5, "p50_ns"), (0.99, "p99_ns")] {
            let ours = figure(&recorded, "fault.major", name)? as f64 / 1e9;
            let query = format!("histogram_quantile({quantile}, {of})");
            let theirs = ask(address, &query)?.context("no quantile")?;
            println!("{name}: {ours} s by overcommit, {theirs} s by Prometheus");
            let apart = (theirs - ours).abs();
            ensure!(apart < 0.02 * ours + NESTED_S, "{name}: {ours} and {theirs}");
        }
        await_some("scrape", PATIENCE, || Ok(ask(address, "sum(up)")?.filter(|up| *up == 1.0)))?;
        dashboard(address)?;
        await_some("verdict", PATIENCE, || {
            let verdict = ask(address, "count(overcommit_vm_verdict{vm=\"squeezed\"})")?;
            Ok(verdict.filter(|count| *count == 1.0))
        })?;
    }
    checked(&server, dir.path())?;
    server.end()
}

/// Prometheus' own tool finds nothing to say, and both texts have each family once.
fn checked(server: &Server, dir: &Path) -> Result<()> {
    let text = server.metrics()?;
    let file = dir.join("metrics");
    fs::write(&file, &text)?;
    let tool = of_system().join("promtool");
    let mut check = Command::new("sh");
    check.args(["-c", "\"$1\" check metrics < \"$2\" 2>&1", "sh"]).arg(&tool).arg(&file);
    let said = run(&mut check)?;
    ensure!(said.trim().is_empty(), "promtool says: {said}");
    for forbidden in ["instance=", "job=", "namespace=", "pod=", "node=", "name="] {
        let is_label = |line: &str| {
            line.contains(&format!("{{{forbidden}")) || line.contains(&format!(",{forbidden}"))
        };
        ensure!(!text.lines().any(is_label), "a label {forbidden}");
    }
    let open = server.get("/metrics", "Accept: application/openmetrics-text;version=1.0.0\r\n")?;
    ensure!(open.contains("# UNIT overcommit_fault_duration_seconds seconds\n"), "no unit");
    ensure!(open.ends_with("# EOF\n"), "OpenMetrics without an end");
    let mut families: Vec<&str> = open.lines().filter(|line| line.starts_with("# TYPE ")).collect();
    let all = families.len();
    families.sort_unstable();
    families.dedup();
    ensure!(families.len() == all, "a family is there twice");
    let of = |what: &str| {
        text.lines().filter(|line| !line.starts_with('#') && line.contains(what)).count()
    };
    let [all, one] = ["", "vm=\"squeezed\""].map(of);
    println!("{all} series, {one} of the VM, {} bytes as text", text.len());
    let rules = root().join("dist/prometheus/overcommit.rules.yml");
    run(Command::new(tool).args(["check", "rules"]).arg(rules))?;
    Ok(())
}

/// Clients that ask nothing, or never read, cost neither an interval nor another client.
fn hostile() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Server::start(dir.path(), &[])?;
    let intervals = |text: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with("overcommit_intervals_total "))?;
        Some(line.split(' ').nth(1)?.parse::<f64>().ok()? as u64)
    };
    let mut held = Vec::new();
    for number in 0..200 {
        let mut client = server.connect()?;
        match number % 4 {
            0 => {}
            1 => client.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept")?,
            // Asks again and again, and reads none of it.
            2 => client.write_all(&b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50))?,
            _ => drop(client.write_all(&[b'x'; 1 << 17])),
        }
        held.push(client);
    }
    let start = Instant::now();
    let first = intervals(&server.metrics()?).context("no count of intervals")?;
    let last = await_some("more intervals", PATIENCE, || {
        let now = intervals(&server.metrics()?).context("no count of intervals")?;
        Ok((now >= first + 5).then_some(now))
    })?;
    println!("{} intervals in {:?}, with {} clients", last - first, start.elapsed(), held.len());
    let memory = fs::read_to_string(format!("/proc/{}/status", server.pid()))?;
    let resident = memory.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident: u64 = resident
        .and_then(|text| text.trim().split(' ').next()?.parse().ok())
        .context("no VmRSS")?;
    println!("resident: {resident} KiB");
    ensure!(resident < 256 << 10, "{resident} KiB");
    let seconds = start.elapsed().as_secs();
    ensure!((last - first) * 3 >= seconds, "{} intervals in {seconds} s", last - first);
    // Whoever came when there were too many went for it.
    let is_closed = |client: &mut TcpStream| -> Result<bool> {
        client.set_nonblocking(true)?;
        let mut answers = [0; 1 << 16];
        loop {
            match client.read(&mut answers) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(error) => return Ok(error.kind() != ErrorKind::WouldBlock),
            }
        }
    };
    let closed = held.iter_mut().map(is_closed).collect::<Result<Vec<_>>>()?;
    let closed = closed.into_iter().filter(|is_closed| *is_closed).count();
    ensure!(closed >= held.len() - 32, "only {closed} of {} are closed", held.len());
    for (answer, path) in [("200", "/-/healthy"), ("404", "/../etc/passwd"), ("404", "/")] {
        let got = server.get(path, "")?;
        ensure!(got.starts_with(&format!("HTTP/1.1 {answer}")), "{path}: {got}");
    }
    let mut posting = server.connect()?;
    write!(posting, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")?;
    let mut status = [0; 12];
    posting.read_exact(&mut status)?;
    ensure!(&status == b"HTTP/1.1 405", "{:?}", String::from_utf8_lossy(&status));
    // Who talks to strangers has nothing to lose.
    ensure!(capabilities_of(server.pid(), "serve")? == 0, "it holds capabilities");
    // The clients are still there.
    server.end()
}

/// Effective capabilities of a process's thread of that name.
pub(crate) fn capabilities_of(pid: u32, name: &str) -> Result<u64> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        let status = fs::read_to_string(task?.path().join("status")).unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        if field("Name:").is_some_and(|is| is.trim() == name) {
            return Ok(u64::from_str_radix(field("CapEff:").context("no CapEff")?.trim(), 16)?);
        }
    }
    anyhow::bail!("no thread {name}")
}

fn aggregate() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut guest = Vm::start(&Config::new("one-of-many", 16))?;
    guest.await_passes(1)?;
    let server = Server::start(dir.path(), &["--aggregate"])?;
    let text = await_some("faults", PATIENCE, || {
        let text = server.metrics()?;
        Ok(text.contains("overcommit_fault_duration_seconds_count{").then_some(text))
    })?;
    ensure!(!text.contains("one-of-many"), "{text}");
    let is_native = |line: &&str| {
        !line.starts_with('#') && !line.contains("_bucket{") && !line.contains("_sum")
    };
    let series: Vec<&str> = text.lines().filter(is_native).collect();
    ensure!(series.len() <= 40, "{} series: {series:#?}", series.len());
    println!("{} series", series.len());
    server.end()
}

/// A unit leaves next to nothing to an attacker, and yet it works: with its capabilities, and with
/// its system calls, as far as can be told without starting it.
fn units() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = root().join("dist/systemd");
    for unit in ["overcommit-serve.service", "overcommit-record@.service"] {
        let mut judge = Command::new("systemd-analyze");
        judge.args(["security", "--offline=true", "--no-pager", "--threshold=30"]);
        let judged = run(judge.arg(unit).current_dir(&folder))?;
        println!("{}", judged.lines().last().unwrap_or_default());
    }
    let unit = fs::read_to_string(folder.join("overcommit-serve.service"))?;
    let set = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let set = set.context("no CapabilityBoundingSet")?;
    let kept = set.split(' ').map(|name| format!(",+{}", name.trim_start_matches("CAP_")));
    let calls = dir.path().join("calls");
    let mut command = Command::new("strace");
    // The tracer is a grandchild, so that signals go to ours.
    command.args(["-D", "-f", "-qq", "-c", "-U", "name", "-o"]).arg(&calls).arg("setpriv");
    command.arg(format!("--bounding-set=-all{}", kept.collect::<String>().to_lowercase()));
    command.arg("--no-new-privs").arg(overcommit());
    let mut guest = Vm::start(&Config::new("guest", 16))?;
    guest.await_passes(1)?;
    let confined = seen(Server::spawn(dir.path(), command, &[])?)?;
    let free = seen(Server::start(dir.path(), &[])?)?;
    ensure!(confined == free, "confined it sees {confined:#?}, else {free:#?}");
    let allowed = allowed(&unit)?;
    let calls = await_some("list of system calls", PATIENCE, || {
        Ok(fs::read_to_string(&calls).ok().filter(|calls| calls.contains("perf_event_open")))
    })?;
    let calls = calls.lines().map(str::trim).filter(|name| name.chars().all(is_of_name));
    let denied: Vec<&str> = calls.filter(|call| !allowed.contains(*call)).collect();
    // The table's head and foot; and tracefs would be mounted for the process alone, which takes
    // CAP_SYS_ADMIN anyway.
    let expected = ["syscall", "total", "fsopen"];
    let denied: Vec<&str> = denied.into_iter().filter(|call| !expected.contains(call)).collect();
    ensure!(denied.is_empty(), "the unit denies {denied:?}");
    Ok(())
}

/// How much a server sees of each metric, once it knows what its VM holds.
fn seen(server: Server) -> Result<Vec<String>> {
    let text = await_some("what the VM holds", PATIENCE, || {
        let text = server.metrics()?;
        let known =
            ["overcommit_vm_resident_bytes{vm=\"guest\"", "overcommit_vm_vcpu_wall_seconds"];
        Ok(known.iter().all(|name| text.contains(name)).then_some(text))
    })?;
    server.end()?;
    let coverage = text.lines().filter(|line| line.starts_with("overcommit_metric_coverage{"));
    Ok(coverage.map(str::to_owned).collect())
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The system calls that a unit allows.
fn allowed(unit: &str) -> Result<BTreeSet<String>> {
    let mut allowed = BTreeSet::new();
    for filter in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (filter, is_denied) = match filter.strip_prefix('~') {
            Some(filter) => (filter, true),
            None => (filter, false),
        };
        for name in filter.split(' ') {
            for call in expanded(name)? {
                if is_denied {
                    allowed.remove(&call)
                } else {
                    allowed.insert(call)
                };
            }
        }
    }
    Ok(allowed)
}

/// Of a group of systemd's all calls, also those of groups in it.
fn expanded(name: &str) -> Result<Vec<String>> {
    if !name.starts_with('@') {
        return Ok(vec![name.to_owned()]);
    }
    let listed = run(Command::new("systemd-analyze").args(["syscall-filter", name]))?;
    let names = listed.lines().skip(1).map(str::trim);
    let names = names.filter(|name| !name.is_empty() && !name.starts_with('#'));
    names.map(expanded).collect::<Result<Vec<_>>>().map(|calls| calls.concat())
}
