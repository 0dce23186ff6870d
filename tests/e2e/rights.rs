//! What a user may who is not root.

use crate::Tests;
use anyhow::{Context, Result, ensure};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Command, Output};
use testbed::overcommit;
use testbed::qemu::{Config, Vm};
use testbed::results::{json, only_vm};

pub(crate) const TESTS: Tests = &[
    ("a_user_with_capabilities_records", capabilities),
    ("root_keeps_only_what_records", given_up),
];

/// Nobody.
const USER: u32 = 65534;

fn capabilities() -> Result<()> {
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
    // Where any user may run it.
    let program = dir.path().join("overcommit");
    fs::copy(overcommit(), &program)?;
    let home = dir.path().join("home");
    fs::create_dir(&home)?;
    chown(&home, Some(USER), Some(USER))?;
    let _guest = Vm::start(&Config::new("guest", 16))?;
    let record = |rights: &str| -> Result<Output> {
        let mut record = Command::new("setpriv");
        record.args(["--reuid", &USER.to_string(), "--regid", &USER.to_string()]);
        record.args(["--clear-groups", "--inh-caps", rights, "--ambient-caps", rights]);
        record.args(["--bounding-set", rights, "--"]).arg(&program);
        Ok(record.args(["record", "--duration", "1s", "--out"]).arg(home.join("run")).output()?)
    };
    let refused = record("-all,+bpf,+perfmon")?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1), "{said}");
    ensure!(said.contains("CAP_SYS_PTRACE is missing"), "{said}");

    let recorded = record("-all,+bpf,+perfmon,+sys_ptrace")?;
    ensure!(recorded.status.success(), "{}", String::from_utf8_lossy(&recorded.stderr));
    let vm = only_vm(&home.join("run"))?;
    ensure!(vm["vm"] == "guest", "{vm:#}");
    let run = json(&home.join("run"), "run.json")?;
    ensure!(run["recorded"]["intervals"].as_u64() > Some(0), "{run:#}");
    Ok(())
}

/// CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_NET_ADMIN, CAP_SYS_BOOT, CAP_SYS_TIME, CAP_MKNOD; and where
/// root is nobody else CAP_CHOWN, CAP_SETGID, CAP_SETUID.
const NOT_TO_RECORD: u64 =
    1 << 16 | 1 << 17 | 1 << 12 | 1 << 22 | 1 << 25 | 1 << 27 | 1 | 1 << 6 | 1 << 7;

/// A thread's effective and permitted capabilities.
fn held(status: &str) -> Result<[u64; 2]> {
    let of = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no line")?;
        Ok(u64::from_str_radix(line.trim(), 16)?)
    };
    Ok([of("CapEff:")?, of("CapPrm:")?])
}

/// Each thread of a recorder gives up the rest; its COMMAND, which runs as root, has all.
fn given_up() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _guest = Vm::start(&Config::new("guest", 16))?;
    let [own, _] = held(&fs::read_to_string("/proc/self/status")?)?;
    // Its other threads begin after COMMAND.
    let recorder = "until [ $(ls /proc/$PPID/task | wc -l) -gt 2 ]; do sleep 0.1; done
        for status in /proc/$PPID/task/*/status; do cat $status; echo; done";
    let commands = format!(
        "{recorder} > {0}/recorder; cat /proc/self/status > {0}/own; sleep 1",
        dir.path().display()
    );
    let mut record = Command::new(overcommit());
    record.args(["record", "--out"]).arg(dir.path().join("run"));
    let output = record
        .args(["--", "sh", "-c", &commands])
        .env_remove("SUDO_UID")
        .env_remove("SUDO_GID")
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let threads = fs::read_to_string(dir.path().join("recorder"))?;
    let threads: Vec<&str> = threads.split("\n\n").filter(|text| text.contains("CapEff")).collect();
    ensure!(threads.len() > 1, "{threads:?}");
    for status in threads {
        let [effective, permitted] = held(status)?;
        println!("{effective:x} {permitted:x} of {own:x}");
        ensure!((effective | permitted) & NOT_TO_RECORD == 0, "{status}");
        ensure!(status.contains("NoNewPrivs:\t1"), "{status}");
    }
    let command = fs::read_to_string(dir.path().join("own"))?;
    ensure!(command.contains("NoNewPrivs:\t0"), "{command}");
    let [command, _] = held(&command)?;
    ensure!(command == own, "COMMAND has {command:x} of {own:x}");
    Ok(())
}
