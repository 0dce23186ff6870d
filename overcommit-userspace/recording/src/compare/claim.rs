//! May a difference be claimed?

use anyhow::{Context, Result};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Chance of any false claim, over all comparisons.
pub const ALPHA: f64 = 0.01;

/// Welch's t test: the chance of means so far apart, or further, without a difference. So many
/// of each side's values count as independent of each other.
///
/// # Errors
/// The figures are no numbers.
pub fn welch(a: &[f64], b: &[f64], independent: f64) -> Result<f64> {
    let ((mean_a, error_a), (mean_b, error_b)) = (mean(a, independent), mean(b, independent));
    let error = error_a + error_b;
    if error == 0.0 {
        return Ok(if mean_a == mean_b { 1.0 } else { 0.0 });
    }
    let t = (mean_a - mean_b).abs() / error.sqrt();
    let part = |error: f64| error * error / (independent - 1.0);
    let freedom = error * error / (part(error_a) + part(error_b));
    let distribution = StudentsT::new(0.0, 1.0, freedom).context("no t distribution")?;
    Ok((2.0 * distribution.sf(t)).min(1.0))
}

/// Mean, and the square of its standard error.
fn mean(values: &[f64], independent: f64) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, variance / independent)
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
            (welch(&a, &b, 4.0).unwrap() - 0.016_491_871_466_286).abs() < 1e-12,
            "{}",
            welch(&a, &b, 4.0).unwrap()
        );
        assert_eq!(welch(&[1.0, 1.0], &[1.0, 1.0], 2.0).unwrap(), 1.0);
        assert_eq!(welch(&[1.0, 1.0], &[2.0, 2.0], 2.0).unwrap(), 0.0);
    }

    #[test]
    fn the_smallest_of_many_must_be_smaller() {
        assert_eq!(holm(&[0.004, 0.2, 0.006]), [false, false, false]);
        assert_eq!(holm(&[0.003, 0.2, 0.004]), [true, false, true]);
        assert!(holm(&[]).is_empty());
    }
}
