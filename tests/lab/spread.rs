//! What a whole run of the test command does on some kernels alone; `cargo xtask lab` does all on
//! each.

use crate::Scenario;
use crate::witness::{IS_ARM64, is_intel};
use anyhow::{Result, ensure};
use testbed::host::read;

/// Scenarios that some kernels leave out, and those that run them. Where a scenario has a variant
/// for each backend, a kernel runs that of the backend that `auto` chooses there; counts are
/// compared with each. The others hang little on the kernel.
const ON_SOME: [(&str, &[&str]); 41] = [
    ("zswap_fentry", FENTRY),
    ("zswap_kprobe", KPROBE),
    ("restore_fentry", FENTRY),
    ("restore_kprobe", KPROBE),
    ("async_faults_fentry", FENTRY),
    ("async_faults_kprobe", KPROBE),
    ("cause_memory_high_fentry", FENTRY),
    ("cause_memory_high_kprobe", KPROBE),
    ("cause_userfault_fentry", FENTRY),
    ("cause_userfault_kprobe", KPROBE),
    ("asleep_fentry", FENTRY),
    ("asleep_kprobe", KPROBE),
    ("outside_writes_fentry", FENTRY),
    ("outside_writes_kprobe", KPROBE),
    ("backing_fentry", FENTRY),
    ("backing_kprobe", KPROBE),
    ("nothing_is_left_fentry", FENTRY),
    ("nothing_is_left_kprobe", KPROBE),
    ("counts_fentry_memfd", FENTRY),
    ("counts_kprobe_memfd", KPROBE),
    ("working_set_contiguous", &["6.12"]),
    ("pause_and_device_are_no_stall", &["6.12"]),
    ("migration_is_no_stall", &["6.12"]),
    ("a_vm_that_runs_vms_waits_for_none_of_it", &["6.12"]),
    ("a_swapped_device_model_is_a_stall", &["6.12"]),
    ("pages_that_leave_the_guest_are_counted", &["6.1", "7.x"]),
    ("postcopy_is_a_wait_for_another_process", &["6.1"]),
    ("clock_steps_take_nothing", &["6.1"]),
    ("kvm_comes_late", &["6.12"]),
    ("working_set_scattered", &["7.x"]),
    ("killed_recorder_leaves_no_damon", &["7.x"]),
    ("kills_leave_nothing", &["6.1"]),
    ("memory_goes_and_comes", &["6.1"]),
    ("attach_in_a_storm", &["7.x"]),
    ("evictions", &["7.x"]),
    ("slow_faults_name_who_evicted", &[]),
    ("kswapd_works_for_who_allocates", &["7.x"]),
    ("costs", &["7.x"]),
    ("a_start_is_told_by_phases", &["6.12"]),
    // For the documents alone.
    ("costs_by_backend", &[]),
    ("kernel_summary", &[]),
];
const FENTRY: &[&str] = &["6.1", "6.12"];
/// Preempted lazily, where trampolines miss calls.
const KPROBE: &[&str] = &["7.x"];

/// Those for which the CPU matters, and which need no share: all that the lab with an
/// Intel CPU runs.
const ON_INTEL: [&str; 10] = [
    "async_faults_fentry",
    "async_faults_halt_walker",
    "async_faults_not_without_interrupts",
    "counts_fentry_anonymous",
    "counts_kprobe_anonymous",
    "counts_perf_anonymous",
    "pause_and_device_are_no_stall",
    "migration_is_no_stall",
    "a_swapped_device_model_is_a_stall",
    "kernel_summary",
];

/// A scenario whose guest is for arm64 alone.
const IDLE: &str = "an_idle_arm64_guest_is_idle";

/// Those for which an arm64 CPU matters: all that a lab with one runs.
const ON_ARM64: [&str; 16] = [
    "counts_fentry_anonymous",
    "counts_fentry_memfd",
    "counts_kprobe_anonymous",
    "counts_kprobe_memfd",
    "counts_perf_anonymous",
    "pause_and_device_are_no_stall",
    "migration_is_no_stall",
    "a_swapped_device_model_is_a_stall",
    IDLE,
    "who_is_no_guest_is_told_nothing",
    "guests_are_told_by_vsock",
    "guests_are_told",
    "check_tells_the_truth",
    "slow_faults_name_who_evicted",
    "kernel_summary",
    "z_kernel_never_complained",
];

/// Those of `scenarios` that this CPU is for.
pub(crate) fn of_cpu(scenarios: Vec<Scenario>) -> Vec<Scenario> {
    let on: &[&str] = if IS_ARM64 {
        &ON_ARM64
    } else if is_intel() {
        &ON_INTEL
    } else {
        return scenarios.into_iter().filter(|(name, _)| name != IDLE).collect();
    };
    // arm64 has had trampolines for programs since Linux 6.4 alone.
    let has_fentry = !IS_ARM64 || has_direct_calls();
    let is_for = |name: &str| on.contains(&name) && (has_fentry || !name.contains("fentry"));
    scenarios.into_iter().filter(|(name, _)| is_for(name)).collect()
}

/// `CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS`, by a function of it that stays (kernel/trace/ftrace.c).
pub(crate) fn has_direct_calls() -> bool {
    read("/proc/kallsyms").is_ok_and(|symbols| symbols.contains(" register_ftrace_direct\n"))
}

/// Those of `scenarios` that are this kernel's.
///
/// # Errors
/// The table names one that does not exist.
pub(crate) fn of_kernel(scenarios: Vec<Scenario>, kernel: &str) -> Result<Vec<Scenario>> {
    for (name, _) in ON_SOME {
        ensure!(scenarios.iter().any(|(of, _)| of == name), "no scenario is called {name}");
    }
    let elsewhere =
        |name: &str| ON_SOME.iter().any(|(some, on)| *some == name && !on.contains(&kernel));
    Ok(scenarios.into_iter().filter(|(name, _)| !elsewhere(name)).collect())
}
