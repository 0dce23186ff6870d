//! How much of an interval did a VM's vCPUs wait?

use overcommit_ebpf::layout::Thread;
use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;

/// Reads of an entry before one that its thread keeps changing is left for the
/// next interval.
const TRIES: u32 = 100;

/// Waiting time of the threads of one VM that has been handed out already.
#[derive(Debug, Default)]
pub struct Waits {
    /// By thread id, in nanoseconds.
    counted: HashMap<i32, u64>,
}

impl Waits {
    /// The time that the thread waited since it was last asked for, at most
    /// `length_ns`; what exceeds that is handed out next time. In nanoseconds.
    ///
    /// A fault still open counts up to `now_ns` (`CLOCK_MONOTONIC`).
    ///
    /// A start that was never followed by an end looks like a fault that lasts; so
    /// `is_in_fault` is asked of one that lasts longer than the interval.
    pub fn advance(
        &mut self,
        thread: &Thread,
        now_ns: u64,
        length_ns: u64,
        is_in_fault: impl FnOnce(&Thread) -> bool,
    ) -> u64 {
        let counted = self.counted.entry(thread.tid()).or_default();
        let Some((ended, open)) = waited(thread, now_ns) else {
            return 0;
        };
        let stays = open > length_ns && !is_in_fault(thread);
        let total = if stays { ended } else { ended + open };
        // What turned out to be no wait must not hide the next one.
        *counted = (*counted).min(total);
        let waited = total.saturating_sub(*counted).min(length_ns);
        *counted += waited;
        waited
    }

    /// Forgets what the thread waited before now, which nobody was told.
    pub fn skip(&mut self, thread: &Thread, now_ns: u64) {
        if let Some((ended, open)) = waited(thread, now_ns) {
            self.counted.insert(thread.tid(), ended + open);
        }
    }

    /// Forgets a thread that is gone.
    pub fn forget(&mut self, tid: i32) {
        self.counted.remove(&tid);
    }
}

/// What a thread has waited in faults that ended, and in the open one. `None` while
/// the thread keeps changing it.
fn waited(thread: &Thread, now_ns: u64) -> Option<(u64, u64)> {
    for _ in 0..TRIES {
        let before = thread.sequence.load(SeqCst);
        let since = thread.since_ns.load(SeqCst);
        let waited = thread.waited_ns.load(SeqCst);
        if before.is_multiple_of(2) && thread.sequence.load(SeqCst) == before {
            let open = if since == 0 { 0 } else { now_ns.saturating_sub(since) };
            return Some((waited, open));
        }
        std::hint::spin_loop();
    }
    None
}

/// Whether a thread that stands in a fault by its entry does so by its kernel stack.
/// One whose stack cannot be told, as while it runs, is believed.
pub fn is_in_fault(thread: &Thread) -> bool {
    let path = format!("/proc/{}/task/{}/stack", thread.tgid(), thread.tid());
    match std::fs::read_to_string(path) {
        Ok(stack) => stack.trim().is_empty() || stack.contains("fault"),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    fn thread(waited_ns: u64, since_ns: u64) -> Thread {
        let zero = || AtomicU64::new(0);
        Thread {
            id: AtomicU64::new((7 << 32) | 8),
            vm: zero(),
            sequence: zero(),
            since_ns: AtomicU64::new(since_ns),
            address: zero(),
            waited_ns: AtomicU64::new(waited_ns),
            in_kvm_run: zero(),
            reserved: zero(),
        }
    }

    /// A fault of 2.5 intervals is three shares, none above the whole.
    #[test]
    fn an_open_fault_counts_where_it_is_waited() {
        let mut waits = Waits::default();
        let open = thread(0, 500);
        assert_eq!(waits.advance(&open, 1_000, 1_000, |_| true), 500);
        assert_eq!(waits.advance(&open, 2_000, 1_000, |_| true), 1_000);
        let ended = thread(2_500, 0);
        assert_eq!(waits.advance(&ended, 3_000, 1_000, |_| true), 1_000);
        assert_eq!(waits.advance(&ended, 4_000, 1_000, |_| true), 0);
    }

    #[test]
    fn more_than_the_interval_is_left_for_the_next() {
        let mut waits = Waits::default();
        let busy = thread(1_010, 0);
        assert_eq!(waits.advance(&busy, 1_000, 1_000, |_| true), 1_000);
        assert_eq!(waits.advance(&busy, 2_000, 1_000, |_| true), 10);
    }

    #[test]
    fn a_thread_that_is_changing_is_left_alone() {
        let mut waits = Waits::default();
        let changing = thread(1_000, 0);
        changing.sequence.store(3, SeqCst);
        assert_eq!(waits.advance(&changing, 5_000, 1_000, |_| true), 0);
        changing.sequence.store(4, SeqCst);
        assert_eq!(waits.advance(&changing, 6_000, 1_000, |_| true), 1_000);
    }

    #[test]
    fn what_was_waited_before_is_not_caught_up() {
        let mut waits = Waits::default();
        let known_late = thread(9_000, 0);
        waits.skip(&known_late, 10_000);
        assert_eq!(waits.advance(&known_late, 11_000, 1_000, |_| true), 0);
    }

    /// A fault that raised a signal has no end.
    #[test]
    fn a_start_without_an_end_is_no_stall_and_hides_none() {
        let mut waits = Waits::default();
        let stale = thread(100, 500);
        assert_eq!(waits.advance(&stale, 1_000, 1_000, |_| false), 600, "it may still end");
        assert_eq!(waits.advance(&stale, 2_000, 1_000, |_| false), 0);
        let next = thread(400, 0);
        assert_eq!(waits.advance(&next, 3_000, 1_000, |_| true), 300);
    }
}
