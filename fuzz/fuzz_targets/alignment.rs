//! Any ids of any pair in rows with masks: each position that takes part is in one unit or span.

#![no_main]

use libfuzzer_sys::fuzz_target;
use simct_align::error::Error;
use simct_align::ids::Side;
use simct_align_fuzz::{FuzzToken, Rows, align, check, index, pair};

type Input = (Vec<FuzzToken>, Vec<FuzzToken>, u8, u8, Rows, Rows);

fuzz_target!(|input: Input| {
    let (teacher, student, mapped, rows, teacher_rows, student_rows) = input;
    let Ok(pair) = pair([&teacher, &student], [false; 2], usize::from(mapped)) else {
        return;
    };
    let rows = usize::from(rows % 5);
    let teacher = teacher_rows.sampled(&pair, Side::Teacher, rows);
    let student = student_rows.sampled(&pair, Side::Student, rows);
    match align(&pair, &teacher, &student) {
        Ok(aligned) => {
            check(&pair, &teacher, &student, &aligned);
            index(&pair, [&teacher, &student], &aligned, 8).expect("units of the batch");
        }
        Err(error) => assert!(matches!(error, Error::RegionCount { .. }), "{error}"),
    }
});
