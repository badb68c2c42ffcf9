//! The joint tree of a pair and the text events of a batch are those of the definition.

#![no_main]

use libfuzzer_sys::fuzz_target;
use simct_align_fuzz::case::Case;
use simct_align_fuzz::slow_text_events::check_text_events;

fuzz_target!(|case: Case| {
    check_text_events(&case);
});
