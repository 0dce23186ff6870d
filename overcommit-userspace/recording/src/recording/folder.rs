//! The folder of a recording: whose it is, and how files in it are made.

use anyhow::{Context, Result, bail};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown, fchown};
use std::path::{Path, PathBuf};

/// Names of the files.
pub const RUN_FILE: &str = "run.json";
/// See [`RUN_FILE`].
pub const INTERVALS: &str = "intervals.csv";
/// See [`RUN_FILE`].
pub const VMS: &str = "vms.csv";
/// See [`RUN_FILE`].
pub const HOST: &str = "host.csv";
/// See [`RUN_FILE`].
pub const EVICTIONS: &str = "evictions.csv";
/// See [`RUN_FILE`].
pub const SLOW_FAULTS: &str = "slow-faults.csv";
/// See [`RUN_FILE`].
pub const MARKS: &str = "marks.csv";
/// See [`RUN_FILE`].
pub const SUMMARY_JSON: &str = "summary.json";
/// See [`RUN_FILE`].
pub const SUMMARY_CSV: &str = "summary.csv";
/// A VM's histogram log, in its own folder.
pub const LATENCY_LOG: &str = "latency.hlog";

/// The user behind sudo, who is to own what is written.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Owner {
    /// From `SUDO_UID` and `SUDO_GID`; `None` without sudo.
    pub fn behind_sudo() -> Option<Self> {
        let id = |name| std::env::var(name).ok()?.parse().ok();
        let (uid, gid) = (id("SUDO_UID")?, id("SUDO_GID")?);
        (uid != 0).then_some(Self { uid, gid })
    }
}

/// The folder of a recording.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    owner: Option<Owner>,
    /// Whether this process made it.
    made: bool,
}

impl Folder {
    /// Makes the folder of a recording, or takes an empty one.
    ///
    /// # Errors
    /// It is not empty, is no folder, or cannot be written.
    pub fn create(path: &Path, owner: Option<Owner>) -> Result<Self> {
        let folder = Self::make(path, owner)?;
        // Fails now rather than after the load test.
        drop(folder.append(INTERVALS)?);
        Ok(folder)
    }

    /// Makes a folder, or takes an empty one. Only its owner can look into it: rows hold guest
    /// addresses and tenants' names.
    ///
    /// # Errors
    /// It is not empty, is no folder, or cannot be made.
    pub fn make(path: &Path, owner: Option<Owner>) -> Result<Self> {
        let mut folder = Self { path: path.to_owned(), owner, made: false };
        match fs::read_dir(path) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    bail!("--out {}: the folder is not empty; name a new one", path.display());
                }
                folder.restrict()?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let missing: Vec<PathBuf> =
                    path.ancestors().take_while(|dir| !dir.exists()).map(Path::to_owned).collect();
                let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
                made.with_context(|| format!("--out {}: cannot make the folder", path.display()))?;
                folder.made = true;
                for dir in missing.iter().filter(|dir| dir.exists()) {
                    folder.give(dir)?;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
                bail!("--out {}: that is a file; name a new folder", path.display())
            }
            Err(error) => {
                return Err(error).with_context(|| format!("--out {}", path.display()));
            }
        }
        Ok(folder)
    }

    /// Takes the folder away again while nothing is recorded. One that was there
    /// before stays, empty.
    pub fn discard(&self) {
        // Whatever remains is empty and says so.
        let _ = fs::remove_file(self.file(INTERVALS));
        if self.made {
            let _ = fs::remove_dir(&self.path);
        }
    }

    /// An existing recording.
    pub fn open(path: &Path) -> Self {
        Self { path: path.to_owned(), owner: Owner::behind_sudo(), made: false }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a file to add to; makes it, and the folder that it is in.
    ///
    /// # Errors
    /// It cannot be made or opened.
    pub fn append(&self, name: &str) -> Result<File> {
        let path = self.file(name);
        let failed = || format!("cannot write {}", path.display());
        self.make_parent(&path).with_context(failed)?;
        let mut options = OpenOptions::new();
        let file =
            options.append(true).create(true).mode(0o600).open(&path).with_context(failed)?;
        self.give(&path)?;
        Ok(file)
    }

    /// Puts a whole file in place at once: readers see the old one or the new one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn replace(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.file(name);
        let failed = || format!("cannot write {}", path.display());
        let unfinished = self.file(&format!("{name}.new"));
        // Of somebody who was killed; or a link, which is not to be followed.
        let _ = fs::remove_file(&unfinished);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&unfinished).with_context(failed)?;
        file.write_all(content).with_context(failed)?;
        if let Some(owner) = self.owner {
            fchown(&file, Some(owner.uid), Some(owner.gid)).with_context(failed)?;
        }
        fs::rename(&unfinished, &path).with_context(failed)
    }

    /// As [`Self::replace`], but writes nothing where the file is already so: a finished
    /// recording can be read where nothing can be written.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn refresh(&self, name: &str, content: &[u8]) -> Result<()> {
        if fs::read(self.file(name)).is_ok_and(|there| there == content) {
            return Ok(());
        }
        self.replace(name, content)
    }

    /// As [`Self::refresh`]; makes the folder that the file is in.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.file(name);
        self.make_parent(&path).with_context(|| format!("cannot write {}", path.display()))?;
        self.refresh(name, content)
    }

    fn make_parent(&self, path: &Path) -> Result<()> {
        if let Some(parent) = path.parent()
            && !parent.exists()
        {
            DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
            for made in parent.ancestors().take_while(|made| *made != self.path) {
                self.give(made)?;
            }
        }
        Ok(())
    }

    fn restrict(&self) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let failed = || format!("--out {}: cannot restrict it to its owner", self.path.display());
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o700)).with_context(failed)?;
        self.give(&self.path)
    }

    fn give(&self, path: &Path) -> Result<()> {
        let Some(owner) = self.owner else {
            return Ok(());
        };
        chown(path, Some(owner.uid), Some(owner.gid))
            .with_context(|| format!("cannot give {} to the user behind sudo", path.display()))
    }
}
