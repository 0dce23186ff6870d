//! Walks the page tables of VMs, by what smaps tells.

use crate::host::memory_use::{Held, ProcessMemory, as_of_now, divide};
use crate::host::survey::LOOK;
use overcommit_recording::model::memory::MemoryUse;
use overcommit_recording::model::vm::VmId;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time between two walks of a VM that is no longer new.
pub(super) const AGAIN: Duration = Duration::from_secs(10);
/// The most that it becomes where walks take long.
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// Time between two walks, in times of what one takes.
const SHARE: u32 = 100;

/// What the page tables of each VM told, and when they are walked again.
pub(super) struct Walks {
    proc: PathBuf,
    walked: BTreeMap<VmId, Walked>,
}

struct Walked {
    memory: Option<ProcessMemory>,
    /// What the process held then.
    held: Option<Held>,
    next: Instant,
    wait: Duration,
}

impl Walks {
    pub(super) fn new(proc: &Path) -> Self {
        Self { proc: proc.to_owned(), walked: BTreeMap::new() }
    }

    /// Walks the page tables of those whose turn it is: soon of a VM that is new, seldom
    /// of one that is large. What is resident is as of now, and goes with what the host has
    /// available now.
    pub(super) fn walk(
        &mut self,
        ids: &BTreeSet<VmId>,
        goes_on: impl Fn() -> bool,
    ) -> BTreeMap<VmId, MemoryUse> {
        self.walked.retain(|id, _| ids.contains(id));
        for id in ids.iter().copied() {
            let start = Instant::now();
            let walked = self.walked.entry(id);
            let walked = walked.or_insert(Walked {
                memory: None,
                held: None,
                next: start,
                wait: Duration::ZERO,
            });
            if start < walked.next {
                continue;
            }
            if !goes_on() {
                break;
            }
            if let Ok(memory) = ProcessMemory::read(&self.proc, id.pid) {
                walked.memory = Some(memory);
                walked.held = Held::read(&self.proc, id.pid);
            }
            walked.wait = (walked.wait * 2).clamp(LOOK, AGAIN);
            let least = (start.elapsed() * SHARE).min(AGAIN_MAX);
            walked.next = Instant::now() + walked.wait.max(least);
        }
        let known =
            self.walked.iter().filter_map(|(id, walked)| Some((*id, walked.memory.clone()?)));
        let mut memory = divide(&known.collect());
        for (id, memory) in &mut memory {
            let then = self.walked[id].held;
            *memory = as_of_now(*memory, then, Held::read(&self.proc, id.pid));
        }
        memory
    }
}
