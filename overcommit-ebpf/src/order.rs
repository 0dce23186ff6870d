//! In which order the programs write what the loader reads meanwhile.
//!
//! On arm64 each CPU may see the writes of another in any order, unless something between them
//! forbids it. In eBPF that is an atomic operation that returns a value, which is a full barrier
//! (Documentation/atomic_t.txt; `emit_lse_atomic` and `emit_ll_sc_atomic`, arch/arm64/net/bpf_jit_comp.c,
//! 6.12). On x86-64 it costs what an addition without a value does.

/// A word that a program writes while the loader reads it.
pub trait Cell {
    /// Adds to it, in any order.
    fn add(&self, n: u64);
    /// Adds to it after all that was written before, and before all that is written afterwards.
    fn add_in_order(&self, n: u64);
    /// Adds one to it, which nobody else writes, in the same order.
    fn advance(&self);
    /// Makes it at least that.
    fn raise(&self, to: u64);
}

/// Changes words that belong together; `sequence` is odd meanwhile. One thread alone may do so.
#[inline(always)]
pub fn change(sequence: &impl Cell, write: impl FnOnce()) {
    sequence.advance();
    write();
    sequence.advance();
}

/// Reads such words, each before what is read afterwards; `None` if they were being changed.
pub fn unchanged<T>(sequence: impl Fn() -> u64, read: impl FnOnce() -> T) -> Option<T> {
    let before = sequence();
    let value = read();
    (before.is_multiple_of(2) && sequence() == before).then_some(value)
}

/// Counts a latency: whoever takes its bucket finds sum and maximum there.
#[inline(always)]
pub fn count<C: Cell>(sum_ns: &C, max_ns: &C, bucket: &C, latency_ns: u64) {
    sum_ns.add(latency_ns);
    max_ns.raise(latency_ns);
    bucket.add_in_order(1);
}

#[cfg(test)]
mod tests {
    //! Every order in which a CPU may see the writes of another is tried.

    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
    use loom::sync::atomic::{AtomicU64, fence};

    /// As eBPF gives it on arm64, and the loader's loads. Where CPUs see stores in their order, plain ones
    /// do for [`Cell::advance`].
    struct Weak(AtomicU64);

    impl Weak {
        fn get(&self) -> u64 {
            self.0.load(Acquire)
        }
    }

    impl Cell for Weak {
        fn add(&self, n: u64) {
            self.0.fetch_add(n, Relaxed);
        }

        fn add_in_order(&self, n: u64) {
            fence(SeqCst);
            self.0.fetch_add(n, Relaxed);
            fence(SeqCst);
        }

        fn advance(&self) {
            self.add_in_order(1);
        }

        fn raise(&self, to: u64) {
            self.0.fetch_max(to, Relaxed);
        }
    }

    fn cells<const N: usize>() -> Arc<[Weak; N]> {
        Arc::new(std::array::from_fn(|_| Weak(AtomicU64::new(0))))
    }

    /// A fault that ends is no more open once it is in the sum, and the other way round.
    #[test]
    fn a_wait_is_never_read_twice_or_not_at_all() {
        loom::model(|| {
            let [sequence, since, waited] = [0, 1, 2];
            let thread = cells::<3>();
            thread[since].0.store(7, SeqCst);
            let program = Arc::clone(&thread);
            let program = loom::thread::spawn(move || {
                change(&program[sequence], || {
                    program[since].0.store(0, Relaxed);
                    program[waited].0.store(7, Relaxed);
                });
            });
            let read = || thread[since].get() + thread[waited].get();
            if let Some(wait) = unchanged(|| thread[sequence].get(), read) {
                assert_eq!(wait, 7);
            }
            program.join().unwrap();
        });
    }

    #[test]
    fn a_bucket_is_never_taken_without_its_sum() {
        loom::model(|| {
            let [sum, max, bucket] = [0, 1, 2];
            let histogram = cells::<3>();
            let program = Arc::clone(&histogram);
            let program = loom::thread::spawn(move || {
                count(&program[sum], &program[max], &program[bucket], 7);
            });
            // By loads, which see old values: an exchange is always of the newest here.
            if histogram[bucket].get() == 1 {
                assert_eq!([histogram[sum].get(), histogram[max].get()], [7, 7]);
            }
            program.join().unwrap();
        });
    }
}
