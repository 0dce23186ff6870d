//! What a VM was made to give back.

use crate::model::interval::Place;
use crate::model::state::State;
use serde::{Deserialize, Serialize};

/// Who said so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// QEMU, by a monitor that was free.
    #[default]
    Qmp,
    /// libvirt, which holds the monitor.
    Libvirt,
    /// The kernel saw pages given back one by one: how much more since the start.
    Discards,
    /// In a way that a later version knows.
    #[serde(other)]
    Other,
}

impl Source {
    /// Each.
    const ALL: [Self; 4] = [Self::Qmp, Self::Libvirt, Self::Discards, Self::Other];

    /// What a file calls so.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.name() == name)
    }

    /// The word in files and views.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qmp => "qmp",
            Self::Libvirt => "libvirt",
            Self::Discards => "discards",
            Self::Other => "other",
        }
    }
}

/// What a VM was given, and what its balloon has taken back, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balloon {
    /// What it was started with, and what was plugged in since.
    pub configured: Option<u64>,
    /// What the guest's driver last said that it keeps: not the target, and not what the
    /// host got back. `None` where the VM has no balloon, or nobody can be asked.
    pub current: Option<u64>,
    /// Taken back; without a balloon 0, by [`Source::Discards`] since the start.
    pub ballooned: u64,
    /// Who said so.
    pub source: Source,
    /// The guest's own view.
    pub guest: Option<GuestMemory>,
}

/// Bytes beyond which what a VM is said to have is taken for a lie: 1 PiB. Whoever may start a
/// process may have it say anything, and the host's figures are sums.
pub const LARGEST: u64 = 1 << 50;

/// Seconds between two reports of a guest that we ask for them: more often is of no use.
pub const POLL_S: u64 = 2;

/// Memory as the guest's balloon driver last reported it, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestMemory {
    /// What the guest manages.
    pub total: Option<u64>,
    /// What programs in it could still have.
    pub available: Option<u64>,
    /// What lies idle.
    pub free: Option<u64>,
    /// When, in Unix seconds; a guest that stands still stays at its last report.
    pub updated_unix_s: u64,
    /// Seconds after which it is asked for the next report, 0 if nobody asks; `None` where that
    /// is not known, as under libvirt, and in recordings.
    pub asked_every_s: Option<u64>,
}

impl GuestMemory {
    /// How old the report is at the end of an interval, in seconds.
    pub fn age_s(&self, place: &Place) -> f64 {
        (place.end_s() - self.updated_unix_s as f64).max(0.0)
    }

    /// Whether it says nothing of now: the next report is overdue, or nobody asks for one.
    pub fn is_stale(&self, place: &Place) -> Option<bool> {
        let every_s = self.asked_every_s?.max(POLL_S);
        Some(self.age_s(place) > 2.0 * every_s as f64 + 1.0)
    }
}

/// How hard the host takes memory back from its VMs.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum BalloonState {
    /// Nobody says what the VMs gave back, or not for long enough.
    #[default]
    Unknown,
    /// Nothing is taken back, or no more than at the start on a host that is healthy.
    Normal,
    /// Several VMs are held down, or the only one.
    Pressure,
    /// The same, it gets worse or is much, and the host swaps all the same.
    Crisis,
}

impl State for BalloonState {
    const ALL: &'static [Self] = &[Self::Unknown, Self::Normal, Self::Pressure, Self::Crisis];

    fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Normal => "normal",
            Self::Pressure => "pressure",
            Self::Crisis => "crisis",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_stale_when_the_next_is_overdue() {
        let at = |end_s: u64| Place { start_us: end_s * 1_000_000, ..Place::default() };
        let report = |asked_every_s| GuestMemory {
            updated_unix_s: 1_000,
            asked_every_s,
            ..GuestMemory::default()
        };
        let stale = |asked, age: u64| report(asked).is_stale(&at(1_000 + age));
        assert_eq!((stale(Some(2), 5), stale(Some(2), 6)), (Some(false), Some(true)));
        assert_eq!((stale(Some(60), 121), stale(Some(60), 122)), (Some(false), Some(true)));
        assert_eq!((stale(Some(0), 5), stale(Some(0), 6)), (Some(false), Some(true)));
        assert_eq!(stale(None, 600), None, "libvirt asks as often as its XML says");
    }
}
