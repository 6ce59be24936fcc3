//! Tokens of many strings are those of transformers, and streamed text is the whole text;
//! `xtask/golden/tokens.py` made the golden file.

mod random;

use std::path::{Path, PathBuf};

use kivi_model::source::Source;
use kivi_model::tokenizer::Tokenizer;
use random::fnv1a;
use serde_json::Value;

/// What stands between strings in a file of them.
const MARK: &str = "\n__ggml_vocab_test__\n";

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/tokens.json")).expect("JSON")
}

fn load(dir: PathBuf, vocab_size: usize) -> Tokenizer {
    Tokenizer::load(&Source::Dir(dir), vocab_size).expect("a tokenizer")
}

fn kivi_tiny() -> Tokenizer {
    load(Path::new(env!("CARGO_MANIFEST_DIR")).join("../kivi-cli/assets/kivi-tiny"), 4096)
}

/// The folder of tokenizers that are not part of the repository, or nothing, with a message.
fn outside() -> Option<PathBuf> {
    let Some(data) = std::env::var_os("KIVI_DATA") else {
        println!("skipped: KIVI_DATA is not set to the folder that has tokenizers");
        return None;
    };
    let folder = Path::new(&data).join("tokenizers");
    assert!(folder.is_dir(), "KIVI_DATA: {} is not a folder", folder.display());
    Some(folder)
}

/// The strings of the golden file.
fn own(golden: &Value) -> Vec<&str> {
    golden["strings"].as_array().expect("strings").iter().map(|s| s.as_str().expect("a string")).collect()
}

fn hash(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    format!("{:016x}", fnv1a(&bytes))
}

/// The text of ids as it comes, token by token.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream();
    let mut text: String = ids.iter().map(|id| stream.push(*id).expect("text")).collect();
    text.push_str(&stream.finish().expect("text"));
    text
}

/// Number of ids, their hash, that of ids with special tokens, and that of the text of the latter, which
/// must be the same in one piece and streamed.
fn brief(tokenizer: &Tokenizer, text: &str) -> String {
    let [plain, special] = [false, true].map(|add| tokenizer.encode(text, add).expect("ids"));
    let whole = tokenizer.decode(&special, true).expect("text");
    assert_eq!(streamed(tokenizer, &special), whole, "streamed text of {text:?}");
    let text = format!("{:016x}", fnv1a(whole.as_bytes()));
    [plain.len().to_string(), hash(&plain), hash(&special), text].join(" ")
}

/// Compares all, so that a failure lists every string that differs.
fn assert_all(tokenizer: &Tokenizer, strings: &[&str], want: &Value) {
    let want = want.as_array().expect("results");
    assert_eq!(strings.len(), want.len());
    let pairs = strings.iter().zip(want).map(|(text, want)| (text, brief(tokenizer, text), want));
    let wrong: Vec<String> = pairs
        .filter(|(_, got, want)| got != *want)
        .map(|(text, got, want)| format!("{text:?}\n  transformers {want}\n  kivi         {got}"))
        .collect();
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn kivi_tiny_has_the_tokens_of_transformers() {
    let golden = golden();
    assert!(own(&golden).len() >= 200);
    assert_all(&kivi_tiny(), &own(&golden), &golden["kivi-tiny"]);
}

#[test]
fn mistral_has_the_tokens_of_transformers() {
    let Some(folder) = outside() else { return };
    let golden = golden();
    assert_all(&load(folder.join("mistral-7b-v0.3-hf"), 32768), &own(&golden), &golden["mistral"]);
}

#[test]
fn strings_of_others_have_the_tokens_of_transformers() {
    let Some(folder) = outside() else { return };
    let golden = golden();
    let text = std::fs::read_to_string(folder.join("ggml-vocab-llama-spm.gguf.inp")).expect("strings");
    if format!("{:016x}", fnv1a(text.as_bytes())) != golden["others_text"] {
        println!("skipped: ggml-vocab-llama-spm.gguf.inp is another version than that of the golden file");
        return;
    }
    let strings: Vec<&str> = text.split(MARK).collect();
    assert_all(&kivi_tiny(), &strings, &golden["others_kivi-tiny"]);
    let mistral = load(folder.join("mistral-7b-v0.3-hf"), 32768);
    assert_all(&mistral, &strings, &golden["others_mistral"]);
}
