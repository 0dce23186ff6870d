//! The message in the dialect of vhostmd, whose `vm-dump-metrics` guests may have installed: one
//! request, and XML whose end is an empty line (vhostmd/virtio.c and vhostmd/metric.c there).

use crate::guest::message::Message;
use std::fmt::Write;

/// The request, with either end of lines.
pub const REQUESTS: [&[u8]; 2] = [b"GET /metrics/XML\n\n", b"GET /metrics/XML\r\n\r\n"];
/// What any other request gets.
pub const INVALID: &str = "INVALID REQUEST\n\n";

/// What is told beside the message.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// The host's name.
    pub host_name: String,
    /// The VM's uuid.
    pub uuid: String,
    /// CPU time of the VM's process, in seconds.
    pub cpu_s: Option<f64>,
}

/// The answer; without a message of what is known all the same. The host's free memory and what it
/// pages, which vhostmd tells too, would tell of other VMs. Figures of ours have names of their own.
pub fn xml(about: &About, message: Option<&Message>) -> String {
    let mut text = "<metrics>\n".to_owned();
    metric(&mut text, "string", "context='host'", "HostName", &about.host_name);
    metric(&mut text, "string", "context='host'", "VirtualizationVendor", "KVM");
    let context = format!("context='vm' id='0' uuid='{}'", escaped(&about.uuid));
    let mut real = |name: &str, value: Option<f64>| {
        if let Some(value) = value {
            metric(&mut text, "real64", &context, name, &format!("{value:.6}"));
        }
    };
    real("TotalCPUTime", about.cpu_s);
    // Without a sign of its age, an old figure would pass for one of now.
    if let Some(message) = message.filter(|message| !message.is_stale()) {
        real("MemoryStallShare", message.last_60s.stall_share);
        real("CPUWaitShare", message.last_60s.cpu_share);
        real("MajorFaultRate", message.major_faults.per_s);
        let seconds = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1e9);
        real("MajorFaultP99", seconds(message.major_faults.p99_ns));
        real("SwapInRate", message.swapped_in_bytes_per_s);
        let mebibytes = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64 / (1 << 20) as f64);
        real("SwappedMemory", mebibytes(message.swapped_bytes));
        real("BalloonedMemory", mebibytes(message.ballooned_bytes));
        real("ResidentMemory", mebibytes(message.resident_bytes));
    }
    text.push_str("</metrics>\n\n");
    text
}

/// Nothing in it is an empty line: that is the end of an answer.
fn metric(text: &mut String, kind: &str, context: &str, name: &str, value: &str) {
    let value = escaped(value);
    let _ = write!(
        text,
        "  <metric type='{kind}' {context}>\n    <name>{name}</name>\n    <value>{value}</value>\n  \
         </metric>\n"
    );
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::message::tests::message;

    #[test]
    fn an_empty_line_is_its_end_alone() {
        let about = About {
            host_name: "host\n\n<&'>".to_owned(),
            uuid: "5c6a".to_owned(),
            cpu_s: Some(12.5),
        };
        let told = xml(&about, Some(&message()));
        assert_eq!(told.find("\n\n"), Some(told.len() - 2));
        assert!(told.starts_with("<metrics>\n") && told.ends_with("</metrics>\n\n"));
        assert!(told.contains("<value>host&lt;&amp;&apos;&gt;</value>"), "{told}");
        let total = "  <metric type='real64' context='vm' id='0' uuid='5c6a'>\n    \
             <name>TotalCPUTime</name>\n    <value>12.500000</value>\n  </metric>\n";
        assert!(told.contains(total), "{told}");
        assert!(told.contains("<name>MemoryStallShare</name>"));
        assert!(!xml(&about, None).contains("MemoryStallShare"));
    }
}
