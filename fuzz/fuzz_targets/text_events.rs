#![no_main]

use simct_align_fuzz::case::Case;
use simct_align_fuzz::targets;

libfuzzer_sys::fuzz_target!(|input: Case| targets::text_events(input));
