//! Walks the page tables of VMs, by what smaps tells.

use crate::host::memory_use::{Held, ProcessMemory, as_of_now, divide};
use crate::host::survey::{LOOK, SHARE};
use overcommit_recording::model::memory::MemoryUse;
use overcommit_recording::model::vm::VmId;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time between two walks of a VM that is no longer new.
pub(super) const AGAIN: Duration = Duration::from_secs(10);
/// Time for walks at one look; who is due longest comes first, and the rest next time.
const AT_ONCE: Duration = Duration::from_millis(20);
/// The most that it becomes where walks take long.
const AGAIN_MAX: Duration = Duration::from_secs(60);

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

impl Walked {
    /// One that is to be walked at once.
    fn new(now: Instant) -> Self {
        Self { memory: None, held: None, next: now, wait: Duration::ZERO }
    }

    fn walk(&mut self, proc: &Path, pid: i32) {
        let start = Instant::now();
        if let Ok(memory) = ProcessMemory::read(proc, pid) {
            self.memory = Some(memory);
            self.held = Held::read(proc, pid);
        }
        self.wait = (self.wait * 2).clamp(LOOK, AGAIN);
        let least = (start.elapsed() * SHARE).min(AGAIN_MAX);
        self.next = Instant::now() + self.wait.max(least);
    }
}

impl Walks {
    pub(super) fn new(proc: &Path) -> Self {
        Self { proc: proc.to_owned(), walked: BTreeMap::new() }
    }

    /// Walks the page tables of those whose turn it is: soon of a VM that is new, seldom
    /// of one that is large, and of a few where there are many. What is resident is as of now, and
    /// goes with what the host has available now.
    pub(super) fn walk(
        &mut self,
        ids: &BTreeSet<VmId>,
        goes_on: impl Fn() -> bool,
    ) -> BTreeMap<VmId, MemoryUse> {
        self.walked.retain(|id, _| ids.contains(id));
        let begun = Instant::now();
        for id in ids {
            self.walked.entry(*id).or_insert_with(|| Walked::new(begun));
        }
        let due = self.walked.iter().filter(|(_, walked)| walked.next <= begun);
        let mut due: Vec<(Instant, VmId)> = due.map(|(id, walked)| (walked.next, *id)).collect();
        due.sort_unstable();
        for (_, id) in due {
            let Some(walked) = self.walked.get_mut(&id) else { continue };
            let is_new = walked.wait.is_zero();
            if !is_new && begun.elapsed() >= AT_ONCE {
                continue;
            }
            if !goes_on() {
                break;
            }
            walked.walk(&self.proc, id.pid);
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
