//! What the programs cost: the kernel times them for a moment now and then, which costs some itself.
//!
//! That takes CAP_SYS_ADMIN (`bpf_enable_stats`, kernel/bpf/syscall.c, 6.1 to 7.3), which a recorder
//! gives up; so a process of its own keeps it, and nothing else.

use crate::kernel::capability::{self, CapabilitySet};
use crate::probes::fdinfo;
use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::programs::{ProgramFd, loaded_programs};
use aya::sys::{Stats, enable_stats};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// The subcommand that it runs.
pub const STATS: &str = "program-stats";

/// For how long programs are timed, and how long they are not in between.
const MOMENT: Duration = Duration::from_millis(50);
const BETWEEN: Duration = Duration::from_secs(10);
/// Of a short recording the first time comes sooner.
const FIRST: Duration = Duration::from_secs(1);
/// How long an answer may take, and the end of whoever answers.
const PATIENCE: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_millis(200);

/// What programs took while they were timed, and for how long that was, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timed {
    /// CPU time.
    pub taken_ns: u64,
    /// Of that time.
    pub length_ns: u64,
}

/// Bytes of an answer: both numbers.
const ANSWER: usize = 16;

impl Timed {
    fn bytes(self) -> [u8; ANSWER] {
        let mut bytes = [0; ANSWER];
        bytes[..8].copy_from_slice(&self.taken_ns.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.length_ns.to_ne_bytes());
        bytes
    }

    fn read(bytes: [u8; ANSWER]) -> Self {
        let number = |from: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[from..from + 8]);
            u64::from_ne_bytes(number)
        };
        Self { taken_ns: number(0), length_ns: number(8) }
    }

    fn add(&mut self, other: Self) {
        self.taken_ns += other.taken_ns;
        self.length_ns += other.length_ns;
    }
}

/// Times the programs of a recording.
pub struct ProgramStats {
    /// Or why they cannot be timed.
    timer: Result<Timer, String>,
    sum: Timed,
    /// Bytes of kernel memory that the programs take.
    memory: u64,
}

/// The process that has them timed.
struct Timer {
    child: Child,
    ask: Option<ChildStdin>,
    answer: ChildStdout,
    /// When it is to be asked next.
    next: Instant,
    /// When it was asked; `None` once it has answered.
    asked: Option<Instant>,
    /// Whether the next answer is of the time before the recording.
    is_early: bool,
}

impl ProgramStats {
    /// Of the programs that are loaded.
    pub fn start(ebpf: &Ebpf) -> Self {
        let fds = || ebpf.programs().filter_map(|(_, program)| program.fd().ok());
        let memory = fds().filter_map(|fd| fdinfo::of_program(fd, "memlock:")).sum();
        let ids = fds().filter_map(|fd| fdinfo::of_program(fd, "prog_id:")).collect();
        Self { timer: Timer::start(ids).map_err(why), sum: Timed::default(), memory }
    }

    /// What came so far was before the recording.
    pub fn begin(&mut self) {
        self.sum = Timed::default();
        if let Ok(timer) = &mut self.timer {
            (timer.next, timer.is_early) = (Instant::now() + FIRST, timer.asked.is_some());
        }
    }

    /// Goes on; to be called every second or so.
    pub fn tick(&mut self) {
        let Ok(timer) = &mut self.timer else { return };
        match timer.tick(Instant::now()) {
            Ok(timed) => timed.into_iter().for_each(|timed| self.sum.add(timed)),
            Err(error) => self.timer = Err(why(error)),
        }
    }

    /// What the programs took while they were timed; or why they were not.
    ///
    /// # Errors
    /// They could not be timed.
    pub fn so_far(&self) -> Result<Timed, &str> {
        match &self.timer {
            // What was measured before something went wrong holds.
            Err(why) if self.sum.length_ns == 0 => Err(why),
            _ => Ok(self.sum),
        }
    }

    /// Bytes of kernel memory that the programs take, as the kernel accounts for them.
    pub fn memory(&self) -> u64 {
        self.memory
    }
}

fn why(error: anyhow::Error) -> String {
    format!("{error:#}")
}

impl Timer {
    fn start(programs: Vec<u64>) -> Result<Self> {
        ensure!(capability::held()?.contains(CapabilitySet::SYS_ADMIN), "this needs CAP_SYS_ADMIN");
        let mut timer = Command::new("/proc/self/exe");
        timer.arg0("overcommit").arg(STATS).args(programs.iter().map(u64::to_string));
        // Neither a terminal's signal nor its end is meant for it.
        timer.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = timer.spawn().context("cannot start the process that times programs")?;
        let (ask, answer) = (child.stdin.take(), child.stdout.take());
        let answer = answer.context("the process that times programs has no output")?;
        fcntl(&answer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("cannot wait for it")?;
        let next = Instant::now() + FIRST;
        Ok(Self { child, ask, answer, next, asked: None, is_early: false })
    }

    /// Asks when it is time to, and takes the answer when it has come.
    fn tick(&mut self, now: Instant) -> Result<Option<Timed>> {
        let gone = "the process that times programs is gone";
        let Some(asked) = self.asked else {
            if now >= self.next {
                (self.next, self.asked) = (now + BETWEEN, Some(now));
                self.ask.as_mut().context(gone)?.write_all(b"?").context(gone)?;
            }
            return Ok(None);
        };
        let mut answer = [0; ANSWER];
        match self.answer.read(&mut answer) {
            Ok(ANSWER) => {
                self.asked = None;
                let timed = Timed::read(answer);
                ensure!(timed.length_ns > 0, "the kernel refuses to time them");
                let is_early = std::mem::take(&mut self.is_early);
                Ok((!is_early).then_some(timed))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                ensure!(now < asked + PATIENCE, "the process that times programs does not answer");
                Ok(None)
            }
            _ => anyhow::bail!(gone),
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // It ends with its input, after a moment at the most.
        drop(self.ask.take());
        let start = Instant::now();
        while start.elapsed() < GRACE && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process: has the programs of these numbers timed for a moment whenever it is asked. Ends with
/// whoever asks.
///
/// # Errors
/// It cannot give up what it does not need, or find the programs.
pub fn run(programs: &[u32]) -> Result<()> {
    capability::keep_admin()?;
    rustix::thread::set_name(c"overcommit").context("cannot name this process")?;
    let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
    signals.into_iter().collect::<SigSet>().thread_block().context("cannot block signals")?;
    let loaded = loaded_programs().flatten().filter(|program| programs.contains(&program.id()));
    let loaded: Vec<ProgramFd> = loaded.filter_map(|program| program.fd().ok()).collect();
    let taken =
        || -> u64 { loaded.iter().filter_map(|fd| fdinfo::of_program(fd, "run_time_ns:")).sum() };
    let mut asked = std::io::stdin();
    // Not by lines: an answer is one write.
    let answer = std::io::stdout().as_fd().try_clone_to_owned().context("there is no output")?;
    let mut answer = File::from(answer);
    while asked.read_exact(&mut [0]).is_ok() {
        let before_ns = taken();
        let mut timed = Timed::default();
        if let Ok(stats) = enable_stats(Stats::RunTime) {
            let start = Instant::now();
            std::thread::sleep(MOMENT);
            timed.length_ns = start.elapsed().as_nanos() as u64;
            drop(stats);
            timed.taken_ns = taken().saturating_sub(before_ns);
        }
        // Nobody is there to be told of an error.
        if answer.write_all(&timed.bytes()).is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that answers what it is asked as it is told to.
    fn timer(script: &str) -> Timer {
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (ask, answer) = (child.stdin.take(), child.stdout.take().unwrap());
        let now = Instant::now();
        Timer { child, ask, answer, next: now, asked: None, is_early: false }
    }

    /// Twice an answer of 5 ns in 11.
    const ANSWERS: &str = r"for i in 1 2; do head -c 1 > /dev/null;
        printf '\005\0\0\0\0\0\0\0\013\0\0\0\0\0\0\0'; done";

    #[test]
    fn answers_are_added_up_and_early_ones_are_not() {
        let timed = Timed { taken_ns: 5, length_ns: 11 };
        assert_eq!(Timed::read(timed.bytes()), timed);
        let mut stats =
            ProgramStats { timer: Ok(timer(ANSWERS)), sum: Timed::default(), memory: 0 };
        stats.tick();
        // It blocks here, and does not in a recorder: the answer has come then.
        stats.begin();
        stats.tick();
        assert_eq!(stats.so_far(), Ok(Timed::default()), "it was before the recording");
        stats.timer.as_mut().unwrap().next = Instant::now();
        stats.tick();
        stats.tick();
        assert_eq!(stats.so_far(), Ok(timed));
    }

    #[test]
    fn who_does_not_answer_is_given_up() {
        let mut stats =
            ProgramStats { timer: Ok(timer("head -c 1")), sum: Timed::default(), memory: 0 };
        stats.tick();
        stats.tick();
        assert_eq!(stats.so_far(), Err("the process that times programs is gone"));
    }
}
