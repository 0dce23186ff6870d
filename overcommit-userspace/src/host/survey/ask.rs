//! Asks VMs about their balloons, and those again later that do not answer.

use crate::host::balloon::qmp::GuestPolling;
use crate::host::balloon::{libvirt, qmp};
use crate::host::socket::Socket;
use crate::host::survey::departed::Departed;
use crate::host::survey::{LOOK, Options};
use crate::host::working_set::follow::Target;
use crate::terminal::say;
use anyhow::Result;
use overcommit_recording::model::balloon::Balloon;
use overcommit_recording::model::pattern::Pattern;
use overcommit_recording::model::vm::{Monitor, Vm, VmId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use uuid::Uuid;

/// Longest time until a monitor that did not answer is asked again.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(300);

/// Whom it asks, and how.
pub(super) struct Ask {
    proc: PathBuf,
    monitors: Vec<(Pattern, PathBuf)>,
    guest_stats: bool,
    silent: BTreeMap<VmId, Silence>,
    libvirt: Silence,
    turned: Arc<Turned>,
    /// What is known of VMs, should they end.
    pub(super) departed: Departed,
}

/// VMs whose guests report because we asked for it, and by which monitor.
#[derive(Default)]
pub(super) struct Turned(Mutex<BTreeMap<VmId, Socket>>);

impl Turned {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmId, Socket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Guests that report because of us are told to stop; in a thread of its own, as a runtime
    /// cannot be dropped within another one.
    pub(super) fn put_back(&self) {
        let turned = std::mem::take(&mut *self.lock());
        if turned.is_empty() {
            return;
        }
        let told = std::thread::Builder::new().spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut told = JoinSet::new();
                for (id, socket) in turned {
                    told.spawn(qmp::look(vec![socket], id.pid, GuestPolling::TurnOff));
                }
                // Gone already if the VM is.
                while told.join_next().await.is_some() {}
            });
            std::io::Result::Ok(())
        });
        let told = told.map(|told| told.join().is_ok_and(|told| told.is_ok()));
        if !told.unwrap_or(false) {
            say("overcommit: cannot tell guests to stop reporting: no thread, or no runtime");
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

impl Ask {
    pub(super) fn new(proc: &Path, options: &Options, turned: Arc<Turned>) -> Self {
        Self {
            proc: proc.to_owned(),
            monitors: options.monitors.clone(),
            guest_stats: options.guest_stats,
            silent: BTreeMap::new(),
            libvirt: Silence::default(),
            turned,
            departed: Departed::default(),
        }
    }

    /// Asks every monitor at once, so that a hundred that hang take no longer than one.
    pub(super) async fn balloons(
        &mut self,
        targets: &[Target],
    ) -> BTreeMap<VmId, Result<Balloon, String>> {
        let runs = |id: &VmId| targets.iter().any(|target| target.vm.id == *id);
        self.silent.retain(|id, _| runs(id));
        self.turned.lock().retain(|id, _| runs(id));
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
            let polling = if self.guest_stats { GuestPolling::TurnOn } else { GuestPolling::Leave };
            let id = vm.id;
            asked.spawn(async move { (id, qmp::look(sockets, id.pid, polling).await) });
        }
        while let Some(joined) = asked.join_next().await {
            let Ok((id, answer)) = joined else { continue };
            let balloon = answer.map(|(answer, socket)| {
                self.silent.remove(&id);
                self.turned.lock().extend(answer.is_turned.then_some((id, socket)));
                self.departed.heard(id, answer.departure);
                answer.balloon
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
            if let Some(uuid) = uuid(vm) {
                self.departed.is_domain(vm.id, uuid);
            }
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
            // Its maximum has virtio-mem in full, whatever of it is there.
            let base = vm.memory_bytes.map(|all| all.saturating_sub(vm.plugged.virtio_mem));
            found.insert(vm.id, balloon.and_then(|it| libvirt::told_apart(it, base)));
        }
    }

    /// Where the VM can be asked.
    fn sockets(&self, vm: &Vm) -> Vec<Socket> {
        let given = self.monitors.iter().filter(|(pattern, _)| pattern.matches(vm));
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
}
