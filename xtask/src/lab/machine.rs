//! Boots the lab and watches its console: one line ends it well, a panic, a lockup
//! or the time limit ends it at once.

use crate::last_test::unsteady_list;
use anyhow::{Context, Result, anyhow, bail};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use testbed::attempt::{UNSTEADY, add};
use testbed::undo::Running;

/// Time in which the kernel must reach its first program. This limit and the next ones are
/// the machine's time, and only there so that a lab that hangs ends.
const BOOT: Duration = Duration::from_secs(600);
/// Time without a sign of life, which a lab gives every ten seconds of its own time, after
/// which it is stuck.
const STUCK: Duration = Duration::from_secs(1500);
/// How the error begins of one that is stuck.
pub(crate) const IS_STUCK: &str = "the lab gives no sign of life";
/// How the error begins of one in which a scenario does not end: its guest may wait for itself for
/// as long as anybody has patience, of the lab's time, which then passes much slower than ours.
pub(crate) const HANGS: &str = "a scenario does not end";
/// Its sign of life.
const RUNS: &str = "lab: runs";
/// Lines of the console that are shown of a lab that died.
const LAST_LINES: usize = 80;
/// What a kernel prints that is not going to end well.
const DEATH: [&str; 7] = [
    "Kernel panic",
    "BUG: ",
    "Oops: ",
    "soft lockup",
    "hard LOCKUP",
    "self-detected stall",
    "detected stalls on CPUs",
];

/// What is watched of a run.
pub(crate) struct Run<'a> {
    /// Before each line of its console: others may run meanwhile.
    pub(crate) name: &'a str,
    /// Where the emulator complains.
    pub(crate) complaints: &'a Path,
    /// Where its console goes.
    pub(crate) console: &'a Path,
    /// Whether only how scenarios end is printed of it.
    pub(crate) brief: bool,
    /// From the first program to the end.
    pub(crate) limit: Duration,
    /// For each scenario.
    pub(crate) scenario: Duration,
    /// What the emulator is told where the lab is stuck.
    pub(crate) ask: &'a [u8],
}

/// Starts the emulator, whose output is the lab's console, prints what the lab's command prints, and
/// gives that command's exit status.
///
/// # Errors
/// It never boots, dies or takes too long; the last lines of its console are said.
pub(crate) fn run(mut emulator: Command, run: &Run<'_>) -> Result<i32> {
    let complaints =
        File::create(run.complaints).context("cannot write the emulator's complaints")?;
    emulator.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(complaints);
    let mut emulator = Running::start("the lab", &mut emulator, |child| Ok(child.kill()?))?;
    let console = emulator.output.take().context("the emulator has no output")?;
    let mut keyboard = emulator.input.take().context("the emulator has no input")?;
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let file = File::create(run.console).context("cannot write the lab's console")?;
    let mut console = Console { name: run.name, file, brief: run.brief, start: Instant::now() };
    let status = watch(&mut console, &lines, run, || Ok(keyboard.write_all(run.ask)?));
    status.map_err(|error| match fs::read_to_string(run.complaints) {
        Ok(said) if !said.is_empty() => anyhow!("{error:#}\nthe emulator said: {}", said.trim()),
        _ => error,
    })
}

/// What a lab says: all of it in a file, and printed in part or whole.
struct Console<'a> {
    name: &'a str,
    file: File,
    brief: bool,
    start: Instant,
}

impl Console<'_> {
    fn say(&mut self, line: &str) -> Result<()> {
        // The machine's time; the lab tells its own.
        let passed = self.start.elapsed().as_secs();
        writeln!(self.file, "{passed:>4} {line}").context("cannot write the lab's console")?;
        let ends = ["passed ", "failed ", "lab: started"].iter().any(|word| line.starts_with(word));
        if line.starts_with(UNSTEADY) {
            add(&unsteady_list(), &format!("{line} ({})", self.name))?;
        }
        if ends || !self.brief {
            println!("{:>5} | {line}", self.name);
        }
        Ok(())
    }
}

/// Follows the console to the end.
fn watch(
    console: &mut Console<'_>,
    lines: &Receiver<String>,
    run: &Run<'_>,
    mut ask: impl FnMut() -> Result<()>,
) -> Result<i32> {
    let mut last = VecDeque::new();
    let mut end = Instant::now() + BOOT;
    let mut started = false;
    let limit = run.limit;
    let mut scenario = Instant::now();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let line = match lines.recv_timeout(left.min(STUCK)) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) if !started => {
                bail!("the lab did not boot within {BOOT:?}; its console:\n{}", text(&last))
            }
            Err(RecvTimeoutError::Timeout) if left > STUCK => {
                ask()?;
                keep_the_rest(&mut last, lines);
                bail!("{IS_STUCK}; its console:\n{}", text(&last))
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!("the lab took longer than {limit:?}; its console:\n{}", text(&last))
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the lab ended by itself; its console:\n{}", text(&last))
            }
        };
        if line == RUNS {
            // Signs of life do not prolong it.
            if started && scenario.elapsed() > run.scenario {
                ask()?;
                keep_the_rest(&mut last, lines);
                bail!("{HANGS} within {:?}; its console:\n{}", run.scenario, text(&last));
            }
            continue;
        }
        if line.starts_with("lab: started") || line.ends_with("begins") {
            scenario = Instant::now();
        }
        if let Some(status) = line.strip_prefix("lab: ended with ") {
            return status.parse().with_context(|| format!("the lab says {line:?}"));
        }
        if line.starts_with("lab: started") {
            started = true;
            end = Instant::now() + limit;
        }
        if started {
            console.say(&line)?;
        }
        if DEATH.iter().any(|word| line.contains(word)) {
            // The rest of the report comes at once.
            keep_the_rest(&mut last, lines);
            bail!("the lab's kernel died: {line}\n{}", text(&last));
        }
        keep(&mut last, line);
    }
}

/// Keeps what comes at once.
fn keep_the_rest(last: &mut VecDeque<String>, lines: &Receiver<String>) {
    while let Ok(line) = lines.recv_timeout(Duration::from_secs(2)) {
        keep(last, line);
    }
}

fn keep(last: &mut VecDeque<String>, line: String) {
    if last.len() == LAST_LINES {
        last.pop_front();
    }
    last.push_back(line);
}

fn text(lines: &VecDeque<String>) -> String {
    let lines: Vec<String> = lines.iter().map(|line| format!("  | {line}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(lines: &[&str]) -> Result<i32> {
        console_within(lines, Duration::from_secs(60))
    }

    fn console_within(lines: &[&str], scenario: Duration) -> Result<i32> {
        let (sender, receiver) = channel();
        for line in lines {
            sender.send((*line).to_owned()).unwrap();
        }
        let file = File::create("/dev/null").unwrap();
        let mut console = Console { name: "", file, brief: true, start: Instant::now() };
        let nowhere = Path::new("/dev/null");
        let (limit, ask) = (Duration::from_millis(50), &[][..]);
        let run = Run {
            name: "",
            complaints: nowhere,
            console: nowhere,
            brief: true,
            limit,
            scenario,
            ask,
        };
        watch(&mut console, &receiver, &run, || Ok(()))
    }

    #[test]
    fn only_the_explicit_line_is_success() {
        assert_eq!(console(&["lab: started Linux 1", "lab: ended with 0"]).unwrap(), 0);
        assert_eq!(console(&["lab: started Linux 1", "lab: ended with 7"]).unwrap(), 7);
        let late = console(&["lab: started Linux 1", "test a ... ok"]).unwrap_err();
        assert!(format!("{late:#}").contains("longer than"), "{late:#}");
    }

    #[test]
    fn signs_of_life_are_no_end() {
        let lines = ["lab: started Linux 1", RUNS, RUNS, "lab: ended with 0"];
        assert_eq!(console(&lines).unwrap(), 0);
        let late = format!("{:#}", console(&lines[..3]).unwrap_err());
        assert!(late.contains("longer than") && !late.contains(RUNS), "{late}");
    }

    #[test]
    fn a_scenario_that_does_not_end_ends_it_for_all_its_signs_of_life() {
        let lines = ["lab: started Linux 1", "test a ... begins", RUNS, "lab: ended with 0"];
        assert_eq!(console(&lines).unwrap(), 0);
        let hangs = format!("{:#}", console_within(&lines, Duration::ZERO).unwrap_err());
        assert!(hangs.starts_with(HANGS) && hangs.contains("test a"), "{hangs}");
    }

    #[test]
    fn a_panic_ends_it_with_the_console() {
        let lines = ["lab: started Linux 1", "Kernel panic - not syncing: x", "Call Trace:"];
        let died = format!("{:#}", console(&lines).unwrap_err());
        assert!(died.contains("Kernel panic") && died.contains("Call Trace"), "{died}");
    }
}
