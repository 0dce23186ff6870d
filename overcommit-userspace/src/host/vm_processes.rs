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
}

impl VmProcesses {
    /// Of the processes below `proc`; nothing is known yet.
    pub fn new(proc: &Path) -> Self {
        Self { proc: proc.to_owned(), discovery: Discovery::new(proc), known: RefCell::default() }
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
}
