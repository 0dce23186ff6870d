//! The message as a VM's owner is told it, who cannot see the host.

use crate::format::text::{percent, readable, readable_bytes, time_of_day};
use crate::guest::message::{Latency, Message, Shares};
use crate::summary::cause::Cause;
use crate::summary::verdict::{CPU, Fared, STALL};
use std::fmt::Write;

/// What a figure is that is not seen.
const NOT_SEEN: &str = "not seen";

/// What became of the VM, in one or two sentences.
pub fn sentence(message: &Message) -> String {
    let minute = &message.last_60s;
    let (stall, cpu) = (minute.stall_share.unwrap_or(0.0), minute.cpu_share.unwrap_or(0.0));
    let time = time(minute.seconds);
    let cause = message.cause.as_ref().unwrap_or(&Cause::Unknown);
    if message.is_stale() {
        return format!(
            "The host's last report to this VM is {:.0} s old: overcommit is delayed there, \
             perhaps by the memory shortage itself.",
            message.age_s
        );
    }
    match message.verdict {
        Fared::Ok => {
            let cpu = minute
                .cpu_share
                .map(|cpu| format!(" and {} because it had no free CPU", percent(cpu)));
            format!(
                "The host barely disturbed this VM in the last {time}: it took {} of its vCPU time \
                 for memory{}.",
                percent(stall),
                cpu.unwrap_or_default()
            )
        }
        Fared::Unseen => "The host cannot tell how much it disturbed this VM.".to_owned(),
        Fared::Starved => format!(
            "The host took {} back through this VM's balloon, and programs here have little left. \
             {HELPLESS}",
            message.ballooned_bytes.map_or("memory".to_owned(), readable_bytes)
        ),
        _ => {
            let (share, what) = match cause {
                Cause::Cpu => (cpu, ""),
                Cause::MemoryHigh => (message.held_back_share.unwrap_or(stall), " for memory"),
                _ => (stall, " for memory"),
            };
            let also = match cause {
                Cause::Cpu if stall >= STALL => (stall, "memory"),
                Cause::Cpu => (0.0, ""),
                _ if cpu >= CPU => (cpu, "a CPU"),
                _ => (0.0, ""),
            };
            let also = match also {
                (0.0, _) => String::new(),
                (share, what) => {
                    format!(" Another {} was lost waiting for {what}.", percent(share))
                }
            };
            format!(
                "The host took {} of this VM's last {time}{what}: {}.{also} {HELPLESS}",
                percent(share),
                why(cause)
            )
        }
    }
}

/// What whoever reads it can do.
const HELPLESS: &str = "Nothing inside this VM can fix that; show this to whoever runs the host.";

/// A length of time that stands behind "the last".
fn time(seconds: f64) -> String {
    if (59.0..61.0).contains(&seconds) { "minute".to_owned() } else { format!("{seconds:.1} s") }
}

/// Why, as far as it is this VM's business.
fn why(cause: &Cause) -> &'static str {
    match cause {
        Cause::OwnLimit => "this VM is at the memory limit that the host sets for it",
        Cause::SharedLimit => "a group of VMs that includes this one is at its memory limit",
        Cause::MemoryHigh => "the host slows this VM down at a memory limit (memory.high)",
        Cause::HostShort | Cause::OtherVm | Cause::OtherProcess => {
            "it needed this VM's memory for something else and swapped it out"
        }
        Cause::Balloon => "it took memory back through this VM's balloon",
        Cause::Cpu => "it had no free CPU for this VM",
        Cause::Disk => "this VM's memory is read from a disk",
        Cause::Userfault => "this VM's memory is still being copied (a migration or a snapshot)",
        Cause::Lock => "it was changing this VM's memory mappings at the time",
        Cause::FirstTouch => {
            "this VM touched memory for the first time, and the host had to clear it"
        }
        Cause::NoPage => "it could not provide memory that this VM touched",
        Cause::Crash | Cause::Unknown => "the cause is not known",
    }
}

/// What became of it lately, in one line.
pub fn line(message: &Message) -> String {
    let Shares { stall_share, cpu_share, .. } = message.last_1s;
    let majors = &message.major_faults;
    let p99 = majors.p99_ns.map(|ns| format!(", p99 {}", readable(ns))).unwrap_or_default();
    format!(
        "{}  memory {}  CPU {}  major faults {}{p99}  host {}",
        time_of_day(message.unix_s),
        share(stall_share),
        share(cpu_share),
        rate(majors).unwrap_or_else(|| NOT_SEEN.to_owned()),
        message.host.name()
    )
}

/// The figures, a line each.
pub fn lines(message: &Message) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<13} {value}");
    };
    let shares = [message.last_1s, message.last_10s, message.last_60s];
    let [one_s, ten_s, minute_s] = shares.map(|of| of.seconds);
    let each = |of: [Option<f64>; 3]| {
        if of.iter().all(Option::is_none) {
            return NOT_SEEN.to_owned();
        }
        let [one, ten, minute] = of.map(share);
        format!(
            "{one} of the last {one_s:.0} s, {ten} of {ten_s:.0} s, {minute} of {minute_s:.0} s"
        )
    };
    line("memory waits", each(shares.map(|of| of.stall_share)));
    line("CPU waits", each(shares.map(|of| of.cpu_share)));
    line("major faults", latency(&message.major_faults));
    line("minor faults", latency(&message.minor_faults));
    let bytes = |of: Option<u64>| of.map_or(NOT_SEEN.to_owned(), readable_bytes);
    let back = message.swapped_in_bytes_per_s.map(|bytes| readable_bytes(bytes as u64));
    let back = back.map_or(NOT_SEEN.to_owned(), |back| format!("{back}/s"));
    line(
        "swapped",
        format!("{} on the host's swap, {back} read back", bytes(message.swapped_bytes)),
    );
    line("ballooned", bytes(message.ballooned_bytes));
    let limit = message.limit_bytes.map(|limit| format!(", may hold {}", readable_bytes(limit)));
    let resident = bytes(message.resident_bytes);
    line("resident", format!("{resident} in the host's RAM{}", limit.unwrap_or_default()));
    if let Some(set) = message.working_set_bytes {
        line("active", format!("{} to {}", readable_bytes(set.lower), readable_bytes(set.upper)));
    }
    line("host", message.host.name().to_owned());
    if let Some(unix_s) = message.last_oom_kill_unix_s {
        let when = jiff::Timestamp::from_second(unix_s as i64).unwrap_or_default();
        line("killed", format!("out of memory at {}", when.strftime("%F %T UTC")));
    }
    text
}

fn share(of: Option<f64>) -> String {
    of.map_or(NOT_SEEN.to_owned(), percent)
}

fn rate(of: &Latency) -> Option<String> {
    of.per_s.map(|per_s| format!("{per_s:.1}/s"))
}

fn latency(of: &Latency) -> String {
    let ns = |ns: Option<u64>| ns.map_or("-".to_owned(), readable);
    let Some(rate) = rate(of) else { return NOT_SEEN.to_owned() };
    if of.max_ns.is_none() {
        return rate;
    }
    format!("{rate}, p50 {}, p99 {}, max {}", ns(of.p50_ns), ns(of.p99_ns), ns(of.max_ns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::message::tests::message;

    #[test]
    fn an_owner_is_told_what_was_taken_and_whom_to_show_it() {
        assert_eq!(
            sentence(&message()),
            "The host took 14.0 % of this VM's last minute for memory: it needed this VM's \
             memory for something else and swapped it out. Nothing inside this VM can fix that; show this to \
             whoever runs the host."
        );
        let cpu = Message { cause: Some(Cause::Cpu), verdict: Fared::Slowed, ..message() };
        assert!(sentence(&cpu).starts_with(
            "The host took 2.0 % of this VM's last minute: it had no free CPU for this VM. Another \
             14.0 % was lost waiting for memory."
        ));
        let waits = Shares { cpu_share: Some(0.05), ..message().last_60s };
        let both = sentence(&Message { last_60s: waits, ..message() });
        assert!(
            both.contains("swapped it out. Another 5.0 % was lost waiting for a CPU."),
            "{both}"
        );
        let old = Message { age_s: 30.0, ..message() };
        assert!(sentence(&old).starts_with("The host's last report to this VM is 30 s old"));
        let ok = Message { cause: None, verdict: Fared::Ok, ..message() };
        assert_eq!(
            sentence(&ok),
            "The host barely disturbed this VM in the last minute: it took 14.0 % of its vCPU time for \
             memory and 2.0 % because it had no free CPU."
        );
        let unseen = Shares { cpu_share: None, ..ok.last_60s };
        assert!(sentence(&Message { last_60s: unseen, ..ok }).ends_with("time for memory."));
    }

    #[test]
    fn figures_have_a_line_each() {
        let killed = Message { last_oom_kill_unix_s: Some(1_700_000_000.5), ..message() };
        assert_eq!(
            lines(&killed),
            "  memory waits  40.0 % of the last 1 s, 20.0 % of 10 s, 14.0 % of 60 s
  CPU waits     2.0 % of the last 1 s, 2.0 % of 10 s, 2.0 % of 60 s
  major faults  120.5/s, p50 90.0 us, p99 2.50 ms, max 40.0 ms
  minor faults  0.0/s
  swapped       512.0 MiB on the host's swap, 4.0 KiB/s read back
  ballooned     not seen
  resident      1.0 GiB in the host's RAM
  active        1.0 GiB to 2.0 GiB
  host          swapping
  killed        out of memory at 2023-11-14 22:13:20 UTC
"
        );
    }
}
