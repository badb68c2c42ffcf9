//! What an input reached, from the counters of `-Cinstrument-coverage`.

use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(instrumented)]
fn counters() -> &'static [AtomicU64] {
    unsafe extern "C" {
        // Functions of the compiler's profiling runtime.
        safe fn __llvm_profile_begin_counters() -> *const AtomicU64;
        safe fn __llvm_profile_end_counters() -> *const AtomicU64;
    }
    let (start, end) = (__llvm_profile_begin_counters(), __llvm_profile_end_counters());
    // SAFETY: the runtime's functions return both ends of one section of aligned 64-bit counters,
    // which stays as long as the program. Compiled code writes to it, on several threads, as if it
    // were relaxed and not atomic: a count may be lost.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

#[cfg(not(instrumented))]
fn counters() -> &'static [AtomicU64] {
    &[]
}

/// How often each place of the code has been reached by one input, at most.
pub struct Coverage {
    counters: &'static [AtomicU64],
    /// Of every counter: the bit of each power of two of which there was a count.
    reached: Vec<u64>,
}

impl Coverage {
    pub fn new() -> Self {
        let counters = counters();
        counters.iter().for_each(|counter| counter.store(0, Ordering::Relaxed));
        Self { counters, reached: vec![0; counters.len()] }
    }

    /// Whether the code since the last call went where no earlier one did, or more often.
    pub fn found_more(&mut self) -> bool {
        let mut found = false;
        for (counter, reached) in self.counters.iter().zip(&mut self.reached) {
            let count = counter.load(Ordering::Relaxed);
            if let Some(power) = count.checked_ilog2() {
                counter.store(0, Ordering::Relaxed);
                found |= *reached & 1 << power == 0;
                *reached |= 1 << power;
            }
        }
        found
    }
}
