//! What takes too long to be looked at between two drains: monitors that may hang, page
//! tables that are walked, windows that are waited for. Two threads look at it again and
//! again; whoever asks gets what was found last.

use crate::host::balloon::qmp::GuestPolling;
use crate::host::balloon::socket::Socket;
use crate::host::balloon::{libvirt, qmp};
use crate::host::memory_use;
use crate::host::memory_use::{Held, ProcessMemory, as_of_now, divide};
use crate::host::numa::Numa;
use crate::host::working_set::Wanted;
use crate::host::working_set::follow::{Follower, Measured, Target};
use crate::kernel;
use crate::vm::discovery::Discovery;
use anyhow::{Context, Result};
use overcommit_recording::model::balloon::Balloon;
use overcommit_recording::model::memory::{HostMemory, MemoryUse, WorkingSet};
use overcommit_recording::model::pattern::Pattern;
use overcommit_recording::model::vm::{Monitor, Vm, VmId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use uuid::Uuid;

/// Time between two looks at balloons.
const LOOK: Duration = Duration::from_secs(2);
/// Longest time until a monitor that did not answer is asked again.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(300);
/// Time between two walks over the page tables of a VM that is no longer new, and the
/// most that it becomes where walks take long.
const WALK: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
/// Time between two walks, in times of what one takes.
const WALK_SHARE: u32 = 100;

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
    targets: Vec<Target>,
    found: Found,
    is_over: bool,
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

    fn targets(&self) -> Vec<Target> {
        self.lock().targets.clone()
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
    threads: Vec<JoinHandle<()>>,
}

impl Survey {
    /// Starts them.
    ///
    /// # Errors
    /// There can be no more threads, or no runtime.
    pub fn start(proc: &Path, sys: &Path, options: &Options) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut surveyor = Surveyor {
            proc: proc.to_owned(),
            sys: sys.to_owned(),
            page_size: kernel::page_size(),
            options: options.clone(),
            silent: BTreeMap::new(),
            libvirt: Silence::default(),
            turned: BTreeMap::new(),
            walked: BTreeMap::new(),
            discovery: Discovery::new(proc),
            running: (Vec::new(), None),
        };
        let mut follower = Follower::new(proc, sys, options.working_set, options.mglru_sees_guests);
        let mut survey = Self { shared, threads: Vec::new() };
        let (begun, has_begun) = channel();
        survey.spawn("survey", move |shared| {
            // Made here: a runtime cannot be dropped within another one, should there be no thread.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(begun.send(Err(error))),
            };
            let _ = begun.send(Ok(()));
            loop {
                runtime.block_on(surveyor.round(&shared));
                if !shared.rest(LOOK) {
                    break runtime.block_on(surveyor.put_back());
                }
            }
        })?;
        has_begun.recv().context("the survey ended")?.context("cannot make a runtime")?;
        survey.spawn("working-set", move |shared| {
            loop {
                let targets = shared.targets();
                let rest = |time| shared.rest(time);
                let measured: Measured = follower.round(&targets, rest);
                shared.note(measured, |vm, set| vm.working_set = Some(set));
                if !shared.rest(Duration::ZERO) {
                    break;
                }
            }
        })?;
        Ok(survey)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce(Arc<Shared>) + Send + 'static) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || run(shared));
        self.threads.push(thread.context("cannot start a thread")?);
        Ok(())
    }

    /// From now on looks at these VMs, and no others.
    pub fn follow(&self, targets: Vec<Target>) {
        let mut state = self.shared.lock();
        let ids: BTreeSet<VmId> = targets.iter().map(|target| target.vm.id).collect();
        state.found.vms.retain(|id, _| ids.contains(id));
        for id in ids {
            state.found.vms.entry(id).or_default();
        }
        state.targets = targets;
    }

    /// What was found last.
    pub fn found(&self) -> Found {
        self.shared.lock().found.clone()
    }
}

impl Drop for Survey {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // It does not panic; and if it did, there is nothing left to put back.
            let _ = thread.join();
        }
    }
}

/// One that did not answer.
#[derive(Clone, Debug, Default)]
struct Silence {
    until: Option<Instant>,
    wait: Duration,
    why: String,
}

impl Silence {
    fn is_over(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() >= until)
    }

    /// Waits twice as long as the last time.
    fn again(&mut self, why: String) {
        self.wait = (self.wait * 2).clamp(LOOK * 2, ASK_AGAIN_MAX);
        self.until = Some(Instant::now() + self.wait);
        self.why = why;
    }
}

struct Walked {
    memory: Option<ProcessMemory>,
    /// What the process held then.
    held: Option<Held>,
    next: Instant,
    wait: Duration,
}

struct Surveyor {
    proc: PathBuf,
    sys: PathBuf,
    page_size: u64,
    options: Options,
    silent: BTreeMap<VmId, Silence>,
    libvirt: Silence,
    /// VMs whose guests report because we asked for it, and by which monitor.
    turned: BTreeMap<VmId, Socket>,
    /// What the page tables of each told, and when they are walked again.
    walked: BTreeMap<VmId, Walked>,
    discovery: Discovery,
    /// VMs that run, followed or not, and when that was looked up.
    running: (Vec<Vm>, Option<Instant>),
}

impl Surveyor {
    async fn round(&mut self, shared: &Shared) {
        let targets = shared.targets();
        let balloons = self.balloons(&targets).await;
        shared.note(balloons, |vm, balloon| vm.balloon = Some(balloon));
        let others = self.others(&targets);
        let followed = targets.iter().map(|target| target.vm.id);
        let all: BTreeSet<VmId> = followed.chain(others.iter().map(|vm| vm.id)).collect();
        let memory = self.walk(&all);
        let held = |vm: Vm| Some((memory.get(&vm.id).copied()?, vm));
        let others = others.into_iter().filter_map(held).map(|(memory, vm)| (vm, memory)).collect();
        let host = memory_use::host(&self.proc, &self.sys, self.page_size).ok();
        let available = host.and_then(|host| host.available);
        let numa = Numa::read(&self.proc, &self.sys, available, &all);
        shared.note(memory, |vm, memory| vm.memory = Some(memory));
        let mut state = shared.lock();
        state.found.others = others;
        state.found.host = host;
        state.found.numa = numa;
    }

    /// VMs that are not followed: they have their part in what the host has given away.
    fn others(&mut self, targets: &[Target]) -> Vec<Vm> {
        let (running, looked) = &mut self.running;
        if looked.is_none_or(|time| time.elapsed() >= WALK.0) {
            *running = self.discovery.scan().unwrap_or_default();
            *looked = Some(Instant::now());
        }
        let is_followed = |vm: &Vm| targets.iter().any(|target| target.vm.id == vm.id);
        running.iter().filter(|vm| !is_followed(vm)).cloned().collect()
    }

    /// Walks the page tables of those whose turn it is: soon of a VM that is new, seldom
    /// of one that is large. What is resident is as of now, and goes with what the host has
    /// available now.
    fn walk(&mut self, ids: &BTreeSet<VmId>) -> BTreeMap<VmId, MemoryUse> {
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
            if let Ok(memory) = ProcessMemory::read(&self.proc, id.pid) {
                walked.memory = Some(memory);
                walked.held = Held::read(&self.proc, id.pid);
            }
            walked.wait = (walked.wait * 2).clamp(LOOK, WALK.0);
            let least = (start.elapsed() * WALK_SHARE).min(WALK.1);
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

    /// Asks every monitor at once, so that a hundred that hang take no longer than one.
    async fn balloons(&mut self, targets: &[Target]) -> BTreeMap<VmId, Result<Balloon, String>> {
        self.silent.retain(|id, _| targets.iter().any(|target| target.vm.id == *id));
        let mut found = BTreeMap::new();
        let mut asked = JoinSet::new();
        let mut held = Vec::new();
        for Target { vm, .. } in targets {
            if let Some(silence) = self.silent.get(&vm.id).filter(|silence| !silence.is_over()) {
                found.insert(vm.id, Err(silence.why.clone()));
                continue;
            }
            let sockets = self.sockets(vm);
            if sockets.is_empty() && vm.monitors.contains(&Monitor::Held) {
                held.push(vm);
                continue;
            }
            let polling =
                if self.options.guest_stats { GuestPolling::TurnOn } else { GuestPolling::Leave };
            let id = vm.id;
            asked.spawn(async move { (id, qmp::look(sockets, id.pid, polling).await) });
        }
        while let Some(joined) = asked.join_next().await {
            let Ok((id, answer)) = joined else { continue };
            let balloon = answer.map(|(balloon, turned)| {
                self.silent.remove(&id);
                self.turned.extend(turned.map(|socket| (id, socket)));
                balloon
            });
            found.insert(id, balloon.map_err(|error| self.fell_silent(id, &error)));
        }
        if !held.is_empty() {
            self.ask_libvirt(&held, &mut found).await;
        }
        found
    }

    fn fell_silent(&mut self, id: VmId, error: &anyhow::Error) -> String {
        let why = format!("{error:#}");
        self.silent.entry(id).or_default().again(why.clone());
        why
    }

    async fn ask_libvirt(
        &mut self,
        held: &[&Vm],
        found: &mut BTreeMap<VmId, Result<Balloon, String>>,
    ) {
        // Asked by uuid: the name that is shown is escaped, and not unique.
        let pids = libvirt::pids(Path::new(libvirt::PIDS));
        let uuid = |vm: &Vm| {
            let uuid = vm.uuid.as_ref().filter(|_| pids.contains(&vm.id.pid));
            uuid.and_then(|uuid| Uuid::try_parse(uuid).ok())
        };
        let uuids: Vec<Uuid> = held.iter().filter_map(|vm| uuid(vm)).collect();
        let mut domains = BTreeMap::new();
        if self.libvirt.is_over() && !uuids.is_empty() {
            match libvirt::look(&uuids).await {
                Ok(answer) => (self.libvirt, domains) = (Silence::default(), answer),
                Err(error) => self.libvirt.again(format!("{error:#}")),
            }
        }
        for vm in held {
            let domain = uuid(vm).and_then(|uuid| domains.get(&uuid));
            let why = || match self.libvirt.why.as_str() {
                "" if !pids.contains(&vm.id.pid) => {
                    format!(
                        "its monitor is in use, and libvirt has no pid file of it in {}",
                        libvirt::PIDS
                    )
                }
                "" => "libvirt knows no such domain, or cannot tell now".to_owned(),
                why => format!("whoever started it holds its monitor; {why}"),
            };
            let balloon = domain.copied().ok_or_else(why);
            found.insert(vm.id, balloon.and_then(|it| libvirt::told_apart(it, vm.memory_bytes)));
        }
    }

    /// Where the VM can be asked.
    fn sockets(&self, vm: &Vm) -> Vec<Socket> {
        let given = self.options.monitors.iter().filter(|(pattern, _)| pattern.matches(vm));
        let given = given.map(|(_, path)| Socket::Given(path.clone()));
        let process = self.proc.join(vm.id.pid.to_string());
        let own = vm.monitors.iter().filter_map(|monitor| match monitor {
            Monitor::Socket(path) => {
                Some(Socket::Own { process: process.clone(), path: path.clone() })
            }
            Monitor::Held => None,
        });
        given.chain(own).collect()
    }

    /// Guests that report because of us are told to stop.
    async fn put_back(&mut self) {
        let mut told = JoinSet::new();
        for (id, socket) in std::mem::take(&mut self.turned) {
            told.spawn(qmp::look(vec![socket], id.pid, GuestPolling::TurnOff));
        }
        // Gone already if the VM is.
        while told.join_next().await.is_some() {}
    }
}
