//! Which moment is shown: the present, or one of the last minutes.

use crate::top::app::{App, Ask};
use overcommit_recording::recent::Line as Past;
use ratatui::crossterm::event::KeyCode;

/// Intervals of a long step.
const MANY: isize = 10;
/// Seconds of the past that plots show.
pub(super) const PAST_S: f64 = 300.0;
/// Seconds of a jump in a recording.
const JUMP_S: f64 = 60.0;
/// Times as fast as it was recorded, at the least and the most.
pub(super) const PACE: [f64; 2] = [1.0, 1_024.0];

impl App {
    /// Whether it is the present of a living session that is shown.
    pub(super) fn is_living(&self) -> bool {
        self.pace.is_none() && !self.is_paused()
    }

    /// The line of the moment that is shown.
    pub(super) fn now(&self) -> Option<&Past> {
        let lines = self.history.lines();
        let at = self.at.and_then(|at| lines.iter().find(|line| line.place.number >= at));
        at.or(lines.back())
    }

    /// What was in the last minutes, up to the moment that is shown, in so many cells: of several
    /// intervals the worst.
    pub(super) fn past(
        &self,
        cells: usize,
        worst: fn(f64, f64) -> f64,
        of: impl Fn(&Past) -> Option<f64>,
    ) -> Vec<Option<f64>> {
        let mut past = vec![None; cells];
        let Some(now) = self.now() else { return past };
        for line in self.history.lines_until(now) {
            let age_s = (now.end_ns - line.end_ns) as f64 / 1e9;
            let cell = (age_s / PAST_S * cells as f64) as usize;
            if let Some(at) = past.iter_mut().rev().nth(cell)
                && let Some(value) = of(line)
            {
                *at = Some(at.map_or(value, |before: f64| worst(before, value)));
            }
        }
        past
    }

    /// Shows the interval that many later; the last one goes on.
    fn step(&mut self, by: isize) {
        let lines = self.history.lines();
        let Some(now) = self.now().map(|now| now.place.number) else { return };
        let place = lines.iter().position(|line| line.place.number == now).unwrap_or(0);
        self.show(place.saturating_add_signed(by));
    }

    /// Shows the interval at that place of the history; the last one goes on.
    pub(super) fn show(&mut self, place: usize) {
        let lines = self.history.lines();
        self.at = match lines.get(place) {
            Some(line) if place + 1 < lines.len() => Some(line.place.number),
            _ => None,
        };
        (self.board, self.sought_us) = (None, None);
    }

    fn seek(&mut self, by_s: f64) -> Ask {
        self.sought_us = None;
        Ask::Seek(by_s)
    }

    /// Keys that move in time.
    pub(super) fn time_key(&mut self, code: KeyCode) -> Ask {
        match (code, self.pace) {
            (KeyCode::Char('p' | ' '), _) => {
                self.at = match (self.at, self.now()) {
                    (None, Some(now)) => Some(now.place.number),
                    _ => None,
                };
                (self.board, self.sought_us) = (None, None);
            }
            (KeyCode::Left, _) => self.step(-1),
            (KeyCode::Right, _) => self.step(1),
            (KeyCode::Char('('), _) => self.step(-MANY),
            (KeyCode::Char(')'), _) => self.step(MANY),
            (KeyCode::Char('['), _) => return self.go_to_mark(false),
            (KeyCode::Char(']'), _) => return self.go_to_mark(true),
            (KeyCode::Char('m'), _) if self.is_living() => return Ask::Mark,
            (KeyCode::Char('0'), _) => (self.at, self.board, self.sought_us) = (None, None, None),
            (KeyCode::Char('+'), Some(pace)) => self.pace = Some((pace * 2.0).min(PACE[1])),
            (KeyCode::Char('-'), Some(pace)) => self.pace = Some((pace / 2.0).max(PACE[0])),
            (KeyCode::Char('{'), Some(_)) => return self.seek(-JUMP_S),
            (KeyCode::Char('}'), Some(_)) => return self.seek(JUMP_S),
            _ => {}
        }
        Ask::Nothing
    }

    /// Whether it is the present that is shown, or what of the past.
    pub(super) fn tense(&self) -> String {
        let last = self.history.lines().back().map_or(0, |line| line.end_ns);
        let behind = self.now().map_or(0.0, |now| (last - now.end_ns) as f64 / 1e9);
        match (self.at, self.pace) {
            (Some(_), _) if behind >= 1.0 => format!("paused, {behind:.0} s back"),
            (Some(_), _) => "paused".to_owned(),
            (None, Some(_)) if self.is_over => "replay, at its end".to_owned(),
            (None, Some(pace)) if pace <= PACE[0] => "replay".to_owned(),
            (None, Some(pace)) => format!("replay, {pace:.0} x"),
            (None, None) => "live".to_owned(),
        }
    }
}
