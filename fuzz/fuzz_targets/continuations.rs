//! The continuations of a batch, and the spellings that they come from, are those of the definition.

#![no_main]

use libfuzzer_sys::fuzz_target;
use simct_align_fuzz::case::Case;
use simct_align_fuzz::slow_continuations::check_continuations;

fuzz_target!(|case: Case| {
    check_continuations(&case);
});
