//! Latency by percentile, before and after, as an SVG that needs no script.

use crate::html::tables::{count, latency};
use crate::model::latencies::Latencies;

/// Its size, in units of the drawing, and where its axes begin and end.
const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 512.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 214.0;
/// Nines at the right end of the axis, which gives every nine the same room.
const NINES: f64 = 5.25;
/// Steps of a curve for each nine.
const STEPS: u32 = 40;
/// Percentiles that the axis names, and the table below it.
const NAMED: [(f64, &str); 6] = [
    (0.5, "50"),
    (0.9, "90"),
    (0.99, "99"),
    (0.999, "99.9"),
    (0.999_9, "99.99"),
    (0.999_99, "99.999"),
];
const LISTED: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

/// A metric of a VM on both sides.
pub(super) struct Plot {
    pub(super) metric: String,
    pub(super) size: [f64; 2],
    /// Where the lines of the grid begin and end.
    pub(super) area: [f64; 4],
    /// Place and name of each percentile, and of latencies.
    pub(super) percentiles: Vec<(String, &'static str)>,
    pub(super) latencies: Vec<(String, String)>,
    pub(super) curves: Vec<Curve>,
}

/// One side of it.
pub(super) struct Curve {
    pub(super) side: &'static str,
    /// Points of a line, and its last one.
    pub(super) points: String,
    pub(super) end: [String; 2],
    /// p50, p90, p99, p99.9, the longest and how many.
    pub(super) cells: [String; 6],
}

/// Draws the distributions of both sides; `None` if neither counted any.
pub(super) fn plot(metric: &str, sides: [(&'static str, &Latencies); 2]) -> Option<Plot> {
    let counted = sides.iter().filter(|(_, of)| of.count() > 0);
    let lowest = counted.clone().filter_map(|(_, of)| of.at(1)).min()?;
    let highest = counted.map(|(_, of)| of.max_ns).max()?;
    let range = [(lowest.max(1) as f64 / 1.5).log10(), (highest.max(1) as f64 * 1.5).log10()];
    let y = |ns: f64| {
        BOTTOM - (ns.max(1.0).log10() - range[0]) / (range[1] - range[0]) * (BOTTOM - TOP)
    };
    let within = |ns: &u64| (range[0]..range[1]).contains(&(*ns as f64).log10());
    let decades = (0..12).map(|power| 10u64.pow(power));
    let mut ticks: Vec<u64> = decades.clone().filter(within).collect();
    if ticks.len() < 2 {
        ticks = decades.flat_map(|ns| [ns, 2 * ns, 5 * ns]).filter(within).collect();
    }
    Some(Plot {
        metric: metric.to_owned(),
        size: [WIDTH, HEIGHT],
        area: [LEFT, RIGHT, TOP, BOTTOM],
        percentiles: NAMED.iter().map(|(of, name)| (number(x(nines(*of))), *name)).collect(),
        latencies: ticks
            .into_iter()
            .map(|ns| {
                (number(y(ns as f64)), latency(Some(ns)).replace(".00", "").replace(".0", ""))
            })
            .collect(),
        curves: sides.iter().map(|(side, of)| curve(side, of, &y)).collect(),
    })
}

fn curve(side: &'static str, of: &Latencies, y: &impl Fn(f64) -> f64) -> Curve {
    let samples = of.count();
    let has = |quantile: f64| samples as f64 * (1.0 - quantile) >= 0.999_9;
    let listed = |quantile: f64| match of.quantile(quantile) {
        None => "–".to_owned(),
        Some(_) if !has(quantile) => "too few".to_owned(),
        ns => latency(ns),
    };
    let [p50, p90, p99, p999] = LISTED.map(listed);
    let longest = latency((samples > 0).then_some(of.max_ns));
    let points = points(of, y);
    Curve {
        side,
        end: points.last().cloned().unwrap_or_default(),
        points: points.iter().map(|[x, y]| format!("{x},{y}")).collect::<Vec<_>>().join(" "),
        cells: [p50, p90, p99, p999, longest, count(samples)],
    }
}

/// As far to the right as so many samples say anything.
fn points(of: &Latencies, y: &impl Fn(f64) -> f64) -> Vec<[String; 2]> {
    let samples = of.count();
    if samples == 0 {
        return Vec::new();
    }
    let histogram = of.histogram();
    let last = (samples as f64).log10().min(NINES);
    let steps = (0..=(NINES as u32 + 1) * STEPS).map(|step| f64::from(step) / f64::from(STEPS));
    let mut points = Vec::new();
    for nines in steps.take_while(|nines| *nines < last).chain([last]) {
        let quantile = 1.0 - 10f64.powf(-nines);
        let ns = histogram.value_at_quantile(quantile).min(of.max_ns);
        points.push([number(x(nines)), number(y(ns as f64))]);
    }
    // What lies on a level line is drawn without it.
    let is_level = |at: usize| {
        at > 0
            && at + 1 < points.len()
            && [at - 1, at + 1].iter().all(|of| points[*of][1] == points[at][1])
    };
    (0..points.len()).filter(|at| !is_level(*at)).map(|at| points[at].clone()).collect()
}

/// How many nines a quantile has: 0.99 has two.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

fn x(nines: f64) -> f64 {
    LEFT + nines / NINES * (RIGHT - LEFT)
}

fn number(of: f64) -> String {
    format!("{of:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[(u64, u64)]) -> Latencies {
        let mut latencies = Latencies::empty();
        values.iter().for_each(|(ns, count)| latencies.record(*ns, *count));
        latencies.max_ns = values.iter().map(|(ns, _)| *ns).max().unwrap_or(0);
        latencies
    }

    #[test]
    fn a_curve_ends_where_there_are_too_few() {
        let (before, after) = (of(&[(1_000, 99), (1_000_000, 1)]), of(&[(1_000, 50_000)]));
        let plot = plot("fault.major", [("before", &before), ("after", &after)]).unwrap();
        let [before, after] = &plot.curves[..] else { panic!("two curves") };
        assert_eq!(before.cells[2..4], ["1.00\u{a0}µs".to_owned(), "too few".to_owned()]);
        assert_eq!(before.cells[4..], ["1.00\u{a0}ms".to_owned(), "100".to_owned()]);
        // Two nines of five and a quarter.
        assert_eq!(before.end[0], number(x(2.0)));
        assert!(after.end[0].parse::<f64>().unwrap() > 450.0, "{:?}", after.end);
        // Both lie at 1 us, the highest of its bucket: half of a decade and more from the top.
        assert_eq!(
            before.points.split(' ').next().unwrap().split(',').nth(1),
            Some(&*after.end[1])
        );
        let names: Vec<&str> = plot.latencies.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["1\u{a0}µs", "10\u{a0}µs", "100\u{a0}µs", "1\u{a0}ms"]);
    }

    #[test]
    fn there_is_a_scale_within_a_decade() {
        let narrow = of(&[(200_000, 5), (500_000, 5)]);
        let plot = plot("swapin", [("before", &narrow), ("after", &narrow)]).unwrap();
        let names: Vec<&str> = plot.latencies.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["200\u{a0}µs", "500\u{a0}µs"]);
    }

    #[test]
    fn what_nobody_counted_is_not_drawn() {
        let (none, one) = (Latencies::empty(), of(&[(5, 1)]));
        assert!(plot("swapin", [("before", &none), ("after", &none)]).is_none());
        let plot = plot("swapin", [("before", &none), ("after", &one)]).unwrap();
        assert_eq!((plot.curves[0].points.as_str(), &*plot.curves[0].cells[5]), ("", "0"));
    }
}
