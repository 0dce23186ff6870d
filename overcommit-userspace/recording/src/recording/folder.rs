//! The folder of a recording: whose it is, and how files in it are made.

use crate::format::text::reason;
use crate::recording::beneath::{self, Ids};
use crate::recording::owner::{Owner, as_user};
use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::io::{Error, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
/// See [`RUN_FILE`].
pub const REPORT: &str = "report.html";
/// A VM's histogram log, in its own folder.
pub const LATENCY_LOG: &str = "latency.hlog";

/// Bytes of the largest file that is read as a whole: run.json has some 2 kB a VM, and 300 bytes a
/// vCPU.
const LARGEST: u64 = 64 << 20;

/// The folder of a recording. It stays the same one, whatever is put in its place, and everything
/// in it is opened beneath it, see [`beneath`].
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    held: Arc<OwnedFd>,
    /// The user who ran sudo, if it belongs to them.
    owner: Option<Owner>,
    /// Whether this process made it.
    made: bool,
}

impl Folder {
    /// Makes the folder of a recording, or takes an empty one.
    ///
    /// # Errors
    /// It is not empty, is somebody else's, is no folder, or cannot be written.
    pub fn create(path: &Path, owner: Option<Owner>) -> Result<Self> {
        let folder = Self::make(path, owner)?;
        // Fails now rather than after the load test.
        folder.append(INTERVALS).inspect_err(|_| folder.discard())?;
        Ok(folder)
    }

    /// Makes a folder as the user who is to own it, or takes an empty one of theirs. Only they can
    /// look into it: rows hold guest addresses and tenants' names.
    ///
    /// # Errors
    /// It is not empty, is somebody else's, is no folder, or the user may not make it.
    pub fn make(path: &Path, owner: Option<Owner>) -> Result<Self> {
        let made = as_user(owner, || made(path));
        let (dir, made) = made.with_context(|| format!("--out {}", path.display()))?;
        Ok(Self { path: path.to_owned(), held: Arc::new(dir), owner, made })
    }

    /// Takes the folder away again while nothing is recorded. One that was there
    /// before stays, empty.
    pub fn discard(&self) {
        // Whatever remains is empty and says so.
        let _ = beneath::remove_folders(&self.held, "vms", LATENCY_LOG);
        for name in [RUN_FILE, INTERVALS, VMS, HOST, EVICTIONS, SLOW_FAULTS, MARKS] {
            let _ = beneath::remove(&self.held, name);
        }
        if self.made {
            let _ = as_user(self.owner, || Ok(fs::remove_dir(&self.path)?));
        }
    }

    /// An existing recording.
    ///
    /// # Errors
    /// It is not there, is no folder, or cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let dir = beneath::folder(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => anyhow!("{} is not there", path.display()),
            ErrorKind::NotADirectory => {
                anyhow!("{} is a file; name the folder of the recording", path.display())
            }
            _ => anyhow!("cannot read {}: {}", path.display(), reason(&error)),
        })?;
        let its = rustix::fs::fstat(&dir)?.st_uid;
        // Whoever cannot be told owns nothing here.
        let owner = Owner::behind_sudo().ok().flatten().filter(|owner| owner.uid == its);
        Ok(Self { path: path.to_owned(), held: Arc::new(dir), owner, made: false })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it, to be named to a user.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether it belongs to this user, or to the one behind sudo: only there is anything written.
    pub fn is_ours(&self) -> bool {
        self.to_write().is_ok()
    }

    /// Does something by its path, as the user whom it belongs to.
    ///
    /// # Errors
    /// As `act`, or the user cannot be acted for.
    pub fn as_owner<T: Send>(&self, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        as_user(self.owner, act)
    }

    /// The folder itself, to be locked.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn descriptor(&self) -> std::io::Result<File> {
        Ok(File::from(self.held.try_clone()?))
    }

    /// Whether there is something of that name.
    pub fn has(&self, name: &str) -> bool {
        rustix::fs::statat(&self.held, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Opens a file to read. A link is not followed.
    ///
    /// # Errors
    /// It is not there, is no regular file, or cannot be read.
    pub fn read(&self, name: &str) -> Result<File> {
        let failed = || format!("cannot read {}", self.file(name).display());
        beneath::read(&self.held, name).with_context(failed)
    }

    /// All that is in a file.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn content(&self, name: &str) -> Result<Vec<u8>> {
        let failed = || format!("cannot read {}", self.file(name).display());
        let mut content = Vec::new();
        self.read(name)?.take(LARGEST + 1).read_to_end(&mut content).with_context(failed)?;
        if content.len() as u64 > LARGEST {
            return Err(anyhow!("it has more than {LARGEST} bytes")).with_context(failed);
        }
        Ok(content)
    }

    /// Opens a file to add to; makes it, and the folder that it is in.
    ///
    /// # Errors
    /// It cannot be made or opened, or is a link.
    pub fn append(&self, name: &str) -> Result<File> {
        let open = || {
            let (parent, name) = beneath::parent(self.to_write()?, name, self.ids())?;
            match beneath::make(&parent, name, OFlags::APPEND, self.ids()) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    beneath::write(&parent, name, OFlags::APPEND)
                }
                made => made,
            }
        };
        open().with_context(|| format!("cannot write {}", self.file(name).display()))
    }

    /// Puts a whole file in place at once: readers see the old one or the new one. Makes the
    /// folder that it is in.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn replace(&self, name: &str, content: &[u8]) -> Result<()> {
        let put = || {
            let (parent, name) = beneath::parent(self.to_write()?, name, self.ids())?;
            beneath::replace(&parent, name, content, self.ids())
        };
        put().with_context(|| format!("cannot write {}", self.file(name).display()))
    }

    /// As [`Self::replace`], but writes nothing where the file is already so: a finished
    /// recording can be read where nothing can be written.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn refresh(&self, name: &str, content: &[u8]) -> Result<()> {
        if self.content(name).is_ok_and(|there| there == content) {
            return Ok(());
        }
        self.replace(name, content)
    }

    /// Cuts a file off.
    ///
    /// # Errors
    /// It is not there, or cannot be written.
    pub fn cut(&self, name: &str, end: u64) -> Result<()> {
        let cut = || {
            let dir = self.to_write()?;
            if beneath::read(dir, name)?.metadata()?.len() > end {
                beneath::write(dir, name, OFlags::empty())?.set_len(end)?;
            }
            Ok::<_, Error>(())
        };
        cut().with_context(|| format!("cannot mend {}", self.file(name).display()))
    }

    /// Takes the folder of a VM away, with its log.
    ///
    /// # Errors
    /// It is not there, holds anything else, or the folder cannot be written.
    pub fn remove_vm(&self, name: &str) -> Result<()> {
        let remove = || {
            let vms = beneath::subfolder(self.to_write()?, "vms", self.ids())?;
            beneath::remove_folder(&vms, name, LATENCY_LOG)
        };
        remove().with_context(|| format!("cannot remove {}", self.file("vms").join(name).display()))
    }

    /// The folder, to write into.
    fn to_write(&self) -> std::io::Result<&OwnedFd> {
        let its = rustix::fs::fstat(&self.held)?;
        let is_ours = self.owner.is_some() || its.st_uid == rustix::process::geteuid().as_raw();
        if !is_ours {
            return Err(Error::other("the folder belongs to another user"));
        }
        if Mode::from_raw_mode(its.st_mode).contains(Mode::WOTH) {
            return Err(Error::other("everybody may write into the folder"));
        }
        Ok(&self.held)
    }

    fn ids(&self) -> Option<Ids> {
        self.owner.map(|owner| (owner.uid, owner.gid))
    }
}

/// Makes the folder, or takes an empty one, as whoever we are; and whether it was made.
fn made(path: &Path) -> Result<(OwnedFd, bool)> {
    match path.symlink_metadata() {
        Ok(there) if there.is_symlink() => bail!("that is a link; name a new folder"),
        Ok(there) if !there.is_dir() => bail!("that is a file; name a new folder"),
        Ok(_) => Ok((take(path)?, false)),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Ok((make_all(path).context("cannot make the folder")?, true))
        }
        Err(error) => Err(error.into()),
    }
}

/// Takes a folder that is there, if it is empty and ours.
fn take(path: &Path) -> Result<OwnedFd> {
    let dir = beneath::folder(path)?;
    let is_ours = rustix::fs::fstat(&dir)?.st_uid == rustix::process::geteuid().as_raw();
    ensure!(is_ours, "the folder belongs to another user; name a new one");
    let is_empty = || {
        let mut entries = Dir::read_from(&dir)?;
        let is_own = |name: &CStr| [c".", c".."].contains(&name);
        let other = entries.find(|entry| entry.as_ref().is_ok_and(|e| !is_own(e.file_name())));
        Ok::<_, Error>(other.is_none())
    };
    ensure!(is_empty()?, "the folder is not empty; name a new one");
    rustix::fs::fchmod(&dir, Mode::RWXU).context("cannot restrict it to its owner")?;
    // Nobody can have put anything there since.
    ensure!(is_empty()?, "the folder is not empty; name a new one");
    Ok(dir)
}

/// Makes the folder and those around it.
fn make_all(path: &Path) -> Result<OwnedFd> {
    let (above, missing) = missing(path);
    let mut dir = beneath::folder(above)?;
    for name in missing {
        let name = name.to_str().context("its name is not UTF-8")?;
        dir = beneath::subfolder(&dir, name, None)?;
    }
    Ok(dir)
}

/// The nearest folder around a path that is there, and the names from there on.
fn missing(path: &Path) -> (&Path, Vec<&OsStr>) {
    // The last of a relative path's is the empty one, which stands for the folder we are in.
    let is_there = |dir: &&Path| dir.as_os_str().is_empty() || dir.exists();
    let above = path.ancestors().find(is_there).unwrap_or(path);
    let rest = path.strip_prefix(above).unwrap_or(path);
    let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
    (above, rest.iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn what_is_missing_of_a_path_is_made() {
        let of = |path: &'static str| {
            let (above, names) = missing(Path::new(path));
            (above.to_str().unwrap(), names.join(OsStr::new("/")).into_string().unwrap())
        };
        assert_eq!(of("not-there"), (".", "not-there".to_owned()));
        assert_eq!(of("./not-there/a"), (".", "not-there/a".to_owned()));
        assert_eq!(of("/not-there/a"), ("/", "not-there/a".to_owned()));
        assert_eq!(of("/proc/not-there"), ("/proc", "not-there".to_owned()));
    }

    /// A folder, and a file elsewhere with something precious in it.
    fn folder() -> (tempfile::TempDir, Folder, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::create(&dir.path().join("run"), None).unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        (dir, folder, victim)
    }

    fn is_unharmed(victim: &Path) -> bool {
        fs::read_to_string(victim).unwrap() == "precious"
    }

    #[test]
    fn a_file_is_read_as_a_whole_up_to_a_limit() {
        let (_dir, folder, _) = folder();
        let file = File::create(folder.file(RUN_FILE)).unwrap();
        file.set_len(LARGEST + 1).unwrap();
        assert!(format!("{:#}", folder.content(RUN_FILE).unwrap_err()).contains("more than"));
    }

    #[test]
    fn no_link_is_followed() {
        let (dir, folder, victim) = folder();
        symlink(&victim, folder.file(MARKS)).unwrap();
        let error = format!("{:#}", folder.append(MARKS).unwrap_err());
        assert!(error.contains("behind a link"), "{error}");
        assert!(folder.read(MARKS).is_err() && folder.cut(MARKS, 0).is_err());
        symlink(&victim, folder.file("run.json.new")).unwrap();
        folder.replace(RUN_FILE, b"{}").unwrap();
        assert_eq!(fs::read_to_string(folder.file(RUN_FILE)).unwrap(), "{}");
        // What is replaced is the link itself.
        folder.replace(MARKS, b"text").unwrap();
        assert!(!folder.file(MARKS).is_symlink());
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, folder.file("vms")).unwrap();
        assert!(folder.append("vms/web/latency.hlog").is_err());
        assert!(folder.replace("vms/web/fault.major.hgrm", b"").is_err());
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        assert!(is_unharmed(&victim));
    }

    #[test]
    fn nothing_outside_is_reached_by_name() {
        let (_dir, folder, victim) = folder();
        assert!(folder.append("../victim").is_err() && folder.replace("../victim", b"").is_err());
        assert!(folder.append("vms/../../victim").is_err());
        assert!(folder.read("../victim").is_err());
        fs::hard_link(&victim, folder.file(MARKS)).unwrap();
        let error = format!("{:#}", folder.append(MARKS).unwrap_err());
        assert!(error.contains("another name elsewhere"), "{error}");
        assert!(folder.cut(MARKS, 0).is_err() && is_unharmed(&victim));
    }

    #[test]
    fn it_stays_the_same_folder() {
        let (dir, folder, _) = folder();
        folder.replace(RUN_FILE, b"{}").unwrap();
        let folder = Folder::open(folder.path()).unwrap();
        let other = dir.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::rename(folder.path(), dir.path().join("moved")).unwrap();
        symlink(&other, folder.path()).unwrap();
        folder.replace(SUMMARY_JSON, b"{}").unwrap();
        folder.append(MARKS).unwrap();
        assert!(folder.has(MARKS) && folder.content(RUN_FILE).unwrap() == b"{}");
        assert_eq!(fs::read_dir(&other).unwrap().count(), 0);
        assert!(dir.path().join("moved/marks.csv").exists());
    }

    #[test]
    fn nothing_is_written_where_everybody_may() {
        let (_dir, folder, _) = folder();
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o1777)).unwrap();
        let folder = Folder::open(folder.path()).unwrap();
        assert!(!folder.is_ours());
        let error = format!("{:#}", folder.append(MARKS).unwrap_err());
        assert!(error.contains("everybody may write"), "{error}");
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let (_dir, folder, _) = folder();
        let fifo = folder.file(MARKS);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        let error = format!("{:#}", folder.read(MARKS).unwrap_err());
        assert!(error.contains("no regular file"), "{error}");
    }

    #[test]
    fn a_folder_is_new_or_empty_and_no_link() {
        let (dir, folder, _) = folder();
        let make = |path: &Path| Folder::create(path, None).map_err(|error| format!("{error:#}"));
        assert!(make(folder.path()).unwrap_err().contains("not empty"));
        let empty = dir.path().join("empty");
        fs::create_dir(&empty).unwrap();
        let link = dir.path().join("link");
        symlink(&empty, &link).unwrap();
        assert!(make(&link).unwrap_err().contains("that is a link"));
        make(&empty).unwrap().discard();
        assert!(empty.exists(), "it was there before");
        let deep = dir.path().join("a/b/c");
        make(&deep).unwrap().discard();
        assert!(!deep.exists() && deep.parent().unwrap().exists());
    }
}
