//! Connects to the ports of those guests that are told of themselves, and knows their CIDs.

use crate::channel::vsock::VHOST;
use crate::channel::{Event, Guest};
use crate::host::socket::{self, Socket};
use crate::terminal::say;
use crate::vm::Discovery;
use anyhow::{Context, Result, anyhow, ensure};
use overcommit_recording::model::pattern::Pattern;
use overcommit_recording::model::run::{Run, RunVm};
use overcommit_recording::model::vm::{Listening, Port, Vm};
use rustix::fs::{FileType, major, minor};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

/// Time until a port is tried again, which doubles.
const AGAIN: Duration = Duration::from_secs(2);
/// See [`AGAIN`].
const AGAIN_MAX: Duration = Duration::from_secs(64);
/// Time that a connection may take: whoever listens takes it later.
const CONNECT: Duration = Duration::from_millis(200);

/// The guests, as of the last interval.
pub(super) struct Ports {
    proc: PathBuf,
    discovery: Discovery,
    guests: Vec<Pattern>,
    known: BTreeMap<String, Known>,
    cids: BTreeMap<u32, Guest>,
    events: UnboundedSender<Event>,
}

/// A VM that is recorded.
struct Known {
    guest: Guest,
    name: String,
    vm: Vm,
    /// None of one that is not told.
    ports: Vec<Place>,
    /// Whether it is told of itself.
    is_told: bool,
    /// The descriptor by which its CID is its own, unless a login user has started it: it is open on
    /// vhost-vsock.
    cid_by: Option<PathBuf>,
}

/// A port of it.
struct Place {
    port: Port,
    /// Held by whoever answers there, and by this.
    token: Arc<()>,
    tried: Option<Instant>,
    wait: Duration,
    /// Whether it was said that nobody can connect there.
    is_told: bool,
}

impl Ports {
    pub(super) fn new(
        proc: impl Into<PathBuf>,
        guests: Vec<Pattern>,
        events: UnboundedSender<Event>,
    ) -> Self {
        let proc = proc.into();
        let discovery = Discovery::new(&proc);
        let (known, cids) = Default::default();
        Self { proc, discovery, guests, known, cids, events }
    }

    /// Follows what is recorded until nothing is any more.
    pub(super) fn follow(mut self, mut runs: watch::Receiver<Arc<Run>>) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot make a runtime")?;
        runtime.block_on(async {
            while runs.changed().await.is_ok() {
                let run = Arc::clone(&runs.borrow_and_update());
                self.note(&run);
                self.connect().await;
            }
        });
        // A file system that hangs holds up nobody.
        runtime.shutdown_background();
        Ok(())
    }

    /// Takes up those that have come, and forgets those that have gone.
    fn note(&mut self, run: &Run) {
        let runs = |vm: &&RunVm| vm.ended_us.is_none();
        let running: Vec<&RunVm> = run.vms.iter().filter(runs).collect();
        let ids: BTreeSet<&str> = running.iter().map(|vm| vm.vm_id.as_str()).collect();
        self.known.retain(|id, _| ids.contains(id.as_str()));
        for of in running {
            if self.known.contains_key(&of.vm_id) {
                continue;
            }
            let found = self.discovery.inspect(of.pid);
            if let Some(vm) = found.filter(|vm| vm.id.to_string() == of.vm_id) {
                let is_told = self.guests.iter().any(|guests| guests.matches_recorded(of));
                self.known.insert(of.vm_id.clone(), Known::new(of, vm, is_told));
            }
        }
        for Known { guest, vm, cid_by, .. } in self.known.values_mut() {
            // It may open it later; and once it is closed, its CID can be another's.
            if vm.channels.cid.is_some() && !cid_by.as_deref().is_some_and(is_vsock) {
                let process = self.proc.join(guest.pid.to_string());
                let is_own = self.discovery.login_user(vm).is_none();
                *cid_by = is_own.then(|| opened_vsock(&process)).flatten();
            }
        }
        let cids = self.known_cids();
        if cids != self.cids {
            self.cids.clone_from(&cids);
            let _ = self.events.send(Event::Cids(cids));
        }
    }

    /// Who has which CID; nobody where two claim it. A command line says what its process wants it to
    /// say, and the device is open to everybody on some hosts: so only VMs that no user who logs in
    /// has started are told by vsock.
    fn known_cids(&self) -> BTreeMap<u32, Guest> {
        let mut cids: BTreeMap<u32, Option<Guest>> = BTreeMap::new();
        for Known { guest, vm, is_told, cid_by, .. } in self.known.values() {
            if let Some(cid) = vm.channels.cid.filter(|_| cid_by.is_some()) {
                let guest = Some(guest.clone()).filter(|_| *is_told);
                cids.entry(cid).and_modify(|known| *known = None).or_insert(guest);
            }
        }
        cids.into_iter().filter_map(|(cid, guest)| Some((cid, guest?))).collect()
    }

    /// Connects to each port where nobody of ours is.
    async fn connect(&mut self) {
        for Known { guest, name, vm, ports, .. } in self.known.values_mut() {
            for place in ports.iter_mut() {
                if !place.is_due() {
                    continue;
                }
                let process = self.proc.join(guest.pid.to_string());
                let port = place.port.place.clone();
                let opened = open(process, vm.id.pid, port, Arc::clone(&place.token));
                let connected = timeout(CONNECT, connect(opened, vm.id.pid)).await;
                let connected = connected.unwrap_or_else(|_| Err(anyhow!("nobody answers")));
                // Its number may be another's by now.
                let is_it = self.discovery.id(vm.id.pid) == Some(vm.id);
                match connected.and_then(|stream| {
                    ensure!(is_it, "it has ended");
                    Ok(stream)
                }) {
                    Ok(stream) => {
                        place.wait = Duration::ZERO;
                        let token = Arc::clone(&place.token);
                        let event = Event::Port(guest.clone(), place.port.dialect, stream, token);
                        let _ = self.events.send(event);
                    }
                    Err(error) if !std::mem::replace(&mut place.is_told, true) => say(&format!(
                        "overcommit: cannot reach {name} at its port {}: {error:#}; it is tried again",
                        place.port.dialect.port()
                    )),
                    Err(_) => {}
                }
            }
        }
    }
}

impl Known {
    fn new(of: &RunVm, vm: Vm, is_told: bool) -> Self {
        let guest = Guest {
            vm_id: of.vm_id.clone(),
            uuid: of.uuid.clone().unwrap_or_default(),
            pid: of.pid,
        };
        let ports = vm.channels.ports.iter().filter(|_| is_told).cloned();
        let ports = ports.map(Place::new).collect();
        Self { guest, name: of.name.clone(), vm, ports, is_told, cid_by: None }
    }
}

impl Place {
    fn new(port: Port) -> Self {
        Self { port, token: Arc::default(), tried: None, wait: Duration::ZERO, is_told: false }
    }

    /// Whether it is to be tried now, which it is then.
    fn is_due(&mut self) -> bool {
        if Arc::strong_count(&self.token) > 1
            || self.tried.is_some_and(|tried| tried.elapsed() < self.wait)
        {
            return false;
        }
        self.tried = Some(Instant::now());
        self.wait = (self.wait * 2).clamp(AGAIN, AGAIN_MAX);
        true
    }
}

/// Opens the socket behind a port of a VM. The token is held until that is over, so that one that
/// hangs is not tried again meanwhile.
fn open(
    process: PathBuf,
    pid: i32,
    place: Listening,
    token: Arc<()>,
) -> JoinHandle<Result<OwnedFd>> {
    spawn_blocking(move || {
        let _held = token;
        let socket = match place {
            Listening::At(path) => Socket::Own { process, path },
            Listening::Descriptor(number) => Socket::held(process, number)?,
        };
        socket.open(pid)
    })
}

/// Connects to it, as what the thread that answers can take.
async fn connect(
    opened: JoinHandle<Result<OwnedFd>>,
    pid: i32,
) -> Result<std::os::unix::net::UnixStream> {
    Ok(socket::connect(opened.await??, pid).await?.into_std()?)
}

/// Major and minor number of [`VHOST`] (`VHOST_VSOCK_MINOR`, include/linux/miscdevice.h).
const VHOST_VSOCK: (u32, u32) = (10, 241);

/// A descriptor of a process that is open on vhost-vsock.
fn opened_vsock(process: &Path) -> Option<PathBuf> {
    let descriptors = std::fs::read_dir(process.join("fd")).ok()?;
    descriptors.flatten().map(|entry| entry.path()).find(|path| is_vsock(path))
}

/// Whether a descriptor in /proc is.
fn is_vsock(descriptor: &Path) -> bool {
    // By its name first: a file on a server that hangs is not asked for.
    let link = std::fs::read_link(descriptor);
    if !link.is_ok_and(|link| link == Path::new(VHOST)) {
        return false;
    }
    rustix::fs::stat(descriptor).is_ok_and(|stat| {
        let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        is_device && (major(stat.st_rdev), minor(stat.st_rdev)) == VHOST_VSOCK
    })
}
