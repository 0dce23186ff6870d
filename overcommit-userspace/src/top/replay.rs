//! A recording as a source: read by threads of its own, no faster than it is shown.

use crate::top::Update;
use crate::top::terminal::{Next, Source};
use anyhow::{Result, anyhow};
use overcommit_recording::model::interval::Interval;
use overcommit_recording::model::run::Run;
use overcommit_recording::model::slow_fault::SlowFault;
use overcommit_recording::recent::{WANTED, slim};
use overcommit_recording::recording::span::Mark;
use overcommit_recording::recording::{Recording, Span};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

/// Intervals, and slow faults, that are read ahead.
const AHEAD: usize = 16;
/// How much before a moment has to be read for its screen, in seconds.
const BEFORE_S: f64 = 700.0;
/// Time by which it may be behind, and catches up.
const BEHIND: Duration = Duration::from_secs(1);

/// A recording that is replayed.
pub struct Replay {
    recording: Recording,
    run: Arc<Run>,
    intervals: Receiver<Result<Interval>>,
    slow: Receiver<Result<SlowFault>>,
    /// Those that come next, if they were read.
    next: Option<Interval>,
    next_slow: Option<SlowFault>,
    /// When the next interval is over, as fast as it goes.
    due: Option<Instant>,
    /// The end of the last one that was handed on, in Unix seconds.
    at_s: f64,
    /// Up to when all is handed on at once.
    until_s: f64,
}

impl Replay {
    /// From its start.
    pub fn start(recording: Recording) -> Self {
        let run = Arc::new(recording.run.clone());
        let at_s = run.clocks.start.realtime_ns as f64 / 1e9;
        let (intervals, slow) = (read(&recording, Span::WHOLE), read_slow(&recording));
        let (next, next_slow) = (None, None);
        Self { recording, run, intervals, slow, next, next_slow, due: None, at_s, until_s: 0.0 }
    }

    /// All that its last screen takes.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn last(recording: &Recording) -> Result<Vec<Update>> {
        let run = Arc::new(recording.run.clone());
        let mut updates = Vec::new();
        let [_, end_s] = bounds_s(&run);
        let span = Span::from_s(end_s - BEFORE_S);
        recording.each(span, WANTED, |interval| {
            updates.push(Update::interval(&run, interval));
            Ok(())
        })?;
        Ok(updates)
    }

    /// The next interval, or what to do without.
    fn next_interval(&mut self) -> Result<Result<Interval, Next>> {
        if let Some(interval) = self.next.take() {
            return Ok(Ok(interval));
        }
        Ok(match self.intervals.try_recv() {
            Ok(interval) => Ok(interval?),
            Err(TryRecvError::Empty) if self.at_s < self.until_s => Err(Next::Soon),
            Err(TryRecvError::Empty) => Err(Next::Nothing),
            Err(TryRecvError::Disconnected) => Err(Next::End),
        })
    }

    /// The next slow fault, if it came before that.
    fn slow_before(&mut self, end_s: f64) -> Result<Option<SlowFault>> {
        if self.next_slow.is_none() {
            self.next_slow = self.slow.try_recv().ok().transpose()?;
        }
        Ok(self.next_slow.take_if(|fault| fault.end_ns as f64 / 1e9 <= end_s))
    }

    /// Whether it begins before the moment that was asked for.
    fn is_caught_up(&self, interval: &Interval) -> bool {
        interval.place.start_us as f64 / 1e6 <= self.until_s
    }

    fn is_due(&self, interval: &Interval) -> bool {
        self.is_caught_up(interval) || self.due.is_none_or(|due| Instant::now() >= due)
    }
}

/// Its start and its end, in Unix seconds.
fn bounds_s(run: &Run) -> [f64; 2] {
    let length_ns = run.options.interval_ns.saturating_mul(run.recorded.intervals);
    let start_ns = run.clocks.start.realtime_ns;
    let end_ns = run.clocks.end.map_or(start_ns.saturating_add(length_ns), |end| end.realtime_ns);
    [start_ns, end_ns].map(|ns| ns as f64 / 1e9)
}

/// Has a thread read that part, which waits while nobody takes what it has read, and ends when
/// nobody will.
fn read(recording: &Recording, span: Span) -> Receiver<Result<Interval>> {
    let (sender, intervals) = sync_channel(AHEAD);
    let recording = recording.clone();
    std::thread::spawn(move || {
        let hand_on = |interval: &Interval| sender.send(Ok(slim(interval))).map_err(|_| gone());
        if let Err(error) = recording.each(span, WANTED, hand_on) {
            // Whoever does not look needs no error.
            let _ = sender.send(Err(error));
        }
    });
    intervals
}

/// The same with slow faults.
fn read_slow(recording: &Recording) -> Receiver<Result<SlowFault>> {
    let (sender, faults) = sync_channel(AHEAD);
    let recording = recording.clone();
    std::thread::spawn(move || {
        let hand_on = |fault: &SlowFault| sender.send(Ok(fault.clone())).map_err(|_| gone());
        if let Err(error) = recording.each_slow_fault(hand_on) {
            let _ = sender.send(Err(error));
        }
    });
    faults
}

fn gone() -> anyhow::Error {
    anyhow!("nobody looks any more")
}

impl Source for Replay {
    fn next(&mut self, pace: f64) -> Result<Next> {
        let interval = match self.next_interval()? {
            Ok(interval) => interval,
            Err(next) => return Ok(next),
        };
        let end_s = interval.place.end_s();
        if let Some(fault) = self.slow_before(end_s)? {
            self.next = Some(interval);
            return Ok(Next::Update(Update::slow_faults(&self.run, &[fault])));
        }
        if !self.is_due(&interval) {
            self.next = Some(interval);
            return Ok(Next::Nothing);
        }
        let now = Instant::now();
        let length = Duration::from_nanos(interval.place.length_ns).div_f64(pace);
        // What is caught up took no time.
        let due = self.due.filter(|due| {
            !self.is_caught_up(&interval) && now.saturating_duration_since(*due) < BEHIND
        });
        self.due = Some(due.unwrap_or(now) + length);
        self.at_s = end_s;
        Ok(Next::Update(Update::interval(&self.run, &interval)))
    }

    fn mark(&mut self, _: &Mark) -> Result<()> {
        Ok(())
    }

    fn at_s(&self) -> f64 {
        self.at_s.max(self.until_s)
    }

    fn go_to(&mut self, unix_s: f64) -> bool {
        let [start_s, end_s] = bounds_s(&self.run);
        self.until_s = unix_s.min(end_s).max(start_s);
        self.at_s = self.until_s - BEFORE_S;
        self.intervals = read(&self.recording, Span::from_s(self.at_s));
        self.slow = read_slow(&self.recording);
        (self.next, self.next_slow, self.due) = (None, None, None);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overcommit_recording::recording::Folder;
    use std::path::Path;

    /// The number of the next interval, however long it takes to read it.
    fn next(replay: &mut Replay, pace: f64) -> u64 {
        loop {
            match replay.next(pace).unwrap() {
                Next::Update(Update::Interval(_, interval)) => return interval.place.number,
                Next::Update(Update::SlowFaults(_) | Update::Marks(_))
                | Next::Nothing
                | Next::Soon => {
                    std::thread::yield_now();
                }
                Next::End | Next::Over => panic!("it has more"),
            }
        }
    }

    #[test]
    fn it_goes_on_and_back() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("recording/golden/now");
        let dir = tempfile::tempdir().unwrap();
        let copied =
            std::process::Command::new("cp").arg("-r").arg(golden).arg(dir.path()).status();
        assert!(copied.unwrap().success());
        let recording = Recording::open(&Folder::open(&dir.path().join("now")).unwrap()).unwrap();
        let mut replay = Replay::start(recording);
        assert_eq!([next(&mut replay, 1e9), next(&mut replay, 1e9)], [0, 1]);
        while !matches!(replay.next(1e9).unwrap(), Next::End) {
            std::thread::yield_now();
        }
        // Far more than there is.
        assert!(replay.go_to(0.0));
        // The first one comes at once, the next one in its time.
        assert_eq!(next(&mut replay, 1e-6), 0);
        for _ in 0..1_000 {
            assert!(!matches!(replay.next(1e-6).unwrap(), Next::Update(Update::Interval(..))));
        }
        replay.due = None;
        assert_eq!(next(&mut replay, 1e9), 1);
        // What was caught up takes no time: the next one is due an interval later.
        assert!(replay.go_to(1e12));
        assert_eq!([next(&mut replay, 1.0), next(&mut replay, 1.0)], [0, 1]);
        let left = replay.due.unwrap().saturating_duration_since(Instant::now());
        assert!(left <= Duration::from_nanos(replay.run.options.interval_ns), "{left:?}");
    }
}
