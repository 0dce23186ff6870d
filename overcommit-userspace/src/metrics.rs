//! Which metrics are there, and how much of each does a backend see?

use crate::probes::decide::Backend;
use crate::sampler::coverage::Coverage;
use overcommit_ebpf::layout::Metric;
use serde::{Deserialize, Serialize};

/// What is not seen of `fault.*` by perf's software events.
const OUTSIDERS: &str = "faults that others take in the VM's memory from outside it: \
    process_vm_writev, kernel workers of asynchronous page faults, khugepaged";
/// What is not seen where KVM runs on hardware.
const GET_USER_PAGES: &str = "faults that KVM resolves through get_user_pages for a guest on \
    hardware; they are in the measured share below";
/// Families of the design that this version does not measure.
const NOT_MEASURED: [&str; 8] =
    ["swapin", "exit", "idle", "stall.memory", "apf", "backing", "reclaim", "runq"];

/// How much of a metric is seen, and what is not, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricCoverage {
    /// Name of the metric or family.
    pub metric: String,
    /// How much.
    pub coverage: Coverage,
    /// What is not seen.
    pub not_seen: Vec<String>,
}

/// What a backend sees before anything is measured; `None` is no backend at all.
///
/// `fault.*` is full for what the VM's own threads take; a recording measures
/// whether that holds.
pub fn declared(backend: Option<Backend>) -> Vec<MetricCoverage> {
    let faults = Metric::ALL.into_iter().map(|metric| match backend {
        Some(Backend::Perf) => entry(metric.name(), Coverage::Full, &[OUTSIDERS, GET_USER_PAGES]),
        Some(_) => entry(metric.name(), Coverage::Full, &[]),
        None => entry(metric.name(), Coverage::Absent, &["no backend is allowed by this kernel"]),
    });
    let source = match backend {
        Some(_) => entry(
            "stall.share",
            Coverage::Full,
            &["from the vCPU threads' faults; empty for a VM whose vCPU threads are not known"],
        ),
        None => entry("stall.share", Coverage::Absent, &["no backend is allowed by this kernel"]),
    };
    let missing = NOT_MEASURED
        .into_iter()
        .map(|metric| entry(metric, Coverage::Absent, &["not measured by this version"]));
    faults.chain([source]).chain(missing).collect()
}

fn entry(metric: &str, coverage: Coverage, not_seen: &[&str]) -> MetricCoverage {
    let not_seen = not_seen.iter().map(|&text| text.to_owned()).collect();
    MetricCoverage { metric: metric.to_owned(), coverage, not_seen }
}
