//! Healthy, under pressure, or thrashing? Decided from rates and stall, not from what
//! is swapped out: a page that left last week harms nobody.

use overcommit_recording::model::swap::Rates;
use overcommit_recording::model::swap::SwapState;
use std::collections::VecDeque;

/// Pages a second from which swapping counts.
pub const RETURNS: f64 = 10.0;
/// Stall from which it is pressure, and from which it can be thrashing.
const STALL_PRESSURE: f64 = 0.01;
const STALL_THRASHING: f64 = 0.10;
/// Memory available below which pages that leave are not just the cold ones.
const AVAILABLE: f64 = 0.10;
/// I/O wait from which swapping that doubles is thrashing, where no stall is known.
const IO_WAIT: f64 = 0.15;
const SECOND_NS: u64 = 1_000_000_000;
/// Time that is looked at, and how much of it makes a state.
const WINDOW_NS: u64 = 10 * SECOND_NS;
const PRESSURE_NS: u64 = 5 * SECOND_NS;
const THRASHING_NS: u64 = 6 * SECOND_NS;
/// Time below half of what made a state until it falls to the one below.
const CALM_NS: u64 = 30 * SECOND_NS;

/// Whether it is pressure, with all rates and shares at that part of what it takes.
fn pressure(rates: &Rates, part: f64) -> Option<bool> {
    let reads = rates.swapped_in.map(|pages| pages >= RETURNS * part);
    // Nobody waits for swap where nothing is swapped.
    let is_quiet = rates.swapped_in == Some(0.0) && rates.swapped_out == Some(0.0);
    let stalls = rates.stall.or(is_quiet.then_some(0.0));
    let stalls = stalls.map(|share| share >= STALL_PRESSURE * part);
    let writes = rates.swapped_out.map(|pages| pages >= RETURNS * part);
    let is_tight = rates.available.map(|share| share < AVAILABLE);
    any([reads, stalls, all([writes, is_tight])])
}

/// The same of thrashing.
fn thrashing(rates: &Rates, part: f64) -> Option<bool> {
    let reads = rates.swapped_in.map(|pages| pages >= RETURNS * part);
    let writes = rates.swapped_out.map(|pages| pages >= RETURNS * part);
    let stalls = rates.stall.map(|share| share >= STALL_THRASHING * part);
    all([reads, writes, stalls])
}

/// Where no stall is known: both directions at least double, and CPUs wait for it
/// more and more.
fn doubles_since(rates: &Rates, before: &Rates) -> bool {
    let doubled = |now: Option<f64>, before: Option<f64>| {
        now.zip(before).is_some_and(|(now, before)| now >= RETURNS && now >= 2.0 * before)
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
    /// Time for which the state was not upheld, in nanoseconds.
    calm_ns: u64,
}

impl SwapStates {
    /// The state after this was seen: worse at once, better one step at a time.
    pub fn advance(&mut self, rates: Rates) -> SwapState {
        let doubles = self.window.back().is_some_and(|before| doubles_since(&rates, before));
        self.window.push_back(rates);
        while self.time(|_| true) - self.window[0].length_ns >= WINDOW_NS {
            self.window.pop_front();
        }
        let upheld = match self.state {
            SwapState::Unknown | SwapState::Healthy => None,
            SwapState::Pressure => pressure(&rates, 0.5),
            SwapState::Thrashing => thrashing(&rates, 0.5),
        };
        self.calm_ns = if upheld == Some(false) { self.calm_ns + rates.length_ns } else { 0 };
        let is_calm = self.calm_ns >= CALM_NS;
        let state = match (self.reached(doubles), self.state) {
            (Some(reached), state) if reached > state => reached,
            (_, SwapState::Thrashing) if is_calm => SwapState::Pressure,
            (Some(_), SwapState::Pressure) if is_calm => SwapState::Healthy,
            (None, SwapState::Healthy) => SwapState::Unknown,
            (None, _) if self.window.iter().all(|rates| pressure(rates, 1.0).is_none()) => {
                SwapState::Unknown
            }
            (_, state) => state,
        };
        if state != self.state {
            (self.state, self.calm_ns) = (state, 0);
        }
        state
    }

    /// The state by the window alone; `None` if it does not tell.
    fn reached(&self, doubles: bool) -> Option<SwapState> {
        let thrashing_ns = self.time(|rates| thrashing(rates, 1.0) == Some(true));
        if thrashing_ns >= THRASHING_NS || (doubles && self.state == SwapState::Pressure) {
            return Some(SwapState::Thrashing);
        }
        if self.time(|rates| pressure(rates, 1.0) == Some(true)) >= PRESSURE_NS {
            return Some(SwapState::Pressure);
        }
        let known_ns = self.time(|rates| pressure(rates, 1.0).is_some());
        (known_ns >= WINDOW_NS).then_some(SwapState::Healthy)
    }

    /// How much of what is looked at that holds for, in nanoseconds.
    fn time(&self, holds: impl Fn(&Rates) -> bool) -> u64 {
        self.window.iter().filter(|rates| holds(rates)).map(|rates| rates.length_ns).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SwapState::{Healthy, Pressure, Thrashing, Unknown};

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
            state = states.advance(rates);
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
        assert_eq!(states.advance(line(124.0, 256.0, 10.0, 4_096.0)), Pressure);
        assert_eq!(states.advance(line(892.0, 1_456.0, 20.0, 2_048.0)), Thrashing);
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
            let state = states.advance(second(pages, pages, pages / 2_000.0));
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
        assert_eq!(SwapStates::default().advance(minute), Thrashing);
        let minute = Rates { length_ns: 60 * SECOND_NS, ..second(0.0, 0.0, 0.0) };
        assert_eq!(SwapStates::default().advance(minute), Healthy);
    }
}
