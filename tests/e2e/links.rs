//! Whoever may run `sudo overcommit` gets nobody else's files by it.

use crate::Tests;
use crate::input::expect;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use testbed::qemu::{Config, Vm};
use testbed::results::Killed;
use testbed::{PATIENCE, as_child, await_some, overcommit, run};

pub(crate) const TESTS: Tests = &[
    ("no_link_leads_out_of_a_recording", links),
    ("no_path_of_an_option_leads_where_the_user_may_not_go", others_places),
    ("a_folder_of_another_user_is_not_written_into", foreign),
];

/// Who ran sudo.
const USER: u32 = 65534;

/// As through sudo, by that user.
fn by_sudo() -> Command {
    let mut command = Command::new(overcommit());
    command.env("SUDO_UID", USER.to_string()).env("SUDO_GID", USER.to_string());
    command
}

/// As that user, in a folder.
fn as_user(dir: &Path, script: &str) -> Result<()> {
    let mut shell = Command::new("sh");
    run(shell.args(["-euc", script]).current_dir(dir).uid(USER).gid(USER)).map(drop)
}

/// A folder that everybody may look into.
fn open_folder() -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
    Ok(dir)
}

/// A folder within that one, which belongs to the user.
fn their_folder(dir: &Path) -> Result<PathBuf> {
    let theirs = dir.join("theirs");
    fs::create_dir(&theirs)?;
    chown(&theirs, Some(USER), Some(USER))?;
    Ok(theirs)
}

const SECRET: &str = "a line that only root may read";

/// Something of root's that the user may neither read nor have.
struct Precious {
    file: PathBuf,
    folder: PathBuf,
}

impl Precious {
    fn new(dir: &Path) -> Result<Self> {
        let (file, folder) = (dir.join("precious"), dir.join("private"));
        fs::write(&file, SECRET)?;
        fs::set_permissions(&file, Permissions::from_mode(0o600))?;
        fs::create_dir(&folder)?;
        Ok(Self { file, folder })
    }

    fn is_unharmed(&self, after: &str) -> Result<()> {
        let is_same = fs::read_to_string(&self.file)? == SECRET;
        ensure!(is_same && self.file.metadata()?.uid() == 0, "the file was changed by {after}");
        let is_empty = fs::read_dir(&self.folder)?.next().is_none();
        ensure!(is_empty && self.folder.metadata()?.uid() == 0, "the folder was by {after}");
        Ok(())
    }
}

fn links() -> Result<()> {
    let dir = open_folder()?;
    let precious = Precious::new(dir.path())?;
    let theirs = their_folder(dir.path())?;
    let (folder, ready) = (theirs.join("run"), theirs.join("ready"));
    let _guest = Vm::start(&Config::new("guest", 16))?;
    let mut record = by_sudo();
    record.args(["record", "-q", "--interval", "100ms", "--out"]).arg(&folder);
    record.arg("--ready-file").arg(&ready).stdout(Stdio::null());
    let mut recording = Killed(as_child(&mut record, Signal::SIGTERM).spawn()?);
    await_some("recording", PATIENCE, || Ok(ready.exists().then_some(())))?;
    ensure!(folder.metadata()?.uid() == USER, "the folder is not the user's");
    await_some("a log", PATIENCE, || Ok(folder.join("vms").exists().then_some(())))?;
    let (file, other) = (precious.file.display(), precious.folder.display());
    let script = format!(
        "for name in run.json summary.json summary.csv; do ln -sf {file} $name.new; done\n\
         ln -sf {file} marks.csv; mv vms seen; ln -s {other} vms"
    );
    as_user(&folder, &script)?;
    let mark = by_sudo().arg("mark").arg(&folder).arg("steady").output()?;
    expect(&mark, 1, "it is behind a link")?;
    precious.is_unharmed("mark")?;
    kill(Pid::from_raw(recording.0.id().cast_signed()), Signal::SIGINT)?;
    recording.0.wait()?;
    precious.is_unharmed("record")?;
    for command in ["report", "export"] {
        let mut command_line = by_sudo();
        command_line.arg(command).arg(&folder);
        if command == "export" {
            command_line.args(["--format", "csv"]);
        }
        command_line.output().with_context(|| command.to_owned())?;
        precious.is_unharmed(command)?;
    }
    Ok(())
}

/// Whatever the kernel refuses the user by any path is refused to root for them.
fn others_places() -> Result<()> {
    let dir = open_folder()?;
    let precious = Precious::new(dir.path())?;
    let theirs = their_folder(dir.path())?;
    let _guest = Vm::start(&Config::new("guest", 16))?;
    let run = theirs.join("run").display().to_string();
    let record = ["record", "-q", "--interval", "100ms", "--duration", "300ms", "--out"];
    expect(&by_sudo().args(record).arg(&run).output()?, 0, "")?;
    let (file, folder) = (precious.file.display(), precious.folder.display());
    let (within, mut new) = (format!("{folder}/new"), 0);
    for words in [
        format!("record -q --duration 300ms --out {within}"),
        format!("record -q --duration 300ms --out {folder}"),
        format!("record -q --duration 300ms --out NEW --ready-file {file}"),
        format!("record -q --duration 300ms --out NEW --ready-file {within}"),
        format!("record -q --duration 300ms --out NEW --config {file}"),
        format!("report {run} --out {file}"),
        format!("report {run} --out {within}"),
        format!("export {run} --out {folder}"),
        format!("export {run} --out {within}"),
        format!("ab --a true --b true --runs 5 --out {within}"),
        format!("ab --a true --b true --runs 5 --out {folder}"),
    ] {
        new += 1;
        let words = words.replace("NEW", &format!("{}/{new}", theirs.display()));
        let output = by_sudo().args(words.split(' ')).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        println!("{said}");
        ensure!(matches!(output.status.code(), Some(1 | 2)), "{words}: {output:?}");
        ensure!(!said.contains(SECRET), "{words}: {said}");
        precious.is_unharmed(&words)?;
    }
    Ok(())
}

fn foreign() -> Result<()> {
    let dir = open_folder()?;
    let theirs = their_folder(dir.path())?;
    let mut record = Command::new(overcommit());
    record.args(["record", "--duration", "300ms", "--out"]);
    expect(&record.arg(&theirs).output()?, 1, "belongs to another user")?;
    ensure!(fs::read_dir(&theirs)?.next().is_none() && theirs.metadata()?.uid() == USER);
    // What a user recorded is printed for root as well, and left as it is.
    let _guest = Vm::start(&Config::new("guest", 16))?;
    let folder = theirs.join("run");
    let options = ["record", "-q", "--interval", "100ms", "--duration", "1s", "--out"];
    expect(&by_sudo().args(options).arg(&folder).output()?, 0, "")?;
    fs::remove_file(folder.join("summary.json"))?;
    let report = Command::new(overcommit()).arg("report").arg(&folder).output()?;
    expect(&report, 0, "belongs to another user")?;
    ensure!(String::from_utf8_lossy(&report.stdout).contains("guest"), "{report:?}");
    ensure!(!folder.join("summary.json").exists(), "it was written all the same");
    Ok(())
}
