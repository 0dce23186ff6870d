//! A test that fails is run once more, and said to be unsteady if it passes then.

use anyhow::{Context, Result, anyhow};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

/// Variable of the environment that, if set, has a failure count at once.
pub const STRICT: &str = "OVERCOMMIT_STRICT";
/// Variable of the environment that names the file in which unsteady tests are listed.
pub const LIST: &str = "OVERCOMMIT_UNSTEADY";
/// What a line that names an unsteady test begins with.
pub const UNSTEADY: &str = "unsteady ";

/// Runs a test.
///
/// An unsteady test is a defect, of the test or of the tool. It is told with its error where the
/// run ends, and does not keep the others from being believed.
///
/// # Errors
/// It failed twice, or once where [`STRICT`] is set.
pub fn attempt(name: &str, run: impl Fn() -> Result<()>) -> Result<()> {
    let Err(first) = run() else { return Ok(()) };
    if std::env::var_os(STRICT).is_some() {
        return Err(first);
    }
    println!("{name} failed and is run once more: {first:#}");
    run().map_err(|second| anyhow!("{second:#}\nbefore that: {first:#}"))?;
    let line = format!("{UNSTEADY}{name}: {}", format!("{first:#}").replace('\n', "; "));
    println!("{line}");
    std::env::var_os(LIST).map_or(Ok(()), |list| add(Path::new(&list), &line))
}

/// Adds a line to a list.
///
/// # Errors
/// It cannot be written.
pub fn add(list: &Path, line: &str) -> Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(list);
    let written = file.and_then(|mut file| writeln!(file, "{line}"));
    written.with_context(|| format!("cannot write {}", list.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Fails that many times.
    fn outcome(failures: u32) -> Result<()> {
        let runs = Cell::new(0);
        attempt("this one", || {
            runs.set(runs.get() + 1);
            anyhow::ensure!(runs.get() > failures, "failure {}", runs.get());
            Ok(())
        })
    }

    #[test]
    fn it_fails_if_it_fails_twice() {
        outcome(0).unwrap();
        outcome(1).unwrap();
        let error = format!("{:#}", outcome(2).unwrap_err());
        assert_eq!(error, "failure 2\nbefore that: failure 1");
    }
}
