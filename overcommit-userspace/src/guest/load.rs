//! What the host did to this VM while a command ran.

use overcommit_recording::guest::Message;
use overcommit_recording::guest::message::Shares;
use overcommit_recording::slo::judge::{BROKEN, NOT_JUDGED};
use overcommit_recording::slo::objective::{Bound, Objective, Share};

/// How far an interval's start may be from the end of the one before it, in seconds: intervals follow
/// each other without a gap.
const NEXT_S: f64 = 0.1;

/// An interval of the host, by its clock.
#[derive(Clone, Copy, Debug)]
struct Told {
    from_s: f64,
    to_s: f64,
    /// Parts of it: waited for memory, and for a CPU.
    shares: [Option<f64>; 2],
}

impl Told {
    /// Of so many seconds before `to_s`.
    fn before(to_s: f64, shares: &Shares) -> Self {
        let Shares { seconds, stall_share, cpu_share } = *shares;
        Self { from_s: to_s - seconds, to_s, shares: [stall_share, cpu_share] }
    }

    /// How much of it lies in between.
    fn within(&self, from_s: f64, to_s: f64) -> f64 {
        (self.to_s.min(to_s) - self.from_s.max(from_s)).max(0.0)
    }
}

/// Intervals of the host, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Meanwhile {
    told: Vec<Told>,
    /// The host's clock when the command began, as nearly as is known: an answer takes its time.
    began_s: Option<f64>,
}

impl Meanwhile {
    /// Adds what the host says so many seconds after the command began, unless it was said before.
    pub fn add(&mut self, message: &Message, at_s: f64) {
        let began_s = message.unix_s + message.age_s - at_s;
        self.began_s = Some(self.began_s.map_or(began_s, |known| known.max(began_s)));
        let mut next = Told::before(message.unix_s, &message.last_1s);
        // A short interval is told with the next one again.
        while self.told.last().is_some_and(|last| last.from_s > next.from_s - NEXT_S) {
            self.told.pop();
        }
        if let Some(last) = self.told.last() {
            if next.from_s > last.to_s + NEXT_S {
                // This guest could not ask meanwhile.
                let windows = [message.last_10s, message.last_60s];
                let windows = windows.map(|shares| Told::before(message.unix_s, &shares));
                if let Some(window) = windows.iter().find(|window| window.from_s <= last.to_s) {
                    next = self.rest(window);
                }
            } else {
                next.from_s = last.to_s;
            }
        }
        self.told.push(next);
    }

    /// What a window holds beside what is known already.
    fn rest(&self, window: &Told) -> Told {
        let from_s = self.told.last().map_or(window.from_s, |last| last.to_s);
        let mut shares = window.shares;
        for (place, share) in shares.iter_mut().enumerate() {
            let known = self
                .told
                .iter()
                .map(|told| told.within(window.from_s, from_s) * told.shares[place].unwrap_or(0.0));
            let known: f64 = known.sum();
            let length_s = window.to_s - window.from_s;
            *share = share
                .map(|all| ((all * length_s - known) / (window.to_s - from_s)).clamp(0.0, 1.0));
        }
        Told { from_s, to_s: window.to_s, shares }
    }

    /// Whether the host has told of what was so many seconds after the command began.
    pub fn reaches(&self, s: f64) -> bool {
        let end = self.told.last().zip(self.began_s);
        end.is_some_and(|(last, began_s)| last.to_s - began_s >= s)
    }

    /// How long its intervals are, at the most.
    pub fn longest_s(&self) -> f64 {
        self.told.iter().map(|told| told.to_s - told.from_s).fold(0.0, f64::max)
    }

    /// Shares of the first so many seconds, as far as the host has told of them, and for how many
    /// seconds each is known. Of an interval that lies in them in part the same part counts.
    pub fn until(&self, end_s: f64) -> (Shares, Known) {
        let began_s = self.began_s.unwrap_or(0.0);
        let mut seconds = 0.0;
        let mut waited = [(0.0, 0.0); 2];
        for told in &self.told {
            let part_s = told.within(began_s, began_s + end_s);
            seconds += part_s;
            for ((waited, known), share) in waited.iter_mut().zip(told.shares) {
                if let Some(share) = share {
                    *waited += share * part_s;
                    *known += part_s;
                }
            }
        }
        let [stall_share, cpu_share] =
            waited.map(|(waited, known)| (known > 0.0).then(|| waited / known));
        let known = Known { stall_s: waited[0].1, cpu_s: waited[1].1 };
        (Shares { seconds, stall_share, cpu_share }, known)
    }
}

/// For how many seconds shares are known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Known {
    /// `stall.share`.
    pub stall_s: f64,
    /// `cpu.share`.
    pub cpu_s: f64,
}

impl Known {
    /// Both for so many.
    pub fn all(seconds: f64) -> Self {
        Self { stall_s: seconds, cpu_s: seconds }
    }
}

/// How objectives come out over so many seconds: 3 if one is broken, 4 if one could be broken in the
/// time that the host has not told of.
pub fn exit_code(objectives: &[Objective], shares: &Shares, known: Known, seconds: f64) -> u8 {
    let mut code = 0;
    for objective in objectives {
        let Bound::Share { of, limit } = &objective.bound else { continue };
        let (share, known_s) = match of {
            Share::Stall => (shares.stall_share, known.stall_s),
            Share::Cpu => (shares.cpu_share, known.cpu_s),
        };
        let known_s = known_s.min(seconds);
        let bound_s = limit * seconds;
        match share.map(|share| share * known_s) {
            Some(waited_s) if waited_s > bound_s => return BROKEN,
            Some(waited_s) if waited_s + (seconds - known_s) <= bound_s => {}
            _ => code = NOT_JUDGED,
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shares(seconds: f64, stall: Option<f64>) -> serde_json::Value {
        json!({ "seconds": seconds, "stall_share": stall, "cpu_share": 0.5 })
    }

    /// Of an interval of so many seconds, and of a last minute.
    fn message(unix_s: f64, of: (f64, Option<f64>), minute: (f64, f64)) -> Message {
        let latency = json!({ "per_s": 0.0, "p50_ns": null, "p99_ns": null, "max_ns": null });
        let minute = shares(minute.0, Some(minute.1));
        serde_json::from_value(json!({
            "schema": "overcommit.guest/1", "unix_s": unix_s, "age_s": 0.2, "verdict": "ok",
            "last_1s": shares(of.0, of.1), "last_10s": minute, "last_60s": minute,
            "major_faults": latency, "minor_faults": latency, "host": "calm",
        }))
        .unwrap()
    }

    /// What was told of so many seconds.
    fn until(told: &[(f64, (f64, Option<f64>))], end_s: f64) -> Shares {
        let mut meanwhile = Meanwhile::default();
        for (unix_s, of) in told {
            let message = message(*unix_s, *of, (0.0, 0.0));
            // Each is told twice; an answer takes a while.
            for late_s in [0.0, 0.1] {
                meanwhile.add(&message, unix_s - 9.0 + 0.2 + late_s);
            }
        }
        meanwhile.until(end_s).0
    }

    #[test]
    fn intervals_count_as_far_as_they_lie_in_the_time() {
        // The first one ended when the command began.
        let told = [(9.0, (1.0, Some(1.0))), (10.0, (1.0, Some(0.2))), (11.0, (1.02, Some(0.4)))];
        let whole = until(&told, 2.0);
        assert!((whole.seconds - 2.0).abs() < 1e-9, "{whole:?}");
        assert!((whole.stall_share.unwrap() - 0.3).abs() < 1e-9, "{whole:?}");
        assert!((until(&told, 1.5).stall_share.unwrap() - 0.4 / 1.5).abs() < 1e-9);
        assert_eq!(until(&told, 2.5).seconds, 2.0);
    }

    #[test]
    fn a_short_interval_that_is_told_with_the_next_one_counts_once() {
        let told = [(9.0, (1.0, Some(0.0))), (9.4, (0.4, Some(1.0))), (10.4, (1.4, Some(0.5)))];
        let both = until(&told, 1.4);
        assert!((both.seconds - 1.4).abs() < 1e-9, "{both:?}");
        assert!((both.stall_share.unwrap() - 0.5).abs() < 1e-9, "{both:?}");
    }

    #[test]
    fn what_a_guest_could_not_ask_for_is_taken_from_the_longer_windows() {
        let mut meanwhile = Meanwhile::default();
        meanwhile.add(&message(10.0, (1.0, Some(0.0)), (0.0, 0.0)), 1.2);
        // It stood still for four seconds, in which it waited for three.
        meanwhile.add(&message(15.0, (1.0, Some(0.0)), (10.0, 0.3)), 6.2);
        let all = meanwhile.until(6.0).0;
        assert!((all.seconds - 6.0).abs() < 1e-9, "{all:?}");
        assert!((all.stall_share.unwrap() - 0.5).abs() < 1e-9, "{all:?}");
        assert!(meanwhile.reaches(5.9) && !meanwhile.reaches(6.1));
    }

    #[test]
    fn a_share_is_known_for_the_seconds_that_have_one() {
        let mut meanwhile = Meanwhile::default();
        for (unix_s, share) in [(10.0, Some(0.5)), (11.0, None), (12.0, None)] {
            meanwhile.add(&message(unix_s, (1.0, share), (0.0, 0.0)), unix_s - 9.0 + 0.2);
        }
        let (shares, known) = meanwhile.until(3.0);
        assert_eq!((shares.seconds, shares.stall_share), (3.0, Some(0.5)));
        assert_eq!(known, Known { stall_s: 1.0, cpu_s: 3.0 });
        let objective = |text: &str| vec![Objective::parse(text).unwrap()];
        let code = |text| exit_code(&objective(text), &shares, known, 3.0);
        assert_eq!([code("stall.share<10%"), code("stall.share<50%")], [BROKEN, NOT_JUDGED]);
        assert_eq!(code("cpu.share<60%"), 0);
    }

    #[test]
    fn what_is_broken_comes_before_what_is_not_known() {
        let objectives = |of: &[&str]| -> Vec<Objective> {
            of.iter().map(|text| Objective::parse(text).unwrap()).collect()
        };
        let both = objectives(&["stall.share<1%", "cpu.share<5%"]);
        let shares = |stall, cpu| Shares { seconds: 10.0, stall_share: stall, cpu_share: cpu };
        let judged = |objectives: &[Objective], shares: &Shares, seconds| {
            exit_code(objectives, shares, Known::all(10.0), seconds)
        };
        assert_eq!(judged(&both, &shares(Some(0.01), Some(0.05)), 10.0), 0);
        assert_eq!(judged(&both, &shares(Some(0.02), None), 10.0), BROKEN);
        assert_eq!(judged(&both, &shares(Some(0.0), None), 10.0), NOT_JUDGED);
        // Of a second in a hundred nothing is known: it can be the one that was allowed.
        assert_eq!(judged(&both, &shares(Some(0.0), Some(0.0)), 10.1), 0);
        assert_eq!(judged(&both, &shares(Some(0.0), Some(0.0)), 10.2), NOT_JUDGED);
        assert_eq!(judged(&both, &shares(Some(0.2), Some(0.0)), 100.0), BROKEN);
        assert_eq!(judged(&[], &shares(None, None), 10.0), 0);
    }
}
