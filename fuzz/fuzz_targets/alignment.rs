#![no_main]

use simct_align_fuzz::targets;

libfuzzer_sys::fuzz_target!(|input: targets::Alignment| targets::alignment(input));
