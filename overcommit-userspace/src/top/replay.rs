//! A recording as a source: read by a thread of its own, no faster than it is shown.

use crate::top::Update;
use crate::top::terminal::{Next, Source};
use anyhow::{Result, anyhow};
use overcommit_recording::model::interval::Interval;
use overcommit_recording::model::slow_fault::SlowFault;
use overcommit_recording::recent::WANTED;
use overcommit_recording::recording::{Recording, Span};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

/// Intervals that are read ahead.
const AHEAD: usize = 16;
/// How much before a moment has to be read for its screen, in seconds.
const BEFORE_S: f64 = 600.0;

/// A recording that is replayed.
pub struct Replay {
    recording: Recording,
    intervals: Receiver<Result<Interval>>,
    /// The one that comes next, if it was read.
    next: Option<Interval>,
    /// When the last one was handed on, and its length.
    last: Option<(Instant, Duration)>,
    /// Up to when all is handed on at once, in Unix seconds.
    until_s: f64,
    slow: std::vec::IntoIter<SlowFault>,
}

impl Replay {
    /// From its start.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn start(recording: Recording) -> Result<Self> {
        let mut slow = Vec::new();
        recording.each_slow_fault(|fault| {
            slow.push(fault.clone());
            Ok(())
        })?;
        let intervals = read(&recording, Span::WHOLE);
        let slow = slow.into_iter();
        Ok(Self { recording, intervals, next: None, last: None, until_s: 0.0, slow })
    }

    /// The last interval there is, and all that its screen takes, at once.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn all(self) -> impl Iterator<Item = Result<Update>> {
        let run = self.recording.run.clone();
        self.intervals.into_iter().map(move |interval| Ok(update(&run, interval?)))
    }

    fn is_due(&self, interval: &Interval, pace: f64) -> bool {
        interval.place.end_s() <= self.until_s
            || self.last.is_none_or(|(when, length)| when.elapsed().mul_f64(pace) >= length)
    }
}

fn update(run: &overcommit_recording::model::run::Run, interval: Interval) -> Update {
    Update::Interval(Box::new((run.clone(), interval)))
}

/// Has a thread read that part, which waits while nobody takes what it has read, and ends when
/// nobody will.
fn read(recording: &Recording, span: Span) -> Receiver<Result<Interval>> {
    let (sender, intervals) = sync_channel(AHEAD);
    let recording = recording.clone();
    std::thread::spawn(move || {
        let hand_on = |interval: &Interval| {
            sender.send(Ok(interval.clone())).map_err(|_| anyhow!("nobody looks any more"))
        };
        if let Err(error) = recording.each(span, WANTED, hand_on) {
            // Whoever does not look needs no error.
            let _ = sender.send(Err(error));
        }
    });
    intervals
}

impl Source for Replay {
    fn next(&mut self, pace: f64) -> Result<Next> {
        if self.next.is_none() {
            self.next = match self.intervals.try_recv() {
                Ok(interval) => Some(interval?),
                // It stays on its last moment.
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
            };
        }
        let Some(interval) = self.next.take() else { return Ok(Next::Nothing) };
        let end_ns = (interval.place.end_s() * 1e9) as u64;
        if self.slow.as_slice().first().is_some_and(|fault| fault.end_ns <= end_ns) {
            let count =
                self.slow.as_slice().iter().take_while(|fault| fault.end_ns <= end_ns).count();
            self.next = Some(interval);
            return Ok(Next::Update(Update::SlowFaults(self.slow.by_ref().take(count).collect())));
        }
        if !self.is_due(&interval, pace) {
            self.next = Some(interval);
            return Ok(Next::Nothing);
        }
        self.last = Some((Instant::now(), Duration::from_nanos(interval.place.length_ns)));
        Ok(Next::Update(update(&self.recording.run, interval)))
    }

    fn seek(&mut self, unix_s: f64) -> Result<bool> {
        let run = &self.recording.run;
        let start_s = run.clocks.start.realtime_ns as f64 / 1e9;
        self.until_s = unix_s.max(start_s);
        self.intervals = read(&self.recording, Span::from_s(self.until_s - BEFORE_S));
        (self.next, self.last) = (None, None);
        Ok(true)
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
                Next::Update(Update::Interval(both)) => return both.1.place.number,
                Next::Update(Update::SlowFaults(_)) | Next::Nothing => std::thread::yield_now(),
                Next::Over => panic!("a recording stays on its last moment"),
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
        let mut replay = Replay::start(recording).unwrap();
        assert_eq!([next(&mut replay, 1e9), next(&mut replay, 1e9)], [0, 1]);
        assert!(matches!(replay.next(1e9).unwrap(), Next::Nothing));
        assert!(replay.seek(0.0).unwrap());
        // The first one comes at once, the next one in its time.
        assert_eq!(next(&mut replay, 1e-9), 0);
        for _ in 0..1_000 {
            assert!(!matches!(replay.next(1e-9).unwrap(), Next::Update(Update::Interval(_))));
        }
        assert_eq!(next(&mut replay, 1e9), 1);
    }
}
