//! New inputs: random bytes, and earlier inputs with some changes.

use std::iter::repeat_with;

use fastrand::Rng;

/// The longest input of random bytes; libFuzzer's runs have the same.
const LONGEST_RANDOM: usize = 600;

/// The longest input that grows by changes.
const LONGEST_CHANGED: usize = 4096;

/// An input, from those that reached something new.
pub fn draw(rng: &mut Rng, kept: &[Vec<u8>]) -> Vec<u8> {
    if kept.is_empty() || rng.u8(..8) == 0 {
        let length = rng.usize(..=LONGEST_RANDOM);
        return repeat_with(|| rng.u8(..)).take(length).collect();
    }
    let mut input = choose(rng, kept).clone();
    for _ in 0..1 << rng.u8(..4) {
        change(rng, &mut input, kept);
    }
    input.truncate(LONGEST_CHANGED);
    input
}

/// One of the inputs; in half of the cases one of the last.
fn choose<'a>(rng: &mut Rng, kept: &'a [Vec<u8>]) -> &'a Vec<u8> {
    let first = if rng.bool() { kept.len().saturating_sub(32) } else { 0 };
    &kept[rng.usize(first..kept.len())]
}

/// A run of up to 16 bytes, or of any length.
fn run(rng: &mut Rng, length: usize) -> std::ops::Range<usize> {
    let start = rng.usize(..=length);
    let most = if rng.u8(..4) == 0 { length - start } else { (length - start).min(16) };
    start..start + rng.usize(..=most)
}

fn change(rng: &mut Rng, input: &mut Vec<u8>, kept: &[Vec<u8>]) {
    let place = run(rng, input.len());
    match rng.u8(..8) {
        0 => input[place].iter_mut().take(1).for_each(|byte| *byte ^= 1 << rng.u8(..8)),
        1 => input[place].iter_mut().take(1).for_each(|byte| *byte = rng.u8(..)),
        2 => {
            // Numbers of the size of an input's lengths.
            let new = *rng.choice(&[0, 1, 2, 3, 4, 7, 8, 16, 64, 127, 128, 255]).unwrap_or(&0);
            input[place].iter_mut().take(1).for_each(|byte| *byte = new);
        }
        3 => drop(input.drain(place)),
        4 => {
            let bytes: Vec<_> = repeat_with(|| rng.u8(..)).take(place.len()).collect();
            input.splice(place.start..place.start, bytes);
        }
        5 => {
            let bytes = input[place].to_vec();
            let at = rng.usize(..=input.len());
            input.splice(at..at, bytes);
        }
        kind => {
            let other = choose(rng, kept);
            let bytes = other[run(rng, other.len())].to_vec();
            let end = if kind == 6 { place.start } else { place.end };
            input.splice(place.start..end, bytes);
        }
    }
}
