//! The message as metrics, for a file that node_exporter's textfile collector reads.

use crate::guest::message::Message;
use std::fmt::Write;

/// A gauge, and what is told of it.
struct Gauge {
    name: &'static str,
    help: &'static str,
    values: Vec<(&'static str, Option<f64>)>,
}

/// As Prometheus reads it. What is not seen has no line.
pub fn text(message: &Message) -> String {
    let mut text = String::new();
    for gauge in gauges(message) {
        if gauge.values.iter().all(|(_, value)| value.is_none()) {
            continue;
        }
        let _ = writeln!(text, "# HELP {} {}\n# TYPE {} gauge", gauge.name, gauge.help, gauge.name);
        for (labels, value) in gauge.values {
            if let Some(value) = value {
                let _ = writeln!(text, "{}{labels} {value}", gauge.name);
            }
        }
    }
    text
}

fn gauges(message: &Message) -> Vec<Gauge> {
    let gauge = |name, help, values| Gauge { name, help, values };
    let one = |value: Option<f64>| vec![("", value)];
    let bytes = |value: Option<u64>| one(value.map(|bytes| bytes as f64));
    let seconds = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1e9);
    let windows = |of: fn(&crate::guest::message::Shares) -> Option<f64>| {
        vec![
            ("{window=\"1s\"}", of(&message.last_1s)),
            ("{window=\"10s\"}", of(&message.last_10s)),
            ("{window=\"60s\"}", of(&message.last_60s)),
        ]
    };
    let majors = &message.major_faults;
    let quantiles = vec![
        ("{quantile=\"0.5\"}", seconds(majors.p50_ns)),
        ("{quantile=\"0.99\"}", seconds(majors.p99_ns)),
        ("{quantile=\"1\"}", seconds(majors.max_ns)),
    ];
    vec![
        gauge(
            "overcommit_guest_stall_ratio",
            "Fraction of vCPU time spent waiting for the host to bring memory.",
            windows(|of| of.stall_share),
        ),
        gauge(
            "overcommit_guest_cpu_wait_ratio",
            "Fraction of vCPU time spent waiting for a CPU of the host.",
            windows(|of| of.cpu_share),
        ),
        gauge(
            "overcommit_guest_major_fault_seconds",
            "Length of the host's major faults of the last minute.",
            quantiles,
        ),
        gauge(
            "overcommit_guest_major_faults_per_second",
            "Major faults of the host for this VM, over the last minute.",
            one(majors.per_s),
        ),
        gauge(
            "overcommit_guest_swapped_bytes",
            "Memory of this VM in the host's swap.",
            bytes(message.swapped_bytes),
        ),
        gauge(
            "overcommit_guest_swapped_in_bytes_per_second",
            "Read back from the host's swap.",
            one(message.swapped_in_bytes_per_s),
        ),
        gauge(
            "overcommit_guest_ballooned_bytes",
            "Memory that this VM's balloon gave back to the host.",
            bytes(message.ballooned_bytes),
        ),
        gauge(
            "overcommit_guest_resident_bytes",
            "Memory of this VM in the host's RAM.",
            bytes(message.resident_bytes),
        ),
        gauge(
            "overcommit_guest_limit_bytes",
            "Memory that the host lets this VM hold.",
            bytes(message.limit_bytes),
        ),
        gauge(
            "overcommit_guest_told_timestamp_seconds",
            "When the host said so, by its own clock.",
            one(Some(message.unix_s)),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::message::tests::message;

    #[test]
    fn what_is_not_seen_has_no_line() {
        let text = text(&message());
        assert!(text.contains("# TYPE overcommit_guest_stall_ratio gauge\n"), "{text}");
        assert!(text.contains("overcommit_guest_stall_ratio{window=\"60s\"} 0.14\n"), "{text}");
        assert!(text.contains("overcommit_guest_major_fault_seconds{quantile=\"1\"} 0.04\n"));
        assert!(!text.contains("ballooned") && !text.contains("limit"), "{text}");
    }
}
