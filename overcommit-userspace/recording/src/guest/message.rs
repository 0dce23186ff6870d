//! The message, as docs/guest-protocol.md explains it to a VM's owner.

use crate::model::coverage::Coverage;
use crate::model::memory::Range;
use crate::summary::SummaryMetric;
use crate::summary::cause::Cause;
use crate::summary::verdict::Fared;
use serde::de::value::{Error, StrDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

/// What [`Message::schema`] says.
pub const SCHEMA: &str = "overcommit.guest/1";

/// The port of vsock at which a host listens: one that nobody but root may take.
pub const VSOCK_PORT: u32 = 955;

/// The longest line that a host sends, in bytes.
pub const LINE_MAX: usize = 4096;

/// What the host did to one VM, as of the end of an interval. Nothing in it tells of another VM, or
/// how large the host is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// [`SCHEMA`].
    pub schema: String,
    /// What stood behind GET in the request that this answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The end of the interval by the host's clock, in Unix seconds.
    pub unix_s: f64,
    /// How long ago that was when the message was sent, in seconds.
    pub age_s: f64,
    /// The host's interval, in seconds: how often there are new figures. 0 of hosts that do not tell.
    #[serde(default)]
    pub interval_s: f64,
    /// How the VM fared in the last minute.
    #[serde(deserialize_with = "known")]
    pub verdict: Fared,
    /// Why; `null` of one that is ok.
    pub cause: Option<Cause>,
    /// Over the last interval, which is of one second unless the host says otherwise.
    pub last_1s: Shares,
    /// Over the last ten seconds.
    pub last_10s: Shares,
    /// Over the last minute.
    pub last_60s: Shares,
    /// Part of its vCPUs' time of the last minute in which it was held back at its cgroup's memory.high,
    /// which is in no other share; `null` where that is not seen.
    pub held_back_share: Option<f64>,
    /// Page faults of the last minute that had to wait for a disk or for swap.
    pub major_faults: Latency,
    /// Page faults of the last minute that did not.
    pub minor_faults: Latency,
    /// Read back from the host's swap, a second, in the last interval; `null` where that is not seen.
    pub swapped_in_bytes_per_s: Option<f64>,
    /// What of the VM lies on the host's swap.
    pub swapped_bytes: Option<u64>,
    /// What its balloon took back.
    pub ballooned_bytes: Option<u64>,
    /// What of the VM is in the host's RAM.
    pub resident_bytes: Option<u64>,
    /// What the VM uses.
    pub working_set_bytes: Option<Range>,
    /// What the host lets it hold.
    pub limit_bytes: Option<u64>,
    /// What it was given.
    pub configured_bytes: Option<u64>,
    /// How the host is.
    pub host: HostWord,
    /// When the kernel last killed a VM of this uuid and name for want of memory, in Unix seconds, as
    /// far as the host remembers.
    pub last_oom_kill_unix_s: Option<f64>,
}

impl Message {
    /// Whether it says nothing of now: the host's recorder is held up.
    pub fn is_stale(&self) -> bool {
        self.age_s > STALE * self.interval_s.max(1.0)
    }
}

/// Intervals after which there should have been another message.
const STALE: f64 = 3.0;

/// A verdict of a later version says nothing to this one.
fn known<'de, D: Deserializer<'de>>(text: D) -> Result<Fared, D::Error> {
    let word = String::deserialize(text)?;
    let known: Result<Fared, Error> = Fared::deserialize(StrDeserializer::new(&word));
    Ok(known.unwrap_or(Fared::Unseen))
}

/// Shares of the vCPUs' time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    /// Of so many seconds: less than the name says of a VM that has just come.
    pub seconds: f64,
    /// Waited for memory, from 0 to 1; `null` where that is not seen.
    pub stall_share: Option<f64>,
    /// Could run and had no CPU, from 0 to 1; `null` where that is not seen.
    pub cpu_share: Option<f64>,
}

/// How long faults took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many a second; `null` where they are not seen.
    pub per_s: Option<f64>,
    /// Their median, in nanoseconds; `null` of none.
    pub p50_ns: Option<u64>,
    /// Their quantile 0.99, in nanoseconds; `null` of none.
    pub p99_ns: Option<u64>,
    /// The longest, in nanoseconds; `null` of none.
    pub max_ns: Option<u64>,
}

impl Latency {
    /// Of a summary's figures.
    pub(super) fn of(metric: Option<&SummaryMetric>) -> Self {
        let seen = metric.filter(|metric| metric.coverage != Coverage::Absent);
        seen.map_or_else(Self::default, |metric| Self {
            per_s: Some(metric.rate_per_s),
            p50_ns: metric.p50_ns,
            p99_ns: metric.p99_ns,
            max_ns: metric.max_ns,
        })
    }
}

/// The state of the host in a word: coarse, because its figures would tell of other VMs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostWord {
    /// Nobody waits for memory.
    Calm,
    /// It swaps.
    Swapping,
    /// It swaps the same memory out and in again.
    Thrashing,
    /// Not known, or what a later version knows.
    #[default]
    #[serde(other)]
    Unknown,
}

impl HostWord {
    /// The word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Swapping => "swapping",
            Self::Thrashing => "thrashing",
            Self::Unknown => "unknown",
        }
    }
}

/// What a host answers that has no message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// [`SCHEMA`].
    pub schema: String,
    /// As in [`Message::request`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Why.
    pub error: String,
}

impl Refusal {
    /// For that reason.
    pub fn because(error: &str, request: Option<String>) -> Self {
        Self { schema: SCHEMA.to_owned(), request, error: error.to_owned() }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Of a VM that was slowed.
    pub(in crate::guest) fn message() -> Message {
        let shares =
            |seconds, stall| Shares { seconds, stall_share: Some(stall), cpu_share: Some(0.02) };
        Message {
            schema: SCHEMA.to_owned(),
            request: None,
            unix_s: 1_700_000_060.0,
            age_s: 0.4,
            interval_s: 1.0,
            verdict: Fared::Thrashed,
            cause: Some(Cause::HostShort),
            last_1s: shares(1.0, 0.4),
            last_10s: shares(10.0, 0.2),
            last_60s: shares(60.0, 0.14),
            held_back_share: None,
            major_faults: Latency {
                per_s: Some(120.5),
                p50_ns: Some(90_000),
                p99_ns: Some(2_500_000),
                max_ns: Some(40_000_000),
            },
            minor_faults: Latency { per_s: Some(0.0), ..Latency::default() },
            swapped_in_bytes_per_s: Some(4_096.0),
            swapped_bytes: Some(512 << 20),
            ballooned_bytes: None,
            resident_bytes: Some(1 << 30),
            working_set_bytes: Some(Range { lower: 1 << 30, upper: 2 << 30 }),
            limit_bytes: None,
            configured_bytes: Some(4 << 30),
            host: HostWord::Swapping,
            last_oom_kill_unix_s: None,
        }
    }

    #[test]
    fn it_is_one_line_and_comes_back_as_it_was() {
        let line = serde_json::to_string(&message()).unwrap();
        assert!(!line.contains('\n') && line.len() < LINE_MAX, "{}", line.len());
        assert_eq!(serde_json::from_str::<Message>(&line).unwrap(), message());
    }

    #[test]
    fn figures_are_old_when_some_were_left_out() {
        let after = |age_s, interval_s| Message { age_s, interval_s, ..message() }.is_stale();
        assert!(!after(2.9, 1.0) && after(3.1, 1.0) && !after(100.0, 60.0) && after(190.0, 60.0));
        assert!(after(4.0, 0.0), "of a host that does not tell its interval");
    }

    #[test]
    fn words_of_later_versions_are_no_error() {
        let line = serde_json::to_string(&message()).unwrap();
        let line = line.replace("\"thrashed\"", "\"vexed\"").replace("\"swapping\"", "\"odd\"");
        let line = line.replace("\"host_short\"", "\"moonlight\"");
        let read: Message = serde_json::from_str(&line).unwrap();
        assert_eq!((read.verdict, read.host), (Fared::Unseen, HostWord::Unknown));
        assert_eq!(read.cause, Some(Cause::Unknown));
    }

    /// Each key of the message, those within others with a dot.
    fn keys(prefix: &str, value: &serde_json::Value, found: &mut Vec<String>) {
        let Some(object) = value.as_object() else { return };
        for (key, value) in object {
            let name = format!("{prefix}{key}");
            keys(&format!("{name}."), value, found);
            found.push(name);
        }
    }

    #[test]
    fn each_figure_is_in_the_protocols_document() {
        let document = include_str!("../../../../docs/guest-protocol.md");
        let request = Some("1".to_owned());
        let mut found = Vec::new();
        keys("", &serde_json::to_value(Message { request, ..message() }).unwrap(), &mut found);
        for key in found {
            let last = key.rsplit('.').next().unwrap();
            assert!(document.contains(&format!("`{last}`")), "{key} is not explained");
        }
        assert!(document.contains(SCHEMA));
    }
}
