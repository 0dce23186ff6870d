//! How much of an interval did a VM's vCPUs wait?

use overcommit_ebpf::layout::{APF, MEMORY, MMIO, PASSED_OVER, PAUSED, Part, Thread, Window};
use overcommit_ebpf::order;
use overcommit_recording::model::breakdown::Breakdown;
use overcommit_recording::model::interval::{Stall, StallSource};
use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;

/// Reads of an entry before one that its thread keeps changing is left for the
/// next interval.
const TRIES: u32 = 100;

/// What a thread has waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Waited {
    /// In waits that ended, in nanoseconds.
    ended_ns: u64,
    /// In the one that is open, in nanoseconds.
    open_ns: u64,
}

/// Waiting time of the threads of one VM that has been handed out already.
#[derive(Debug, Default)]
pub struct Waits {
    /// By thread id, in nanoseconds.
    counted: HashMap<(i32, StallSource), u64>,
}

impl Waits {
    /// The time that the thread waited since it was last asked for, at most
    /// `length_ns`; what exceeds that is handed out next time. In nanoseconds.
    ///
    /// A wait still open counts up to `now_ns` (`CLOCK_MONOTONIC`).
    ///
    /// A start that was never followed by an end looks like a wait that lasts; so
    /// `is_waiting` is asked of one that lasts longer than the interval.
    pub fn advance(
        &mut self,
        thread: &Thread,
        source: StallSource,
        now_ns: u64,
        length_ns: u64,
        is_waiting: impl FnOnce(&Thread) -> bool,
    ) -> u64 {
        let counted = self.counted.entry((thread.tid(), source)).or_default();
        let Some(Waited { ended_ns, open_ns }) = waited(thread, source, now_ns) else {
            return 0;
        };
        let is_stale = open_ns > length_ns && !is_waiting(thread);
        let total = if is_stale { ended_ns } else { ended_ns + open_ns };
        // What turned out to be no wait must not hide the next one.
        *counted = (*counted).min(total);
        let waited = total.saturating_sub(*counted).min(length_ns);
        *counted += waited;
        waited
    }

    /// Forgets what the thread waited before now, which nobody was told.
    pub fn skip(&mut self, thread: &Thread, source: StallSource, now_ns: u64) {
        if let Some(Waited { ended_ns, open_ns }) = waited(thread, source, now_ns) {
            self.counted.insert((thread.tid(), source), ended_ns + open_ns);
        }
    }

    /// Forgets a thread that is gone.
    pub fn forget(&mut self, tid: i32) {
        self.counted.retain(|(thread, _), _| *thread != tid);
    }
}

/// `None` while the thread keeps changing it.
fn waited(thread: &Thread, source: StallSource, now_ns: u64) -> Option<Waited> {
    for _ in 0..TRIES {
        let waited = order::unchanged(
            || thread.sequence.load(SeqCst),
            || match source {
                StallSource::Faults => in_faults(thread, now_ns),
                StallSource::Windows => in_windows(thread, now_ns),
            },
        );
        if waited.is_some() {
            return waited;
        }
        std::hint::spin_loop();
    }
    None
}

fn in_faults(thread: &Thread, now_ns: u64) -> Waited {
    let since = thread.since_ns.load(SeqCst);
    let open_ns = if since == 0 { 0 } else { now_ns.saturating_sub(since) };
    Waited { ended_ns: thread.waited_ns.load(SeqCst), open_ns }
}

fn in_windows(thread: &Thread, now_ns: u64) -> Waited {
    let window = &thread.window;
    let reason = window.reason.load(SeqCst);
    let waits = reason & (MEMORY | MMIO) == MEMORY || reason & APF != 0;
    let now = match window.exit_ns.load(SeqCst) {
        0 if reason & PASSED_OVER != 0 => in_passed_over(thread, now_ns),
        0 => Waited::default(),
        exit if waits => Waited { ended_ns: 0, open_ns: in_kernel(window, exit, now_ns) },
        exit => since_exit(thread, exit, now_ns),
    };
    Waited { ended_ns: window.stall_ns.load(SeqCst) + now.ended_ns, ..now }
}

/// Time of an open window in the kernel.
fn in_kernel(window: &Window, exit_ns: u64, now_ns: u64) -> u64 {
    let away = window.user_ns.load(SeqCst) + window.paused_ns.load(SeqCst);
    // It left for user space for good, as far as is known yet.
    let until = match window.user_since_ns.load(SeqCst) {
        0 => now_ns,
        left => left,
    };
    until.saturating_sub(exit_ns).saturating_sub(away)
}

/// What an open window that is no wait for memory itself has waited in faults, as the program on
/// kvm_entry will count it.
fn since_exit(thread: &Thread, exit_ns: u64, now_ns: u64) -> Waited {
    if thread.window.paused_ns.load(SeqCst) != 0 {
        return Waited::default();
    }
    let Waited { ended_ns, open_ns } = in_passed_over(thread, now_ns);
    let most_ns = now_ns.saturating_sub(exit_ns);
    let ended_ns = ended_ns.min(most_ns);
    Waited { ended_ns, open_ns: open_ns.min(most_ns - ended_ns) }
}

/// The same of a window that is passed over.
fn in_passed_over(thread: &Thread, now_ns: u64) -> Waited {
    let window = &thread.window;
    if window.reason.load(SeqCst) & PAUSED != 0 {
        return Waited::default();
    }
    let Waited { ended_ns, open_ns } = in_faults(thread, now_ns);
    let ended_ns = ended_ns.saturating_sub(window.waited_before_ns.load(SeqCst));
    let for_cpu = window.parts_ns[Part::Runq as usize].load(SeqCst);
    let ended_ns = (ended_ns + window.attempts_ns.load(SeqCst)).saturating_sub(for_cpu);
    Waited { ended_ns, open_ns }
}

/// Whether a thread that waits by its entry does so by its kernel stack. One whose
/// stack cannot be told, as while it runs, is believed.
pub fn is_waiting(thread: &Thread) -> bool {
    let path = format!("/proc/{}/task/{}/stack", thread.tgid(), thread.tid());
    match std::fs::read_to_string(path) {
        Ok(stack) => stack.trim().is_empty() || stack.contains("fault") || stack.contains("kvm_"),
        Err(_) => true,
    }
}

/// Waits for a CPU within what the vCPUs waited for memory: of the windows that ended, or the
/// vCPUs' part of those in all faults that did. They are told when a wait is over, what was waited
/// as it goes, so that only sums of both compare.
pub(super) fn runq_ns(stall: Stall, windows: Option<Breakdown>, faults: Breakdown) -> u64 {
    match stall.source {
        StallSource::Windows => windows.and_then(|time| time.of(Part::Runq)).unwrap_or(0),
        StallSource::Faults => {
            let own = stall.waited_ns as f64 / faults.total_ns.max(1) as f64;
            (faults.of(Part::Runq).unwrap_or(0) as f64 * own.min(1.0)) as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use StallSource::Faults as FAULTS;
    use std::sync::atomic::AtomicU64;

    fn thread(waited_ns: u64, since_ns: u64) -> Thread {
        Thread {
            id: AtomicU64::new((7 << 32) | 8),
            since_ns: AtomicU64::new(since_ns),
            waited_ns: AtomicU64::new(waited_ns),
            ..Thread::default()
        }
    }

    /// A vCPU out of its guest.
    fn vcpu(exit_ns: u64, marks: u64, thread: Thread) -> Thread {
        thread.window.exit_ns.store(exit_ns, SeqCst);
        thread.window.reason.store(marks | 0x400, SeqCst);
        thread
    }

    /// A fault of 2.5 intervals is three shares, none above the whole.
    #[test]
    fn an_open_fault_counts_where_it_is_waited() {
        let mut waits = Waits::default();
        let open = thread(0, 500);
        assert_eq!(waits.advance(&open, FAULTS, 1_000, 1_000, |_| true), 500);
        assert_eq!(waits.advance(&open, FAULTS, 2_000, 1_000, |_| true), 1_000);
        let ended = thread(2_500, 0);
        assert_eq!(waits.advance(&ended, FAULTS, 3_000, 1_000, |_| true), 1_000);
        assert_eq!(waits.advance(&ended, FAULTS, 4_000, 1_000, |_| true), 0);
    }

    #[test]
    fn more_than_the_interval_is_left_for_the_next() {
        let mut waits = Waits::default();
        let busy = thread(1_010, 0);
        assert_eq!(waits.advance(&busy, FAULTS, 1_000, 1_000, |_| true), 1_000);
        assert_eq!(waits.advance(&busy, FAULTS, 2_000, 1_000, |_| true), 10);
    }

    #[test]
    fn a_thread_that_is_changing_is_left_alone() {
        let mut waits = Waits::default();
        let changing = thread(1_000, 0);
        changing.sequence.store(3, SeqCst);
        assert_eq!(waits.advance(&changing, FAULTS, 5_000, 1_000, |_| true), 0);
        changing.sequence.store(4, SeqCst);
        assert_eq!(waits.advance(&changing, FAULTS, 6_000, 1_000, |_| true), 1_000);
    }

    #[test]
    fn what_was_waited_before_is_not_caught_up() {
        let mut waits = Waits::default();
        let known_late = thread(9_000, 0);
        waits.skip(&known_late, FAULTS, 10_000);
        assert_eq!(waits.advance(&known_late, FAULTS, 11_000, 1_000, |_| true), 0);
    }

    /// A fault that raised a signal has no end.
    #[test]
    fn a_start_without_an_end_is_no_stall_and_hides_none() {
        let mut waits = Waits::default();
        let stale = thread(100, 500);
        assert_eq!(waits.advance(&stale, FAULTS, 1_000, 1_000, |_| false), 600, "it may still end");
        assert_eq!(waits.advance(&stale, FAULTS, 2_000, 1_000, |_| false), 0);
        let next = thread(400, 0);
        assert_eq!(waits.advance(&next, FAULTS, 3_000, 1_000, |_| true), 300);
    }

    #[test]
    fn a_pause_in_an_open_window_is_no_stall() {
        let mut waits = Waits::default();
        let vcpu = vcpu(1_000, MEMORY, thread(0, 0));
        let mut advance = |now| waits.advance(&vcpu, StallSource::Windows, now, 1_000, |_| true);
        assert_eq!(advance(1_500), 500);
        vcpu.window.user_since_ns.store(1_600, SeqCst);
        assert_eq!(advance(2_500), 100);
        assert_eq!(advance(3_500), 0, "held in user space");
        vcpu.window.reason.store(MEMORY | MMIO | 0x400, SeqCst);
        assert_eq!(advance(4_500), 0, "a device's memory after all");
    }

    /// A fault of 2.5 intervals in an exit that is not for memory, of which half an interval was a
    /// wait for a CPU.
    #[test]
    fn faults_in_other_exits_count_where_they_are_waited() {
        let mut waits = Waits::default();
        let vcpu = vcpu(400, MMIO, thread(7_000, 500));
        vcpu.window.waited_before_ns.store(7_000, SeqCst);
        let mut advance = |now, is_waiting| {
            waits.advance(&vcpu, StallSource::Windows, now, 1_000, |_| is_waiting)
        };
        assert_eq!([advance(1_000, true), advance(2_000, true)], [500, 1_000]);
        vcpu.since_ns.store(0, SeqCst);
        vcpu.waited_ns.store(9_500, SeqCst);
        vcpu.window.parts_ns[Part::Runq as usize].store(500, SeqCst);
        assert_eq!(advance(3_000, true), 500);
        assert_eq!(advance(4_000, false), 0, "the exit lasts, and what was waited in it stays");
        // As the program adds it up at the entry.
        vcpu.window.exit_ns.store(0, SeqCst);
        vcpu.window.stall_ns.store(2_000, SeqCst);
        assert_eq!([advance(5_000, true), advance(6_000, true)], [0, 0]);
    }

    /// The same where that exit is passed over, as the programs do with `--exits memory`.
    #[test]
    fn faults_in_exits_that_are_passed_over_count_where_they_are_waited() {
        let mut waits = Waits::default();
        let vcpu = vcpu(0, PASSED_OVER, thread(7_000, 500));
        vcpu.window.waited_before_ns.store(7_000, SeqCst);
        let mut advance = |now| waits.advance(&vcpu, StallSource::Windows, now, 1_000, |_| true);
        assert_eq!([advance(1_000), advance(2_000)], [500, 1_000]);
        vcpu.since_ns.store(0, SeqCst);
        vcpu.waited_ns.store(9_000, SeqCst);
        assert_eq!(advance(3_000), 500);
        vcpu.window.reason.store(0, SeqCst);
        vcpu.window.waited_before_ns.store(9_000, SeqCst);
        vcpu.window.stall_ns.store(2_000, SeqCst);
        assert_eq!(advance(4_000), 0, "back in the guest");
    }

    #[test]
    fn faults_while_a_vcpu_is_held_are_no_stall() {
        let mut waits = Waits::default();
        for vcpu in
            [vcpu(400, PAUSED, thread(0, 500)), vcpu(0, PASSED_OVER | PAUSED, thread(0, 500))]
        {
            let advanced = waits.advance(&vcpu, StallSource::Windows, 1_000, 1_000, |_| true);
            assert_eq!(advanced, 0);
        }
    }

    #[test]
    fn waits_for_a_cpu_are_those_of_the_vcpus() {
        let mut time = Breakdown { total_ns: 100, ..Breakdown::default() };
        time.parts_ns[Part::Runq as usize] = Some(50);
        let stall = |waited_ns, source| Stall {
            waited_ns,
            runq_ns: 0,
            vcpu_ns: 1_000,
            known_ns: 0,
            unknown_vcpu_ns: 0,
            source,
        };
        let faults = |waited_ns| runq_ns(stall(waited_ns, StallSource::Faults), None, time);
        // Half of the time was that of other threads.
        assert_eq!([faults(50), faults(100), faults(200)], [25, 50, 50]);
        let windows = |ended| runq_ns(stall(80, StallSource::Windows), ended, time);
        assert_eq!([windows(Some(time)), windows(None)], [50, 0], "faults of others are no window");
    }
}
