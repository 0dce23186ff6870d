//! The figures that are compared, run by run.

use crate::compare::batches::{Point, summed};
use crate::compare::pairs::{Pair, added};
use crate::compare::series::Side;
use crate::model::latencies::Latencies;
use crate::model::metric::MetricName;
use anyhow::Result;
use overcommit_ebpf::layout::Metric;
use serde::Serialize;
use std::collections::BTreeSet;

/// Quantile that is compared.
const QUANTILE: f64 = 0.99;

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

/// A figure of a VM in all recordings of both sides.
#[derive(Clone, Debug)]
pub struct Figure {
    /// The VM's name.
    pub vm: String,
    /// Which metric, or `stall.share`.
    pub metric: String,
    /// Which figure of it.
    pub name: FigureName,
    /// In each recording of the base.
    pub base: Vec<RunFigure>,
    /// In each of the other side.
    pub new: Vec<RunFigure>,
}

/// A figure in one recording.
#[derive(Clone, Debug)]
pub struct RunFigure {
    /// Its intervals. Of a quantile: how many were counted, and how many of them exceed that of
    /// all recordings together. Of a rate: seconds, and how many were counted. Of a share: the
    /// time, and the part of it.
    pub points: Vec<Point>,
    /// What it was in the whole recording; `None` is a quantile of nothing.
    pub value: Option<f64>,
}

/// Beside a rate a hundred times as high there is as good as none: no load changes by so much.
const NEXT_TO_NONE: f64 = 0.01;

/// The share of VM time that was lost to memory, among the metrics.
pub const STALL_SHARE: &str = "stall.share";

impl RunFigure {
    /// What part of all is meant: a rate, or a share.
    pub fn part(points: Vec<Point>) -> Self {
        let sums = summed(&points);
        Self { points, value: Some(sums.meant / sums.all.max(f64::MIN_POSITIVE)) }
    }
}

impl Figure {
    /// Whether it goes up and down with the load, so that more of it is not worse. What one side
    /// has next to none of is not more of the same.
    pub fn goes_with_the_load(&self) -> bool {
        let is = |metric: Metric| self.metric == metric.name();
        let is_harm = is(Metric::FaultMajor) || is(Metric::Swapin);
        let is_load = is(Metric::FaultMinor) || !self.comes_or_goes();
        self.name == FigureName::Rate && !is_harm && is_load
    }

    /// Whether one side has none of it, or next to none beside the other.
    fn comes_or_goes(&self) -> bool {
        let values =
            |side: &[RunFigure]| -> Vec<f64> { side.iter().filter_map(|run| run.value).collect() };
        let is_next_to_none = |few: &[f64], many: &[f64]| {
            let most = few.iter().copied().fold(0.0, f64::max);
            let mean = many.iter().sum::<f64>() / many.len().max(1) as f64;
            mean > 0.0 && most <= mean * NEXT_TO_NONE
        };
        let (base, new) = (values(&self.base), values(&self.new));
        is_next_to_none(&base, &new) || is_next_to_none(&new, &base)
    }
}

/// The figures of each pair; and what is left out of the comparison, with the reason.
///
/// # Errors
/// A log cannot be read.
pub fn figures(
    base: &[Side],
    new: &[Side],
    pairs: &[Pair<'_>],
) -> Result<(Vec<Figure>, Vec<String>)> {
    let mut left_out = Vec::new();
    let wanted: Vec<Vec<(MetricName, u64)>> =
        pairs.iter().map(|pair| thresholds(pair, &mut left_out)).collect();
    let base = points(base, pairs, &wanted, |pair| &pair.base)?;
    let new = points(new, pairs, &wanted, |pair| &pair.new)?;
    let mut figures = Vec::new();
    for (number, (pair, metrics)) in pairs.iter().zip(&wanted).enumerate() {
        for (at, (metric, _)) in metrics.iter().enumerate() {
            let of = |name, is: fn(Option<&Latencies>, &[Point]) -> RunFigure| {
                let side = |side: &[(&Side, usize)], points: &[Points]| {
                    let runs = side.iter().zip(points);
                    runs.map(|((run, vm), points)| {
                        is(run.latencies(*vm, metric), &points[number][at])
                    })
                    .collect()
                };
                Figure {
                    vm: pair.name.clone(),
                    metric: metric.as_str().to_owned(),
                    name,
                    base: side(&pair.base, &base),
                    new: side(&pair.new, &new),
                }
            };
            figures.push(of(FigureName::P99, tail));
            figures.push(of(FigureName::Rate, rate));
        }
        match stall(pair) {
            Ok(figure) => figures.push(figure),
            Err(why) => left_out.push(format!("{}: {STALL_SHARE}: {why}", pair.name)),
        }
    }
    Ok((figures, left_out))
}

/// The metrics that every recording looked at, each with its quantile over both sides.
fn thresholds(pair: &Pair<'_>, left_out: &mut Vec<String>) -> Vec<(MetricName, u64)> {
    let mut thresholds = Vec::new();
    for metric in pair.counted() {
        if metric.as_str() == Metric::StallMemory.name() && counts_differently(pair) {
            left_out.push(format!("{}: {}: {OLDER}", pair.name, metric.as_str()));
            continue;
        }
        let unseen = pair.everywhere().find_map(|(side, vm)| match side.latencies(*vm, metric) {
            Some(_) => None,
            None => side.unseen(*vm, metric).map(|why| (side, why)),
        });
        if let Some((side, why)) = unseen {
            let folder = side.recording.folder.path().display();
            left_out.push(format!("{}: {} (in {folder})", pair.name, why));
            continue;
        }
        let all = added(pair.everywhere(), metric);
        thresholds.push((metric.clone(), all.histogram().value_at_quantile(QUANTILE)));
    }
    thresholds
}

/// Of a recording, by pair and metric.
type Points = Vec<Vec<Vec<Point>>>;

/// Of every recording of a side the points; its logs are read once.
fn points<'a>(
    side: &'a [Side],
    pairs: &[Pair<'a>],
    wanted: &[Vec<(MetricName, u64)>],
    of_pair: for<'b> fn(&'b Pair<'a>) -> &'b Vec<(&'a Side, usize)>,
) -> Result<Vec<Points>> {
    let each = side.iter().enumerate().map(|(number, recording)| {
        let mut thresholds = vec![Vec::new(); recording.vms().len()];
        for (pair, metrics) in pairs.iter().zip(wanted) {
            thresholds[of_pair(pair)[number].1] = metrics.clone();
        }
        let mut points = recording.above(&thresholds)?;
        let of_pairs =
            pairs.iter().map(|pair| std::mem::take(&mut points[of_pair(pair)[number].1]));
        Ok(of_pairs.collect())
    });
    each.collect()
}

fn tail(latencies: Option<&Latencies>, points: &[Point]) -> RunFigure {
    let p99 = latencies.and_then(|latencies| latencies.quantile(QUANTILE));
    RunFigure { points: points.to_vec(), value: p99.map(|ns| ns as f64) }
}

fn rate(_: Option<&Latencies>, points: &[Point]) -> RunFigure {
    let over_time = |point: &Point| Point { all: point.length_s, meant: point.all, ..*point };
    RunFigure::part(points.iter().map(over_time).collect())
}

/// Why waits of recordings of several versions are not compared.
const OLDER: &str = "some recordings are from an older version, which counted different waits";

/// Whether the recordings differ in what they count as a wait for memory.
fn counts_differently(pair: &Pair<'_>) -> bool {
    let kinds: BTreeSet<_> = pair.everywhere().map(|(run, _)| run.waits).collect();
    kinds.len() > 1
}

/// The stall share, or why it cannot be compared.
fn stall(pair: &Pair<'_>) -> Result<Figure, &'static str> {
    if counts_differently(pair) {
        return Err(OLDER);
    }
    let side = |side: &[(&Side, usize)]| -> Option<Vec<RunFigure>> {
        let runs = side.iter().map(|(run, vm)| Some(RunFigure::part(run.stalls(*vm)?.to_vec())));
        runs.collect()
    };
    let sides = side(&pair.base).zip(side(&pair.new));
    let (base, new) = sides.ok_or("its vCPU threads were not always known in a recording")?;
    let (vm, metric) = (pair.name.clone(), STALL_SHARE.to_owned());
    Ok(Figure { vm, metric, name: FigureName::Share, base, new })
}
