//! What a VM must meet: `web-*:fault.major:p99<2ms`, `stall.share<1%`.

use crate::format::text::parse_duration;
use crate::model::metric::{MetricName, is_known, names};
use crate::model::pattern::Pattern;
use crate::model::run::{Run, RunVm};
use anyhow::{Context, Result, bail, ensure};
use std::fmt;

/// A quantile, in millionths; the whole is the maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantile(u32);

/// Millionths of a whole.
const WHOLE: u32 = 1_000_000;

impl Quantile {
    /// From 0 to 1.
    pub fn value(self) -> f64 {
        f64::from(self.0) / f64::from(WHOLE)
    }

    /// `p50`, `p99`, `p99.9`, `max`; `p999` is the same as `p99.9`, as in the files' columns.
    fn parse(text: &str) -> Result<Self> {
        if text == "max" {
            return Ok(Self(WHOLE));
        }
        let wrong = || format!("{text} is not a quantile; write for example p99, p99.9 or max");
        let digits = text.strip_prefix('p').with_context(wrong)?;
        let (percent, fraction) = match digits.split_once('.') {
            Some(parts) => parts,
            None if digits.len() > 2 && digits.starts_with('9') && digits.is_ascii() => {
                digits.split_at(2)
            }
            None => (digits, ""),
        };
        let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        ensure!(is_number(percent) && is_number(fraction) && fraction.len() <= 4, wrong());
        let millionths: u32 =
            format!("{percent}{fraction:0<4}").parse().ok().with_context(wrong)?;
        ensure!(
            (1..WHOLE).contains(&millionths),
            "{text} is not between 0 and 100 %; write for example p99, p99.9 or max"
        );
        Ok(Self(millionths))
    }

    /// Samples below which the quantile is just the maximum.
    pub fn least_samples(self) -> u64 {
        // The maximum is one of however many.
        let rest = u64::from(WHOLE - self.0);
        if rest == 0 { 1 } else { u64::from(WHOLE).div_ceil(rest) }
    }

    /// The place of the quantile among that many sorted samples, from 1.
    pub fn rank(self, samples: u64) -> u64 {
        (u64::from(self.0) * samples).div_ceil(u64::from(WHOLE))
    }
}

/// What must stay below what.
#[derive(Clone, Debug, PartialEq)]
pub enum Bound {
    /// A quantile of a metric.
    Latency {
        /// The metric.
        metric: MetricName,
        /// Its quantile.
        quantile: Quantile,
        /// At most this, in nanoseconds.
        limit_ns: u64,
    },
    /// How many of a metric there are.
    Rate {
        /// The metric.
        metric: MetricName,
        /// At most this, per second.
        limit: f64,
    },
    /// A share of its vCPUs' time.
    Share {
        /// Which.
        of: Share,
        /// At most this, as a part of 1.
        limit: f64,
    },
}

/// Shares of a VM's vCPUs' time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// It waits for memory.
    Stall,
    /// It could run and has no CPU.
    Cpu,
}

impl Share {
    const ALL: [Self; 2] = [Self::Stall, Self::Cpu];

    /// As objectives have it.
    const fn name(self) -> &'static str {
        match self {
            Self::Stall => "stall.share",
            Self::Cpu => "cpu.share",
        }
    }

    /// Which one it is of whom, of what stands before the limit.
    fn of(what: &str) -> Option<(Self, Option<&str>)> {
        Self::ALL.into_iter().find_map(|share| {
            let vms = what.strip_suffix(share.name())?;
            if vms.is_empty() {
                Some((share, None))
            } else {
                Some((share, Some(vms.strip_suffix(':')?)))
            }
        })
    }
}

/// An objective for the VMs that it names.
#[derive(Clone, Debug)]
pub struct Objective {
    text: String,
    /// `None` is every VM.
    vms: Option<Pattern>,
    /// What it asks for.
    pub bound: Bound,
}

impl Objective {
    /// Those that a recording was made with.
    ///
    /// # Errors
    /// run.json has one that is none.
    pub fn recorded(run: &Run) -> Result<Vec<Self>> {
        let recorded = run.options.slo.iter().map(|text| Self::parse(text));
        recorded.collect::<Result<_>>().context("run.json has an objective that is none")
    }

    /// Reads `[PATTERN:]METRIC:QUANTILE<DURATION`, `[PATTERN:]METRIC:rate<COUNT/s`, `[PATTERN:]stall.share<PERCENT%` or
    /// `[PATTERN:]cpu.share<PERCENT%`.
    ///
    /// # Errors
    /// Says what is wrong, and at which character.
    pub fn parse(text: &str) -> Result<Self> {
        let Some((what, limit)) = text.rsplit_once('<') else {
            bail!("{text:?} has no <; write for example fault.major:p99<2ms or stall.share<1%");
        };
        let at =
            |place: usize| format!("{text:?} at character {}", text[..place].chars().count() + 1);
        let limit_at = || at(what.len() + 1);
        let (vms, bound) = match (Share::of(what), what.rsplit_once(':')) {
            (Some((of, vms)), _) => {
                (vms, Bound::Share { of, limit: percent(limit).with_context(limit_at)? })
            }
            (None, Some((before, quantile))) => {
                let quantile_at = || at(before.len() + 1);
                let (vms, metric) = match before.rsplit_once(':') {
                    Some((vms, metric)) => (Some(vms), metric),
                    None => (None, before),
                };
                let metric_at = || at(before.len() - metric.len());
                ensure!(
                    is_known(metric),
                    "{}: there is no metric {metric}; the metrics are {}",
                    metric_at(),
                    names()
                );
                let metric = MetricName::new(metric);
                if quantile == "rate" {
                    let limit = per_second(limit).with_context(limit_at)?;
                    (vms, Bound::Rate { metric, limit })
                } else {
                    let limit = parse_duration(limit).with_context(limit_at)?;
                    let quantile = Quantile::parse(quantile).with_context(quantile_at)?;
                    let limit_ns = u64::try_from(limit.as_nanos()).with_context(limit_at)?;
                    (vms, Bound::Latency { metric, quantile, limit_ns })
                }
            }
            (None, None) => bail!(
                "{} is neither METRIC:QUANTILE nor stall.share nor cpu.share; write for example \
                 fault.major:p99<2ms or stall.share<1%",
                at(0)
            ),
        };
        let vms = vms.map(Pattern::parse).transpose().with_context(|| at(0))?;
        Ok(Self { text: text.to_owned(), vms, bound })
    }

    /// What it asks for, without the VMs that it names; `None` if it is for every VM.
    pub fn without_vms(&self) -> Option<&str> {
        let vms = self.vms.as_ref()?.to_string();
        self.text.strip_prefix(&vms)?.strip_prefix(':')
    }

    /// Whether it is for that VM.
    pub fn is_for(&self, vm: &RunVm) -> bool {
        self.vms.as_ref().is_none_or(|pattern| pattern.matches_recorded(vm))
    }
}

fn percent(text: &str) -> Result<f64> {
    let wrong = || format!("{text} is not a share; write for example 1%");
    let number: f64 =
        text.strip_suffix('%').with_context(wrong)?.parse().ok().with_context(wrong)?;
    ensure!((0.0..=100.0).contains(&number), "{text} is not between 0% and 100%");
    Ok(number / 100.0)
}

fn per_second(text: &str) -> Result<f64> {
    let wrong = || format!("{text} is not a rate; write for example 100/s");
    let number: f64 =
        text.strip_suffix("/s").with_context(wrong)?.parse().ok().with_context(wrong)?;
    ensure!(number.is_finite() && number >= 0.0, wrong());
    Ok(number)
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_are_read_from_the_right() {
        let parsed = Objective::parse("namespace:web-*:fault.major:p99.9<2ms").unwrap();
        let Bound::Latency { metric, quantile, limit_ns } = &parsed.bound else { panic!() };
        assert_eq!((metric.as_str(), quantile.0, *limit_ns), ("fault.major", 999_000, 2_000_000));
        let is_for = |objective: &Objective, name: &str| {
            objective.is_for(&RunVm { name: name.to_owned(), ..RunVm::default() })
        };
        assert!(is_for(&parsed, "namespace:web-1") && !is_for(&parsed, "web-1"));
        let share = Objective::parse("web-1:stall.share<0.5%").unwrap();
        assert_eq!(share.bound, Bound::Share { of: Share::Stall, limit: 0.005 });
        assert!(is_for(&share, "web-1") && !is_for(&share, "web-2"));
        let rate = Objective::parse("db:fault.major:rate<0.5/s").unwrap();
        assert_eq!(rate.bound, Bound::Rate { metric: MetricName::new("fault.major"), limit: 0.5 });
        assert!(is_for(&rate, "db"));
        assert!(is_for(&Objective::parse("exit.npf:p50<1us").unwrap(), "any"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, said) in [
            ("fault.major:p99", "has no <"),
            ("fault.major<2ms", "at character 1"),
            ("fault.mayor:p99<2ms", "at character 1: there is no metric fault.mayor"),
            ("db:fault.major:q99<2ms", "at character 16: q99 is not a quantile"),
            ("fault.major:p100<2ms", "at character 13"),
            ("fault.major:rate<100", "at character 18: 100 is not a rate"),
            ("fault.major:rate<-1/s", "at character 18: -1/s is not a rate"),
            ("fault.major:p0<2ms", "not between 0 and 100 %"),
            ("fault.major:p99<2", "at character 17: the duration 2 has no unit"),
            ("stall.share<1", "at character 13: 1 is not a share"),
            ("stall.share<101%", "not between 0% and 100%"),
            ("web-[:fault.major:p99<2ms", "not a pattern"),
            ("", "has no <"),
        ] {
            let error = format!("{:#}", Objective::parse(text).unwrap_err());
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn quantiles_know_how_many_samples_they_need() {
        for (text, least) in
            [("p50", 2), ("p90", 10), ("p99", 100), ("p999", 1_000), ("p99.9", 1_000)]
        {
            let quantile = Quantile::parse(text).unwrap();
            assert_eq!(quantile.least_samples(), least, "{text}");
            // The least number has exactly one sample above the quantile.
            assert_eq!(quantile.rank(least), least - 1, "{text}");
        }
    }
}
