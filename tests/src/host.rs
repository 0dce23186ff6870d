//! Memory limits and settings of this host.

use crate::run;
use crate::undo::Undo;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A script that tries a command until it ends well: the kernel takes a while to let go of a
/// cgroup or a device. In the end its error is shown.
pub(crate) fn retried(command: &str) -> String {
    format!(
        "tries=0\nuntil {{ {command}; }} 2> /dev/null; do\n    tries=$((tries + 1))\n    \
         [ $tries -lt 600 ] || {{ {command}; }}\n    sleep 0.1\ndone"
    )
}

/// A word for the shell.
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Writes a kernel file.
///
/// # Errors
/// The kernel refuses.
pub fn write(path: impl AsRef<Path>, text: &str) -> Result<()> {
    let path = path.as_ref();
    fs::write(path, text).with_context(|| format!("cannot write {text:?} to {}", path.display()))
}

/// Reads a kernel file.
///
/// # Errors
/// The kernel refuses.
pub fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A counter of a file with a name and a number on each line.
///
/// # Errors
/// There is none of that name.
pub fn counter(path: &Path, name: &str) -> Result<u64> {
    let text = read(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = line.with_context(|| format!("{} has no {name}", path.display()))?;
    Ok(value.trim().parse()?)
}

/// Pages that the host has swapped out. One of zeros is not written, and counted apart.
///
/// # Errors
/// The kernel does not tell.
pub fn swapped_out() -> Result<u64> {
    let vmstat = Path::new("/proc/vmstat");
    Ok(counter(vmstat, "pswpout")? + counter(vmstat, "swpout_zero").unwrap_or(0))
}

/// tracefs, mounted where it is looked for first.
pub struct Tracefs {
    _undo: Option<Undo>,
}

impl Tracefs {
    /// Mounts it, if it is not.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn mounted() -> Result<Self> {
        let path = "/sys/kernel/tracing";
        if read("/proc/self/mounts")?.contains(&format!(" {path} tracefs ")) {
            return Ok(Self { _undo: None });
        }
        let script = format!("! grep -q ' {path} tracefs ' /proc/self/mounts || umount {path}");
        let undo = Undo::script("tracefs", &script)?;
        run(Command::new("mount").args(["-t", "tracefs", "nodev", path]))?;
        Ok(Self { _undo: Some(undo) })
    }
}

/// A memory cgroup of its own, in either version.
pub struct MemoryCgroup {
    path: PathBuf,
    limit: &'static str,
    _undo: Undo,
    /// Dropped after the cgroup: its parent's switch.
    _controller: Option<Undo>,
}

impl MemoryCgroup {
    /// Makes a cgroup without a limit.
    ///
    /// # Errors
    /// The host has no memory controller, or refuses.
    pub fn new(name: &str) -> Result<Self> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let mut controller = None;
        let (root, limit) = if v1.exists() {
            (v1, "memory.limit_in_bytes")
        } else {
            let root = Path::new("/sys/fs/cgroup");
            let switch = root.join("cgroup.subtree_control");
            if !read(&switch)?.contains("memory") {
                let script = format!("echo -memory > {}", switch.display());
                controller = Some(Undo::script("memory controller", &script)?);
            }
            write(switch, "+memory")?;
            (root, "memory.max")
        };
        let path = root.join(format!("overcommit-{name}-{}", std::process::id()));
        Self::make(path, limit, controller)
    }

    /// One within it, without a limit of its own.
    ///
    /// # Errors
    /// The host refuses.
    pub fn child(&self, name: &str) -> Result<Self> {
        if self.limit == "memory.max" {
            write(self.path.join("cgroup.subtree_control"), "+memory")?;
        }
        Self::make(self.path.join(name), self.limit, None)
    }

    fn make(path: PathBuf, limit: &'static str, controller: Option<Undo>) -> Result<Self> {
        let script = retried(&format!("[ ! -d {path} ] || rmdir {path}", path = path.display()));
        let undo = Undo::script("memory cgroup", &script)?;
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path, limit, _undo: undo, _controller: controller })
    }

    /// Limits it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn limit(&self, mebibytes: u64) -> Result<()> {
        write(self.path.join(self.limit), &(mebibytes << 20).to_string())
    }

    /// Has what needs more than the limit killed: none of it may go to swap.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn without_swap(&self) -> Result<()> {
        let v2 = self.path.join("memory.swap.max");
        if v2.exists() { write(v2, "0") } else { write(self.path.join("memory.swappiness"), "0") }
    }

    /// Holds back what needs more than that (v2).
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn hold_back(&self, mebibytes: u64) -> Result<()> {
        write(self.path.join("memory.high"), &(mebibytes << 20).to_string())
    }

    /// Bytes that it holds (v2).
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn charged(&self) -> Result<u64> {
        Ok(read(self.path.join("memory.current"))?.trim().parse()?)
    }

    /// Has the kernel take that much of it away (v2).
    ///
    /// # Errors
    /// The kernel refuses, or finds too little.
    pub fn reclaim(&self, mebibytes: u64) -> Result<()> {
        write(self.path.join("memory.reclaim"), &(mebibytes << 20).to_string())
    }

    /// Has the kernel take all of it away that it can, once (v1).
    ///
    /// # Errors
    /// The kernel has no such switch.
    pub fn push_out(&self) -> Result<()> {
        write(self.path.join("memory.force_empty"), "0")
    }

    /// A command for a shell that does so that many times, with a tenth of a second between two;
    /// the kernel says no where something stays.
    pub fn push_out_script(&self, times: u32) -> String {
        let path = quote(&self.path.join("memory.force_empty").display().to_string());
        // The kernel goes on as long as it finds something, as it does of a guest that runs.
        let push = format!("timeout 0.3 sh -c 'echo 0 > \"$0\"' {path}");
        format!("for _ in $(seq {times}); do {push}; sleep 0.1; done 2>/dev/null")
    }

    /// Has the kernel take away what a process in it has not touched since [`forget_use`].
    ///
    /// # Errors
    /// The kernel refuses, or finds too little.
    pub fn take_unused(&self, pid: u32) -> Result<()> {
        let rollup = read(format!("/proc/{pid}/smaps_rollup"))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Referenced:"));
        let used = line.and_then(|text| text.split_whitespace().next());
        let used: u64 = used.context("the kernel does not tell what is used")?.parse()?;
        let limit = self.path.join(self.limit);
        write(&limit, &(used << 10).to_string())?;
        write(&limit, "-1")
    }

    /// A counter of its memory.stat.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn stat(&self, name: &str) -> Result<u64> {
        counter(&self.path.join("memory.stat"), name)
    }

    /// The file to which a process is written to be moved there.
    pub fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }
}

/// From now on what a process does not touch is unused.
///
/// # Errors
/// There is no such process.
pub fn forget_use(pid: u32) -> Result<()> {
    write(format!("/proc/{pid}/clear_refs"), "1")
}

/// A setting of the kernel, put back when it is dropped.
pub struct Setting {
    _undo: Undo,
}

impl Setting {
    /// Writes it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(path: &'static str, value: &str) -> Result<Self> {
        let before = read(path)?;
        // Of several that can be chosen the one in brackets is.
        let before = before.split(['[', ']']).nth(1).unwrap_or(before.trim()).to_owned();
        // The kernel may be busy with what a program that just ended has left.
        let set = |value: &str| retried(&format!("printf %s {} > {path}", quote(value)));
        let undo = Undo::script(path, &set(&before))?;
        run(Command::new("sh").args(["-eu", "-c", &set(value)]))?;
        Ok(Self { _undo: undo })
    }

    /// Swap is read page by page, without its neighbours.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn no_readahead() -> Result<Self> {
        Self::new("/proc/sys/vm/page-cluster", "0")
    }

    /// No transparent huge pages: with them a squeezed cgroup ends in an out-of-memory
    /// kill instead of swapping.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn small_pages() -> Result<Self> {
        Self::new("/sys/kernel/mm/transparent_hugepage/enabled", "never")
    }
}
