//! Asks QEMU about a VM's memory by QMP.
//!
//! A monitor has one client at a time. A second one connects all the same and is never
//! greeted, so a monitor that keeps silent is somebody else's; ours is left again after
//! each look.

use crate::host::overcommit::total;
use crate::host::socket::Socket;
use anyhow::{Context, Result, anyhow, ensure};
use overcommit_recording::model::balloon::{Balloon, GuestMemory, LARGEST, POLL_S, Source};
use overcommit_recording::model::exit::Departure;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Time for a whole conversation.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// Monitors of a VM that are tried: real ones have one or two.
const MONITORS_MAX: usize = 4;
/// Longest answer that is read: what asks for more speaks no QMP.
const ANSWER_MAX: u64 = 1 << 20;

/// What is to be done about the guest's own view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestPolling {
    /// Take what is there.
    Leave,
    /// Have the guest report if it does not.
    TurnOn,
    /// Have it stop again.
    TurnOff,
}

/// What a monitor says.
#[derive(Debug)]
pub struct Answer {
    /// What was given back.
    pub balloon: Balloon,
    /// Why the VM will not run on, if so.
    pub departure: Option<Departure>,
    /// Whether the guest's reports were turned on, or off.
    pub is_turned: bool,
}

/// Asks a VM once, by whichever of its monitors greets first.
///
/// `pid` is the process that must be listening; another one's monitor says nothing of
/// the VM. The monitor that answered stands beside the answer.
///
/// # Errors
/// They are in use, do not answer in time, or answer something else.
pub async fn look(
    sockets: Vec<Socket>,
    pid: i32,
    polling: GuestPolling,
) -> Result<(Answer, Socket)> {
    let last = sockets.iter().take(MONITORS_MAX).next_back().cloned();
    let asked = timeout(PATIENCE, async {
        let (mut monitor, socket) = first(sockets, pid).await?;
        let answer = monitor.answer(polling).await;
        Ok((answer.with_context(|| format!("monitor {socket}"))?, socket))
    });
    let answer = asked.await;
    answer.unwrap_or_else(|_| {
        let which = last.map_or_else(String::new, |socket| format!("monitor {socket}: "));
        Err(anyhow!("{which}no answer within {PATIENCE:?}: it is in use"))
    })
}

/// Asks whoever is at the other end of a stream.
///
/// # Errors
/// It does not speak QMP, or answers something else.
pub async fn converse(stream: UnixStream, polling: GuestPolling) -> Result<Answer> {
    Monitor::greet(stream).await?.answer(polling).await
}

/// The first that greets; the others are left.
async fn first(sockets: Vec<Socket>, pid: i32) -> Result<(Monitor, Socket)> {
    let mut asked = JoinSet::new();
    for socket in sockets.into_iter().take(MONITORS_MAX) {
        asked.spawn(async move {
            let monitor = Monitor::connect(&socket, pid).await;
            (monitor.with_context(|| format!("monitor {socket}")), socket)
        });
    }
    let mut refused = anyhow!("it has no monitor that speaks QMP");
    while let Some(joined) = asked.join_next().await {
        match joined? {
            (Ok(monitor), socket) => return Ok((monitor, socket)),
            (Err(error), _) => refused = error,
        }
    }
    Err(refused)
}

struct Monitor(BufReader<tokio::io::Take<UnixStream>>);

impl Monitor {
    async fn connect(socket: &Socket, pid: i32) -> Result<Self> {
        Self::greet(socket.connect(pid).await?).await
    }

    async fn greet(stream: UnixStream) -> Result<Self> {
        let mut monitor = Self(BufReader::new(stream.take(ANSWER_MAX)));
        let greeting = monitor.line().await?;
        ensure!(greeting.get("QMP").is_some(), "it does not greet as QMP does");
        monitor.ask("qmp_capabilities", json!({})).await?;
        Ok(monitor)
    }

    async fn line(&mut self) -> Result<Value> {
        let mut line = Vec::new();
        self.0.get_mut().set_limit(ANSWER_MAX);
        let length = self.0.read_until(b'\n', &mut line).await.context("cannot read")?;
        ensure!(length > 0, "it hung up");
        ensure!(line.ends_with(b"\n"), "an answer without an end");
        serde_json::from_slice(&line).context("it does not speak QMP")
    }

    /// `None` if QEMU refuses.
    async fn try_ask(&mut self, command: &str, arguments: Value) -> Result<Option<Value>> {
        let request = json!({ "execute": command, "arguments": arguments });
        let stream = self.0.get_mut().get_mut();
        stream.write_all(format!("{request}\n").as_bytes()).await.context("cannot ask")?;
        loop {
            let mut answer = self.line().await?;
            if answer.get("error").is_some() {
                return Ok(None);
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(Some(result.take()));
            }
            // Events may come in between.
            ensure!(answer.get("event").is_some(), "it does not speak QMP");
        }
    }

    async fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let answer = self.try_ask(command, arguments).await?;
        answer.with_context(|| format!("QEMU refuses {command}"))
    }

    async fn answer(&mut self, polling: GuestPolling) -> Result<Answer> {
        let (balloon, is_turned) = self.balloon(polling).await?;
        let status = self.try_ask("query-status", json!({})).await?;
        let departure = status.as_ref().and_then(departure);
        Ok(Answer { balloon, departure, is_turned })
    }

    async fn balloon(&mut self, polling: GuestPolling) -> Result<(Balloon, bool)> {
        let size = self.ask("query-memory-size-summary", json!({})).await?;
        let base = size["base-memory"].as_u64().context("no base-memory")?;
        let plugged = size["plugged-memory"].as_u64().unwrap_or(0);
        let configured = base.saturating_add(plugged);
        ensure!(configured <= LARGEST, "it claims {configured} bytes of memory");
        let current = self.try_ask("query-balloon", json!({})).await?;
        let current = current.and_then(|balloon| balloon["actual"].as_u64());
        ensure!(current <= Some(configured), "it claims a balloon larger than its memory");
        let device = match current {
            Some(_) => self.device().await?,
            None => None,
        };
        let mut is_turned = false;
        let mut guest = None;
        if let Some(device) = device {
            let every_s;
            (is_turned, every_s) = self.turn(&device, polling).await?;
            let stats = json!({ "path": device, "property": "guest-stats" });
            guest = self.try_ask("qom-get", stats).await?.as_ref().and_then(guest_memory);
            if let Some(guest) = &mut guest {
                guest.asked_every_s = every_s;
            }
        }
        let ballooned = match current {
            Some(current) if plugged > 0 => {
                let size = base.saturating_add(self.dimms().await?).min(configured);
                size.saturating_sub(current)
            }
            Some(current) => base.saturating_sub(current),
            None => 0,
        };
        let configured = Some(configured);
        let balloon = Balloon { configured, current, ballooned, source: Source::Qmp, guest };
        Ok((balloon, is_turned))
    }

    /// Bytes of DIMMs: of all memory that is plugged in, what the balloon's size is of
    /// (`get_current_ram_size`, hw/virtio/virtio-balloon.c: no NVDIMM, no virtio-mem).
    async fn dimms(&mut self) -> Result<u64> {
        let devices = self.ask("query-memory-devices", json!({})).await?;
        let devices = devices.as_array().context("no memory devices")?;
        let dimms = devices.iter().filter(|device| device["type"] == "dimm");
        Ok(total(dimms.filter_map(|device| device["data"]["size"].as_u64())))
    }

    /// Path of the balloon in QEMU's tree of objects: with a name of the user's, or without.
    async fn device(&mut self) -> Result<Option<String>> {
        for folder in ["/machine/peripheral", "/machine/peripheral-anon"] {
            let entries = self.ask("qom-list", json!({ "path": folder })).await?;
            let is_balloon = |entry: &&Value| {
                let kind = entry["type"].as_str().unwrap_or_default();
                kind.starts_with("child<virtio-balloon")
            };
            if let Some(entry) = entries.as_array().and_then(|all| all.iter().find(is_balloon)) {
                let name = entry["name"].as_str().context("a device without a name")?;
                return Ok(Some(format!("{folder}/{name}")));
            }
        }
        Ok(None)
    }

    /// Whether it had to be changed, and how often the guest is asked now, in seconds.
    async fn turn(&mut self, device: &str, polling: GuestPolling) -> Result<(bool, Option<u64>)> {
        let property = "guest-stats-polling-interval";
        let read = json!({ "path": device, "property": property });
        let every_s = self.try_ask("qom-get", read).await?.and_then(|every_s| every_s.as_u64());
        let (from, to) = match polling {
            GuestPolling::Leave => return Ok((false, every_s)),
            GuestPolling::TurnOn => (0, POLL_S),
            GuestPolling::TurnOff => (POLL_S, 0),
        };
        // Somebody else's setting stays.
        if every_s != Some(from) {
            return Ok((false, every_s));
        }
        let change = json!({ "path": device, "property": property, "value": to });
        self.ask("qom-set", change).await?;
        Ok((true, Some(to)))
    }
}

/// Why a VM in this state will not run on by itself (`RunState`, qapi/run-state.json).
fn departure(status: &Value) -> Option<Departure> {
    match status["status"].as_str()? {
        "postmigrate" => Some(Departure::Migrated),
        "shutdown" => Some(Departure::ShutDown),
        "guest-panicked" => Some(Departure::Panicked),
        "internal-error" => Some(Departure::Failed),
        _ => None,
    }
}

/// `None` if the guest has never reported.
fn guest_memory(stats: &Value) -> Option<GuestMemory> {
    let updated_unix_s = stats["last-update"].as_u64().filter(|seconds| *seconds > 0)?;
    // A figure that the guest does not give is all ones; and it may say anything.
    let figure = |name: &str| stats["stats"][name].as_u64().filter(|bytes| *bytes <= LARGEST);
    Some(GuestMemory {
        total: figure("stat-total-memory"),
        available: figure("stat-available-memory"),
        free: figure("stat-free-memory"),
        updated_unix_s,
        asked_every_s: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, Write};
    use std::os::unix::net::{UnixListener, UnixStream as Stream};
    use std::time::Instant;

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

    /// Greets so, and then answers one line after the other.
    fn serve(mut stream: Stream, greeting: &[u8], lines: &[&str]) {
        let mut requests = std::io::BufReader::new(stream.try_clone().unwrap());
        if stream.write_all(greeting).is_err() {
            return;
        }
        for line in lines {
            let mut request = String::new();
            if requests.read_line(&mut request).unwrap_or(0) == 0 {
                return;
            }
            if writeln!(stream, "{line}").is_err() {
                return;
            }
        }
        // Open until the other side leaves.
        let _ = std::io::copy(&mut requests, &mut std::io::sink());
    }

    /// What such a monitor says, however long it takes.
    fn answers(greeting: &'static [u8], lines: &'static [&str]) -> Result<Answer> {
        let (ours, theirs) = Stream::pair().unwrap();
        let monitor = std::thread::spawn(move || serve(theirs, greeting, lines));
        ours.set_nonblocking(true).unwrap();
        let answer =
            block_on(async { converse(UnixStream::from_std(ours)?, GuestPolling::TurnOn).await });
        monitor.join().unwrap();
        answer
    }

    fn error(greeting: &'static [u8], lines: &'static [&str]) -> String {
        format!("{:#}", answers(greeting, lines).unwrap_err())
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    /// Why one that greets so, and falls silent after its answers, is left in time.
    fn left(greeting: &'static [u8], lines: &'static [&str]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let accepted = move || serve(listener.accept().unwrap().0, greeting, lines);
        let monitor = std::thread::spawn(accepted);
        let start = Instant::now();
        let pid = std::process::id().cast_signed();
        let looked = block_on(look(vec![Socket::Given(path)], pid, GuestPolling::TurnOn));
        assert!(start.elapsed() < 4 * PATIENCE, "{:?}", start.elapsed());
        monitor.join().unwrap();
        format!("{:#}", looked.unwrap_err())
    }

    /// An answer is one line.
    fn one_line_each(answers: &[&str]) -> &'static [&'static str] {
        let lines = answers.iter().map(|answer| &*answer.replace("\n  ", " ").leak());
        lines.collect::<Vec<&str>>().leak()
    }

    #[test]
    fn a_balloon_and_what_its_guest_says() {
        const GREETS: &[u8] = b"{\"QMP\": {}}\n";
        let lines = &[
            r#"{"return": {}}"#,
            "{\"event\": \"NIC_RX_FILTER_CHANGED\", \"data\": {}}\n\
             {\"return\": {\"base-memory\": 1000, \"plugged-memory\": 24}}",
            r#"{"return": {"actual": 600}}"#,
            r#"{"return": []}"#,
            r#"{"return": [{"name": "device[0]", "type": "child<virtio-balloon-pci>"}]}"#,
            r#"{"return": 0}"#,
            r#"{"return": {}}"#,
            r#"{"return": {"last-update": 1700000000, "stats": {
                "stat-total-memory": 500, "stat-available-memory": 300,
                "stat-free-memory": 18446744073709551615}}}"#,
            // The other 16 are no part of what the balloon takes from.
            r#"{"return": [{"type": "dimm", "data": {"size": 8}},
                {"type": "virtio-mem", "data": {"size": 16}}]}"#,
            r#"{"return": {"running": false, "status": "postmigrate"}}"#,
        ];
        let answer = answers(GREETS, one_line_each(lines)).unwrap();
        assert_eq!(answer.departure, Some(Departure::Migrated));
        let Answer { balloon, is_turned, .. } = answer;
        assert!(is_turned);
        assert_eq!((balloon.configured, balloon.ballooned), (Some(1024), 408));
        let guest = balloon.guest.unwrap();
        assert_eq!((guest.total, guest.available, guest.free), (Some(500), Some(300), None));
        assert_eq!(guest.asked_every_s, Some(POLL_S));
    }

    #[test]
    fn lies_are_bounded_by_what_else_is_said() {
        let greeting: &[u8] = format!("{GREETING}\n").leak().as_bytes();
        let lines = &[
            r#"{"return": {}}"#,
            r#"{"return": {"base-memory": 1000, "plugged-memory": 24}}"#,
            r#"{"return": {"actual": 0}}"#,
            r#"{"return": []}"#,
            r#"{"return": []}"#,
            r#"{"return": [{"type": "dimm", "data": {"size": 9223372036854775808}},
                {"type": "dimm", "data": {"size": 9223372036854775808}}]}"#,
            r#"{"return": {"running": true, "status": "running"}}"#,
        ];
        assert_eq!(answers(greeting, one_line_each(lines)).unwrap().balloon.ballooned, 1024);
        let larger = &[
            r#"{"return": {}}"#,
            r#"{"return": {"base-memory": 1000}}"#,
            r#"{"return": {"actual": 1001}}"#,
        ];
        assert!(error(greeting, larger).contains("larger than its memory"));
    }

    #[test]
    fn a_vm_without_a_balloon_has_nothing_taken_back() {
        let greeting: &[u8] = format!("{GREETING}\n").leak().as_bytes();
        let lines = &[
            r#"{"return": {}}"#,
            r#"{"return": {"base-memory": 1000}}"#,
            r#"{"error": {"class": "DeviceNotActive", "desc": "No balloon device"}}"#,
            r#"{"return": {"running": true, "status": "running"}}"#,
        ];
        let Answer { balloon, departure, is_turned } = answers(greeting, lines).unwrap();
        assert_eq!(departure, None);
        assert_eq!((balloon.current, balloon.ballooned, is_turned), (None, 0, false));
    }

    #[test]
    fn what_does_not_speak_qmp_is_left_in_time() {
        assert!(left(b"", &[]).contains("in use"), "mute");
        assert!(error(b"hello\n", &[]).contains("does not speak QMP"), "garbage");
        assert!(error(b"{}\n", &[]).contains("does not greet"), "another protocol");
        assert!(error(&[b'x'; 2 << 20], &[]).contains("without an end"), "endless");
        let never = &[r#"{"return": {}}"#];
        assert!(left(b"{\"QMP\": {}}\n", never).contains("in use"), "hung");
    }

    #[test]
    fn one_byte_at_a_time_takes_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let slow = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for byte in GREETING.bytes().cycle() {
                std::thread::sleep(Duration::from_millis(20));
                if stream.write_all(&[byte]).is_err() {
                    return;
                }
            }
        });
        let start = Instant::now();
        let pid = std::process::id().cast_signed();
        let error =
            block_on(look(vec![Socket::Given(path)], pid, GuestPolling::Leave)).unwrap_err();
        assert!(format!("{error:#}").contains("no answer within"), "{error:#}");
        assert!(start.elapsed() < 4 * PATIENCE);
        slow.join().unwrap();
    }

    #[test]
    fn one_that_is_in_use_hides_no_other_and_few_are_tried() {
        let dir = tempfile::tempdir().unwrap();
        let bind = |number| {
            let path = dir.path().join(format!("qmp-{number}"));
            (Socket::Given(path.clone()), UnixListener::bind(path).unwrap())
        };
        let (sockets, listeners): (Vec<_>, Vec<_>) = (0..60).map(bind).unzip();
        let pid = std::process::id().cast_signed();
        let error = block_on(look(sockets.clone(), pid, GuestPolling::Leave)).unwrap_err();
        assert!(format!("{error:#}").contains("no answer within"), "{error:#}");
        let is_asked = |listener: &UnixListener| {
            listener.set_nonblocking(true).unwrap();
            listener.accept().is_ok()
        };
        assert_eq!(listeners.iter().filter(|one| is_asked(one)).count(), MONITORS_MAX);

        let free = listeners[1].try_clone().unwrap();
        let greets = std::thread::spawn(move || {
            free.set_nonblocking(false).unwrap();
            let (mut stream, _) = free.accept().unwrap();
            stream.write_all(b"{\"QMP\": {}}\n{\"return\": {}}\n{\"error\": {}}\n").unwrap();
            // Open until the other side leaves.
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        });
        let error = block_on(look(sockets, pid, GuestPolling::Leave)).unwrap_err();
        greets.join().unwrap();
        let error = format!("{error:#}");
        assert!(error.contains("qmp-1: QEMU refuses query-memory-size-summary"), "{error}");
    }

    #[test]
    fn another_process_is_not_the_vm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let _listener = UnixListener::bind(&path).unwrap();
        let error = block_on(look(vec![Socket::Given(path)], 1, GuestPolling::Leave)).unwrap_err();
        assert!(format!("{error:#}").contains("listens there, not 1"), "{error:#}");
    }
}
