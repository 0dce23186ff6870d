//! What a whole run of the test command does on one kernel alone; `cargo xtask lab` does all on
//! each.

use crate::Scenario;
use anyhow::{Result, ensure};

/// Scenarios, and the kernel of each: what of them hangs on the kernel has another scenario, which
/// runs on all. Kprobes are what the oldest gets where it refuses fentry.
const ON_ONE: [(&str, &str); 21] = [
    ("counts_kprobe_memfd", "6.1"),
    ("zswap_kprobe", "6.1"),
    ("restore_kprobe", "6.1"),
    ("async_faults_kprobe", "6.1"),
    ("cause_memory_high_kprobe", "6.1"),
    ("cause_userfault_kprobe", "6.1"),
    ("asleep_kprobe", "6.1"),
    ("outside_writes_kprobe", "6.1"),
    ("backing_kprobe", "6.1"),
    ("nothing_is_left_kprobe", "6.1"),
    ("working_set_contiguous", "6.12"),
    ("pause_and_device_are_no_stall", "6.12"),
    ("migration_is_no_stall", "6.12"),
    ("kvm_comes_late", "6.12"),
    ("counts_fentry_memfd", "7.x"),
    ("working_set_scattered", "7.x"),
    ("killed_recorder_leaves_no_damon", "7.x"),
    ("attach_in_a_storm", "7.x"),
    ("evictions", "7.x"),
    ("kswapd_works_for_who_allocates", "7.x"),
    ("costs", "7.x"),
];

/// Those of `scenarios` that are this kernel's.
///
/// # Errors
/// The table names one that does not exist.
pub(crate) fn of_kernel(scenarios: Vec<Scenario>, kernel: &str) -> Result<Vec<Scenario>> {
    for (name, _) in ON_ONE {
        ensure!(scenarios.iter().any(|(of, _)| of == name), "no scenario is called {name}");
    }
    let elsewhere = |name: &str| ON_ONE.iter().any(|(one, on)| *one == name && *on != kernel);
    Ok(scenarios.into_iter().filter(|(name, _)| !elsewhere(name)).collect())
}
