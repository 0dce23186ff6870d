//! Marks: of the recording that is shown or made, and those that a key makes.

use crate::top::app::{App, Ask};
use overcommit_recording::model::interval::Place;
use overcommit_recording::recording::span::Mark;
use overcommit_recording::view::fitted;

/// Columns of a mark's text in the head.
const TEXT: usize = 16;
/// What is said of one that could not be written.
const NOT_WRITTEN: &str = "not written";

impl App {
    /// Takes all marks of the recording.
    pub(super) fn take_marks(&mut self, marks: Vec<Mark>) {
        self.marks.retain(|mark| mark.text == NOT_WRITTEN && !marks.contains(mark));
        self.marks.extend(marks);
    }

    /// Makes a mark, which `keep` writes, with a name that no other one has.
    pub(super) fn mark(&mut self, at_us: u64, keep: impl FnOnce(&Mark) -> bool) {
        let is_free = |text: &String| self.marks.iter().all(|mark| mark.text != *text);
        let Some(text) = (1..).map(|number| format!("mark {number}")).find(is_free) else { return };
        let mut mark = Mark { at_us, text };
        // No reason to end a recording.
        if !keep(&mark) {
            mark.text = NOT_WRITTEN.to_owned();
        }
        self.marks.push(mark);
    }

    /// The mark of the interval that is shown; in the present also one that was just made.
    pub(super) fn mark_now(&self) -> Option<String> {
        let now = self.now()?.place;
        let next = self.place_of(now.number).map_or(0, |place| place + 1);
        let next_us =
            self.history.lines().get(next).map_or(end_us(&now), |line| line.place.start_us);
        // Until its interval is over.
        let soon_us = if self.is_living() { 2 * now.length_ns / 1_000 } else { 0 };
        let is_here =
            |mark: &&Mark| (now.start_us..next_us.saturating_add(soon_us)).contains(&mark.at_us);
        let mark = self.marks.iter().rfind(is_here)?;
        Some(format!("[{}]", fitted(&mark.text, TEXT)))
    }

    /// Shows the interval with the last mark before the one that is shown, or with the next one.
    pub(super) fn go_to_mark(&mut self, is_next: bool) -> Ask {
        let lines = self.history.lines();
        let Some(now) = self.now().map(|now| now.place) else { return Ask::Nothing };
        let Some(place) = self.place_of(now.number) else { return Ask::Nothing };
        // The last interval that had begun by then: of two that follow each other one may end before
        // the next begins.
        let begun = |at_us: u64| lines.iter().rposition(|line| line.place.start_us <= at_us);
        let end_us = lines.back().map_or(0, |last| end_us(&last.place));
        let held = self.marks.iter().filter(|mark| mark.at_us < end_us);
        let held = held.filter_map(|mark| begun(mark.at_us));
        let held = match is_next {
            true => held.filter(|of_mark| *of_mark > place).min(),
            false => held.filter(|of_mark| *of_mark < place).max(),
        };
        if let Some(place) = held {
            let number = lines.get(place).map(|line| line.place.number);
            self.show(place);
            // A recording stands still there, also at the last one that has come.
            if self.pace.is_some() {
                self.at = number;
            }
        } else if self.pace.is_some() && !(is_next && self.is_over) {
            return self.seek_mark(is_next, end_us);
        }
        Ask::Nothing
    }

    /// Goes to a mark of a recording that is outside what is remembered of it.
    fn seek_mark(&mut self, is_next: bool, end_us: u64) -> Ask {
        let start_us = self.history.lines().front().map_or(0, |first| first.place.start_us);
        let run_start_us = self.run.clocks.start.realtime_ns / 1_000;
        let times = self.marks.iter().map(|mark| mark.at_us);
        let found = match is_next {
            true => times.filter(|at_us| *at_us >= end_us).min(),
            false => times.filter(|at_us| (run_start_us..start_us).contains(at_us)).max(),
        };
        self.sought_us = found;
        found.map_or(Ask::Nothing, |at_us| Ask::GoTo(at_us as f64 / 1e6))
    }

    /// Stands still once the mark that was sought is there.
    pub(super) fn pause_at_sought(&mut self) {
        if let Some(last) = self.history.lines().back()
            && self.sought_us.is_some_and(|at_us| end_us(&last.place) > at_us)
        {
            (self.at, self.sought_us, self.board) = (Some(last.place.number), None, None);
        }
    }

    fn place_of(&self, number: u64) -> Option<usize> {
        self.history.lines().iter().position(|line| line.place.number == number)
    }
}

/// The end of an interval, in Unix microseconds.
fn end_us(place: &Place) -> u64 {
    place.start_us.saturating_add(place.length_ns / 1_000)
}
