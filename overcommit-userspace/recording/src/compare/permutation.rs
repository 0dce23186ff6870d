//! Several recordings a side, compared as wholes.
//!
//! Without a change it is chance which recordings are of which side. So all figures are seen
//! under the same arrangements of the recordings, and each is held against the largest
//! difference of any: that bounds the chance of one false claim over all of them, and takes no
//! power for figures that go together (Westfall and Young, 1993, step-down max-T).

/// Arrangements that are tried at the most; above that, so many by chance.
const ARRANGEMENTS: u64 = 20_000;

/// The smallest chance that so many recordings a side can show.
pub fn least_chance(base: usize, new: usize) -> f64 {
    // With as many on both sides, the mirrored arrangement differs as much.
    let alike = if base == new { 2.0 } else { 1.0 };
    alike / arrangements(base + new, base)
}

/// In how many ways so many of all can be chosen.
fn arrangements(all: usize, chosen: usize) -> f64 {
    (0..chosen).map(|at| (all - at) as f64 / (at + 1) as f64).product()
}

/// Of each figure the chance that recordings handed out at random make any figure differ as
/// much, or more. A figure has a value for each recording, those of the base first.
pub fn chances(figures: &[Vec<f64>], base: usize) -> Vec<f64> {
    let figures: Vec<Vec<f64>> = figures.iter().map(|values| standard(values)).collect();
    let Some(all) = figures.first().map(Vec::len) else { return Vec::new() };
    let differences = |chosen: &[usize]| -> Vec<f64> {
        let of = |values: &Vec<f64>| chosen.iter().map(|at| values[*at]).sum::<f64>().abs();
        figures.iter().map(of).collect()
    };
    let seen = differences(&(0..base).collect::<Vec<_>>());
    let mut order: Vec<usize> = (0..figures.len()).collect();
    order.sort_by(|a, b| seen[*b].total_cmp(&seen[*a]));
    let (mut tried, mut far) = (0u64, vec![0u64; figures.len()]);
    let mut count = |chosen: &[usize]| {
        let differences = differences(chosen);
        let mut largest: f64 = 0.0;
        for figure in order.iter().rev() {
            largest = largest.max(differences[*figure]);
            // What rounds differently is no less far apart.
            far[*figure] += u64::from(largest >= seen[*figure] * (1.0 - 1e-9));
        }
        tried += 1;
    };
    if arrangements(all, base) <= ARRANGEMENTS as f64 {
        each(all, base, &mut count);
    } else {
        count(&(0..base).collect::<Vec<_>>());
        sampled(all, base, &mut count);
    }
    let mut chances = vec![1.0; figures.len()];
    let mut least: f64 = 0.0;
    for figure in order {
        // Who differs less is never the surer one.
        least = least.max(far[figure] as f64 / tried as f64);
        chances[figure] = least;
    }
    chances
}

/// The values with mean 0 and deviation 1; zeros if they are all the same.
fn standard(values: &[f64]) -> Vec<f64> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let deviation = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n).sqrt();
    let is_flat = deviation <= mean.abs() * 1e-12;
    values.iter().map(|value| if is_flat { 0.0 } else { (value - mean) / deviation }).collect()
}

/// Hands out each choice of so many of all.
fn each(all: usize, count: usize, take: &mut impl FnMut(&[usize])) {
    let mut chosen: Vec<usize> = (0..count).collect();
    loop {
        take(&chosen);
        // The last one that can move on does, and those behind it follow it.
        let Some(at) = (0..count).rev().find(|at| chosen[*at] < all - count + at) else { return };
        chosen[at] += 1;
        for next in at + 1..count {
            chosen[next] = chosen[next - 1] + 1;
        }
    }
}

/// Hands out some by chance, always the same ones.
fn sampled(all: usize, count: usize, take: &mut impl FnMut(&[usize])) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut shuffled: Vec<usize> = (0..all).collect();
    for _ in 0..ARRANGEMENTS {
        for at in 0..count {
            // xorshift64*
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let random = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
            shuffled.swap(at, at + (random % (all - at) as u64) as usize);
        }
        take(&shuffled[..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW: [f64; 5] = [1.0, 2.0, 3.0, 4.0, 5.0];
    const HIGH: [f64; 5] = [96.0, 97.0, 98.0, 99.0, 100.0];

    #[test]
    fn five_a_side_tell_a_difference_in_each_of_many_figures() {
        let differs = [LOW, HIGH].concat();
        let noise = vec![3.0, 1.0, 4.0, 1.5, 9.0, 2.0, 6.0, 5.0, 3.5, 8.0];
        let chances = chances(&[differs.clone(), noise, differs], 5);
        assert!((chances[0] - 2.0 / 252.0).abs() < 1e-12, "{chances:?}");
        assert_eq!(chances[2], chances[0]);
        assert!(chances[1] > 0.3, "{chances:?}");
        assert!((least_chance(5, 5) - 2.0 / 252.0).abs() < 1e-12);
        assert!(least_chance(4, 6) < 0.01 && least_chance(4, 4) > 0.01);
    }

    #[test]
    fn without_a_difference_nothing_is_sure() {
        assert_eq!(chances(&[[LOW, LOW].concat()], 5), [1.0]);
        assert_eq!(chances(&[vec![7.0; 10]], 5), [1.0]);
        assert!(chances(&[], 5).is_empty());
    }

    #[test]
    fn many_recordings_are_arranged_by_chance() {
        let rising = |from: u32| (from..from + 12).map(f64::from).collect::<Vec<_>>();
        assert!(chances(&[[rising(0), rising(12)].concat()], 12)[0] < 0.001);
        assert!(chances(&[[rising(0), rising(0)].concat()], 12)[0] > 0.9);
    }
}
