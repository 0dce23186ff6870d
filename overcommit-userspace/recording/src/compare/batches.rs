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
        *batch = summed(piece);
    }
    Some(batches)
}

/// Sums over which it is looked how much one resembles a later one: what changes slowly is
/// hidden by the noise of single intervals.
const SUMS: [usize; 3] = [1, 4, 16];
/// How much later, in sums.
const LAGS: usize = 5;

/// Time that recordings must have for their batches to know little of each other, in
/// seconds.
pub fn needed_s(recordings: &[&[Point]]) -> f64 {
    let times = SUMS.iter().map(|sum| correlation_time_s(recordings, *sum));
    BATCHES as f64 * CORRELATION_TIMES * times.fold(0.0, f64::max)
}

/// The time in which the resemblance of sums of so many intervals fades, in seconds.
fn correlation_time_s(recordings: &[&[Point]], sum: usize) -> f64 {
    let (mut products, mut squares, mut length_s, mut count) = ([0.0; LAGS + 1], 0.0, 0.0, 0.0);
    for points in recordings {
        let points: Vec<Batch> = points.chunks_exact(sum).map(summed).collect();
        let sum = |of: fn(&Batch) -> f64| points.iter().map(of).sum::<f64>();
        let (all, meant) = (sum(|point| point.all), sum(|point| point.meant));
        let share = if all > 0.0 { meant / all } else { 0.0 };
        let deviations: Vec<f64> =
            points.iter().map(|point| point.meant - share * point.all).collect();
        for (lag, product) in products.iter_mut().enumerate() {
            *product +=
                deviations.iter().zip(deviations.iter().skip(lag)).map(|(a, b)| a * b).sum::<f64>();
        }
        squares += sum(|point| point.meant * point.meant);
        length_s += sum(|point| point.length_s);
        count += points.len() as f64;
    }
    // Sums that are all the same differ by how they are rounded.
    let is_flat = products[0] <= squares * 1e-18;
    if is_flat || products[1] / products[0] < 2.0 / f64::sqrt(count) {
        return 0.0;
    }
    // The factor by which the resemblance fades from lag to lag. From the first sum to the
    // next it says little: chance in each makes it smaller, and sums that are long against it
    // larger.
    let fading = |pair: &[f64]| pair[0] * pair[1];
    let factor = products[1..].windows(2).map(fading).sum::<f64>()
        / products[1..LAGS].iter().map(|product| product * product).sum::<f64>();
    -(length_s / count) / factor.clamp(1e-9, 0.999).ln()
}

/// The sums of intervals.
pub fn summed(points: &[Point]) -> Batch {
    let sum = |of: fn(&Point) -> f64| points.iter().map(of).sum::<f64>();
    Batch {
        length_s: sum(|point| point.length_s),
        all: sum(|point| point.all),
        meant: sum(|point| point.meant),
    }
}

/// Von Neumann's ratio below which batches resemble their neighbours: 2 is chance.
const DRIFT: f64 = 1.2;

/// Whether the means of batches, of each recording apart, follow a drift.
pub fn drifts(recordings: &[[f64; BATCHES]]) -> bool {
    let (mut steps, mut deviations) = (0.0, 0.0);
    for means in recordings {
        let mean = means.iter().sum::<f64>() / BATCHES as f64;
        deviations += means.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        steps += means.windows(2).map(|pair| (pair[1] - pair[0]).powi(2)).sum::<f64>();
    }
    // A recording has one step fewer than means.
    let ratio = steps / deviations * (BATCHES as f64 / (BATCHES as f64 - 1.0));
    deviations > 0.0 && ratio < DRIFT
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
        let needed_s = |[points]: [Vec<Point>; 1]| needed_s(&[points.as_slice()]);
        assert!(needed_s(wave(60.0)) > needed_s(wave(20.0)));
        assert!(needed_s(wave(2.0)) < 1.0);
        assert_eq!(needed_s([points(0..100)]), 0.0);
    }

    #[test]
    fn a_slow_change_is_seen_behind_the_noise_of_single_intervals() {
        let meant = |n: u64| {
            let noise = if n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 0 { 0.0 } else { 8.0 };
            noise + (n as f64 / 300.0 * std::f64::consts::TAU).sin()
        };
        let point = |n| Point { interval: n, length_s: 1.0, all: 10.0, meant: meant(n) };
        let points: Vec<Point> = (0..600).map(point).collect();
        assert_eq!(correlation_time_s(&[&points], 1), 0.0);
        assert!(needed_s(&[&points]) > 600.0);
    }

    #[test]
    fn a_drift_is_told_from_chance() {
        assert!(drifts(&[[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [5.0; BATCHES]]));
        assert!(!drifts(&[[1.0, 8.0, 3.0, 6.0, 5.0, 4.0, 7.0, 2.0], [5.0; BATCHES]]));
        assert!(!drifts(&[[5.0; BATCHES]; 2]), "nothing changes at all");
    }
}
