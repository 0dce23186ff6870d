//! Marks: of the recording that is shown or made, and those that a key makes.

use crate::top::app::{App, Ask};
use overcommit_recording::model::interval::Place;
use overcommit_recording::recording::span::Mark;
use overcommit_recording::view::fitted;

/// Columns of a mark's text in the head.
const TEXT: usize = 16;

impl App {
    /// A mark for the present, with a name that no other one has; `None` of a recording.
    pub(super) fn new_mark(&self, at_us: u64) -> Option<Mark> {
        let is_free = |text: &String| self.marks.iter().all(|mark| mark.text != *text);
        let text = (1..).map(|number| format!("mark {number}")).find(is_free)?;
        self.pace.is_none().then_some(Mark { at_us, text })
    }

    /// The mark of the interval that is shown; in the present also one that was just made.
    pub(super) fn mark_now(&self) -> Option<String> {
        let now = self.now()?;
        let is_here = |mark: &&Mark| {
            mark.at_us >= now.place.start_us
                && (mark.at_us < end_us(&now.place) || self.is_living())
        };
        let mark = self.marks.iter().rfind(is_here)?;
        Some(fitted(&mark.text, TEXT))
    }

    /// Shows the interval with the last mark before the one that is shown, or with the next one.
    pub(super) fn go_to_mark(&mut self, is_next: bool) -> Ask {
        let Some(now) = self.now().map(|now| now.place) else { return Ask::Nothing };
        let times = self.marks.iter().map(|mark| mark.at_us);
        let found = match is_next {
            true => times.filter(|at_us| *at_us >= end_us(&now)).min(),
            false => times.filter(|at_us| *at_us < now.start_us).max(),
        };
        let Some(at_us) = found else { return Ask::Nothing };
        let lines = self.history.lines();
        let held = lines.iter().position(|line| end_us(&line.place) > at_us);
        match held.filter(|place| *place > 0 || lines[0].place.start_us <= at_us) {
            Some(place) => self.show(place),
            // A living session has no more than it remembers.
            None if self.pace.is_none() => {}
            None => return Ask::Seek((at_us as f64 - now.start_us as f64) / 1e6),
        }
        Ask::Nothing
    }
}

/// The end of an interval, in Unix microseconds.
fn end_us(place: &Place) -> u64 {
    place.start_us.saturating_add(place.length_ns / 1_000)
}
