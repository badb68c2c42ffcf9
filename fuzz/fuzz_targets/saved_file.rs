//! A saved file of any content, its checksum true or not, is refused or works.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use simct_align::ids::Side;
use simct_align::storage::{from_bytes, to_bytes};
use simct_align_fuzz::{FuzzToken, Rows, align, check, index, pair};

/// Tokens of the pair that was saved, what it had made before, changes of bytes, and ids.
type Input = (Vec<FuzzToken>, Vec<FuzzToken>, bool, bool, Vec<(u16, u8)>, Vec<u8>, Rows);

fn signed(mut body: Vec<u8>) -> Vec<u8> {
    let checksum = Sha256::digest(&body);
    body.extend_from_slice(&checksum);
    body
}

fuzz_target!(|input: Input| {
    let (teacher, student, spellings, tree, changes, raw, rows) = input;
    let _ = from_bytes(&raw);
    let _ = from_bytes(&signed([&b"SIMCTALN\x04\0\0\0"[..], &raw].concat()));
    let Ok(saved) = pair([&teacher, &student], [false; 2], 2) else {
        return;
    };
    let made = (spellings && saved.spellings().is_ok(), tree && saved.text_tree().is_ok());
    let mut body = to_bytes(&saved);
    assert_eq!(from_bytes(&body).map(|read| read.digest()), Ok(saved.digest()), "{made:?}");
    body.truncate(body.len() - 32);
    for (place, change) in changes {
        let place = usize::from(place) % body.len();
        body[place] ^= change;
    }
    let Ok(read) = from_bytes(&signed(body)) else {
        return;
    };
    let _ = (read.spellings().is_ok(), read.text_tree().is_ok());
    let teacher = rows.sampled(&read, Side::Teacher, 1);
    let student = rows.sampled(&read, Side::Student, 1);
    if let Ok(aligned) = align(&read, &teacher, &student) {
        check(&read, &teacher, &student, &aligned);
        let _ = index(&read, [&teacher, &student], &aligned, 8);
    }
    assert!(from_bytes(&to_bytes(&read)).is_ok());
});
