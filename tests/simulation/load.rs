//! Loads that change by themselves, second by second.

use crate::model::Random;

/// How a load changes by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// It does not.
    Steady,
    /// The level of its latencies follows the last second's with a factor of 0.8.
    Drifting,
    /// It is slow for so many seconds on average, then fast for as long.
    Bursts(f64),
    /// It is seven times slower for a minute of five, on average.
    Episodes,
    /// Its latencies have Pareto's tail of that exponent.
    Pareto(f64),
    /// Its latencies wander by that share, and forget where they were in so many seconds.
    Wandering(f64, f64),
    /// Its rate does.
    WanderingRate(f64, f64),
    /// Its latencies follow the hour by a fifth.
    Hourly,
}

/// Faults a second.
const RATE: f64 = 50.0;
/// A usual latency, in nanoseconds.
const USUAL_NS: f64 = 100_000.0;
const HOUR_S: f64 = 3_600.0;

/// A load as it goes on.
pub(crate) struct Process {
    load: Load,
    random: Random,
    now: f64,
    second: f64,
}

impl Process {
    pub(crate) fn new(load: Load, seed: u64) -> Self {
        let mut random = Random(seed);
        let second = (random.share() * HOUR_S).floor();
        let now = match load {
            Load::Wandering(_, deviation) | Load::WanderingRate(_, deviation) => {
                deviation * random.normal()
            }
            _ => 0.0,
        };
        let mut process = Self { load, random, now, second };
        // What comes before is forgotten.
        process.skip(100);
        process
    }

    /// Lets so many seconds pass.
    pub(crate) fn skip(&mut self, seconds: u64) {
        (0..seconds).for_each(|_| self.step());
    }

    /// Latencies of the next second times a factor, in nanoseconds.
    pub(crate) fn next(&mut self, factor: f64) -> Vec<f64> {
        self.step();
        let (level, rate) = match self.load {
            Load::WanderingRate(..) => (0.0, RATE * self.now.exp()),
            Load::Hourly => {
                let angle = self.second / HOUR_S * std::f64::consts::TAU;
                ((1.0 + 0.2 * angle.sin()).ln(), RATE)
            }
            _ => (self.now, RATE),
        };
        // Within a fifth of the rate.
        let count = (rate * (0.8 + 0.4 * self.random.share())) as usize;
        (0..count).map(|_| USUAL_NS * factor * level.exp() * self.noise()).collect()
    }

    fn noise(&mut self) -> f64 {
        match self.load {
            Load::Pareto(exponent) => self.random.share().powf(-1.0 / exponent),
            _ => self.random.normal().exp(),
        }
    }

    fn step(&mut self) {
        self.second += 1.0;
        self.now = match self.load {
            Load::Drifting => 0.8 * self.now + 0.6 * 0.5 * self.random.normal(),
            Load::Bursts(seconds) => self.turn(seconds, seconds, 4.0),
            Load::Episodes => self.turn(60.0, 240.0, 7.4),
            Load::Wandering(seconds, deviation) | Load::WanderingRate(seconds, deviation) => {
                let keeps = f64::exp(-1.0 / seconds);
                keeps * self.now + (1.0 - keeps * keeps).sqrt() * deviation * self.random.normal()
            }
            Load::Steady | Load::Pareto(_) | Load::Hourly => 0.0,
        };
    }

    /// Slow by a factor for so many seconds on average, then fast for so many.
    fn turn(&mut self, slow_s: f64, fast_s: f64, factor: f64) -> f64 {
        let is_slow = self.now > 0.0;
        let turns = self.random.share() < 1.0 / if is_slow { slow_s } else { fast_s };
        if is_slow == turns { 0.0 } else { factor.ln() }
    }
}
