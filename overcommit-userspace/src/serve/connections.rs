//! Connections of clients: so many, and none for longer than it is of use. A client that reads
//! slowly, or keeps a connection and asks nothing, costs a bounded amount of memory.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, sleep_until};

/// Connections at a time. Of more one that asks nothing is closed, so that nobody is shut out by
/// those who only wait.
const MOST: usize = 32;
/// Time from one request to the end of its answer, and to the next one: longer than scrapers wait.
const IDLE: Duration = Duration::from_secs(150);

/// Those that are open.
#[derive(Default)]
pub(super) struct Connections(Vec<(Asked, AbortHandle)>);

impl Connections {
    /// Keeps one more, for which another may have to go: one that never asked, else the one that
    /// did so longest ago.
    pub(super) fn add(&mut self, asked: Asked, task: &JoinHandle<()>) {
        self.0.retain(|(_, open)| !open.is_finished());
        while self.0.len() >= MOST {
            let oldest = self.0.iter().enumerate().min_by_key(|(_, (asked, _))| asked.rank());
            let Some((place, _)) = oldest else { break };
            self.0.swap_remove(place).1.abort();
        }
        self.0.push((asked, task.abort_handle()));
    }

    /// Closes them all.
    pub(super) fn abort(&mut self) {
        self.0.drain(..).for_each(|(_, open)| open.abort());
    }

    /// Whether any is open.
    pub(super) fn are_open(&mut self) -> bool {
        self.0.retain(|(_, open)| !open.is_finished());
        !self.0.is_empty()
    }
}

/// When a client asked last, or came; and whether it ever asked.
#[derive(Clone)]
pub(super) struct Asked(Rc<Cell<(bool, Instant)>>);

impl Asked {
    /// It has come.
    pub(super) fn not_yet() -> Self {
        Self(Rc::new(Cell::new((false, Instant::now()))))
    }

    /// It has asked again.
    pub(super) fn again(&self) {
        self.0.set((true, Instant::now()));
    }

    fn rank(&self) -> (bool, Instant) {
        self.0.get()
    }

    /// Waits until it has not asked for too long.
    pub(super) async fn too_long_ago(&self) {
        while self.0.get().1.elapsed() < IDLE {
            sleep_until(self.0.get().1 + IDLE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::{LocalSet, spawn_local};

    /// Lets each task that was aborted end: some at a time.
    async fn settled() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn who_only_waits_goes_before_who_asks() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let mut connections = Connections::default();
            let mut open = |has_asked: bool| {
                let (asked, task) = (Asked::not_yet(), spawn_local(std::future::pending::<()>()));
                if has_asked {
                    asked.again();
                }
                connections.add(asked, &task);
                task
            };
            let scraper = open(true);
            let idle: Vec<_> = (0..3 * MOST).map(|_| open(false)).collect();
            settled().await;
            assert!(!scraper.is_finished());
            assert_eq!(idle.iter().filter(|task| !task.is_finished()).count(), MOST - 1);
            // Of those that ask, the one that did so longest ago.
            let later: Vec<_> = (0..MOST).map(|_| open(true)).collect();
            settled().await;
            assert!(scraper.is_finished() && later.iter().all(|task| !task.is_finished()));
            assert!(connections.are_open());
            connections.abort();
            settled().await;
            assert!(later.iter().all(JoinHandle::is_finished) && !connections.are_open());
        });
    }
}
