//! What can be said of a figure of two recordings, or of several on each side.

use crate::compare::batches::{BATCHES, Batch, cut, drifts, needed_s, summed};
use crate::compare::claim::{ALPHA, holm, welch};
use crate::compare::figures::{Figure, FigureName, RunFigure};
use crate::compare::permutation;
use serde::Serialize;

/// Time that a recording must have where there is one a side, in seconds.
pub const LENGTH_S: f64 = 600.0;
/// What must be counted in each recording for its quantile.
const EVENTS: f64 = 1_000.0;
/// Batches of a side that must hold some of the slow ones.
const BATCHES_WITH_TAIL: usize = 5;
/// Batches that must hold some where the other side has none.
const BATCHES_WITH_TAIL_ALONE: usize = 7;
/// Batches that count as independent where the load changes so slowly that they resemble each
/// other.
const INDEPENDENT_OF_DRIFTING: f64 = 3.0;
/// Differences below this share are not claimed of recordings that alternate, and of others,
/// which cannot tell the change from the day.
const LEAST_ALTERNATED: f64 = 0.02;
/// See [`LEAST_ALTERNATED`].
pub(super) const LEAST_IN_BLOCKS: f64 = 0.30;
/// Smaller differences of a share, or of a rate a second, matter to nobody.
const LEAST_SHARE: f64 = 0.001;
/// See [`LEAST_SHARE`].
const LEAST_RATE: f64 = 1.0;

/// A figure of a VM on both sides.
#[derive(Debug, Serialize)]
pub struct Compared {
    /// The VM's name.
    pub vm: String,
    /// Which metric, or `stall.share`.
    pub metric: String,
    /// Which figure of it.
    pub figure: FigureName,
    /// What it was, on average over the recordings that have it; `null` is a quantile of nothing.
    pub base: Option<f64>,
    /// What it is.
    pub new: Option<f64>,
    /// The chance of such a difference without a change; `null` where none may be claimed.
    pub p: Option<f64>,
    /// Whether it is real.
    pub is_real: bool,
    /// Whether chance is as unlikely as that, and the difference too small to be claimed.
    pub is_too_small: bool,
    /// Whether it changes so slowly within a recording that few parts of it are independent.
    pub drifts: bool,
    /// Why nothing can be claimed, whatever the figures.
    pub why_not: Option<String>,
}

impl Compared {
    /// By how much, as a share of what it was; `None` from nothing.
    pub fn change(&self) -> Option<f64> {
        let (base, new) = self.base.zip(self.new)?;
        (base > 0.0).then(|| new / base - 1.0)
    }

    /// Whether it is more than it was.
    pub fn is_more(&self) -> bool {
        self.new > self.base
    }

    /// Whether it is real, and worse.
    pub fn is_regression(&self) -> bool {
        self.is_real && self.is_more()
    }

    /// Whether the difference is large enough to be claimed.
    fn is_large(&self, least: f64) -> bool {
        let Some((base, new)) = self.base.zip(self.new) else { return false };
        let difference = (new - base).abs();
        let matters = match self.figure {
            FigureName::P99 => true,
            FigureName::Share => difference >= LEAST_SHARE,
            FigureName::Rate => difference >= LEAST_RATE,
        };
        matters && base.max(new) >= base.min(new) * (1.0 + least)
    }
}

/// What can be said of figures that all have the same recordings, which alternate or not.
pub fn judge(figures: &[Figure], alternate: bool) -> Vec<Compared> {
    let runs = figures.first().map_or([0; 2], |figure| [figure.base.len(), figure.new.len()]);
    let mut compared: Vec<Compared> = figures.iter().map(shown).collect();
    let tested: Vec<(usize, Tested)> = (0..figures.len())
        .filter_map(|index| match tested(&figures[index], runs) {
            Ok(tested) => Some((index, tested)),
            Err(why) => {
                compared[index].why_not = Some(why);
                None
            }
        })
        .collect();
    let least = if alternate { LEAST_ALTERNATED } else { LEAST_IN_BLOCKS };
    for ((index, tested), (p, is_sure)) in tested.iter().zip(chances(&tested, runs[0])) {
        let entry = &mut compared[*index];
        entry.p = Some(p);
        entry.drifts = matches!(tested, Tested::Batches { drifts: true, .. });
        let is_large = entry.is_large(least);
        (entry.is_real, entry.is_too_small) = (is_sure && is_large, is_sure && !is_large);
    }
    compared
}

fn shown(figure: &Figure) -> Compared {
    let mean = |side: &[RunFigure]| {
        let values = side.iter().filter_map(|run| run.value);
        let scaled: Vec<f64> = values.map(|value| scaled(figure.name, value)).collect();
        let mean = scaled.iter().sum::<f64>() / scaled.len() as f64;
        let unscaled = if figure.name == FigureName::P99 { mean.exp() } else { mean };
        (!scaled.is_empty()).then_some(unscaled)
    };
    Compared {
        vm: figure.vm.clone(),
        metric: figure.metric.clone(),
        figure: figure.name,
        base: mean(&figure.base),
        new: mean(&figure.new),
        p: None,
        is_real: false,
        is_too_small: false,
        drifts: false,
        why_not: None,
    }
}

/// On the scale on which it varies: latencies by factors.
fn scaled(name: FigureName, value: f64) -> f64 {
    if name == FigureName::P99 { value.max(1.0).ln() } else { value }
}

/// What is tested of a figure.
enum Tested {
    /// The chance that the batches of one pair differ so much, and whether one side drifts.
    Batches { p: f64, drifts: bool },
    /// Its value in each recording, those of the base first.
    Values(Vec<f64>),
}

/// Of each figure the chance without a change, and whether it is small enough beside all.
fn chances(tested: &[(usize, Tested)], base: usize) -> Vec<(f64, bool)> {
    let (mut batches, mut values) = (Vec::new(), Vec::new());
    for (_, tested) in tested {
        match tested {
            Tested::Batches { p, .. } => batches.push(*p),
            Tested::Values(of) => values.push(of.clone()),
        }
    }
    let of_batches = batches.iter().copied().zip(holm(&batches));
    let of_values = permutation::chances(&values, base).into_iter().map(|p| (p, p <= ALPHA));
    of_batches.chain(of_values).collect()
}

/// What is tested of a figure; why nothing can be.
fn tested(figure: &Figure, runs: [usize; 2]) -> Result<Tested, String> {
    if figure.goes_with_the_load() {
        return Err("it depends on the load".to_owned());
    }
    let counted = figure.base.iter().chain(&figure.new);
    if counted.clone().any(|run| run.value.is_none()) {
        return Err("a recording has no samples; see the rate".to_owned());
    }
    if figure.name == FigureName::P99 {
        let least = counted.map(|run| summed(&run.points).all);
        let least = least.fold(f64::INFINITY, f64::min);
        if least < EVENTS {
            return Err(format!("too few: {least:.0} counted, {EVENTS:.0} needed"));
        }
    }
    match runs {
        [1, 1] => batches(figure),
        [base, new] if permutation::least_chance(base, new) > ALPHA => Err(format!(
            "{base} and {new} recordings are too few: compare one with one, or five with five"
        )),
        _ => Ok(Tested::Values(values(figure))),
    }
}

fn values(figure: &Figure) -> Vec<f64> {
    let values = figure.base.iter().chain(&figure.new).filter_map(|run| run.value);
    values.map(|value| scaled(figure.name, value)).collect()
}

/// The chance that the batches of two recordings differ so much without a change.
fn batches(figure: &Figure) -> Result<Tested, String> {
    let sides = [&figure.base, &figure.new].map(|side| side[0].points.as_slice());
    let lengths_s = sides.map(|side| summed(side).length_s);
    let shortest_s = lengths_s.into_iter().fold(f64::INFINITY, f64::min);
    // Intervals begin and end a little off.
    let is_shorter = |needed_s: f64| shortest_s < needed_s * 0.99;
    if is_shorter(LENGTH_S) {
        return Err(format!("too short: {shortest_s:.0} s recorded, {LENGTH_S:.0} s needed"));
    }
    let cut = |side| cut(side).ok_or("too short: not enough intervals without a gap");
    let batches = [cut(sides[0])?, cut(sides[1])?];
    if figure.name == FigureName::P99 {
        enough_slow_ones(&batches)?;
    }
    let means = batches.map(|batches| means(&batches));
    let drifts = is_shorter(needed_s(&sides)) || drifts(&means);
    let independent = if drifts { INDEPENDENT_OF_DRIFTING } else { BATCHES as f64 };
    let p = welch(&means[0], &means[1], independent).map_err(|error| format!("{error:#}"))?;
    Ok(Tested::Batches { p, drifts })
}

/// The share of what is meant in each batch, with a batch of few weighing little.
fn means(batches: &[Batch; BATCHES]) -> [f64; BATCHES] {
    let sum = |of: fn(&Batch) -> f64| batches.iter().map(of).sum::<f64>();
    let all = sum(|batch| batch.all).max(f64::MIN_POSITIVE);
    let share = sum(|batch| batch.meant) / all;
    batches.map(|batch| share + (batch.meant - share * batch.all) / (all / BATCHES as f64))
}

/// The slow ones must not be an episode or two. A side without any is as clear as can be where
/// the other side has them all the time.
fn enough_slow_ones(batches: &[[Batch; BATCHES]; 2]) -> Result<(), String> {
    let with_tail = batches.map(|side| side.iter().filter(|batch| batch.meant > 0.0).count());
    let (least, most) = (with_tail[0].min(with_tail[1]), with_tail[0].max(with_tail[1]));
    if least >= BATCHES_WITH_TAIL || (least == 0 && most >= BATCHES_WITH_TAIL_ALONE) {
        return Ok(());
    }
    Err(format!(
        "slow samples occurred in only {} of {BATCHES} parts of BASE and {} of DIR",
        with_tail[0], with_tail[1]
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::batches::Point;
    use crate::compare::figures::STALL_SHARE;

    /// A recording of so many seconds, of each of which so much is meant of so much.
    fn run(seconds: u64, all: f64, meant: impl Fn(u64) -> f64) -> RunFigure {
        let point = |n| Point { interval: n, length_s: 1.0, all, meant: meant(n) };
        RunFigure::part((0..seconds).map(point).collect())
    }

    /// Chance, of the same mean for every recording: 0 or 2.
    fn noise(n: u64) -> f64 {
        (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63) as f64 * 2.0
    }

    fn rate(metric: &str, base: Vec<RunFigure>, new: Vec<RunFigure>) -> Figure {
        let (vm, metric) = ("vm".to_owned(), metric.to_owned());
        Figure { vm, metric, name: FigureName::Rate, base, new }
    }

    fn of_pair(metric: &str, base: f64, new: f64) -> Compared {
        let run = |mean| vec![run(600, 1.0, move |n| mean * (0.9 + 0.1 * noise(n)))];
        judge(&[rate(metric, run(base), run(new))], false).remove(0)
    }

    #[test]
    fn from_none_to_many_is_worse_and_back_is_better() {
        let came = of_pair("fault.major", 0.0, 50.0);
        assert!(came.is_regression() && came.change().is_none(), "{came:?}");
        let went = of_pair("swapin", 50.0, 0.0);
        assert!(went.is_real && !went.is_more(), "{went:?}");
    }

    #[test]
    fn a_quantile_of_nothing_is_not_judged() {
        let mut none = run(600, 0.0, |_| 0.0);
        none.value = None;
        let mut some = run(600, 50.0, |_| 1.0);
        some.value = Some(20e6);
        let figure = Figure { name: FigureName::P99, ..rate("swapin", vec![none], vec![some]) };
        let compared = judge(&[figure], false).remove(0);
        assert_eq!((compared.base, compared.p), (None, None));
        assert!(compared.why_not.is_some_and(|why| why.contains("has no samples")));
    }

    #[test]
    fn more_load_is_no_regression() {
        let more = of_pair("fault.minor", 100.0, 200.0);
        assert!(!more.is_regression() && more.p.is_none(), "{more:?}");
        assert!(more.why_not.is_some_and(|why| why.contains("load")));
        // What was not there at all is not more of the same.
        assert!(of_pair("stall.memory", 0.0, 1_000.0).is_regression());
        assert!(of_pair("stall.memory", 0.01, 1_000.0).is_regression(), "one in a while");
        assert_eq!(of_pair("stall.memory", 20.0, 1_000.0).p, None);
        assert_eq!(of_pair("fault.minor", 0.0, 1_000.0).p, None);
    }

    #[test]
    fn one_pair_claims_no_small_difference() {
        let small = of_pair("fault.major", 100.0, 125.0);
        assert!(small.p.is_some_and(|p| p < 1e-6) && !small.is_real, "{small:?}");
        assert!(small.is_too_small);
        assert!(of_pair("fault.major", 100.0, 140.0).is_regression());
        // By a factor, but of next to nothing.
        assert!(!of_pair("fault.major", 0.1, 1.0).is_real);
        let share = |share| vec![run(600, 1e9, move |n| 1e9 * share * (0.9 + 0.1 * noise(n)))];
        let trifle = rate(STALL_SHARE, share(1e-6), share(2e-6));
        let trifle = judge(&[Figure { name: FigureName::Share, ..trifle }], false).remove(0);
        assert!(trifle.p.is_some_and(|p| p < 0.01) && !trifle.is_real, "{trifle:?}");
    }

    #[test]
    fn a_drift_within_a_recording_takes_the_certainty() {
        let drifting = |from: f64| vec![run(600, 1.0, move |n| from * (1.0 + n as f64 / 600.0))];
        let compared = judge(&[rate("swapin", drifting(100.0), drifting(160.0))], false).remove(0);
        assert!(compared.p.is_some_and(|p| p > ALPHA) && !compared.is_real, "{compared:?}");
        assert!(compared.drifts, "{compared:?}");
        let steady = of_pair("swapin", 150.0, 240.0);
        assert!(steady.is_real && !steady.drifts, "{steady:?}");
    }

    fn of_runs(base: &[f64], new: &[f64], alternate: bool) -> Vec<Compared> {
        let runs = |values: &[f64]| values.iter().map(|rate| run(60, 1.0, |_| *rate)).collect();
        judge(&[rate("swapin", runs(base), runs(new))], alternate)
    }

    #[test]
    fn five_recordings_a_side_are_enough_and_fewer_are_refused() {
        let (low, high) = ([1.0, 1.1, 1.2, 1.3, 1.4].map(|r| r * 10.0), [100.0; 5]);
        assert!(of_runs(&low, &high, true)[0].is_regression());
        for (base, new) in [(2, 2), (1, 5), (4, 4)] {
            let refused = of_runs(&low[..base], &high[..new], true).remove(0);
            assert!(!refused.is_real && refused.p.is_none(), "{refused:?}");
            assert!(refused.why_not.is_some_and(|why| why.contains("too few")));
        }
        // What is shown is of all of them, as what is tested.
        let all = of_runs(&[100.0, 300.0], &[200.0, 100.0], true).remove(0);
        assert_eq!((all.base, all.new), (Some(200.0), Some(150.0)));
    }

    #[test]
    fn small_differences_are_claimed_only_of_recordings_that_alternate() {
        let (low, high) =
            ([100.0, 101.0, 102.0, 103.0, 104.0], [110.0, 111.0, 112.0, 113.0, 114.0]);
        assert!(of_runs(&low, &high, true)[0].is_regression());
        let blocks = of_runs(&low, &high, false).remove(0);
        assert!(blocks.p.is_some_and(|p| p <= ALPHA) && !blocks.is_real, "{blocks:?}");
    }

    #[test]
    fn short_recordings_have_no_quantile() {
        let of = |ns: f64| {
            let mut run = run(1, 3.0, |_| 1.0);
            run.value = Some(ns);
            run
        };
        let side = |ns| (0..5).map(|_| of(ns)).collect();
        let figure = Figure { name: FigureName::P99, ..rate("swapin", side(1e3), side(1e6)) };
        let why = judge(&[figure], true).remove(0).why_not;
        assert!(why.is_some_and(|why| why.contains("too few: 3 counted")));
    }

    #[test]
    fn slow_ones_of_an_episode_are_none_of_the_whole() {
        let batches = |with: usize| -> [Batch; BATCHES] {
            let meant = |at| if at < with { 1.0 } else { 0.0 };
            std::array::from_fn(|at| Batch { length_s: 75.0, all: 100.0, meant: meant(at) })
        };
        assert!(enough_slow_ones(&[batches(0), batches(8)]).is_ok());
        assert!(enough_slow_ones(&[batches(5), batches(6)]).is_ok());
        for few in [[0, 5], [4, 8], [0, 0]] {
            assert!(enough_slow_ones(&few.map(batches)).is_err(), "{few:?}");
        }
    }
}
