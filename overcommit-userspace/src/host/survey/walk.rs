//! Walks the page tables of VMs, by what smaps tells.

use crate::host::memory_use::{Held, ProcessMemory, as_of_now, divide};
use crate::host::survey::LOOK;
use crate::kernel::clock;
use overcommit_recording::model::memory::MemoryUse;
use overcommit_recording::model::vm::VmId;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time between two walks of a VM that is no longer new, and holds more or less than at the last one, or
/// memory that others can map.
pub(super) const AGAIN: Duration = Duration::from_secs(10);
/// The same of one that holds what it held then, or whose walks take long.
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// Time between two walks of a VM, as a multiple of what one takes.
const SHARE: u32 = 100;
/// CPU time for walks at one look, new VMs left out; and no longer than until the next look. Whoever has
/// been due longest comes first, and the rest next time.
const AT_ONCE: Duration = Duration::from_millis(50);

/// What the page tables of each VM told, and when they are walked again.
pub(super) struct Walks {
    proc: PathBuf,
    walked: BTreeMap<VmId, Walked>,
}

#[derive(Default)]
struct Walked {
    memory: Option<ProcessMemory>,
    /// What the process held then.
    held: Option<Held>,
    /// What it held at the end of the last look.
    now: Option<Held>,
    /// When that was; `None` of one that never was.
    last: Option<Instant>,
    /// How long after that it may be walked again at the soonest.
    wait: Duration,
}

impl Walked {
    /// Since when it is due, if it is.
    fn due(&self, now: Instant) -> Option<Instant> {
        let Some(last) = self.last else { return Some(now) };
        let is_shared = self.memory.as_ref().is_some_and(ProcessMemory::is_shared);
        let held = self.held.zip(self.now).filter(|_| !is_shared);
        let is_same = held.is_some_and(|(then, now)| !now.differs(then));
        // The first few walks of a VM follow each other soon.
        let is_new = self.wait < AGAIN;
        let next = last + if is_same && !is_new { AGAIN_MAX } else { self.wait };
        (next <= now).then_some(next)
    }

    fn walk(&mut self, proc: &Path, pid: i32) {
        let start = Instant::now();
        if let Ok(memory) = ProcessMemory::read(proc, pid) {
            self.memory = Some(memory);
            self.held = Held::read(proc, pid);
        }
        let least = (start.elapsed() * SHARE).min(AGAIN_MAX);
        self.wait = (self.wait * 2).clamp(LOOK, AGAIN).max(least);
        self.last = Some(Instant::now());
    }
}

impl Walks {
    pub(super) fn new(proc: &Path) -> Self {
        Self { proc: proc.to_owned(), walked: BTreeMap::new() }
    }

    /// Walks the page tables of those whose turn it is: soon of a VM that is new, seldom
    /// of one that is large or stays as it is, and of a few where there are many. What is resident and
    /// swapped is as of now, and goes with what the host has available now.
    pub(super) fn walk(
        &mut self,
        ids: &BTreeSet<VmId>,
        goes_on: impl Fn() -> bool,
    ) -> BTreeMap<VmId, MemoryUse> {
        self.walked.retain(|id, _| ids.contains(id));
        for id in ids {
            self.walked.entry(*id).or_default();
        }
        self.walk_due(goes_on);
        // Last of all: this, and what the host has available, are of one moment.
        for (id, walked) in &mut self.walked {
            walked.now = walked.memory.as_ref().and_then(|_| Held::read(&self.proc, id.pid));
        }
        let known =
            self.walked.iter().filter_map(|(id, walked)| Some((*id, walked.memory.clone()?)));
        let mut memory = divide(&known.collect());
        for (id, memory) in &mut memory {
            let walked = &self.walked[id];
            *memory = as_of_now(*memory, walked.held, walked.now);
        }
        memory
    }

    fn walk_due(&mut self, goes_on: impl Fn() -> bool) {
        let (begun, taken) = (Instant::now(), clock::of_thread());
        for id in self.due(begun) {
            let Some(walked) = self.walked.get_mut(&id) else { continue };
            let is_enough = clock::of_thread().saturating_sub(taken) >= AT_ONCE;
            if walked.last.is_some() && (is_enough || begun.elapsed() >= LOOK) {
                continue;
            }
            if !goes_on() {
                break;
            }
            walked.walk(&self.proc, id.pid);
        }
    }

    /// Those whose turn it is, whoever has been due longest first.
    fn due(&self, now: Instant) -> Vec<VmId> {
        let due = self.walked.iter().filter_map(|(id, walked)| Some((walked.due(now)?, *id)));
        let mut due: Vec<(Instant, VmId)> = due.collect();
        due.sort_unstable();
        due.into_iter().map(|(_, id)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_changes_is_walked_before_who_does_not() {
        let mut walks = Walks::new(Path::new("/proc"));
        let id = |pid| VmId { pid, start_ticks: 1 };
        let [held, more] = [1 << 30, 2 << 30].map(|bytes| Some(Held::private(bytes)));
        let start = Instant::now();
        let walked =
            |held, now, wait: Duration| Walked { held, now, last: Some(start), wait, memory: None };
        walks.walked.insert(id(1), walked(held, held, AGAIN));
        walks.walked.insert(id(2), walked(held, more, AGAIN));
        walks.walked.insert(id(3), walked(held, held, LOOK));
        walks.walked.insert(id(4), Walked::default());
        let due = |after: Duration| walks.due(start + after);
        assert_eq!(due(Duration::ZERO), [id(4)], "only the one that never was");
        assert_eq!(due(LOOK), [id(3), id(4)]);
        assert_eq!(due(AGAIN), [id(3), id(2), id(4)]);
        assert_eq!(due(AGAIN_MAX), [id(3), id(2), id(1), id(4)]);
    }
}
