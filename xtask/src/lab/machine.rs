//! Boots the lab and watches its console: one line ends it well, a panic, a lockup
//! or the time limit ends it at once.

use crate::lab::image::Image;
use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use testbed::undo::Running;

/// Time in which the kernel must reach its first program.
const BOOT: Duration = Duration::from_secs(90);
/// Time without a sign of life, which it gives every ten seconds, after which the lab is
/// stuck.
const STUCK: Duration = Duration::from_secs(90);
/// How the error begins of one that is stuck.
pub(crate) const IS_STUCK: &str = "the lab gives no sign of life";
/// What QEMU's monitor, behind the console, is asked: where its CPUs are, and which
/// interrupts wait.
const ASK: &[u8] = b"\x01cinfo registers -a\ninfo lapic\n";
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

/// What a run needs.
pub(crate) struct Run<'a> {
    /// Before each line of its console: others may run meanwhile.
    pub(crate) name: &'a str,
    pub(crate) image: &'a Image,
    pub(crate) initramfs: &'a Path,
    /// Shared with the lab as /run/results; holds `command`.
    pub(crate) results: &'a Path,
    /// A raw file that the lab sees as /dev/vda: a slow disk.
    pub(crate) disk: &'a Path,
    /// Where QEMU complains.
    pub(crate) complaints: &'a Path,
    pub(crate) cpus: u32,
    /// More arguments of the kernel.
    pub(crate) arguments: &'static str,
    /// From the first program to the end.
    pub(crate) limit: Duration,
}

/// Boots it, prints what its command prints, and gives the command's exit status.
///
/// # Errors
/// It never boots, dies or takes too long; the last lines of its console are said.
pub(crate) fn run(run: &Run<'_>) -> Result<i32> {
    let mut qemu = Running::start("the lab", &mut command(run)?, |child| Ok(child.kill()?))?;
    let console = qemu.output.take().context("QEMU has no output")?;
    let mut keyboard = qemu.input.take().context("QEMU has no input")?;
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    watch(run.name, &lines, run.limit, || Ok(keyboard.write_all(ASK)?))
}

fn command(run: &Run<'_>) -> Result<Command> {
    let mut command = Command::new(testbed::qemu::QEMU);
    command.args(["-nodefaults", "-no-reboot", "-display", "none", "-vga", "none", "-m", "3072"]);
    command.args(["-accel", "tcg,thread=single", "-cpu", "EPYC,+svm"]);
    command.args(["-smp", &run.cpus.to_string()]);
    command.arg("-kernel").arg(&run.image.kernel).arg("-initrd").arg(run.initramfs);
    let arguments = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable";
    command.arg("-append").arg(format!("{arguments} {}", run.arguments));
    command.args(["-serial", "mon:stdio"]);
    let share = |path: &Path, id: &str, more: &str| {
        let path = path.display().to_string().replace(',', ",,");
        format!("local,path={path},id={id},security_model=none,multidevs=remap{more}")
    };
    command.arg("-fsdev").arg(share(Path::new("/"), "root", ",readonly=on"));
    command.args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]);
    command.arg("-fsdev").arg(share(run.results, "results", ""));
    command.args(["-device", "virtio-9p-pci,fsdev=results,mount_tag=results"]);
    let disk = run.disk.display().to_string().replace(',', ",,");
    let slow = "format=raw,if=none,id=disk,cache=unsafe,throttling.iops-total=200";
    command.arg("-drive").arg(format!("file={disk},{slow}"));
    command.args(["-device", "virtio-blk-pci,drive=disk"]);
    let complaints = File::create(run.complaints).context("cannot write QEMU's complaints")?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(complaints);
    Ok(command)
}

/// Follows the console to the end.
fn watch(
    name: &str,
    lines: &Receiver<String>,
    limit: Duration,
    mut ask: impl FnMut() -> Result<()>,
) -> Result<i32> {
    let mut last = VecDeque::new();
    let mut end = Instant::now() + BOOT;
    let mut started = false;
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
            continue;
        }
        if let Some(status) = line.strip_prefix("lab: ended with ") {
            return status.parse().with_context(|| format!("the lab says {line:?}"));
        }
        if line.starts_with("lab: started") {
            started = true;
            end = Instant::now() + limit;
        }
        if started {
            println!("{name:>5} | {line}");
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
        let (sender, receiver) = channel();
        for line in lines {
            sender.send((*line).to_owned()).unwrap();
        }
        watch("", &receiver, Duration::from_millis(50), || Ok(()))
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
    fn a_panic_ends_it_with_the_console() {
        let lines = ["lab: started Linux 1", "Kernel panic - not syncing: x", "Call Trace:"];
        let died = format!("{:#}", console(&lines).unwrap_err());
        assert!(died.contains("Kernel panic") && died.contains("Call Trace"), "{died}");
    }
}
