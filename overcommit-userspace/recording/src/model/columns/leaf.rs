//! Figures as files and views take them, and back.

use crate::model::balloon;
use crate::model::coverage::Coverage;
use crate::model::evictions::AggressorClass;
use crate::model::interval::StallSource;
use crate::model::memory::{self, NodeSet, OvercommitState};
use crate::model::metric::MetricName;
use crate::model::state::State;
use crate::model::swap::SwapState;
use std::collections::BTreeMap;

/// What a figure is counted in, and so how it is spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A number of things.
    Count,
    /// Bytes.
    Bytes,
    /// Time in nanoseconds, which files have in seconds with nine digits.
    Nanoseconds,
    /// The same in microseconds, with six.
    Microseconds,
    /// Time in whole nanoseconds, also in files.
    WholeNanoseconds,
    /// Time in seconds, with one digit.
    Tenths,
    /// Time in seconds, with three digits.
    Thousandths,
    /// From 0 to 1.
    Share,
    /// So many a second.
    PerSecond,
    /// A word of a fixed list.
    Word,
    /// Foreign text.
    Text,
    /// An address.
    Address,
}

impl Unit {
    /// What it is called in the documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Bytes => "bytes",
            Self::Nanoseconds | Self::Microseconds | Self::Tenths | Self::Thousandths => "seconds",
            Self::WholeNanoseconds => "nanoseconds",
            Self::Share => "0 to 1",
            Self::PerSecond => "per second",
            Self::Word => "word",
            Self::Text => "text",
            Self::Address => "address",
        }
    }
}

/// A figure.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// It was not measured, which is not zero.
    Absent,
    /// A number of its unit.
    Count(u64),
    /// One that can be below zero.
    Signed(i64),
    /// One with digits behind the point.
    Ratio(f64),
    /// A word of a fixed list.
    Word(&'static str),
    /// Text.
    Text(String),
}

/// What can be a figure of a record.
pub trait Leaf: Sized {
    /// As a figure.
    fn value(&self) -> Value;

    /// Out of a file's cell; `None` if it is no such figure.
    fn read(cell: &str) -> Option<Self>;
}

/// The whole number of units in a decimal fraction of seconds, with that many digits behind the
/// point. `None` if it is no such number.
pub fn units(text: &str, digits: u32) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = digits as usize;
    if fraction.len() > digits || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let padded = format!("{fraction:0<digits$}");
    let unit = 10u64.checked_pow(digits as u32)?;
    let units = whole.parse::<u64>().ok()?.checked_mul(unit)?.checked_add(padded.parse().ok()?)?;
    (units <= i64::MAX.cast_unsigned()).then_some(units)
}

macro_rules! numbers {
    ($($type:ty => $value:ident($as:ty), |$number:ident| $possible:expr;)*) => {
        $(impl Leaf for $type {
            fn value(&self) -> Value {
                Value::$value(<$as>::from(*self))
            }

            fn read(cell: &str) -> Option<Self> {
                cell.parse().ok().map(|$number: $type| $possible)
            }
        })*
    };
}

/// More than any figure of an interval is: a thousand vCPUs' time in an hour, in nanoseconds, or 4
/// PiB. What claims more is read as this, so that sums of thousands of such figures do not
/// overflow, whoever wrote them.
pub(super) const LARGEST: u64 = 1 << 52;

numbers! {
    u32 => Count(u64), |number| number;
    u64 => Count(u64), |number| number.min(LARGEST);
    i64 => Signed(i64), |number| number.clamp(-LARGEST.cast_signed(), LARGEST.cast_signed());
    f64 => Ratio(f64), |number| if number.is_finite() { number } else { 0.0 };
}

/// A word of a later version is read as the one that claims least.
macro_rules! words {
    ($($type:ty => $of_later:expr;)*) => {
        $(impl Leaf for $type {
            fn value(&self) -> Value {
                Value::Word(self.name())
            }

            fn read(cell: &str) -> Option<Self> {
                let of_later = (!cell.is_empty()).then_some($of_later);
                Self::from_name(cell).or(of_later)
            }
        })*
    };
}

words! {
    Coverage => Self::Partial;
    AggressorClass => Self::Other;
    StallSource => Self::Faults;
    balloon::Source => Self::Other;
    memory::Source => Self::Other;
    SwapState => Self::Unknown;
    OvercommitState => Self::Unknown;
    balloon::BalloonState => Self::Unknown;
}

impl<T: Leaf> Leaf for Option<T> {
    fn value(&self) -> Value {
        self.as_ref().map_or(Value::Absent, Leaf::value)
    }

    fn read(cell: &str) -> Option<Self> {
        if cell.is_empty() { Some(None) } else { T::read(cell).map(Some) }
    }
}

impl Leaf for bool {
    fn value(&self) -> Value {
        Value::Word(if *self { "true" } else { "false" })
    }

    fn read(cell: &str) -> Option<Self> {
        cell.parse().ok()
    }
}

impl Leaf for String {
    fn value(&self) -> Value {
        Value::Text(self.clone())
    }

    fn read(cell: &str) -> Option<Self> {
        Some(cell.to_owned())
    }
}

impl Leaf for MetricName {
    fn value(&self) -> Value {
        Value::Text(self.as_str().to_owned())
    }

    fn read(cell: &str) -> Option<Self> {
        Some(Self::new(cell))
    }
}

impl Leaf for NodeSet {
    fn value(&self) -> Value {
        Value::Text(self.to_string())
    }

    fn read(cell: &str) -> Option<Self> {
        Self::parse(&cell.replace(' ', ","))
    }
}

/// Counts by name: `nvme0n1=8 zram0=2`. A name with a blank in it has none any more.
impl Leaf for BTreeMap<String, u64> {
    fn value(&self) -> Value {
        let each = self.iter().map(|(name, count)| format!("{}={count}", name.replace(' ', "_")));
        Value::Text(each.collect::<Vec<_>>().join(" "))
    }

    fn read(cell: &str) -> Option<Self> {
        let each = cell.split_whitespace().map(|word| {
            let (name, count) = word.rsplit_once('=')?;
            Some((name.to_owned(), u64::read(count)?))
        });
        each.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_come_back() {
        let counts = BTreeMap::from([("a=b".to_owned(), 3), ("zram0".to_owned(), 5)]);
        let Value::Text(text) = counts.value() else { panic!("no text") };
        assert_eq!(text, "a=b=3 zram0=5");
        assert_eq!(BTreeMap::read(&text), Some(counts));
        assert_eq!(NodeSet::read("0 2").map(|set| set.to_string()), Some("0 2".to_owned()));
        assert_eq!(Option::<u64>::read(""), Some(None));
        assert_eq!(u64::read(""), None, "what must be there is");
        let claimed = (u64::read("18446744073709551615"), i64::read("-9223372036854775808"));
        assert_eq!(claimed, (Some(LARGEST), Some(-LARGEST.cast_signed())));
        assert_eq!(bool::read("true"), Some(true));
    }

    #[test]
    fn words_of_later_versions_claim_nothing() {
        assert_eq!(SwapState::read("a later one"), Some(SwapState::Unknown));
        assert_eq!(Coverage::read("a later one"), Some(Coverage::Partial));
        assert_eq!(memory::Source::read("a later one"), Some(memory::Source::Other));
        assert_eq!(memory::Source::read("damon"), Some(memory::Source::Damon));
        assert_eq!(SwapState::read(""), None);
    }

    #[test]
    fn seconds_come_back() {
        assert_eq!(units("1764000001.250000", 6), Some(1_764_000_001_250_000));
        assert_eq!(units("1.000000001", 9), Some(1_000_000_001));
        for text in ["", "x", "1.2.3", "-1", "1.0000001", "99999999999999999999"] {
            assert_eq!(units(text, 6), None, "{text}");
        }
    }
}
