//! Healthy, under pressure, or thrashing? Decided from rates and stall, not from what
//! is swapped out: a page that left last week harms nobody.

use overcommit_recording::model::swap::Rates;
use overcommit_recording::model::swap::SwapState;
use std::collections::VecDeque;

/// Bytes a second from which swapping counts, whatever the size of the VM or host; and the
/// part of its memory a second, if that is more.
const LEAST_BYTES: f64 = (40 << 10) as f64;
/// See [`LEAST_BYTES`].
const LEAST_PART: f64 = 1e-6;
/// Stall from which it is pressure, and from which it can be thrashing.
const STALL_PRESSURE: f64 = 0.01;
const STALL_THRASHING: f64 = 0.10;
/// See [`is_tight`].
const AVAILABLE: f64 = 0.10;
/// I/O wait from which swapping that doubles is thrashing, where no stall is known.
const IO_WAIT: f64 = 0.15;
const SECOND_NS: u64 = 1_000_000_000;
/// Time that is looked at, and how much of it makes a state.
const WINDOW_NS: u64 = 10 * SECOND_NS;
const PRESSURE_NS: u64 = 5 * SECOND_NS;
const THRASHING_NS: u64 = 6 * SECOND_NS;
/// Time whose mean is below half of what made a state when it falls to the one below.
const CALM_NS: u64 = 30 * SECOND_NS;

/// Pages a second from which swapping counts, of a VM or host with that much memory.
pub fn least_pages(memory_bytes: u64, page_size: u64) -> f64 {
    (memory_bytes as f64 * LEAST_PART).max(LEAST_BYTES) / page_size as f64
}

/// The part of the time for which somebody waited for memory: what the kernel says, and what a
/// VM's vCPUs waited. Those wait as well for memory that they touch for the first time or whose
/// content comes from another host; so theirs counts only beside a sign that memory is short.
pub fn waited(by_kernel: Option<f64>, by_vcpus: Option<f64>, is_short: bool) -> Option<f64> {
    let by_vcpus = by_vcpus.map(|share| if is_short { share } else { 0.0 });
    by_vcpus.into_iter().chain(by_kernel).reduce(f64::max)
}

/// Whether it is pressure, with all rates and shares at that part of what it takes; so many
/// pages a second count.
fn pressure(rates: &Rates, least: f64, part: f64) -> Option<bool> {
    let reads = rates.swapped_in.map(|pages| pages >= least * part);
    // Nobody waits for swap where nothing is swapped.
    let is_quiet = rates.swapped_in == Some(0.0) && rates.swapped_out == Some(0.0);
    let stalls = rates.stall.or(is_quiet.then_some(0.0));
    let stalls = stalls.map(|share| share >= STALL_PRESSURE * part);
    let writes = rates.swapped_out.map(|pages| pages >= least * part);
    any([reads, stalls, all([writes, is_tight(rates)])])
}

/// Whether so little memory is available that pages that leave are not just the cold ones.
pub fn is_tight(rates: &Rates) -> Option<bool> {
    rates.available.map(|share| share < AVAILABLE)
}

/// The same of thrashing.
fn thrashing(rates: &Rates, least: f64, part: f64) -> Option<bool> {
    let reads = rates.swapped_in.map(|pages| pages >= least * part);
    let writes = rates.swapped_out.map(|pages| pages >= least * part);
    let stalls = rates.stall.map(|share| share >= STALL_THRASHING * part);
    all([reads, writes, stalls])
}

/// Where no stall is known: both directions at least double, and CPUs wait for it
/// more and more.
fn doubles_since(rates: &Rates, before: &Rates, least: f64) -> bool {
    let doubled = |now: Option<f64>, before: Option<f64>| {
        now.zip(before).is_some_and(|(now, before)| now >= least && now >= 2.0 * before)
    };
    let waits = rates.io_wait.zip(before.io_wait);
    rates.stall.is_none()
        && doubled(rates.swapped_in, before.swapped_in)
        && doubled(rates.swapped_out, before.swapped_out)
        && waits.is_some_and(|(now, before)| now >= IO_WAIT && now > before)
}

/// True if one is, unknown if one that is not known could be.
fn any<const N: usize>(facts: [Option<bool>; N]) -> Option<bool> {
    if facts.contains(&Some(true)) {
        return Some(true);
    }
    (!facts.contains(&None)).then_some(false)
}

/// True if each is, unknown if one that is not known decides.
fn all<const N: usize>(facts: [Option<bool>; N]) -> Option<bool> {
    any(facts.map(|fact| fact.map(|fact| !fact))).map(|any| !any)
}

/// Follows the state of a host or VM.
#[derive(Debug, Default)]
pub struct SwapStates {
    state: SwapState,
    /// What is looked at, the youngest last.
    window: VecDeque<Rates>,
    /// What came since the state was reached, as far as [`CALM_NS`] goes back.
    since: VecDeque<Rates>,
}

impl SwapStates {
    /// The state after this was seen: worse at once, better one step at a time. So many pages a
    /// second count, see [`least_pages`].
    pub fn advance(&mut self, rates: Rates, least: f64) -> SwapState {
        let doubles = self.window.back().is_some_and(|before| doubles_since(&rates, before, least));
        push(&mut self.window, rates, WINDOW_NS);
        push(&mut self.since, rates, CALM_NS);
        let is_calm = self.is_calm(least);
        let reached = self.reached(doubles, least);
        let state = match (reached, self.state) {
            (Some(reached), state) if reached >= state => reached,
            (_, SwapState::Thrashing) if is_calm => SwapState::Pressure,
            (Some(_), SwapState::Pressure) if is_calm => SwapState::Healthy,
            (None, SwapState::Healthy) => SwapState::Unknown,
            (None, _) if self.window.iter().all(|rates| pressure(rates, least, 1.0).is_none()) => {
                SwapState::Unknown
            }
            (_, state) => state,
        };
        if state != self.state {
            self.state = state;
            self.since.clear();
        }
        state
    }

    /// Whether what came since does not uphold the state: by its mean, for a page that is read
    /// now and then is none.
    fn is_calm(&self, least: f64) -> bool {
        let Some(mean) = Rates::mean(self.since.iter()).filter(|mean| mean.length_ns >= CALM_NS)
        else {
            return false;
        };
        let upheld = match self.state {
            SwapState::Unknown | SwapState::Healthy => None,
            SwapState::Pressure => pressure(&mean, least, 0.5),
            SwapState::Thrashing => thrashing(&mean, least, 0.5),
        };
        upheld == Some(false)
    }

    /// The state by the window alone; `None` if it does not tell.
    fn reached(&self, doubles: bool, least: f64) -> Option<SwapState> {
        let thrashing_ns = self.time(|rates| thrashing(rates, least, 1.0) == Some(true));
        if thrashing_ns >= THRASHING_NS || (doubles && self.state == SwapState::Pressure) {
            return Some(SwapState::Thrashing);
        }
        if self.time(|rates| pressure(rates, least, 1.0) == Some(true)) >= PRESSURE_NS {
            return Some(SwapState::Pressure);
        }
        let known_ns = self.time(|rates| pressure(rates, least, 1.0).is_some());
        (known_ns >= WINDOW_NS).then_some(SwapState::Healthy)
    }

    /// How much of what is looked at that holds for, in nanoseconds.
    fn time(&self, holds: impl Fn(&Rates) -> bool) -> u64 {
        length_ns(self.window.iter().filter(|rates| holds(rates)))
    }
}

fn length_ns<'a>(rates: impl IntoIterator<Item = &'a Rates>) -> u64 {
    rates.into_iter().map(|rates| rates.length_ns).sum()
}

/// Adds the youngest, and forgets what the time does not reach.
fn push(window: &mut VecDeque<Rates>, rates: Rates, time_ns: u64) {
    window.push_back(rates);
    while length_ns(&*window) - window[0].length_ns >= time_ns {
        window.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SwapState::{Healthy, Pressure, Thrashing, Unknown};

    /// Of a small VM.
    const LEAST: f64 = 10.0;

    /// A second of a host or VM of which all is known.
    fn second(swapped_in: f64, swapped_out: f64, stall: f64) -> Rates {
        Rates {
            length_ns: SECOND_NS,
            swapped_in: Some(swapped_in),
            swapped_out: Some(swapped_out),
            stall: Some(stall),
            io_wait: Some(0.0),
            available: Some(0.5),
        }
    }

    fn after(states: &mut SwapStates, seconds: u32, rates: Rates) -> SwapState {
        let mut state = Unknown;
        for _ in 0..seconds {
            state = states.advance(rates, LEAST);
        }
        state
    }

    /// A line of `vmstat 5`: si and so in KiB a second, free in KiB of 64 GiB.
    fn line(si: f64, so: f64, wa: f64, free: f64) -> Rates {
        Rates {
            length_ns: 5 * SECOND_NS,
            swapped_in: Some(si / 4.0),
            swapped_out: Some(so / 4.0),
            stall: None,
            io_wait: Some(wa / 100.0),
            available: Some((free + 10_240.0) / f64::from(64 << 20)),
        }
    }

    /// The first has little free, and nothing else.
    #[test]
    fn three_lines_of_vmstat() {
        let mut states = SwapStates::default();
        assert_eq!(after(&mut states, 2, line(0.0, 0.0, 0.0, 24_576.0)), Healthy);
        assert_eq!(states.advance(line(124.0, 256.0, 10.0, 4_096.0), LEAST), Pressure);
        assert_eq!(states.advance(line(892.0, 1_456.0, 20.0, 2_048.0), LEAST), Thrashing);
    }

    #[test]
    fn worse_at_once_and_better_after_a_while() {
        let mut states = SwapStates::default();
        assert_eq!(after(&mut states, 9, second(0.0, 0.0, 0.0)), Unknown, "too early to tell");
        assert_eq!(after(&mut states, 1, second(0.0, 0.0, 0.0)), Healthy);
        let thrashing = second(5_000.0, 5_000.0, 0.6);
        assert_eq!(after(&mut states, 4, thrashing), Healthy);
        assert_eq!(after(&mut states, 1, thrashing), Pressure);
        assert_eq!(after(&mut states, 1, thrashing), Thrashing);
        // Still read back, and nothing is pushed out any more.
        let reading = second(100.0, 0.0, 0.2);
        assert_eq!(after(&mut states, 29, reading), Thrashing);
        assert_eq!(after(&mut states, 1, reading), Pressure);
        assert_eq!(after(&mut states, 60, reading), Pressure);
        assert_eq!(after(&mut states, 29, second(4.0, 0.0, 0.004)), Pressure);
        assert_eq!(after(&mut states, 1, second(4.0, 0.0, 0.004)), Healthy);
    }

    #[test]
    fn what_comes_and_goes_each_second_changes_once() {
        let mut states = SwapStates::default();
        after(&mut states, 10, second(0.0, 0.0, 0.0));
        let (mut last, mut changes) = (Healthy, 0);
        for n in 0..60 {
            let pages = if n % 2 == 0 { 1_000.0 } else { 0.0 };
            let state = states.advance(second(pages, pages, pages / 2_000.0), LEAST);
            changes += u32::from(state != last);
            last = state;
        }
        assert!(changes <= 1, "{changes} changes");
    }

    /// Cold pages leave: nobody waits. With little available they are not just cold.
    #[test]
    fn swap_out_alone_is_pressure_where_memory_is_short() {
        let cold = second(0.0, 2_000.0, 0.0);
        assert_eq!(after(&mut SwapStates::default(), 30, cold), Healthy);
        let short = Rates { available: Some(0.05), ..cold };
        assert_eq!(after(&mut SwapStates::default(), 30, short), Pressure);
    }

    #[test]
    fn what_cannot_be_read_is_never_healthy() {
        let quiet = second(0.0, 0.0, 0.0);
        let without = [
            Rates { swapped_in: None, ..quiet },
            Rates { stall: None, ..second(4.0, 0.0, 0.0) },
            Rates { swapped_out: None, available: Some(0.05), ..quiet },
        ];
        for rates in without {
            assert_eq!(after(&mut SwapStates::default(), 30, rates), Unknown, "{rates:?}");
        }
        // What is known tells enough.
        assert_eq!(
            after(&mut SwapStates::default(), 30, Rates { swapped_out: None, ..quiet }),
            Healthy
        );
        let reads = Rates { swapped_out: None, ..second(500.0, 0.0, 0.5) };
        assert_eq!(after(&mut SwapStates::default(), 60, reads), Pressure, "at most pressure");
        let mut states = SwapStates::default();
        after(&mut states, 30, quiet);
        assert_eq!(after(&mut states, 1, Rates { swapped_in: None, ..quiet }), Unknown);
    }

    #[test]
    fn long_intervals_count_as_what_they_are() {
        let minute = Rates { length_ns: 60 * SECOND_NS, ..second(5_000.0, 5_000.0, 0.6) };
        assert_eq!(SwapStates::default().advance(minute, LEAST), Thrashing);
        let minute = Rates { length_ns: 60 * SECOND_NS, ..second(0.0, 0.0, 0.0) };
        assert_eq!(SwapStates::default().advance(minute, LEAST), Healthy);
    }

    #[test]
    fn what_is_read_now_and_then_upholds_nothing() {
        let mut states = SwapStates::default();
        assert_eq!(after(&mut states, 10, second(100.0, 0.0, 0.02)), Pressure);
        let mut healthy_after = None;
        // One read-ahead of 8 pages in half a minute.
        for n in 1..=120 {
            let pages = if n % 29 == 0 { 8.0 } else { 0.0 };
            let state = states.advance(second(pages, 0.0, 0.0), LEAST);
            healthy_after = healthy_after.or((state == Healthy).then_some(n));
        }
        assert!(healthy_after.is_some_and(|seconds| seconds <= 60), "{healthy_after:?}");
    }

    #[test]
    fn a_burst_does_not_end_in_the_middle() {
        let mut states = SwapStates::default();
        let burst = second(100.0, 100.0, 0.2);
        for _ in 0..5 {
            after(&mut states, 24, second(0.0, 0.0, 0.0));
            let during: Vec<SwapState> = (0..6).map(|_| states.advance(burst, LEAST)).collect();
            assert_eq!(during[5], Thrashing);
            assert!(during.is_sorted(), "{during:?}");
        }
    }

    /// A VM that boots, and one whose memory comes from another host.
    #[test]
    fn waiting_alone_is_no_shortage() {
        assert_eq!(waited(None, Some(0.03), false), Some(0.0));
        assert_eq!(waited(None, Some(0.03), true), Some(0.03));
        assert_eq!(waited(Some(0.02), Some(0.03), false), Some(0.02), "the kernel says so");
        assert_eq!((waited(None, None, true), waited(Some(0.0), None, true)), (None, Some(0.0)));
        let booting =
            Rates { stall: waited(Some(0.0), Some(0.03), false), ..second(0.0, 0.0, 0.0) };
        assert_eq!(after(&mut SwapStates::default(), 30, booting), Healthy);
    }

    #[test]
    fn what_counts_goes_with_the_size() {
        assert_eq!(least_pages(1 << 30, 4096), 10.0);
        assert_eq!(least_pages(1 << 30, 65_536), 0.625, "the same bytes");
        assert!((least_pages(4 << 40, 4096) - 1_073.7).abs() < 0.1);
        let little = second(100.0, 0.0, 0.0);
        let mut states = SwapStates::default();
        assert_eq!((0..30).map(|_| states.advance(little, 1_000.0)).last(), Some(Healthy));
    }
}
