//! A root of its own for an emulated host that cannot share this machine's.

use crate::build::{self, Arch};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use testbed::results::stand_in_of;
use testbed::{overcommit, root, target};

/// What of the project runs in a lab.
pub(crate) struct Binaries {
    /// The scenarios.
    pub(crate) scenarios: PathBuf,
    /// The program under test.
    overcommit: PathBuf,
}

impl Binaries {
    /// Builds the scenarios, and for another architecture the program under test.
    ///
    /// # Errors
    /// Something cannot be built.
    pub(crate) fn build(arch: Arch) -> Result<Self> {
        let overcommit =
            if arch == Arch::HOST { overcommit() } else { build::static_binary(arch)? };
        Ok(Self { scenarios: scenarios(arch)?, overcommit })
    }
}

/// Builds the scenarios, with the stand-in beside them.
fn scenarios(arch: Arch) -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).args(["test", "--quiet", "--no-run", "--package"]);
    cargo.args(["overcommit-tests", "--test", "lab", "--release", "--message-format=json"]);
    if arch != Arch::HOST {
        build::for_static_target(&mut cargo, arch)?;
    }
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "{cargo:?} failed: {}", output.status);
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let messages = messages.lines().filter_map(|line| serde_json::from_str(line).ok());
    let executable = |message: serde_json::Value| {
        (message["target"]["name"] == "lab")
            .then(|| message["executable"].as_str().map(PathBuf::from))?
    };
    messages.filter_map(executable).next_back().context("cargo built no scenarios")
}

/// A folder that becomes the root.
pub(crate) struct Tree {
    /// Where it is.
    pub(crate) path: PathBuf,
}

impl Tree {
    /// An empty one.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let _ = fs::remove_dir_all(path);
        for dir in ["bin", "sbin", "lib", "lib64"] {
            fs::create_dir_all(path.join("usr").join(dir))?;
            symlink(format!("usr/{dir}"), path.join(dir))?;
        }
        for dir in ["proc", "sys", "dev", "run", "tmp", "etc", "var/tmp", "root"] {
            fs::create_dir_all(path.join(dir))?;
        }
        Ok(Self { path: path.to_owned() })
    }

    /// busybox, and a link for each of its programs that is not there.
    ///
    /// # Errors
    /// It cannot be copied, or this machine has none that says what they are.
    pub(crate) fn put_busybox(&self, busybox: &Path) -> Result<()> {
        let bin = self.path.join("usr/bin");
        if !bin.join("busybox").exists() {
            fs::copy(busybox, bin.join("busybox"))?;
        }
        for name in testbed::run(Command::new("busybox").arg("--list"))?.lines() {
            let is_there = |dir| self.path.join("usr").join(dir).join(name).symlink_metadata();
            if is_there("bin").or(is_there("sbin")).is_err() {
                symlink("busybox", bin.join(name))?;
            }
        }
        Ok(())
    }

    /// Puts the project's programs where the scenarios look for them, and the guests.
    ///
    /// # Errors
    /// One cannot be copied.
    pub(crate) fn put_project(&self, binaries: &Binaries) -> Result<()> {
        self.put_as(&binaries.overcommit, &overcommit())?;
        for program in [&binaries.scenarios, &stand_in_of(&binaries.scenarios)] {
            self.put_program(program)?;
        }
        // By which the scenarios know the project.
        self.put(&root().join("overcommit-ebpf/Cargo.toml"))?;
        for guest in glob::glob(&format!("{}/*.elf", target().display()))?.flatten() {
            self.put(&guest)?;
        }
        self.put_libraries(&binaries.overcommit)
    }

    /// Puts a program of this machine there, with the libraries that it loads.
    ///
    /// # Errors
    /// One cannot be copied.
    pub(crate) fn put_program(&self, program: &Path) -> Result<()> {
        self.put(program)?;
        self.put_libraries(program)
    }

    fn put_libraries(&self, program: &Path) -> Result<()> {
        let libraries = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
        // It fails on a static one.
        let libraries = String::from_utf8_lossy(&libraries.stdout).into_owned();
        let paths = libraries.split_whitespace().filter(|word| word.starts_with('/'));
        paths.map(Path::new).try_for_each(|library| self.put(library))
    }

    /// Puts a file where it lies here, links followed.
    ///
    /// # Errors
    /// It cannot be copied.
    pub(crate) fn put(&self, file: &Path) -> Result<()> {
        self.put_as(file, file)
    }

    fn put_as(&self, file: &Path, place: &Path) -> Result<()> {
        ensure!(place.is_absolute(), "{} has no place of its own", file.display());
        let copy = self.path.join(place.strip_prefix("/")?);
        if let Some(dir) = copy.parent() {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        // Of busybox perhaps.
        let _ = fs::remove_file(&copy);
        fs::copy(file, &copy).with_context(|| format!("cannot copy {}", file.display()))?;
        Ok(())
    }
}
