//! Blocks below a table: a heading, and facts in lines that end at the last column.

use crate::model::coverage::{self, MetricCoverage};
use crate::view::style::strong;
use crate::view::wrapped;
use std::fmt::Write;

/// What is said of a VM or of the host, each fact behind the word for what it is about.
#[derive(Debug, Default)]
pub struct Facts(Vec<(&'static str, String)>);

impl Facts {
    /// Adds a fact, if it is one.
    pub fn add(&mut self, about: &'static str, fact: impl Into<Option<String>>) {
        self.0.extend(fact.into().map(|fact| (about, fact)));
    }

    /// Each, with what it is about.
    pub fn lines(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(about, fact)| (*about, fact.as_str()))
    }

    /// Below that heading; nothing without any fact.
    pub fn write(&self, text: &mut String, heading: &str) {
        let width = self.0.iter().map(|(about, _)| about.len()).max().unwrap_or(0);
        if width > 0 {
            let _ = writeln!(text, "\n{}", strong(heading));
        }
        let indent = " ".repeat(width + 4);
        for (about, fact) in &self.0 {
            let first = format!("  {about:<width$}  ");
            let _ = writeln!(text, "{}", wrapped(fact, &first, &indent));
        }
    }
}

/// What could have been seen and was not, with the reasons, for [`list`].
pub fn absent(coverage: &[MetricCoverage]) -> Vec<(String, String)> {
    let absent = coverage::absent(coverage).into_iter();
    absent.map(|(reason, metrics)| (metrics.join(", "), reason.to_owned())).collect()
}

/// Facts below a heading, where what they are about is too long for a column.
pub fn list(text: &mut String, heading: &str, facts: &[(String, String)]) {
    if !facts.is_empty() {
        let _ = writeln!(text, "\n{}", strong(heading));
    }
    for (about, fact) in facts {
        let _ = writeln!(text, "{}", wrapped(&format!("{about}: {fact}"), "  ", "    "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::style::plain;

    #[test]
    fn facts_stand_in_columns() {
        let mut facts = Facts::default();
        facts.add("holds", "131.4 MiB in RAM".to_owned());
        facts.add("balloon", None);
        facts.add("evicted", "word ".repeat(16).trim_end().to_owned());
        let mut text = String::new();
        facts.write(&mut text, "web");
        Facts::default().write(&mut text, "calm");
        let words = |count: usize| "word ".repeat(count).trim_end().to_owned();
        let said = format!(
            "\nweb\n  holds    131.4 MiB in RAM\n  evicted  {}\n           {}\n",
            words(14),
            words(2)
        );
        assert_eq!(plain(&text), said);
        assert!(text.lines().nth(1).is_some_and(|heading| heading.len() > "web".len()));
    }

    #[test]
    fn a_list_has_a_heading_if_it_has_lines() {
        let mut text = String::new();
        list(&mut text, "Not seen", &[]);
        assert_eq!(text, "");
        list(&mut text, "Not seen", &[("swapin".to_owned(), "needs hooks".to_owned())]);
        assert_eq!(plain(&text), "\nNot seen\n  swapin: needs hooks\n");
    }
}
