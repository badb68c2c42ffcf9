#![no_main]

use simct_align_fuzz::targets;

libfuzzer_sys::fuzz_target!(|input: targets::Table| targets::vocabulary(input));
