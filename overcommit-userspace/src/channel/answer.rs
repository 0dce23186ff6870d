//! Gives guests what they ask for, each by a task of its own.

use crate::channel::request::{Request, Requests};
use crate::channel::vsock::Listener;
use crate::channel::{Event, Guest};
use crate::kernel::clock;
use anyhow::Result;
use overcommit_recording::guest::message::{Message, Refusal};
use overcommit_recording::guest::{Telling, vhostmd};
use overcommit_recording::model::vm::Dialect;
use procfs::process::Process;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::{AbortHandle, spawn_local, yield_now};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Time from one answer to the next one of a channel.
const PACE: Duration = Duration::from_millis(100);
/// Time that a guest has to take an answer.
const TAKEN: Duration = Duration::from_secs(10);
/// Time for which a connection by vsock may ask nothing.
const IDLE: Duration = Duration::from_secs(60);
/// Connections of one guest by vsock at a time.
const MOST: usize = 4;

/// What all guests' answers are made of.
#[derive(Default)]
struct Known {
    telling: Telling,
    host_name: String,
    /// Seconds of CPU time in a clock tick.
    tick_s: f64,
}

/// Answers as long as intervals may come.
pub(super) async fn answer(
    listener: Option<OwnedFd>,
    mut events: UnboundedReceiver<Event>,
) -> Result<()> {
    let listener = listener.map(Listener::new).transpose()?;
    let tick_s = 1.0 / procfs::ticks_per_second() as f64;
    let known = Rc::new(RefCell::new(Known { tick_s, ..Known::default() }));
    let mut cids = BTreeMap::new();
    let mut by_vsock: BTreeMap<u32, ByVsock> = BTreeMap::new();
    loop {
        tokio::select! {
            biased;
            event = events.recv() => match event {
                Some(Event::Interval(run, interval)) => {
                    let mut known = known.borrow_mut();
                    known.telling.add(&run, *interval);
                    known.host_name.clone_from(&run.host);
                }
                Some(Event::Cids(now)) => {
                    // Who has another's CID now is connected anew.
                    by_vsock.retain(|cid, open| {
                        let stays = now.get(cid) == cids.get(cid);
                        open.tasks.iter().filter(|_| !stays).for_each(AbortHandle::abort);
                        stays
                    });
                    cids = now;
                }
                Some(Event::Port(guest, dialect, stream, token)) => {
                    let known = Rc::clone(&known);
                    spawn_local(async move {
                        if let Ok(stream) = UnixStream::from_std(stream) {
                            let pace = Pace::default();
                            let _ = serve(stream, dialect, &guest, &known, pace, None).await;
                        }
                        drop(token);
                    });
                }
                Some(Event::Over) | None => return Ok(()),
            },
            (stream, cid) = accepted(listener.as_ref()) => {
                // Whoever connects without end holds up none of those who are answered.
                yield_now().await;
                let Some(guest) = cids.get(&cid) else { continue };
                let open = by_vsock.entry(cid).or_default();
                open.tasks.retain(|task| !task.is_finished());
                // A CID is free again when its process is gone.
                if open.tasks.len() < MOST && cpu_ticks(guest).is_some() {
                    let (known, guest) = (Rc::clone(&known), guest.clone());
                    let pace = open.pace.clone();
                    let task = spawn_local(async move {
                        let own = Dialect::Own;
                        let _ = serve(stream, own, &guest, &known, pace, Some(IDLE)).await;
                    });
                    open.tasks.push(task.abort_handle());
                }
            }
        }
    }
}

/// Connections of one guest by vsock.
#[derive(Default)]
struct ByVsock {
    tasks: Vec<AbortHandle>,
    pace: Pace,
}

/// When a guest may have its next answer, by whichever of its connections.
#[derive(Clone, Default)]
struct Pace(Rc<Cell<Option<Instant>>>);

impl Pace {
    async fn keep(&self) {
        let now = Instant::now();
        let turn = self.0.get().map_or(now, |next| next.max(now));
        self.0.set(Some(turn + PACE));
        sleep_until(turn).await;
    }
}

/// The next connection by vsock, and whose it is.
async fn accepted(listener: Option<&Listener>) -> (TcpStream, u32) {
    match listener {
        Some(listener) => loop {
            match listener.accept().await {
                Ok(accepted) => return accepted,
                // No descriptor is left, or the guest has gone already.
                Err(_) => sleep(PACE).await,
            }
        },
        None => std::future::pending().await,
    }
}

/// One channel, until it is closed.
async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    dialect: Dialect,
    guest: &Guest,
    known: &RefCell<Known>,
    pace: Pace,
    idle: Option<Duration>,
) -> Result<()> {
    let mut requests = Requests::new(dialect);
    let mut bytes = vec![0; 4096];
    loop {
        let room = requests.room().min(bytes.len());
        let read = stream.read(&mut bytes[..room]);
        let length = match idle {
            Some(idle) => timeout(idle, read).await??,
            None => read.await?,
        };
        if length == 0 {
            return Ok(());
        }
        requests.add(&bytes[..length]);
        let mut is_answered = false;
        while let Some(request) = requests.next() {
            pace.keep().await;
            let answer = known.borrow_mut().answer(dialect, guest, request)?;
            timeout(TAKEN, stream.write_all(answer.as_bytes())).await??;
            is_answered = true;
        }
        // What is no request costs as much time as one.
        if !is_answered {
            pace.keep().await;
        }
    }
}

impl Known {
    fn answer(&mut self, dialect: Dialect, guest: &Guest, request: Request) -> Result<String> {
        let message = self.telling.message(&guest.vm_id, clock::now()?.monotonic_ns);
        Ok(match (dialect, request, message) {
            (Dialect::Own, Request::Figures(request), Some(message)) => {
                format!("{}\n", serde_json::to_string(&Message { request, ..message })?)
            }
            (Dialect::Own, Request::Figures(request), None) => {
                refusal("the host has no figures of this VM yet", request)?
            }
            (Dialect::Own, ..) => {
                let how =
                    "a request is a line: GET, or GET and a word of letters, digits and hyphens";
                refusal(how, None)?
            }
            (Dialect::Vhostmd, Request::Xml, message) => {
                let about = vhostmd::About {
                    host_name: self.host_name.clone(),
                    uuid: guest.uuid.clone(),
                    cpu_s: cpu_ticks(guest).map(|ticks| ticks as f64 * self.tick_s),
                };
                vhostmd::xml(&about, message.as_ref())
            }
            (Dialect::Vhostmd, ..) => vhostmd::INVALID.to_owned(),
        })
    }
}

fn refusal(why: &str, request: Option<String>) -> Result<String> {
    Ok(format!("{}\n", serde_json::to_string(&Refusal::because(why, request))?))
}

/// CPU time of the VM's process, if that still runs.
fn cpu_ticks(guest: &Guest) -> Option<u64> {
    let stat = Process::new(guest.pid).ok()?.stat().ok()?;
    let is_it = guest.vm_id == format!("{}-{}", guest.pid, stat.starttime);
    is_it.then_some(stat.utime + stat.stime)
}

#[cfg(test)]
mod tests {
    use super::*;
    use overcommit_recording::model::interval::{Interval, Place, VmInterval};
    use overcommit_recording::model::run::{Run, RunVm};
    use std::sync::Arc;
    use tokio::io::{AsyncBufReadExt, BufReader, duplex};
    use tokio::sync::mpsc::unbounded_channel;
    use tokio::task::LocalSet;

    fn guest(name: &str) -> Guest {
        Guest { vm_id: format!("{name}-1"), ..Guest::default() }
    }

    fn interval() -> Event {
        let of = |name: &str| RunVm { vm_id: format!("{name}-1"), ..RunVm::default() };
        let run = Run { vms: vec![of("web"), of("db")], page_size: 4096, ..Run::default() };
        let place = Place { length_ns: 1_000_000_000, ..Place::default() };
        let vms = [0, 1].map(|vm| {
            let configured = Some(100 + vm as u64);
            VmInterval { vm, configured, recorded_ns: Some(1), ..VmInterval::default() }
        });
        let interval = Interval { place, vms: vms.into(), ..Interval::default() };
        Event::Interval(Arc::new(run), Box::new(interval))
    }

    /// A guest's port, and its host's end.
    fn port(name: &str) -> (UnixStream, Event, Arc<()>) {
        let (guests, hosts) = std::os::unix::net::UnixStream::pair().unwrap();
        guests.set_nonblocking(true).unwrap();
        hosts.set_nonblocking(true).unwrap();
        let token = Arc::new(());
        let event = Event::Port(guest(name), Dialect::Own, hosts, Arc::clone(&token));
        (UnixStream::from_std(guests).unwrap(), event, token)
    }

    fn in_runtime(test: impl AsyncFnOnce()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, test());
    }

    async fn asked(stream: &mut BufReader<UnixStream>, word: &str) -> Message {
        stream.write_all(format!("GET {word}\n").as_bytes()).await.unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    #[test]
    fn each_guest_gets_its_own_figures_and_a_mute_one_holds_up_nobody() {
        in_runtime(async || {
            let (events, received) = unbounded_channel();
            let answering = spawn_local(answer(None, received));
            let (web, web_port, token) = port("web");
            let (db, db_port, _held) = port("db");
            let (mut mute, mute_port, _held) = port("web");
            for event in [web_port, db_port, mute_port, interval()] {
                events.send(event).unwrap();
            }
            // It sends as much as it can and takes nothing.
            while timeout(PACE * 3, mute.write_all(&b"GET\n".repeat(1_000))).await.is_ok() {}
            let (mut web, mut db) = (BufReader::new(web), BufReader::new(db));
            for word in ["a", "b"] {
                let of_web = asked(&mut web, word).await;
                assert_eq!(
                    (of_web.request.as_deref(), of_web.configured_bytes),
                    (Some(word), Some(100))
                );
                assert_eq!(asked(&mut db, word).await.configured_bytes, Some(101));
            }
            drop(web);
            while Arc::strong_count(&token) > 1 {
                yield_now().await;
            }
            drop(events);
            answering.await.unwrap().unwrap();
        });
    }

    #[test]
    fn who_takes_no_answer_is_given_up_and_by_vsock_who_asks_nothing() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        // How long a connection lasts that sends this and then nothing, and never reads.
        let lasts = async |sent: &[u8], idle| {
            let (mut guests, hosts) = duplex(16);
            guests.write_all(sent).await.unwrap();
            let (known, guest, began) = (RefCell::default(), guest("web"), Instant::now());
            let served = serve(hosts, Dialect::Own, &guest, &known, Pace::default(), idle);
            let is_over = timeout(IDLE * 60, served).await.map(|over| over.unwrap_err()).is_ok();
            is_over.then(|| began.elapsed().as_secs())
        };
        runtime.block_on(async {
            assert_eq!(lasts(b"GET\n", None).await, Some(TAKEN.as_secs()));
            assert_eq!(lasts(b"GET\n", Some(IDLE)).await, Some(TAKEN.as_secs()));
            assert_eq!(lasts(b"", Some(IDLE)).await, Some(IDLE.as_secs()));
            // A port is open as long as its VM runs.
            assert_eq!(lasts(b"", None).await, None);
        });
    }

    #[test]
    fn before_the_first_interval_there_is_nothing_to_tell() {
        in_runtime(async || {
            let (events, received) = unbounded_channel();
            let _answering = spawn_local(answer(None, received));
            let (web, event, _held) = port("web");
            events.send(event).unwrap();
            let mut web = BufReader::new(web);
            web.write_all(b"GET\n").await.unwrap();
            let mut line = String::new();
            web.read_line(&mut line).await.unwrap();
            let refusal: Refusal = serde_json::from_str(&line).unwrap();
            assert_eq!(refusal.error, "the host has no figures of this VM yet");
        });
    }
}
