//! A byte-level tokenizer of 256 tokens, made here, with and without a begin-of-text token.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// The character that byte-level tokenizers write for a byte (GPT-2's table).
fn byte_char(byte: u8) -> char {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if plain(byte) {
        return char::from(byte);
    }
    let nth = (0..byte).filter(|b| !plain(*b)).count() as u32;
    char::from_u32(256 + nth).unwrap()
}

/// `tokenizer.json` with token ids equal to bytes, and `<s>` as 256.
fn tokenizer_json(post_processor: bool) -> Vec<u8> {
    let vocab: serde_json::Map<String, Value> =
        (0..=255u8).map(|b| (byte_char(b).to_string(), json!(b))).collect();
    let template = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}}});
    let added = json!({"id": 256, "content": "<s>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true});
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let whole = json!({"version": "1.0", "truncation": {"direction": "Right", "max_length": 2,
            "strategy": "LongestFirst", "stride": 0}, "padding": null, "added_tokens": [added],
        "normalizer": null, "pre_tokenizer": byte_level, "decoder": byte_level,
        "post_processor": if post_processor { template } else { Value::Null },
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": []}});
    whole.to_string().into_bytes()
}

/// Embedded sources need bytes for ever; tests leak a few.
fn source(files: Vec<(&'static str, Vec<u8>)>) -> Source {
    let files: Vec<_> = files.into_iter().map(|(name, bytes)| (name, &*bytes.leak())).collect();
    Source::Embedded { name: "m", files: files.leak() }
}

fn load(post_processor: bool, config: &str) -> Result<Tokenizer, LoadError> {
    let files = vec![(NAME, tokenizer_json(post_processor)), (CONFIG_NAME, config.as_bytes().to_vec())];
    Tokenizer::load(&source(files), 257)
}

#[test]
fn begin_of_text_is_added_as_transformers_does() {
    for (post_processor, config, expected) in [
        (true, "{}", &[256u32, 97][..]),
        (false, "{}", &[97]),
        (false, r#"{"bos_token": "<s>"}"#, &[97]),
        (false, r#"{"bos_token": "<s>", "add_bos_token": true}"#, &[256, 97]),
        (true, r#"{"bos_token": {"content": "<s>"}, "add_bos_token": false}"#, &[97]),
        (true, r#"{"bos_token": "<s>", "eos_token": "<s>", "add_eos_token": true}"#, &[97, 256]),
        (true, r#"{"add_bos_token": true}"#, &[97]),
    ] {
        let tokenizer = load(post_processor, config).unwrap();
        assert_eq!(tokenizer.encode("a", true).unwrap(), expected, "{config}");
        assert_eq!(tokenizer.encode("a", false).unwrap(), [97], "{config}");
    }
}

#[test]
fn truncation_of_the_file_is_off_and_text_survives() {
    let tokenizer = load(true, "{}").unwrap();
    let ids = tokenizer.encode("naïve 🦀", true).unwrap();
    assert_eq!(ids.len(), 1 + "naïve 🦀".len());
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "naïve 🦀");
    assert_eq!(tokenizer.decode(&ids[..1], false).unwrap(), "<s>");
}

#[test]
fn ids_beyond_the_model_are_refused() {
    let files = vec![(NAME, tokenizer_json(true))];
    let message = Tokenizer::load(&source(files), 256).unwrap_err().to_string();
    let expected = "m/tokenizer.json: largest token id is 256, but config.json has vocab_size 256; \
                    use the tokenizer of this model";
    assert_eq!(message, expected);
}

#[test]
fn a_token_that_the_config_names_must_exist() {
    let message = load(true, r#"{"bos_token": "<x>", "add_bos_token": true}"#).unwrap_err().to_string();
    let expected = r#"m/tokenizer_config.json: bos_token: expected a token of tokenizer.json, found "<x>""#;
    assert_eq!(message, expected);
}

#[test]
fn a_character_of_several_tokens_comes_whole() {
    let mut stream = load(true, "{}").unwrap().stream();
    let crab: Vec<String> = "🦀".bytes().map(|b| stream.push(b.into()).unwrap()).collect();
    assert_eq!(crab, ["", "", "", "🦀"]);
    assert_eq!(stream.push(0xc3).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    assert_eq!(stream.finish().unwrap(), "");
}

/// Decoders that write a space before a word leave out that before the first one.
#[test]
fn a_special_token_does_not_hide_what_follows_it() {
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let mut whole: Value = serde_json::from_slice(&tokenizer_json(false)).unwrap();
    whole["decoder"] = metaspace;
    whole["model"]["vocab"] = json!({"▁a": 0, "▁b": 1});
    let tokenizer = Tokenizer::load(&source(vec![(NAME, whole.to_string().into_bytes())]), 257).unwrap();
    let special = tokenizer.inner.token_to_id("<s>").unwrap();
    let mut stream = tokenizer.stream();
    let text = [0, special, special, 1, special].map(|id| stream.push(id).unwrap());
    assert_eq!(text, ["a", "", "", " b", ""]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// The pieces are the text of the whole, whatever the bytes, and no piece is half a character.
    #[test]
    fn streaming_equals_decoding(bytes in prop::collection::vec(
        prop_oneof![Just(0xf0u8), Just(0x9f), Just(0xa6), Just(0xe2), Just(0x82), Just(0xac), any::<u8>()], 0..80,
    )) {
        let tokenizer = load(true, "{}").unwrap();
        let ids: Vec<u32> = bytes.iter().map(|b| u32::from(*b)).collect();
        let mut stream = tokenizer.stream();
        let mut text = String::new();
        for id in &ids {
            text.push_str(&stream.push(*id).unwrap());
        }
        text.push_str(&stream.finish().unwrap());
        prop_assert_eq!(text, tokenizer.decode(&ids, true).unwrap());
    }
}
