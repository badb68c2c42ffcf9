//! A vocabulary of any bytes, offsets and kinds is refused, or gives every token's bytes back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use simct_align::pair::{Pair, PairOptions};
use simct_align::vocabulary::{Settings, Vocabulary};

type Input = (Vec<u8>, Vec<i64>, Vec<u8>, bool, Vec<u32>, Vec<(u32, u32)>);

fuzz_target!(|input: Input| {
    let (bytes, offsets, kinds, dummy_prefix, stops, special_tokens) = input;
    let settings = Settings { dummy_prefix, stops, ..Settings::default() };
    let Ok(vocabulary) = Vocabulary::new(bytes.clone(), &offsets, &kinds, settings) else {
        return;
    };
    assert_eq!(vocabulary.len(), kinds.len());
    for (id, ends) in vocabulary.ids().zip(offsets.windows(2)) {
        let token = &bytes[ends[0] as usize..ends[1] as usize];
        assert_eq!(vocabulary.token_bytes(id), token);
        assert_eq!(vocabulary.decode(&[id]).as_deref(), Ok(token));
        assert_eq!(vocabulary.token_bytes(vocabulary.canonical_id(id)), token);
        if !token.is_empty() {
            assert_eq!(vocabulary.find(token), Some(vocabulary.canonical_id(id)));
        }
    }
    let same = std::sync::Arc::new(vocabulary);
    let options = PairOptions { special_tokens, ..PairOptions::default() };
    if let Ok(pair) = Pair::new(same.clone(), same, &options) {
        let _ = (pair.spellings().is_ok(), pair.text_tree().is_ok());
    }
});
