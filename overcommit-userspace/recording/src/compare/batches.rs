//! A recording as a few long batches.

/// Batches of a recording.
pub const BATCHES: usize = 8;
/// Correlation times that a batch must hold.
const CORRELATION_TIMES: f64 = 10.0;

/// An interval: how many were counted, and how many of them are meant. Of a share, time
/// and waited time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Its number in the recording.
    pub interval: u64,
    /// In seconds.
    pub length_s: f64,
    /// How many there were.
    pub all: f64,
    /// Of which so many are meant.
    pub meant: f64,
}

/// The sums of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Batch {
    /// In seconds.
    pub length_s: f64,
    /// See [`Point::all`].
    pub all: f64,
    /// See [`Point::meant`].
    pub meant: f64,
}

/// Cuts a recording into equal batches of intervals that follow each other, none across
/// a gap. `None` of too few intervals.
pub fn cut(points: &[Point]) -> Option<[Batch; BATCHES]> {
    let stretches: Vec<&[Point]> = points.chunk_by(|a, b| a.interval + 1 == b.interval).collect();
    let fit = |length: usize| -> usize { stretches.iter().map(|s| s.len() / length).sum() };
    let length = (1..=points.len() / BATCHES).rev().find(|length| fit(*length) >= BATCHES)?;
    let mut batches = [Batch::default(); BATCHES];
    let pieces = stretches.iter().flat_map(|stretch| stretch.chunks_exact(length));
    for (batch, piece) in batches.iter_mut().zip(pieces) {
        for point in piece {
            batch.length_s += point.length_s;
            batch.all += point.all;
            batch.meant += point.meant;
        }
    }
    Some(batches)
}

/// Intervals over which it is looked how much one resembles a later one.
const LAGS: usize = 5;

/// Time that recordings must have for their batches to know little of each other, in
/// seconds.
pub fn needed_s(recordings: &[Vec<Point>]) -> f64 {
    let (mut products, mut length_s, mut count) = ([0.0; LAGS + 1], 0.0, 0.0);
    for points in recordings {
        let sum = |of: fn(&Point) -> f64| points.iter().map(of).sum::<f64>();
        let (all, meant) = (sum(|point| point.all), sum(|point| point.meant));
        let share = if all > 0.0 { meant / all } else { 0.0 };
        let deviations: Vec<f64> =
            points.iter().map(|point| point.meant - share * point.all).collect();
        for (lag, product) in products.iter_mut().enumerate() {
            *product +=
                deviations.iter().zip(deviations.iter().skip(lag)).map(|(a, b)| a * b).sum::<f64>();
        }
        length_s += sum(|point| point.length_s);
        count += points.len() as f64;
    }
    if products[0] <= 0.0 || products[1] / products[0] < 2.0 / f64::sqrt(count) {
        return 0.0;
    }
    // The factor by which the resemblance fades from lag to lag. From the first interval
    // to the next it says little: chance in each makes it smaller, and intervals that are
    // long against it larger.
    let fading = |pair: &[f64]| pair[0] * pair[1];
    let factor = products[1..].windows(2).map(fading).sum::<f64>()
        / products[1..LAGS].iter().map(|product| product * product).sum::<f64>();
    let correlation_time_s = -(length_s / count) / factor.clamp(1e-9, 0.999).ln();
    BATCHES as f64 * CORRELATION_TIMES * correlation_time_s
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(intervals: impl Iterator<Item = u64>) -> Vec<Point> {
        let point = |interval| Point { interval, length_s: 1.0, all: 10.0, meant: 1.0 };
        intervals.map(point).collect()
    }

    #[test]
    fn no_batch_lies_across_a_gap() {
        assert_eq!(cut(&points(0..7)), None);
        let batches = cut(&points(0..83)).unwrap();
        assert!(batches.iter().all(|batch| batch.length_s == 10.0));
        // 35 and 45: batches of 11 give 3 + 4, of 10 give 3 + 4, of 9 give 3 + 5.
        let batches = cut(&points((0..35).chain(40..85))).unwrap();
        assert!(batches.iter().all(|batch| batch.length_s == 9.0), "{batches:?}");
        assert_eq!(cut(&points((0..20).map(|n| 2 * n))).unwrap()[7].length_s, 1.0);
    }

    #[test]
    fn what_changes_slowly_needs_longer() {
        let wave = |period: f64| -> [Vec<Point>; 1] {
            let meant = |n: f64| 5.0 + 4.0 * (n / period * std::f64::consts::TAU).sin();
            let point = |n| Point { interval: n, length_s: 1.0, all: 10.0, meant: meant(n as f64) };
            [(0..600).map(point).collect()]
        };
        assert!(needed_s(&wave(60.0)) > needed_s(&wave(20.0)));
        assert!(needed_s(&wave(2.0)) < 1.0);
        assert_eq!(needed_s(&[points(0..100)]), 0.0);
    }
}
