//! May a difference be claimed?

use anyhow::{Context, Result};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Chance of any false claim, over all comparisons.
pub const ALPHA: f64 = 0.01;

/// Welch's t test: the chance of means so far apart, or further, without a difference.
///
/// # Errors
/// The figures are no numbers.
pub fn welch(a: &[f64], b: &[f64]) -> Result<f64> {
    let ((mean_a, error_a), (mean_b, error_b)) = (mean(a), mean(b));
    let error = error_a + error_b;
    if error == 0.0 {
        return Ok(if mean_a == mean_b { 1.0 } else { 0.0 });
    }
    let t = (mean_a - mean_b).abs() / error.sqrt();
    let part = |error: f64, n: usize| error * error / (n as f64 - 1.0);
    let freedom = error * error / (part(error_a, a.len()) + part(error_b, b.len()));
    let distribution = StudentsT::new(0.0, 1.0, freedom).context("no t distribution")?;
    Ok((2.0 * distribution.sf(t)).min(1.0))
}

/// Mean, and the square of its standard error.
fn mean(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, variance / n)
}

/// Arrangements of runs that are tried at the most; above that, so many by chance.
const ARRANGEMENTS: u64 = 20_000;

/// A permutation test over whole runs: the chance that runs handed out at random differ
/// so much, or more.
pub fn permutation(a: &[f64], b: &[f64]) -> f64 {
    let all: Vec<f64> = a.iter().chain(b).copied().collect();
    let sum: f64 = all.iter().sum();
    let difference = |first: f64| (first / a.len() as f64 - (sum - first) / b.len() as f64).abs();
    let seen = difference(a.iter().sum());
    // What rounds differently is no less far apart.
    let is_as_far = |first: f64| difference(first) >= seen * (1.0 - 1e-9);
    let (mut tried, mut far) = (0u64, 0u64);
    let mut each = |first: f64| {
        tried += 1;
        far += u64::from(is_as_far(first));
        tried < ARRANGEMENTS
    };
    let is_whole = choose(&all, a.len(), 0.0, &mut each);
    if is_whole {
        return far as f64 / tried as f64;
    }
    sampled(&all, a.len(), is_as_far)
}

/// Hands each choice of so many to `each`, as a sum; whether it came to the end.
fn choose(rest: &[f64], count: usize, sum: f64, each: &mut impl FnMut(f64) -> bool) -> bool {
    if count == 0 {
        return each(sum);
    }
    if rest.len() < count {
        return true;
    }
    choose(&rest[1..], count - 1, sum + rest[0], each) && choose(&rest[1..], count, sum, each)
}

/// The same by chance, always with the same figures.
fn sampled(all: &[f64], count: usize, is_as_far: impl Fn(f64) -> bool) -> f64 {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut shuffled = all.to_vec();
    let mut far = 1;
    for _ in 0..ARRANGEMENTS {
        for at in 0..count {
            // xorshift64*
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let random = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
            let rest = (shuffled.len() - at) as u64;
            shuffled.swap(at, at + (random % rest) as usize);
        }
        far += u64::from(is_as_far(shuffled[..count].iter().sum()));
    }
    far as f64 / (ARRANGEMENTS + 1) as f64
}

/// Holm's correction: which of many chances are small enough together.
pub fn holm(chances: &[f64]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..chances.len()).collect();
    order.sort_by(|a, b| chances[*a].total_cmp(&chances[*b]));
    let mut are_real = vec![false; chances.len()];
    for (rank, index) in order.into_iter().enumerate() {
        if chances[index] > ALPHA / (chances.len() - rank) as f64 {
            break;
        }
        are_real[index] = true;
    }
    are_real
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn welch_as_tabled() {
        // By scipy.stats.ttest_ind(equal_var=False).
        let (a, b) = ([3.0, 4.0, 5.0, 6.0], [7.0, 9.0, 8.0, 12.0]);
        assert!(
            (welch(&a, &b).unwrap() - 0.016_491_871_466_286).abs() < 1e-12,
            "{}",
            welch(&a, &b).unwrap()
        );
        assert_eq!(welch(&[1.0, 1.0], &[1.0, 1.0]).unwrap(), 1.0);
        assert_eq!(welch(&[1.0, 1.0], &[2.0, 2.0]).unwrap(), 0.0);
    }

    #[test]
    fn permutations_of_runs() {
        let low = [1.0, 2.0, 3.0, 4.0, 5.0];
        let high = [6.0, 7.0, 8.0, 9.0, 10.0];
        assert!((permutation(&low, &high) - 2.0 / 252.0).abs() < 1e-12);
        assert_eq!(permutation(&low, &low), 1.0);
        let many: Vec<f64> = (0..12).map(f64::from).collect();
        let more: Vec<f64> = (12..24).map(f64::from).collect();
        assert!(permutation(&many, &more) < 0.001);
        assert!(permutation(&many, &many) > 0.9);
    }

    #[test]
    fn the_smallest_of_many_must_be_smaller() {
        assert_eq!(holm(&[0.004, 0.2, 0.006]), [false, false, false]);
        assert_eq!(holm(&[0.003, 0.2, 0.004]), [true, false, true]);
        assert!(holm(&[]).is_empty());
    }
}
