//! What can be said of two recordings, or of several on each side.

use crate::compare::batches::{BATCHES, Batch, Point, cut, needed_s};
use crate::compare::claim::{holm, permutation, welch};
use crate::compare::series::{Series, Side};
use crate::model::latencies::Latencies;
use crate::model::metric::MetricName;
use crate::model::run::RunVm;
use anyhow::Result;
use hdrhistogram::Histogram;
use serde::Serialize;

/// Quantile that is compared.
const QUANTILE: f64 = 0.99;
/// Time that a recording must have, in seconds.
const LENGTH_S: f64 = 600.0;
/// What must be counted on each side.
const EVENTS: f64 = 1_000.0;
/// Batches of each side that must hold some of the slow ones.
const BATCHES_WITH_TAIL: usize = 5;
/// Smaller differences are never claimed, as shares.
const LEAST_EFFECT: f64 = 0.02;
/// Recordings on each side from which runs are compared instead of batches.
const RUNS: usize = 5;

/// Two sides, compared.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Each VM and figure.
    pub compared: Vec<Compared>,
    /// VMs of which there is no other, or more than one.
    pub unmatched: Vec<String>,
    /// What makes the sides unlike.
    pub warnings: Vec<String>,
}

/// What of a metric is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum FigureName {
    /// Its quantile 0.99.
    #[serde(rename = "p99_ns")]
    P99,
    /// How many a second.
    #[serde(rename = "rate_per_s")]
    Rate,
    /// A share of the time.
    #[serde(rename = "share")]
    Share,
}

/// A figure of a VM on both sides.
#[derive(Debug, Serialize)]
pub struct Compared {
    /// The VM's name.
    pub vm: String,
    /// Which metric, or `stall.share`.
    pub metric: String,
    /// Which figure of it.
    pub figure: FigureName,
    /// What it was.
    pub base: f64,
    /// What it is.
    pub new: f64,
    /// The chance of such a difference without a change; `null` where none may be claimed.
    pub p: Option<f64>,
    /// Whether it is real.
    pub is_real: bool,
    /// Why nothing can be claimed, whatever the figures.
    pub why_not: Option<String>,
}

impl Compared {
    /// By how much, as a share of what it was; `None` from nothing.
    pub fn change(&self) -> Option<f64> {
        (self.base > 0.0).then(|| self.new / self.base - 1.0)
    }

    /// Whether it is real, and worse.
    pub fn is_regression(&self) -> bool {
        self.is_real && self.new > self.base
    }
}

/// A VM on both sides: one recording or more, each with its index there.
struct Pair<'a> {
    name: String,
    base: Vec<(&'a Side, usize)>,
    new: Vec<(&'a Side, usize)>,
}

/// Compares. VMs are matched by uuid, then by name.
///
/// # Errors
/// A log cannot be read.
pub fn compare(base: &[Side], new: &[Side]) -> Result<Comparison> {
    let (pairs, unmatched) = matched(base, new);
    let wanted: Vec<Vec<(MetricName, u64)>> = pairs.iter().map(Pair::thresholds).collect();
    let base_points = points(base, &pairs, &wanted, |pair| &pair.base)?;
    let new_points = points(new, &pairs, &wanted, |pair| &pair.new)?;
    let mut compared = Vec::new();
    for (number, (pair, metrics)) in pairs.iter().zip(&wanted).enumerate() {
        let of_pair = |points: &[Vec<Series>], metric: &MetricName| -> Vec<Vec<Point>> {
            let each = points.iter().map(|pairs| pairs[number].get(metric));
            each.map(|points| points.cloned().unwrap_or_default()).collect()
        };
        for (metric, _) in metrics {
            let (base, new) = (of_pair(&base_points, metric), of_pair(&new_points, metric));
            compared.extend(latencies(pair, metric, &base, &new));
        }
        compared.extend(stall(pair));
    }
    let tested: Vec<usize> =
        (0..compared.len()).filter(|index| compared[*index].p.is_some()).collect();
    let chances: Vec<f64> = tested.iter().filter_map(|index| compared[*index].p).collect();
    for (index, is_real) in tested.into_iter().zip(holm(&chances)) {
        let entry = &mut compared[index];
        let effect = entry.change().map_or(f64::INFINITY, f64::abs);
        entry.is_real = is_real && effect >= LEAST_EFFECT;
    }
    Ok(Comparison { compared, unmatched, warnings: warnings(base, new) })
}

fn matched<'a>(base: &'a [Side], new: &'a [Side]) -> (Vec<Pair<'a>>, Vec<String>) {
    let (mut pairs, mut unmatched) = (Vec::<Pair<'_>>::new(), Vec::new());
    for (index, vm) in new[0].vms() {
        let find = |runs: &'a [Side]| -> Option<Vec<(&'a Side, usize)>> {
            runs.iter().map(|run| Some((run, the_one(run, vm)?))).collect()
        };
        // Of itself there must be one as well.
        let is_one = the_one(&new[0], vm) == Some(index);
        match find(base).zip(find(new)).filter(|_| is_one) {
            Some((base, new)) => pairs.push(Pair { name: vm.name.clone(), base, new }),
            None => unmatched.push(vm.name.clone()),
        }
    }
    for (index, vm) in base[0].vms() {
        let is_taken = |pair: &Pair<'_>| pair.base[0].1 == index;
        if !pairs.iter().any(is_taken) && !unmatched.contains(&vm.name) {
            unmatched.push(vm.name.clone());
        }
    }
    (pairs, unmatched)
}

/// The only VM of a recording with the same uuid, else with the same name.
fn the_one(run: &Side, vm: &RunVm) -> Option<usize> {
    let only = |is_it: &dyn Fn(&RunVm) -> bool| {
        let mut found = run.vms().filter(|(_, other)| is_it(other)).map(|(index, _)| index);
        found.next().filter(|_| found.next().is_none())
    };
    let by_uuid = || only(&|other| other.uuid.is_some() && other.uuid == vm.uuid);
    by_uuid().or_else(|| only(&|other| other.name == vm.name))
}

impl<'a> Pair<'a> {
    fn sides(&self) -> impl Iterator<Item = &(&'a Side, usize)> {
        self.base.iter().chain(&self.new)
    }

    /// The metrics that every recording has of it.
    fn metrics(&self) -> Vec<&'a MetricName> {
        let (first, vm) = self.new[0];
        let is_everywhere = |metric: &&MetricName| {
            self.sides().all(|(side, vm)| side.metrics(*vm).any(|m| m == *metric))
        };
        first.metrics(vm).filter(is_everywhere).collect()
    }

    /// Those metrics, each with its quantile over both sides.
    fn thresholds(&self) -> Vec<(MetricName, u64)> {
        let quantile = |metric| merged(self.sides(), metric).value_at_quantile(QUANTILE);
        self.metrics().into_iter().map(|metric| (metric.clone(), quantile(metric))).collect()
    }
}

/// Of every recording of a side the points of each pair; its logs are read once each.
fn points<'a>(
    side: &'a [Side],
    pairs: &[Pair<'a>],
    wanted: &[Vec<(MetricName, u64)>],
    of_pair: for<'b> fn(&'b Pair<'a>) -> &'b Vec<(&'a Side, usize)>,
) -> Result<Vec<Vec<Series>>> {
    let each = side.iter().enumerate().map(|(number, recording)| {
        let mut thresholds = vec![Vec::new(); recording.vms().count()];
        for (pair, metrics) in pairs.iter().zip(wanted) {
            thresholds[of_pair(pair)[number].1].extend(metrics.iter().cloned());
        }
        // In the order in which they were asked for: two pairs may share a VM of one side.
        let mut points: Vec<_> =
            recording.above(&thresholds)?.into_iter().map(Vec::into_iter).collect();
        let of_pairs = pairs.iter().zip(wanted).map(|(pair, metrics)| {
            let points = points[of_pair(pair)[number].1].by_ref();
            metrics.iter().map(|(metric, _)| metric.clone()).zip(points).collect()
        });
        Ok(of_pairs.collect())
    });
    each.collect()
}

fn latencies(
    pair: &Pair<'_>,
    metric: &MetricName,
    base: &[Vec<Point>],
    new: &[Vec<Point>],
) -> [Compared; 2] {
    let p99 = |side: &[(&Side, usize)]| merged(side, metric).value_at_quantile(QUANTILE) as f64;
    let tail = Figure { name: FigureName::P99, mean: tail_share, needs_events: true };
    let rate = Figure { name: FigureName::Rate, mean: rate, needs_events: false };
    [
        tail.compare(pair, metric.as_str(), (p99(&pair.base), p99(&pair.new)), base, new),
        rate.compare(pair, metric.as_str(), rates(base, new), base, new),
    ]
}

/// The distribution of a metric over several recordings.
fn merged<'a>(
    sides: impl IntoIterator<Item = &'a (&'a Side, usize)>,
    metric: &MetricName,
) -> Histogram<u64> {
    let mut all = Latencies::empty();
    let each = sides.into_iter().filter_map(|(run, vm)| run.histogram(*vm, metric));
    each.for_each(|histogram| all.add(histogram));
    all.histogram
}

fn stall(pair: &Pair<'_>) -> Option<Compared> {
    let points = |side: &[(&Side, usize)]| -> Vec<Vec<Point>> {
        side.iter().map(|(run, vm)| run.stalls(*vm).to_vec()).collect()
    };
    let (base, new) = (points(&pair.base), points(&pair.new));
    if base.iter().chain(&new).any(Vec::is_empty) {
        return None;
    }
    let share = |side: &[Vec<Point>]| {
        let sum = |of: fn(&Point) -> f64| side.iter().flatten().map(of).sum::<f64>();
        sum(|point| point.meant) / sum(|point| point.all).max(1.0)
    };
    let values = (share(&base), share(&new));
    let figure = Figure { name: FigureName::Share, mean: tail_share, needs_events: false };
    Some(figure.compare(pair, "stall.share", values, &base, &new))
}

/// A batch's figure: given the batch, the recording's share, and its batches' mean count.
type Mean = fn(&Batch, f64, f64) -> f64;

/// The share of what is meant, with a batch of few weighing little.
fn tail_share(batch: &Batch, share: f64, mean_all: f64) -> f64 {
    share + (batch.meant - share * batch.all) / mean_all
}

fn rate(batch: &Batch, _: f64, _: f64) -> f64 {
    batch.all / batch.length_s
}

fn rates(base: &[Vec<Point>], new: &[Vec<Point>]) -> (f64, f64) {
    let rate = |side: &[Vec<Point>]| {
        let sum = |of: fn(&Point) -> f64| side.iter().flatten().map(of).sum::<f64>();
        sum(|point| point.all) / sum(|point| point.length_s).max(f64::MIN_POSITIVE)
    };
    (rate(base), rate(new))
}

struct Figure {
    name: FigureName,
    mean: Mean,
    needs_events: bool,
}

impl Figure {
    fn compare(
        &self,
        pair: &Pair<'_>,
        metric: &str,
        (base, new): (f64, f64),
        base_points: &[Vec<Point>],
        new_points: &[Vec<Point>],
    ) -> Compared {
        let tested = if base_points.len() >= RUNS && new_points.len() >= RUNS {
            self.of_runs(base_points, new_points)
        } else {
            self.of_batches(&base_points[0], &new_points[0])
        };
        let (p, why_not) = match tested {
            Ok(p) => (Some(p), None),
            Err(why) => (None, Some(why)),
        };
        Compared {
            vm: pair.name.clone(),
            metric: metric.to_owned(),
            figure: self.name,
            base,
            new,
            p,
            is_real: false,
            why_not,
        }
    }

    fn of_batches(&self, base: &[Point], new: &[Point]) -> Result<f64, String> {
        let sides = [base, new];
        let length_s = |side: &[Point]| side.iter().map(|point| point.length_s).sum::<f64>();
        let shortest_s = sides.iter().map(|side| length_s(side)).fold(f64::INFINITY, f64::min);
        let points = |side: &[Point]| -> Vec<Point> {
            // A rate is compared as what it is over time.
            let of_rate = |p: &Point| Point { all: p.length_s, meant: p.all, ..*p };
            if self.needs_events || self.name == FigureName::Share {
                side.to_vec()
            } else {
                side.iter().map(of_rate).collect()
            }
        };
        let needed_s = needed_s(&sides.map(points)).max(LENGTH_S);
        // Intervals begin and end a little off.
        if shortest_s < needed_s * 0.99 {
            return Err(format!("too short: {shortest_s:.0} s recorded, {needed_s:.0} s needed"));
        }
        let mut means = Vec::new();
        for side in sides {
            let batches = cut(side).ok_or("too short: not enough intervals without a gap")?;
            if self.needs_events {
                enough_events(side, &batches)?;
            }
            means.push(self.means(&batches));
        }
        welch(&means[0], &means[1]).map_err(|error| format!("{error:#}"))
    }

    fn means(&self, batches: &[Batch; BATCHES]) -> [f64; BATCHES] {
        let sum = |of: fn(&Batch) -> f64| batches.iter().map(of).sum::<f64>();
        let all = sum(|batch| batch.all).max(f64::MIN_POSITIVE);
        let share = sum(|batch| batch.meant) / all;
        batches.map(|batch| (self.mean)(&batch, share, all / BATCHES as f64))
    }

    fn of_runs(&self, base: &[Vec<Point>], new: &[Vec<Point>]) -> Result<f64, String> {
        let mean = |run: &Vec<Point>| {
            let sum = |of: fn(&Point) -> f64| run.iter().map(of).sum::<f64>();
            let whole = Batch {
                length_s: sum(|point| point.length_s),
                all: sum(|point| point.all),
                meant: sum(|point| point.meant),
            };
            let share = whole.meant / whole.all.max(f64::MIN_POSITIVE);
            (self.mean)(&whole, share, whole.all.max(f64::MIN_POSITIVE))
        };
        let means = |side: &[Vec<Point>]| side.iter().map(mean).collect::<Vec<f64>>();
        Ok(permutation(&means(base), &means(new)))
    }
}

fn enough_events(points: &[Point], batches: &[Batch; BATCHES]) -> Result<(), String> {
    let all: f64 = points.iter().map(|point| point.all).sum();
    if all < EVENTS {
        return Err(format!("too few: {all:.0} counted, {EVENTS:.0} needed"));
    }
    let with_tail = batches.iter().filter(|batch| batch.meant > 0.0).count();
    // A side without any slow ones is as clear as can be.
    if with_tail > 0 && with_tail < BATCHES_WITH_TAIL {
        return Err(format!("the slow ones came in {with_tail} of {BATCHES} batches alone"));
    }
    Ok(())
}

fn warnings(base: &[Side], new: &[Side]) -> Vec<String> {
    let (base_run, new_run) = (&base[0].recording.run, &new[0].recording.run);
    let mut warnings = Vec::new();
    let mut differ = |what: &str, a: &str, b: &str| {
        if a != b {
            warnings.push(format!("{what} differs: {a} and {b}"));
        }
    };
    differ("backend", &base_run.backend.name, &new_run.backend.name);
    let starts = (&base_run.backend.fault_starts_at, &new_run.backend.fault_starts_at);
    differ("where a fault begins", starts.0, starts.1);
    differ("host", &base_run.host, &new_run.host);
    differ("kernel", &base_run.kernel, &new_run.kernel);
    if base.len() < RUNS || new.len() < RUNS {
        warnings.push(format!(
            "one recording a side cannot tell the change from the day; {RUNS} a side can"
        ));
    }
    warnings
}
