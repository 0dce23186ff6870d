//! target/last-test: what the last run of the tests was of, and how it ended.

use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;
use testbed::{root, run, target};

/// The note of a run, on disk from its start on.
pub(crate) struct LastTest {
    head: String,
    start: Instant,
}

impl LastTest {
    /// Notes that a run has begun, without these parts and beside that many busy loops.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn begin(left_out: Vec<&str>, beside: u32) -> Result<Self> {
        let git = |arguments: &[&str]| run(Command::new("git").current_dir(root()).args(arguments));
        // Unpacked from an archive it has neither.
        let commit = git(&["rev-parse", "HEAD"]).unwrap_or_else(|_| "unknown".to_owned());
        let is_clean = git(&["status", "--porcelain"]).is_ok_and(|changes| changes.is_empty());
        let head = format!(
            "commit: {}\ntree: {}\nstarted: {}\nleft out: {}\nbusy loops beside it: {beside}\n",
            commit.trim(),
            if is_clean { "clean" } else { "dirty, or unknown" },
            jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ"),
            if left_out.is_empty() { "nothing".to_owned() } else { left_out.join(", ") },
        );
        // Of the run before.
        let _ = fs::remove_file(unsteady_list());
        let note = Self { head, start: Instant::now() };
        note.write("it was not over when this was written")?;
        Ok(note)
    }

    /// Notes how it ended.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn end(&mut self, outcome: &Result<()>) -> Result<()> {
        match outcome {
            Ok(()) => self.write("passed"),
            Err(error) => self.write(&format!("failed: {error:#}")),
        }
    }

    fn write(&self, outcome: &str) -> Result<()> {
        let path: PathBuf = target().join("last-test");
        let length = self.start.elapsed().as_secs();
        let mut text = format!("{}length: {length} s\noutcome: {outcome}\n", self.head);
        text += &unsteady();
        fs::create_dir_all(target())?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Where the run that goes on lists its unsteady tests.
pub(crate) fn unsteady_list() -> PathBuf {
    target().join("unsteady")
}

/// Tests that failed and passed when they were run once more, a line each.
pub(crate) fn unsteady() -> String {
    fs::read_to_string(unsteady_list()).unwrap_or_default()
}
