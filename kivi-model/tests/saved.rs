//! Caches in files: what comes back is what was saved, and nothing else comes back.

mod models;
mod random;

use std::path::Path;

use kivi_kernels::Backend;
use kivi_kernels_ref::Cpu;
use kivi_model::engine::{Engine, EngineConfig, Event, Request, RestoreError, SeqId};
use kivi_model::model::Model;
use kivi_model::saved::{Mismatch, SavedCache, SavedError};
use kivi_quant::{Bits, GroupSize, KiviConfig, KvDtype};
use models::{config, request};
use random::{SMALL, Small, load, tokens, weight};

const CONTEXT: usize = 400;

fn cache(k: u32, v: u32) -> KiviConfig {
    let bits = |b| Bits::try_from(b).expect("a width");
    let config = KiviConfig::new(bits(k), bits(v), GroupSize::G32, 64).expect("a valid cache");
    config.with_page_tokens(64).expect("a valid page")
}

fn sizes(cache: KiviConfig) -> EngineConfig {
    config(cache, CONTEXT, 1)
}

fn some(name: &str, n: usize) -> Vec<u32> {
    tokens(name, n, SMALL.vocab)
}

fn run<B: Backend>(
    engine: &mut Engine<'_, B>,
    prompt: &[u32],
    n: usize,
    past: Option<SeqId>,
) -> (SeqId, Vec<u32>) {
    let id = engine.submit(Request { past, keep: true, ..request(prompt, n) }).expect("a good request");
    let mut tokens = Vec::new();
    while !engine.is_idle() {
        for event in engine.step().expect("the CPU does not fail") {
            match event {
                Event::Token { token, .. } => tokens.push(token),
                Event::Finished { .. } => {}
                Event::Failed { error, .. } => panic!("the text failed: {error}"),
            }
        }
    }
    (id, tokens)
}

/// Save, write, read, restore in a new engine, go on: the same tokens as without stopping, and the same words in the cache,
/// on another backend, too.
#[test]
fn a_restored_text_goes_on_as_if_it_had_never_stopped() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("text.kivi");
    let backend = Cpu::<f32>::new();
    let other_backend = Cpu::<f64>::new();
    let checkpoint = SMALL.write(&weight);
    let model = load(&backend, checkpoint.path());
    let other = load(&other_backend, checkpoint.path());
    let mut caches = vec![cache(2, 2), cache(4, 2), cache(16, 16), cache(2, 16), cache(8, 4)];
    caches.push(cache(2, 2).with_sink_tokens(5).expect("sinks"));
    caches.push(cache(2, 4).with_kv_dtype(KvDtype::Bf16));
    caches.push(cache(16, 16).with_kv_dtype(KvDtype::F32));
    for (cache, n) in caches.iter().flat_map(|cache| [3, 63, 64, 150, 201].map(|n| (*cache, n))) {
        let mut never_stopped = Engine::new(&backend, &model, sizes(cache)).expect("an engine");
        let (id, answer) = run(&mut never_stopped, &some("p", n), 30, None);
        let mut saved = never_stopped.save(id).expect("the CPU does not fail").expect("it was kept");
        saved.notes.insert("chat".to_owned(), "\"é\n".to_owned());
        saved.write(&path).expect("a file");
        let read = SavedCache::read(&path).expect("the file");
        assert!(read == saved, "{cache}, {n} tokens");
        let text = [&some("p", n)[..], &answer].concat();
        assert_eq!(read.tokens(), &text);

        // Where another text was before.
        let mut restored = Engine::new(&backend, &model, sizes(cache)).expect("an engine");
        let (other_text, _) = run(&mut restored, &some("other", 230), 9, None);
        assert!(restored.forget(other_text));
        let past = restored.restore(&read).expect("it fits");
        let again = restored.save(past).expect("the CPU does not fail").expect("it is kept");
        saved.notes.clear();
        assert!(again == saved, "{cache}, {n} tokens");
        let more = [&text[..], &some("q", 40)].concat();
        let (_, expected) = run(&mut never_stopped, &more, 50, Some(id));
        let (_, found) = run(&mut restored, &more, 50, Some(past));
        assert_eq!(found, expected, "{cache}, {n} tokens");

        let mut elsewhere = Engine::new(&other_backend, &other, sizes(cache)).expect("an engine");
        let past = elsewhere.restore(&read).expect("it fits");
        let again = elsewhere.save(past).expect("the CPU does not fail").expect("it is kept");
        assert!(again == saved, "{cache}, {n} tokens, on another backend");
    }
}

/// A file and the engine that it is for.
fn saved_file(path: &Path) {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let mut engine = Engine::new(&backend, &model, sizes(cache(2, 2))).expect("an engine");
    let (id, _) = run(&mut engine, &some("p", 150), 3, None);
    let saved = engine.save(id).expect("the CPU does not fail").expect("it was kept");
    saved.write(path).expect("a file");
}

#[test]
fn caches_of_something_else_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("text.kivi");
    saved_file(&path);
    let read = SavedCache::read(&path).expect("the file");
    let backend = Cpu::<f32>::new();
    let refused = |model: &Model<Cpu<f32>>, sizes: EngineConfig| {
        let mut engine = Engine::new(&backend, model, sizes).expect("an engine");
        let error = engine.restore(&read).expect_err("it is of something else");
        assert!(!error.to_string().contains('\n'));
        // Nothing is taken by what was refused.
        run(&mut engine, &some("p", 20), 2, None);
        error
    };
    let model = SMALL.load(&backend);
    let fewer = Small { layers: 1, ..SMALL }.load(&backend);
    let other = load(&backend, SMALL.write(&|name, i| weight(name, i) * 0.5).path());
    for model in [&fewer, &other] {
        assert!(matches!(refused(model, sizes(cache(2, 2))), RestoreError::Mismatch(Mismatch::Model)));
    }
    let error = refused(&model, sizes(cache(4, 2)));
    assert_eq!(
        error.to_string(),
        "layer 0: the cache was saved with K2 V2 g32 R64, this run has K4 V2 g32 R64; use the settings that it was saved with"
    );
    let mut last = sizes(cache(2, 2));
    last.cache = last.cache.with_layer(1, cache(16, 16));
    assert!(matches!(refused(&model, last), RestoreError::Mismatch(Mismatch::Settings { layer: 1, .. })));
    let small = EngineConfig { max_context: 150, ..sizes(cache(2, 2)) };
    assert!(matches!(refused(&model, small), RestoreError::NoRoom { tokens: 153 }));
    let small = EngineConfig { pool_tokens: 64, ..sizes(cache(2, 2)) };
    assert!(matches!(refused(&model, small), RestoreError::NoRoom { tokens: 153 }));
}

#[test]
fn damaged_files_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("text.kivi");
    saved_file(&path);
    let good = std::fs::read(&path).expect("the file");
    let bad = dir.path().join("bad.kivi");
    let refused = |bytes: &[u8], what: &str| {
        std::fs::write(&bad, bytes).expect("a file");
        let error = SavedCache::read(&bad).expect_err(what).to_string();
        assert!(error.starts_with(&bad.display().to_string()) && !error.contains('\n'), "{what}: {error}");
    };
    for len in (0..good.len()).step_by(good.len() / 50) {
        refused(&good[..len], &format!("cut to {len} bytes"));
    }
    for at in (0..good.len()).step_by(good.len() / 300) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        refused(&bytes, &format!("byte {at} changed"));
    }
    refused(&[&good[..], b"x"].concat(), "a byte more");
    refused(b"{\"a\": 1}", "JSON");
    let weights = std::fs::read(SMALL.write(&weight).path().join("model.safetensors")).expect("weights");
    refused(&weights, "weights");
    for (path, what) in
        [(dir.path().join("absent"), "no such file"), (dir.path().to_path_buf(), "a directory")]
    {
        let error = SavedCache::read(&path).expect_err(what);
        assert!(matches!(error, SavedError::Io { action: "read", .. }), "{error}");
    }
}

/// A file is written whole or not at all.
#[test]
fn a_file_that_cannot_be_written_leaves_what_was_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("text.kivi");
    saved_file(&path);
    let saved = SavedCache::read(&path).expect("the file");
    let error = saved.write(&dir.path().join("absent/text.kivi")).expect_err("there is no such directory");
    assert!(matches!(error, SavedError::Io { action: "written", .. }) && !error.to_string().contains('\n'));
    std::fs::create_dir(dir.path().join("taken")).expect("a directory");
    std::fs::write(dir.path().join("taken/file"), "x").expect("a file");
    saved.write(&dir.path().join("taken")).expect_err("a directory is in the way");
    #[cfg(unix)] // what is no regular file, and neither read nor replaced
    {
        let socket = dir.path().join("socket");
        let _listens = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        let error = saved.write(&socket).expect_err("something else is in the way");
        assert!(error.to_string().ends_with("cannot be written: it is not a regular file"), "{error}");
        assert!(!socket.is_file());
        SavedCache::read(&socket).expect_err("no file");
        std::fs::remove_file(&socket).expect("it is ours");
    }
    #[cfg(unix)] // readable by whom any new file is
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| std::fs::metadata(path).expect("a file").permissions().mode();
        assert_eq!(mode(&path), mode(&dir.path().join("taken/file")));
    }
    let names = || std::fs::read_dir(dir.path()).expect("a directory").count();
    assert_eq!(names(), 2, "no passing file is left");
    saved.write(&path).expect("over the old one");
    assert!(SavedCache::read(&path).expect("the file") == saved);
}
