//! What a user may who is not root.

use crate::Tests;
use anyhow::{Result, ensure};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Command, Output};
use testbed::overcommit;
use testbed::qemu::{Config, Vm};
use testbed::results::{json, only_vm};

pub(crate) const TESTS: Tests = &[("a_user_with_capabilities_records", capabilities)];

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
