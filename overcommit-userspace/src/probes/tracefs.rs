//! tracefs: the events that we make there, and where an event keeps its fields.

use crate::kernel::process_id;
use anyhow::{Context, Result, bail};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The group of all our events. An event outlives the process that made it, so its
/// name says who that is: `oPID_STARTTIME_NAME`.
const GROUP: &str = "overcommit";
/// Threads that can be inside a probed function at a time, on the whole host: the
/// most that the kernel takes (`KRETPROBE_MAXACTIVE_MAX`, kernel/trace/trace_kprobe.c).
const MAX_ACTIVE: u32 = 4096;

/// Where tracefs is: in its own place, else within debugfs, which mounts it when somebody
/// looks there, else mounted for this process alone.
///
/// A mount elsewhere is somebody else's, in a container's folder perhaps, and may go at any time.
///
/// # Errors
/// What to do without it: the kernel refuses that too, or this user may not look there.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places = usual_places(&mounts);
    let usual = places.iter().find(|place| place.join("events").exists()).cloned();
    usual.or_else(|| own_mount().cloned()).with_context(|| match places.first() {
        None => "tracefs is not mounted; mount -t tracefs nodev /sys/kernel/tracing".to_owned(),
        Some(place) => {
            format!("{} cannot be read; CAP_DAC_READ_SEARCH is missing", place.display())
        }
    })
}

/// Where tracefs may be found, the best place first.
fn usual_places(mounts: &str) -> Vec<PathBuf> {
    let place = Path::new("/sys/kernel/tracing");
    let is_mounted = all_mounted(mounts, "tracefs").any(|path| path == place);
    let own = is_mounted.then(|| place.to_owned());
    let debugfs = all_mounted(mounts, "debugfs").next();
    own.into_iter().chain(debugfs.map(|root| root.join("tracing"))).collect()
}

/// tracefs without a place: it is reached through its descriptor, which ends with the process.
fn own_mount() -> Option<&'static PathBuf> {
    static OWN: OnceLock<Option<(OwnedFd, PathBuf)>> = OnceLock::new();
    let mount = || -> Option<(OwnedFd, PathBuf)> {
        let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
        fsconfig_create(&context).ok()?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let mount = fsmount(&context, flags, MountAttrFlags::empty()).ok()?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        Some((mount, path))
    };
    OWN.get_or_init(mount).as_ref().map(|(_, path)| path)
}

/// Where a file system of that type is mounted.
pub fn mounted(kind: &str) -> Option<PathBuf> {
    all_mounted(&fs::read_to_string("/proc/self/mounts").ok()?, kind).next()
}

/// Everywhere, in the order of /proc/self/mounts.
fn all_mounted(mounts: &str, kind: &str) -> impl Iterator<Item = PathBuf> {
    mounts.lines().filter_map(move |line| {
        let mut words = line.split(' ').skip(1);
        let path = words.next()?;
        (words.next() == Some(kind)).then(|| PathBuf::from(path))
    })
}

/// Which end of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its entry.
    Entry,
    /// Its return.
    Return,
}

/// How often a probe was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Calls or returns that it saw.
    pub hits: u64,
    /// Those that it had to leave out: no entry of the pool was free, or another
    /// probe was being handled.
    pub misses: u64,
}

/// Events on kernel functions that this process has made. Dropping it removes them.
#[derive(Debug)]
pub struct FunctionEvents {
    root: PathBuf,
    owner: String,
    made: Vec<String>,
}

impl FunctionEvents {
    /// Removes what dead processes have left, and makes nothing yet.
    ///
    /// # Errors
    /// The kernel does not let us list or remove events.
    pub fn new(root: PathBuf) -> Result<Self> {
        remove_what_is_left(&root)?;
        let id = process_id(std::process::id().cast_signed())?;
        Ok(Self { root, owner: format!("o{}_{}", id.pid, id.start_ticks), made: Vec::new() })
    }

    /// Makes an event; gives its number for perf_event_open.
    ///
    /// # Errors
    /// The kernel has no such function or refuses to probe it.
    pub fn make(&mut self, name: &str, function: &str, end: End) -> Result<u64> {
        let event = format!("{}_{name}", self.owner);
        let kind = match end {
            End::Entry => "p".to_owned(),
            End::Return => format!("r{MAX_ACTIVE}"),
        };
        command(&self.root, &format!("{kind}:{GROUP}/{event} {function}"))
            .with_context(|| format!("the kernel refuses to probe {function}"))?;
        self.made.push(event.clone());
        let path = self.root.join(format!("events/{GROUP}/{event}/id"));
        let id =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        id.trim().parse().with_context(|| format!("{} holds {id:?}", path.display()))
    }

    /// What kprobe_profile says of an event.
    pub fn seen(&self, name: &str) -> Option<Seen> {
        let profile = fs::read_to_string(self.root.join("kprobe_profile")).ok()?;
        let event = format!("{}_{name}", self.owner);
        profile.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(&event)).then_some(())?;
            Some(Seen { hits: words.next()?.parse().ok()?, misses: words.next()?.parse().ok()? })
        })
    }
}

impl Drop for FunctionEvents {
    fn drop(&mut self) {
        for event in &self.made {
            // Whoever starts next removes what cannot be removed now.
            let _ = command(&self.root, &format!("-:{GROUP}/{event}"));
        }
        // The kernel may still have been at the end of one that was killed just before our start.
        let _ = remove_what_is_left(&self.root);
    }
}

/// Removes what dead processes have left.
fn remove_what_is_left(root: &Path) -> Result<()> {
    for event in left_behind(root)? {
        // Another overcommit may have been faster.
        let _ = command(root, &format!("-:{GROUP}/{event}"));
    }
    Ok(())
}

fn command(root: &Path, command: &str) -> Result<()> {
    let path = root.join("kprobe_events");
    let failed = || format!("cannot write {command:?} to {}", path.display());
    let mut file = OpenOptions::new().append(true).open(&path).with_context(failed)?;
    file.write_all(command.as_bytes()).with_context(failed)
}

/// Our events whose owner is gone.
///
/// # Errors
/// The list cannot be read.
pub fn left_behind(root: &Path) -> Result<Vec<String>> {
    let path = root.join("kprobe_events");
    let list =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(list.lines().filter_map(our_event).filter(|event| !owner_runs(event)).collect())
}

/// `r4096:overcommit/o12_345_return handle_mm_fault` → `o12_345_return`.
fn our_event(line: &str) -> Option<String> {
    let (_, rest) = line.split_once(':')?;
    let name = rest.strip_prefix(GROUP)?.strip_prefix('/')?;
    name.split_whitespace().next().map(str::to_owned)
}

fn owner_runs(event: &str) -> bool {
    let owner = || {
        let (pid, rest) = event.strip_prefix('o')?.split_once('_')?;
        let (ticks, _) = rest.split_once('_')?;
        Some((pid.parse::<i32>().ok()?, ticks.parse::<u64>().ok()?))
    };
    // One that is named otherwise is not ours to remove.
    owner().is_none_or(|(pid, ticks)| process_id(pid).is_ok_and(|id| id.start_ticks == ticks))
}

/// The number of a tracepoint for perf_event_open.
///
/// # Errors
/// The kernel, or a module that is not loaded, does not have it.
pub fn tracepoint_id(root: &Path, name: &str) -> Result<u64> {
    let path = root.join("events").join(name).join("id");
    match fs::read_to_string(&path) {
        Ok(text) => {
            text.trim().parse().with_context(|| format!("{} holds {text:?}", path.display()))
        }
        Err(error) => bail!("no tracepoint {name}: {}: {error}", path.display()),
    }
}

/// Where the record of a tracepoint keeps its fields.
pub struct Format(String);

impl Format {
    /// Of a tracepoint in that group's folder.
    ///
    /// # Errors
    /// It is not there.
    pub fn read(group: &Path, tracepoint: &str) -> Result<Self> {
        let path = group.join(tracepoint).join("format");
        let text = fs::read_to_string(&path);
        Ok(Self(text.with_context(|| format!("cannot read {}", path.display()))?))
    }

    /// Offset of a field, in bytes.
    pub fn offset(&self, name: &str) -> Option<u64> {
        self.0.lines().find_map(|line| {
            let mut parts = line.trim().split(';');
            let declaration = parts.next()?.strip_prefix("field:")?;
            let declared = declaration.rsplit(' ').next()?;
            (declared.split('[').next() == Some(name)).then_some(())?;
            parts.next()?.trim().strip_prefix("offset:")?.parse().ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "name: kvm_exit\nformat:\n\
            \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
            \tfield:unsigned int exit_reason;\toffset:8;\tsize:4;\tsigned:0;\n\
            \tfield:u64 info1;\toffset:32;\tsize:8;\tsigned:0;\n\
            \tfield:u8 bytes[15];\toffset:40;\tsize:15;\tsigned:0;\n";
        let format = Format(text.to_owned());
        assert_eq!(format.offset("exit_reason"), Some(8));
        assert_eq!(format.offset("info1"), Some(32));
        assert_eq!(format.offset("bytes"), Some(40));
        assert_eq!(format.offset("reason"), None);
    }

    #[test]
    fn a_tracefs_in_somebody_elses_folder_is_left_alone() {
        let chroot = "nodev /srv/chroot/sys/kernel/tracing tracefs rw 0 0\n";
        assert!(usual_places(chroot).is_empty());
        let debugfs = format!("{chroot}debugfs /sys/kernel/debug debugfs rw 0 0\n");
        assert_eq!(usual_places(&debugfs), [Path::new("/sys/kernel/debug/tracing")]);
        let both = format!("{debugfs}tracefs /sys/kernel/tracing tracefs rw 0 0\n");
        let places = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"].map(Path::new);
        assert_eq!(usual_places(&both), places);
    }

    #[test]
    fn only_events_of_dead_owners_are_left_behind() {
        let root = tempfile::tempdir().unwrap();
        let me = process_id(std::process::id().cast_signed()).unwrap();
        let list = format!(
            "p:overcommit/o{}_{}_entry handle_mm_fault\n\
             r4096:overcommit/o1_999999999999_return handle_mm_fault\n\
             p:overcommit/odd handle_mm_fault\np:other/o1_1_entry do_exit\n",
            me.pid, me.start_ticks
        );
        fs::write(root.path().join("kprobe_events"), list).unwrap();
        assert_eq!(left_behind(root.path()).unwrap(), ["o1_999999999999_return"]);
    }
}
