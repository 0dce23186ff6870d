//! What a recording cost, as people read it.

use crate::format::text::readable_bytes;
use crate::model::cost::Cost;
use std::time::Duration;

/// In a sentence.
pub fn sentence(cost: &Cost) -> String {
    let own = share(cost.process_cpus());
    let timed = Duration::from_nanos(cost.programs_timed_ns).as_secs_f64();
    let programs = match cost.programs_cpus() {
        Some(programs) => {
            let programs = share(programs);
            format!("its eBPF programs took about {programs} of one CPU (timed for {timed:.2} s)")
        }
        None => "its eBPF programs were not timed".to_owned(),
    };
    let (resident, kernel) =
        (readable_bytes(cost.resident_peak_bytes), readable_bytes(cost.kernel_bytes));
    format!(
        "Cost of recording: {programs}; overcommit itself took {own} of one CPU, {resident} of \
         memory, and {kernel} in the kernel."
    )
}

/// Of a CPU; it is small.
fn share(of: f64) -> String {
    format!("{:.2} %", of * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_told_in_a_sentence() {
        let cost = Cost {
            length_ns: 1_000_000_000,
            cpu_ns: 4_000_000,
            resident_peak_bytes: 37 << 20,
            kernel_bytes: 21 << 20,
            programs_ns: Some(600_000),
            programs_timed_ns: 300_000_000,
            programs_untimed: None,
        };
        assert_eq!(
            sentence(&cost),
            "Cost of recording: its eBPF programs took about 0.20 % of one CPU (timed for 0.30 s); \
             overcommit itself took 0.40 % of one CPU, 37.0 MiB of memory, and 21.0 MiB in the kernel."
        );
        assert_eq!(
            sentence(&Cost { programs_ns: None, ..cost }),
            "Cost of recording: its eBPF programs were not timed; overcommit itself took 0.40 % of \
             one CPU, 37.0 MiB of memory, and 21.0 MiB in the kernel."
        );
    }
}
