//! Asks the host once a second, while something else goes on.

use crate::guest::host::Ways;
use crate::guest::load::Meanwhile;
use crate::session::wait::Waiter;
use anyhow::{Context, Result};
use overcommit_recording::guest::Message;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::sleep_until;

/// Time between two questions.
const AGAIN: Duration = Duration::from_secs(1);
/// Time after a command in which the host tells of its end.
const LAST: Duration = Duration::from_secs(3);
/// The same, however long the host's intervals are.
const LONGEST: Duration = Duration::from_secs(180);

/// What the host says, second by second, and when that was, in seconds since `since`.
///
/// # Errors
/// There can be no more threads.
pub fn asking(ways: Ways, since: Instant) -> Result<UnboundedReceiver<(Result<Message>, f64)>> {
    let (told, receiver) = unbounded_channel();
    let ask = move || {
        loop {
            let next = Instant::now() + AGAIN;
            let answer = ways.ask();
            if told.send((answer, since.elapsed().as_secs_f64())).is_err() {
                return;
            }
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    };
    let thread = std::thread::Builder::new().name("asking".to_owned()).spawn(ask);
    thread.context("cannot start a thread")?;
    Ok(receiver)
}

/// What the host says while COMMAND runs.
pub struct Answers {
    told: UnboundedReceiver<(Result<Message>, f64)>,
    /// What it did.
    pub meanwhile: Meanwhile,
    /// Why it last said nothing.
    pub why: Option<anyhow::Error>,
}

impl Answers {
    /// Asks from now on; the command began at `since`.
    ///
    /// # Errors
    /// As [`asking`].
    pub fn since(since: Instant, ways: Ways) -> Result<Self> {
        Ok(Self { told: asking(ways, since)?, meanwhile: Meanwhile::default(), why: None })
    }

    /// The next one.
    ///
    /// # Errors
    /// What asks the host has ended.
    pub async fn take(&mut self) -> Result<()> {
        match self.told.recv().await.context("the thread that asks the host ended")? {
            (Ok(message), at_s) => self.meanwhile.add(&message, at_s),
            (Err(error), _) => self.why = Some(error),
        }
        Ok(())
    }

    /// Those that tell of the first so many seconds, which are over: the interval in which they ended
    /// is told after it.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub async fn take_those_of(&mut self, seconds: f64, waiter: &mut Waiter) -> Result<()> {
        let over = Instant::now();
        loop {
            let longest_s = self.meanwhile.longest_s();
            let is_hopeless = self.why.is_some() && longest_s == 0.0;
            if is_hopeless || self.meanwhile.reaches(seconds) {
                return Ok(());
            }
            let longest = Duration::try_from_secs_f64(2.0 * longest_s).unwrap_or(LONGEST);
            let until = over + longest.clamp(LAST, LONGEST);
            tokio::select! {
                biased;
                _ = waiter.signal() => return Ok(()),
                () = sleep_until(until.into()) => return Ok(()),
                taken = self.take() => taken?,
            }
        }
    }
}
