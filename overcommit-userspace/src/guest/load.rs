//! What the host did to this VM while a command ran.

use overcommit_recording::guest::Message;
use overcommit_recording::guest::message::Shares;
use overcommit_recording::slo::judge::{BROKEN, NOT_JUDGED};
use overcommit_recording::slo::objective::{Bound, Objective, Share};

/// Part of the time of which the host has to have told, to say something of all of it.
const KNOWN: f64 = 0.9;

/// An interval of the host, in seconds of this guest's time since the command began.
#[derive(Clone, Copy, Debug)]
struct Told {
    from_s: f64,
    to_s: f64,
    shares: Shares,
}

/// Intervals of the host, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Meanwhile {
    /// When the last one ended, by the host's clock.
    last_unix_s: Option<f64>,
    told: Vec<Told>,
}

impl Meanwhile {
    /// Adds what the host says at that time, unless it was said before.
    pub fn add(&mut self, message: &Message, at_s: f64) {
        if self.last_unix_s == Some(message.unix_s) {
            return;
        }
        self.last_unix_s = Some(message.unix_s);
        let (shares, to_s) = (message.last_1s, at_s - message.age_s);
        self.told.push(Told { from_s: to_s - shares.seconds, to_s, shares });
    }

    /// Whether the host has told of what was then.
    pub fn reaches(&self, s: f64) -> bool {
        self.told.last().is_some_and(|last| last.to_s >= s)
    }

    /// How long its intervals are, at the most.
    pub fn longest_s(&self) -> f64 {
        self.told.iter().map(|told| told.shares.seconds).fold(0.0, f64::max)
    }

    /// Shares of the time from the beginning until then, as far as the host has told of it. Of an
    /// interval that lies in it in part the same part counts.
    pub fn until(&self, end_s: f64) -> Shares {
        let mut seconds = 0.0;
        let mut waited = [(0.0, 0.0); 2];
        for told in &self.told {
            let part_s = (told.to_s.min(end_s) - told.from_s.max(0.0)).max(0.0);
            seconds += part_s;
            let shares = [told.shares.stall_share, told.shares.cpu_share];
            for ((waited, known), share) in waited.iter_mut().zip(shares) {
                if let Some(share) = share {
                    *waited += share * part_s;
                    *known += part_s;
                }
            }
        }
        let [stall_share, cpu_share] =
            waited.map(|(waited, known)| (known > 0.0).then(|| waited / known));
        Shares { seconds, stall_share, cpu_share }
    }
}

/// How objectives come out of shares of so many seconds: 3 if one is broken, 4 if one cannot be
/// judged.
pub fn exit_code(objectives: &[Objective], shares: &Shares, seconds: f64) -> u8 {
    let is_whole = shares.seconds >= KNOWN * seconds;
    let mut code = 0;
    for objective in objectives {
        let Bound::Share { of, limit } = &objective.bound else { continue };
        let share = match of {
            Share::Stall => shares.stall_share,
            Share::Cpu => shares.cpu_share,
        };
        match share {
            Some(share) if share > *limit => return BROKEN,
            Some(_) if is_whole => {}
            _ => code = NOT_JUDGED,
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn message(unix_s: f64, age_s: f64, stall: Option<f64>) -> Message {
        let shares = json!({ "seconds": 1.0, "stall_share": stall, "cpu_share": 0.5 });
        let latency = json!({ "per_s": 0.0, "p50_ns": null, "p99_ns": null, "max_ns": null });
        serde_json::from_value(json!({
            "schema": "overcommit.guest/1", "unix_s": unix_s, "age_s": age_s, "verdict": "ok",
            "last_1s": shares, "last_10s": shares, "last_60s": shares,
            "major_faults": latency, "minor_faults": latency, "host": "calm",
        }))
        .unwrap()
    }

    #[test]
    fn intervals_count_as_far_as_they_lie_in_the_time() {
        let mut meanwhile = Meanwhile::default();
        // It ended when the command began; then each second, and each is told twice.
        for (unix_s, at_s, stall) in [
            (9.0, 0.2, Some(1.0)),
            (10.0, 1.2, Some(0.2)),
            (11.0, 2.2, Some(0.4)),
            (12.0, 3.2, None),
        ] {
            meanwhile.add(&message(unix_s, 0.2, stall), at_s);
            meanwhile.add(&message(unix_s, 0.6, stall), at_s + 0.4);
        }
        let shares = meanwhile.until(2.5);
        assert!((shares.seconds - 2.5).abs() < 1e-9, "{shares:?}");
        assert!((shares.stall_share.unwrap() - 0.3).abs() < 1e-9, "{shares:?}");
        assert!(meanwhile.reaches(2.9) && !meanwhile.reaches(3.1));
        assert_eq!(meanwhile.longest_s(), 1.0);
        // A part of the first one lies in it if it was told of later.
        let mut late = Meanwhile::default();
        late.add(&message(9.0, 0.0, Some(1.0)), 0.25);
        late.add(&message(10.0, 0.0, Some(0.0)), 1.25);
        assert!((late.until(1.0).stall_share.unwrap() - 0.25).abs() < 1e-9);
    }

    #[test]
    fn what_is_broken_comes_before_what_is_not_known() {
        let objectives = |of: &[&str]| -> Vec<Objective> {
            of.iter().map(|text| Objective::parse(text).unwrap()).collect()
        };
        let both = objectives(&["stall.share<1%", "cpu.share<5%"]);
        let shares = |stall, cpu| Shares { seconds: 9.0, stall_share: stall, cpu_share: cpu };
        assert_eq!(exit_code(&both, &shares(Some(0.01), Some(0.05)), 10.0), 0);
        assert_eq!(exit_code(&both, &shares(Some(0.02), None), 10.0), BROKEN);
        assert_eq!(exit_code(&both, &shares(Some(0.0), None), 10.0), NOT_JUDGED);
        assert_eq!(exit_code(&both, &shares(Some(0.0), Some(0.0)), 10.1), NOT_JUDGED);
        assert_eq!(exit_code(&both, &shares(Some(0.0), Some(0.06)), 100.0), BROKEN);
        assert_eq!(exit_code(&[], &shares(None, None), 10.0), 0);
    }
}
