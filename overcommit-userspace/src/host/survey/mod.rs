//! What takes too long to be looked at between two drains: monitors that may hang, page
//! tables that are walked, windows that are waited for. Two threads look at it again and
//! again; whoever asks gets what was found last.

mod ask;
mod departed;
mod walk;

use crate::host::memory_use;
use crate::host::numa::Numa;
use crate::host::working_set::Wanted;
use crate::host::working_set::follow::{Follower, Measured, Target};
use crate::kernel;
use crate::vm::discovery::Discovery;
use anyhow::{Context, Result};
use ask::{Ask, Turned};
use overcommit_recording::model::balloon::Balloon;
use overcommit_recording::model::exit::Departure;
use overcommit_recording::model::memory::{HostMemory, MemoryUse, WorkingSet};
use overcommit_recording::model::pattern::Pattern;
use overcommit_recording::model::vm::{Vm, VmId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use walk::Walks;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// Longest time that the end of a recording waits for a look that has begun.
const END: Duration = Duration::from_secs(2);

/// What the user wants looked at.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--monitor`: a monitor for the VMs of a pattern.
    pub monitors: Vec<(Pattern, PathBuf)>,
    /// `--guest-stats`: have guests report.
    pub guest_stats: bool,
    /// `--working-set`
    pub working_set: Wanted,
    /// Whether the multi-generational LRU sees what guests touch; see
    /// [`crate::kernel::layout::KernelLayout::mglru_sees_guests`].
    pub mglru_sees_guests: bool,
}

/// What was found of a VM.
#[derive(Clone, Debug, Default)]
pub struct VmFound {
    /// Its balloon; why nobody says, if so.
    pub balloon: Option<Result<Balloon, String>>,
    /// What it holds.
    pub memory: Option<MemoryUse>,
    /// What it uses; why that is not measured, if so.
    pub working_set: Option<Result<WorkingSet, String>>,
}

/// What was found last.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// By VM.
    pub vms: BTreeMap<VmId, VmFound>,
    /// VMs of the same host that are not followed, and what they hold.
    pub others: Vec<(Vm, MemoryUse)>,
    /// What takes memory beside them.
    pub host: Option<HostMemory>,
    /// Its nodes, and who is bound to some.
    pub numa: Numa,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    /// `None` until it is said for the first time whom to look at.
    targets: Option<Vec<Target>>,
    found: Found,
    /// VMs that are gone, until they are asked for.
    departed: BTreeMap<VmId, Departure>,
    is_over: bool,
    /// Threads that look.
    running: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits; whether to go on.
    fn rest(&self, time: Duration) -> bool {
        let state = self.lock();
        let waited = self.wake.wait_timeout_while(state, time, |state| !state.is_over);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !state.is_over
    }

    /// Whom to look at, once that is said; `None` when it is over.
    fn targets(&self) -> Option<Vec<Target>> {
        let waits = |state: &mut State| state.targets.is_none() && !state.is_over;
        let state = self.wake.wait_while(self.lock(), waits);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        state.targets.clone().filter(|_| !state.is_over)
    }

    /// Notes something of VMs that are still there.
    fn note<T>(&self, found: BTreeMap<VmId, T>, mut note: impl FnMut(&mut VmFound, T)) {
        let mut state = self.lock();
        for (id, what) in found {
            if let Some(vm) = state.found.vms.get_mut(&id) {
                note(vm, what);
            }
        }
    }
}

/// The threads. Dropping it ends them, and puts back what they changed.
pub struct Survey {
    shared: Arc<Shared>,
    turned: Arc<Turned>,
}

impl Survey {
    /// Starts them.
    ///
    /// # Errors
    /// There can be no more threads, or no runtime.
    pub fn start(proc: &Path, sys: &Path, options: &Options) -> Result<Self> {
        let (shared, turned) = (Arc::new(Shared::default()), Arc::default());
        let mut surveyor = Surveyor {
            proc: proc.to_owned(),
            sys: sys.to_owned(),
            page_size: kernel::page_size(),
            ask: Ask::new(proc, options, Arc::clone(&turned)),
            walks: Walks::new(proc),
            discovery: Discovery::new(proc),
            running: (Vec::new(), None),
        };
        let mut follower = Follower::new(proc, sys, options.working_set, options.mglru_sees_guests);
        let survey = Self { shared, turned };
        let (begun, has_begun) = channel();
        survey.spawn("survey", move |shared| {
            // Made here: a runtime cannot be dropped within another one, should there be no thread.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(begun.send(Err(error))),
            };
            let _ = begun.send(Ok(()));
            // Known before the first VM is.
            surveyor.look_at_host(&shared, &BTreeSet::new());
            while let Some(targets) = shared.targets() {
                runtime.block_on(surveyor.round(&shared, &targets));
                if !shared.rest(LOOK) {
                    break;
                }
            }
        })?;
        has_begun.recv().context("the survey ended")?.context("cannot make a runtime")?;
        survey.spawn("working-set", move |shared| {
            while let Some(targets) = shared.targets() {
                let rest = |time| shared.rest(time);
                let measured: Measured = follower.round(&targets, rest);
                shared.note(measured, |vm, set| vm.working_set = Some(set));
            }
        })?;
        Ok(survey)
    }

    fn spawn(&self, name: &str, run: impl FnOnce(Arc<Shared>) + Send + 'static) -> Result<()> {
        self.shared.lock().running += 1;
        let running = Running(Arc::clone(&self.shared));
        let run = move || run(Arc::clone(&running.0));
        // Where there is no thread, what it would have run is dropped, and does not run.
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        thread.map(drop).context("cannot start a thread")
    }

    /// From now on looks at these VMs, and no others.
    pub fn follow(&self, targets: Vec<Target>) {
        let mut state = self.shared.lock();
        let ids: BTreeSet<VmId> = targets.iter().map(|target| target.vm.id).collect();
        state.found.vms.retain(|id, _| ids.contains(id));
        for id in ids {
            state.found.vms.entry(id).or_default();
        }
        if state.targets.replace(targets).is_none() {
            self.shared.wake.notify_all();
        }
    }

    /// What was said of VMs that have ended, since this was asked the last time.
    pub fn departed(&self) -> BTreeMap<VmId, Departure> {
        std::mem::take(&mut self.shared.lock().departed)
    }

    /// What was found last.
    pub fn found(&self) -> Found {
        self.shared.lock().found.clone()
    }
}

impl Drop for Survey {
    /// Waits until all that was changed is put back, but not for a process that keeps its memory
    /// map locked: whatever reads it stands still.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_over = true;
        self.shared.wake.notify_all();
        drop(self.shared.wake.wait_timeout_while(state, END, |state| state.running > 0));
        self.turned.put_back();
    }
}

/// A thread that looks, or is about to.
struct Running(Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
        self.0.wake.notify_all();
    }
}

struct Surveyor {
    proc: PathBuf,
    sys: PathBuf,
    page_size: u64,
    ask: Ask,
    walks: Walks,
    discovery: Discovery,
    /// Other VMs that run, and when that was looked up.
    running: (Vec<Vm>, Option<Instant>),
}

impl Surveyor {
    async fn round(&mut self, shared: &Shared, targets: &[Target]) {
        let balloons = self.ask.balloons(targets).await;
        shared.note(balloons, |vm, balloon| vm.balloon = Some(balloon));
        let departed = self.ask.departed.of(targets).await;
        shared.lock().departed.extend(departed);
        let mut all: BTreeSet<VmId> = targets.iter().map(|target| target.vm.id).collect();
        let others = self.others(&all);
        all.extend(others.iter().map(|vm| vm.id));
        let memory = self.walks.walk(&all, || shared.rest(Duration::ZERO));
        let held = |vm: Vm| Some((memory.get(&vm.id).copied()?, vm));
        let others = others.into_iter().filter_map(held).map(|(memory, vm)| (vm, memory)).collect();
        self.look_at_host(shared, &all);
        shared.note(memory, |vm, memory| vm.memory = Some(memory));
        shared.lock().found.others = others;
    }

    fn look_at_host(&self, shared: &Shared, vms: &BTreeSet<VmId>) {
        let host = memory_use::host(&self.proc, &self.sys, self.page_size).ok();
        let available = host.and_then(|host| host.available_with_cache());
        let numa = Numa::read(&self.proc, &self.sys, available, vms);
        let mut state = shared.lock();
        (state.found.host, state.found.numa) = (host, numa);
    }

    /// VMs that are not followed: they have their part in what the host has given away.
    fn others(&mut self, followed: &BTreeSet<VmId>) -> Vec<Vm> {
        let (running, looked) = &mut self.running;
        if looked.is_none_or(|time| time.elapsed() >= walk::AGAIN) {
            let pids: BTreeSet<i32> = followed.iter().map(|id| id.pid).collect();
            let others = self.discovery.scan_for_new(|pid| pids.contains(&pid), |_| false);
            *running = others.unwrap_or_default();
            *looked = Some(Instant::now());
        }
        running.iter().filter(|vm| !followed.contains(&vm.id)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::fs::{self, OpenOptions};
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn the_end_does_not_wait_for_a_look_that_stands_still() {
        let proc = tempfile::tempdir().unwrap();
        let smaps = proc.path().join("42/smaps");
        fs::create_dir(proc.path().join("42")).unwrap();
        nix::unistd::mkfifo(&smaps, Mode::S_IRWXU).unwrap();
        let survey = Survey::start(proc.path(), proc.path(), &Options::default()).unwrap();
        let vm = Vm::gone(VmId { pid: 42, start_ticks: 1 });
        survey.follow(vec![Target { vm, has_page_tables: false, cgroup: None }]);
        // There is a writer once somebody reads, and the reader waits for it.
        let open = || {
            let flags = nix::libc::O_NONBLOCK;
            OpenOptions::new().write(true).custom_flags(flags).open(&smaps)
        };
        let writer = std::iter::from_fn(|| Some(open())).find_map(Result::ok);
        let (ended, has_ended) = channel();
        std::thread::spawn(move || {
            drop(survey);
            ended.send(()).unwrap();
        });
        has_ended.recv_timeout(END * 30).unwrap();
        drop(writer);
    }
}
