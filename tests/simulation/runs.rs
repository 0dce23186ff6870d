//! Recordings of made-up loads, as the figures that are judged.

use crate::load::{Load, Process};
use crate::model::Random;
use overcommit_recording::compare::batches::Point;
use overcommit_recording::compare::figures::{Figure, RunFigure, STALL_SHARE};
use overcommit_recording::compare::{Compared, FigureName, judge};
use std::fmt;

/// In which order recordings of the two sides are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Order {
    /// In pairs, each in an order that is drawn.
    Alternated,
    /// All of the base, then all of the other.
    Blocks,
}

/// How recordings are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    runs: usize,
    seconds: u64,
    order: Order,
    vms: usize,
}

/// Seconds between two recordings.
const PAUSE_S: u64 = 15;

impl Plan {
    pub(crate) const ALL: [Self; 7] = [
        Self::of(1, 600, Order::Blocks, 1),
        Self::of(1, 1_200, Order::Blocks, 1),
        Self::of(5, 60, Order::Alternated, 1),
        Self::of(8, 60, Order::Alternated, 1),
        Self::of(5, 60, Order::Alternated, 4),
        Self::of(5, 60, Order::Blocks, 1),
        Self::of(8, 60, Order::Blocks, 1),
    ];

    const fn of(runs: usize, seconds: u64, order: Order, vms: usize) -> Self {
        Self { runs, seconds, order, vms }
    }

    /// Whether it is to find a doubling of the load's latencies.
    pub(crate) fn finds(self, load: Load) -> bool {
        let changes_slowly = matches!(load, Load::Wandering(..) | Load::Hourly);
        matches!(load, Load::Steady) || (self.order == Order::Alternated && changes_slowly)
    }

    /// Makes recordings, the latencies of the second side times a factor; and compares them.
    pub(crate) fn compare(self, load: Load, seed: u64, factor: f64) -> Outcome {
        let mut figures = Vec::new();
        for vm in 0..self.vms {
            figures.extend(figures_of(&self.record(load, seed * 64 + vm as u64, factor)));
        }
        let compared = judge(&figures, self.order == Order::Alternated);
        Outcome {
            is_worse: compared.iter().any(Compared::is_regression),
            is_better: compared.iter().any(|entry| entry.is_real && !entry.is_more()),
            is_judged: compared.iter().any(|entry| entry.p.is_some()),
        }
    }

    fn record(self, load: Load, seed: u64, factor: f64) -> [Vec<Run>; 2] {
        let mut process = Process::new(load, seed);
        let mut coin = Random(!seed);
        let mut sides = [Vec::new(), Vec::new()];
        for run in 0..2 * self.runs {
            let side = match self.order {
                Order::Blocks => usize::from(run >= self.runs),
                Order::Alternated if run % 2 == 0 => usize::from(coin.share() < 0.5),
                Order::Alternated => usize::from(sides[0].len() > sides[1].len()),
            };
            let factor = if side == 0 { 1.0 } else { factor };
            sides[side].push((0..self.seconds).map(|_| process.next(factor)).collect());
            process.skip(PAUSE_S);
        }
        sides
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, seconds, order, vms } = self;
        write!(f, "{runs} + {runs} of {seconds} s, {order:?}, {vms} VMs")
    }
}

/// Latencies of each second, in nanoseconds.
type Run = Vec<Vec<f64>>;

/// What is said of a comparison.
pub(crate) struct Outcome {
    is_worse: bool,
    is_better: bool,
    is_judged: bool,
}

/// Of how many comparisons what is said.
#[derive(Default)]
pub(crate) struct Said {
    pub(crate) worse: u64,
    pub(crate) better: u64,
    pub(crate) not_judged: u64,
}

impl Said {
    pub(crate) fn add(&mut self, outcome: Outcome) {
        self.worse += u64::from(outcome.is_worse);
        self.better += u64::from(outcome.is_better);
        self.not_judged += u64::from(!outcome.is_judged);
    }
}

fn figures_of(sides: &[Vec<Run>; 2]) -> [Figure; 3] {
    let threshold = p99(sides.iter().flatten().flatten().flatten().copied().collect());
    let figure = |metric: &str, name, of: &dyn Fn(&Run) -> RunFigure| {
        let side = |runs: &Vec<Run>| runs.iter().map(of).collect();
        let [base, new] = [&sides[0], &sides[1]].map(side);
        Figure { vm: "vm".to_owned(), metric: metric.to_owned(), name, base, new }
    };
    let tail = |run: &Run| RunFigure {
        points: points(run, |second| {
            let slow = second.iter().filter(|ns| **ns > threshold).count();
            [second.len() as f64, slow as f64]
        }),
        value: Some(p99(run.iter().flatten().copied().collect())),
    };
    let rate = |run: &Run| RunFigure::part(points(run, |second| [1.0, second.len() as f64]));
    let stall = |run: &Run| RunFigure::part(points(run, |second| [1e9, second.iter().sum()]));
    [
        figure("fault.major", FigureName::P99, &tail),
        figure("fault.major", FigureName::Rate, &rate),
        figure(STALL_SHARE, FigureName::Share, &stall),
    ]
}

fn points(run: &Run, of: impl Fn(&Vec<f64>) -> [f64; 2]) -> Vec<Point> {
    let point = |(second, latencies)| {
        let [all, meant] = of(latencies);
        Point { interval: second as u64, length_s: 1.0, all, meant }
    };
    run.iter().enumerate().map(point).collect()
}

fn p99(mut values: Vec<f64>) -> f64 {
    let at = (values.len() * 99).div_ceil(100).saturating_sub(1);
    *values.select_nth_unstable_by(at, f64::total_cmp).1
}
