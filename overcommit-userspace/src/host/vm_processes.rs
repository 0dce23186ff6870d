//! Which processes are VMs. Many VMs can lie in one cgroup with other processes, and each VM asks about
//! all of those: what was found out is remembered for a look.

use crate::vm::Discovery;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What one look at the host finds out.
pub struct VmProcesses {
    proc: PathBuf,
    discovery: Discovery,
    known: RefCell<HashMap<i32, bool>>,
    /// A VM in each cgroup that holds several.
    together: RefCell<HashMap<PathBuf, i32>>,
}

impl VmProcesses {
    /// Of the processes below `proc`; nothing is known yet.
    pub fn new(proc: &Path) -> Self {
        let (known, together) = Default::default();
        Self { proc: proc.to_owned(), discovery: Discovery::new(proc), known, together }
    }

    /// Where processes are listed.
    pub fn proc(&self) -> &Path {
        &self.proc
    }

    /// Whether that one is a VM.
    pub fn is_vm(&self, pid: i32) -> bool {
        let mut known = self.known.borrow_mut();
        *known.entry(pid).or_insert_with(|| self.discovery.inspect(pid).is_some())
    }

    /// Notes that a VM lies in a cgroup that another process asks about.
    pub fn lies_with_another(&self, cgroup: &Path, pid: i32) {
        self.together.borrow_mut().insert(cgroup.to_owned(), pid);
    }

    /// Whether a cgroup is known to hold a VM that is not this one.
    pub fn holds_another(&self, cgroup: &Path, pid: i32) -> bool {
        self.together.borrow().get(cgroup).is_some_and(|other| *other != pid)
    }
}
