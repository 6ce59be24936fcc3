//! Models of the hub, from a hub that the tests run themselves.
#![cfg(feature = "hub")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::hub::{Answer, Asked, COMMIT, Hub, answer, etag, is_link, listing};
use common::{PROMPT, kivi, run, tiny_dir};

const WEIGHTS: &str = "model.safetensors";

fn is_weights(asked: &Asked) -> bool {
    asked.method == "GET" && asked.path.ends_with(WEIGHTS)
}

/// What kivi-tiny says from its directory.
fn expected() -> String {
    let dir = tiny_dir();
    kivi(&["generate", "-q", "-n", "8", "-p", PROMPT, "-m", dir.to_str().unwrap()]).ok().stdout
}

#[test]
fn a_model_is_downloaded_once() {
    let hub = Hub::new();
    assert_eq!(hub.generate(&[]).ok().stdout, expected());
    let asked = hub.asked();
    assert!(asked.iter().any(is_weights));
    assert!(!asked.iter().any(|asked| asked.path.ends_with("README.md")), "{asked:?}");
    assert!(asked.iter().all(|asked| asked.authorization.is_none()));

    assert_eq!(hub.generate(&[]).ok().stdout, expected());
    let paths: Vec<String> = hub.asked().into_iter().map(|asked| asked.path).collect();
    assert_eq!(paths, ["/api/models/org/tiny/revision/main"]);

    assert_eq!(hub.generate(&["--offline"]).ok().stdout, expected());
    for yes in ["1", "true", "YES", "on"] {
        let mut command = hub.command(&["inspect", "org/tiny"]);
        command.env("HF_HUB_OFFLINE", yes);
        assert!(run(command, "").ok().stdout.contains("llama"));
    }
    assert_eq!(hub.asked(), []);
}

#[test]
fn the_cache_is_that_of_huggingface_hub() {
    let hub = Hub::new();
    hub.generate(&[]).ok();
    assert_eq!(std::fs::read_to_string(hub.cached("refs/main")).unwrap(), COMMIT);
    let weights = std::fs::read(tiny_dir().join(WEIGHTS)).unwrap();
    assert_eq!(std::fs::read(hub.cached(&format!("blobs/{}", etag(&weights)))).unwrap(), weights);
    if cfg!(unix) {
        let link = hub.cached(&format!("snapshots/{COMMIT}/{WEIGHTS}"));
        assert!(is_link(&link));
        let target = std::fs::read_link(link).unwrap();
        assert_eq!(target.to_str().unwrap(), format!("../../blobs/{}", etag(&weights)));
    }
    assert!(hub.names("blobs").iter().all(|name| !name.ends_with(".incomplete")));

    // What another program left there is used.
    let other = Hub::new();
    std::fs::create_dir_all(other.cached("blobs")).unwrap();
    std::fs::write(other.cached(&format!("blobs/{}", etag(&weights))), &weights).unwrap();
    other.generate(&[]).ok();
    assert!(!other.asked().iter().any(is_weights));
}

#[test]
fn inspect_takes_names_and_directories_win() {
    let hub = Hub::new();
    assert!(hub.kivi(&["inspect", "org/tiny"]).ok().stdout.contains("parameters"));
    assert!(!hub.asked().is_empty());
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("org/tiny")).unwrap();
    let mut command = hub.command(&["inspect", "org/tiny"]);
    command.current_dir(dir.path());
    run(command, "").fails(1, &["org/tiny/config.json", "no such file"]);
    assert_eq!(hub.asked(), []);
}

#[test]
fn a_revision_is_asked_for() {
    let hub = Hub::new();
    hub.generate(&["--revision", "refs/pr/1"]).ok();
    assert_eq!(hub.asked()[0].path, "/api/models/org/tiny/revision/refs%2Fpr%2F1");
    assert_eq!(std::fs::read_to_string(hub.cached("refs/refs/pr/1")).unwrap(), COMMIT);
    hub.generate(&["--revision", "refs/pr/1", "--offline"]).ok();
    hub.generate(&["--revision", COMMIT, "--offline"]).ok();
    hub.generate(&["--offline"]).fails(1, &["org/tiny", "main", "not in the cache", "without --offline"]);
    hub.generate(&["--revision", "../x"]).fails(2, &["--revision", "a branch, a tag or a commit"]);
    let dir = tiny_dir();
    kivi(&["inspect", dir.to_str().unwrap(), "--revision", "v1"])
        .fails(2, &["--revision", "a model of the hub"]);
    hub.twist(|_, _| {
        let mut none = Answer::status("404 Not Found");
        none.headers.push(("X-Error-Code", "RevisionNotFound".into()));
        Some(none)
    });
    hub.generate(&["--revision", "v9"]).fails(1, &["org/tiny", "no revision v9"]);
}

/// A server that closes the connection in the middle of the weights.
fn breaks_off(asked: &Asked, files: &std::collections::BTreeMap<String, Vec<u8>>) -> Option<Answer> {
    is_weights(asked).then(|| {
        let mut half = answer(asked, files);
        half.body.truncate(half.body.len() / 2);
        half
    })
}

#[test]
fn a_download_that_breaks_off_is_resumed() {
    let hub = Hub::new();
    hub.twist(breaks_off);
    hub.generate(&[]).fails(1, &[WEIGHTS, "broke off after", "resume"]);
    assert!(!hub.cached(&format!("snapshots/{COMMIT}/{WEIGHTS}")).exists());
    hub.generate(&["--offline"]).fails(1, &["org/tiny", "not in the cache"]);
    hub.asked();

    hub.twist(|_, _| None);
    assert_eq!(hub.generate(&[]).ok().stdout, expected());
    let half = std::fs::metadata(tiny_dir().join(WEIGHTS)).unwrap().len() / 2;
    let ranges: Vec<_> = hub.asked().into_iter().filter(is_weights).map(|asked| asked.range).collect();
    assert_eq!(ranges, [Some(format!("bytes={half}-"))]);
}

#[test]
fn a_server_without_ranges_starts_again() {
    let hub = Hub::new();
    hub.twist(breaks_off);
    hub.generate(&[]).fails(1, &["broke off"]);
    hub.twist(|asked, files| Some(answer(&Asked { range: None, ..asked.clone() }, files)));
    assert_eq!(hub.generate(&[]).ok().stdout, expected());
}

#[test]
fn a_wrong_part_is_given_up() {
    for status in ["416 Range Not Satisfiable", "206 Partial Content"] {
        let hub = Hub::new();
        hub.twist(breaks_off);
        hub.generate(&[]).fails(1, &["broke off"]);
        // 206 without its range, or none at all: the whole file is asked for.
        hub.twist(move |asked, _| {
            (is_weights(asked) && asked.range.is_some()).then(|| Answer::status(status))
        });
        assert_eq!(hub.generate(&[]).ok().stdout, expected());
    }
}

#[test]
fn a_part_that_is_complete_or_too_long() {
    let hub = Hub::new();
    let weights = std::fs::read(tiny_dir().join(WEIGHTS)).unwrap();
    let part = hub.cached(&format!("blobs/{}.incomplete", etag(&weights)));
    std::fs::create_dir_all(part.parent().unwrap()).unwrap();
    std::fs::write(&part, &weights).unwrap();
    hub.generate(&[]).ok();
    assert!(!hub.asked().iter().any(is_weights));

    let hub = Hub::new();
    let part = hub.cached(&format!("blobs/{}.incomplete", etag(&weights)));
    std::fs::create_dir_all(part.parent().unwrap()).unwrap();
    std::fs::write(&part, vec![1; weights.len() + 1]).unwrap();
    assert_eq!(hub.generate(&[]).ok().stdout, expected());
}

/// Runs against weights that are changed on their way, and checks that they do not become a file.
#[track_caller]
fn damaged(change: impl Fn(&mut Answer) + Send + 'static, parts: &[&str]) {
    let hub = Hub::new();
    hub.twist(move |asked, files| {
        is_weights(asked).then(|| {
            let mut wrong = answer(asked, files);
            change(&mut wrong);
            wrong
        })
    });
    hub.generate(&[]).fails(1, parts);
    assert!(!hub.cached(&format!("snapshots/{COMMIT}/{WEIGHTS}")).exists());
    let weights = std::fs::read(tiny_dir().join(WEIGHTS)).unwrap();
    assert!(!hub.names("blobs").contains(&etag(&weights)));
    hub.twist(|_, _| None);
    assert_eq!(hub.generate(&[]).ok().stdout, expected());
}

#[test]
fn damaged_files_are_not_kept() {
    let no_length = |wrong: &mut Answer| wrong.headers.retain(|(name, _)| *name != "Content-Length");
    damaged(
        move |wrong| {
            wrong.body.truncate(1000);
            no_length(wrong);
        },
        &["broke off after 1000 of"],
    );
    damaged(
        move |wrong| {
            wrong.body.push(0);
            no_length(wrong);
        },
        &[WEIGHTS, "longer than"],
    );
    damaged(
        |wrong| {
            wrong.body.push(0);
            wrong.headers.retain(|(name, _)| *name != "Content-Length");
            wrong.headers.push(("Content-Length", wrong.body.len().to_string()));
        },
        &[WEIGHTS, "longer than"],
    );
    damaged(|wrong| wrong.body[5000] ^= 1, &[WEIGHTS, "SHA-256"]);
}

#[test]
fn large_files_may_lie_elsewhere() {
    let (hub, store) = (Hub::new(), Hub::new());
    // Another name of this computer: the port alone would not make it another host.
    let elsewhere = store.endpoint.replace("127.0.0.1", "localhost");
    hub.twist(move |asked, files| {
        asked.path.ends_with(WEIGHTS).then(|| {
            let mut moved = Answer::status("302 Found");
            moved.headers.push(("Location", format!("{elsewhere}{}", asked.path)));
            moved.headers.push(("X-Linked-Etag", format!("\"{}\"", etag(&files[WEIGHTS]))));
            moved.headers.push(("X-Linked-Size", files[WEIGHTS].len().to_string()));
            moved
        })
    });
    let mut command = hub.command(&["inspect", "org/tiny"]);
    command.env("HF_TOKEN", "hf_secret");
    run(command, "").ok();
    assert!(hub.asked().iter().all(|asked| asked.authorization.as_deref() == Some("Bearer hf_secret")));
    let moved = store.asked();
    assert_eq!(moved.len(), 1);
    assert_eq!(moved[0].authorization, None, "the token is for the hub alone");
}

#[test]
fn a_renamed_repository_is_found() {
    let hub = Hub::new();
    hub.twist(|asked, files| {
        let path = asked.path.replace("/org/old", "/org/tiny");
        if asked.path.contains("/org/old/resolve") {
            let mut moved = Answer::status("307 Temporary Redirect");
            moved.headers.push(("Location", path));
            return Some(moved);
        }
        Some(answer(&Asked { path, ..asked.clone() }, files))
    });
    assert!(hub.kivi(&["inspect", "org/old"]).ok().stdout.contains("llama"));
}

fn always(status: &'static str, code: &'static str) -> Hub {
    let hub = Hub::new();
    hub.twist(move |_, _| {
        let mut refused = Answer::status(status);
        if !code.is_empty() {
            refused.headers.push(("X-Error-Code", code.into()));
        }
        Some(refused)
    });
    hub
}

#[test]
fn what_the_hub_refuses() {
    let cases: [(&str, &str, &[&str]); 7] = [
        ("404 Not Found", "", &["no such directory", "not found", "check the name", "HF_TOKEN"]),
        ("401 Unauthorized", "", &["not there, private or gated", "licence", "HF_TOKEN"]),
        ("401 Unauthorized", "GatedRepo", &["licence", "/org/tiny", "HF_TOKEN", "file token"]),
        ("403 Forbidden", "", &["licence", "HF_TOKEN"]),
        ("500 Internal Server Error", "", &["answered 500", "try again later", "--offline"]),
        ("429 Too Many Requests", "", &["answered 429"]),
        ("200 OK", "", &["no list of files", "HF_ENDPOINT"]),
    ];
    for (status, code, parts) in cases {
        always(status, code).generate(&[]).fails(1, &[&["org/tiny"], parts].concat());
    }
}

#[test]
fn a_token_is_sent_and_its_refusal_is_another_one() {
    for (status, code) in [("401 Unauthorized", "GatedRepo"), ("403 Forbidden", ""), ("401 Unauthorized", "")]
    {
        let hub = always(status, code);
        let mut command = hub.command(&["inspect", "org/tiny"]);
        command.env("HF_TOKEN", " hf_secret\n");
        run(command, "").fails(1, &["the token may not read it", "licence"]);
        assert_eq!(hub.asked()[0].authorization.as_deref(), Some("Bearer hf_secret"));
        std::fs::write(hub.home.path().join("token"), "hf_file\n").unwrap();
        hub.kivi(&["inspect", "org/tiny"]).fails(1, &["the token may not read it"]);
        assert_eq!(hub.asked()[0].authorization.as_deref(), Some("Bearer hf_file"));
    }
    let mut command = Hub::new().command(&["inspect", "org/tiny"]);
    command.env("HF_TOKEN", "hf secret");
    run(command, "").fails(1, &["HF_TOKEN", "blanks"]);
}

#[test]
fn no_hub_at_all() {
    let mut hub = Hub::new();
    hub.endpoint = {
        // A port that nobody listens at any more.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    hub.generate(&[]).fails(1, &["org/tiny", "cannot be reached", "--offline"]);
    hub.generate(&["--offline"]).fails(1, &["revision main is not in the cache", "give a directory"]);
    hub.endpoint = "ftp://x".into();
    hub.generate(&[]).fails(1, &["HF_ENDPOINT", "https://HOST"]);
}

#[test]
fn offline_names_the_file_that_is_missing() {
    let hub = Hub::new();
    hub.generate(&[]).ok();
    std::fs::remove_file(hub.cached(&format!("snapshots/{COMMIT}/tokenizer.json"))).unwrap();
    hub.asked();
    hub.generate(&["--offline"]).fails(1, &["tokenizer.json of revision main", "not in the cache"]);
    assert_eq!(hub.asked(), []);
    hub.generate(&[]).ok();
}

#[test]
fn a_full_disk_is_one_line() {
    if !cfg!(target_os = "linux") {
        return;
    }
    let hub = Hub::new();
    let weights = std::fs::read(tiny_dir().join(WEIGHTS)).unwrap();
    let part = hub.cached(&format!("blobs/{}.incomplete", etag(&weights)));
    std::fs::create_dir_all(part.parent().unwrap()).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("/dev/full", &part).unwrap();
    hub.generate(&[])
        .fails(1, &[".incomplete", "cannot be written", "make room", "HF_HOME", "No space left"]);
}

#[test]
fn what_a_repository_lacks() {
    let hub = Hub::new();
    hub.edit(|files| {
        let weights = files.remove(WEIGHTS).unwrap();
        files.insert("pytorch_model.bin".into(), weights);
    });
    hub.generate(&[]).fails(1, &["org/tiny", "only pickled weights (pytorch_model.bin)", "save_pretrained"]);
    assert_eq!(hub.asked().len(), 1);
    hub.edit(|files| drop(files.remove("pytorch_model.bin")));
    hub.generate(&[]).fails(1, &["org/tiny", "has no weights"]);
    hub.edit(|files| drop(files.remove("config.json")));
    hub.generate(&[]).fails(1, &["org/tiny", "has no config.json"]);
}

/// kivi-tiny with its weights under the name that an index gives them.
fn sharded(shard: &str) -> Hub {
    let hub = Hub::new();
    hub.edit(|files| {
        let weights = files.remove(WEIGHTS).unwrap();
        let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&weights[8..8 + header]).unwrap();
        let names = header.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
        let map: serde_json::Map<_, _> = names.map(|name| (name.clone(), shard.into())).collect();
        let index = serde_json::json!({ "weight_map": map }).to_string();
        files.insert("model.safetensors.index.json".into(), index.into());
        files.insert("model-00001-of-00001.safetensors".into(), weights);
    });
    hub
}

#[test]
fn shards_are_those_of_the_index() {
    let hub = sharded("model-00001-of-00001.safetensors");
    assert_eq!(hub.generate(&[]).ok().stdout, expected());
    assert_eq!(hub.generate(&["--offline"]).ok().stdout, expected());
    std::fs::remove_file(hub.cached(&format!("snapshots/{COMMIT}/model-00001-of-00001.safetensors")))
        .unwrap();
    hub.generate(&["--offline"]).fails(1, &["model-00001-of-00001.safetensors", "not in the cache"]);
    sharded("model-2.safetensors").generate(&[]).fails(1, &["model-2.safetensors", "not in the repository"]);
}

#[test]
fn hostile_shards_are_refused() {
    for shard in
        ["../../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "x.bin", "a\nb.safetensors"]
    {
        let hub = sharded(shard);
        hub.asked();
        hub.generate(&[]).fails(1, &["weight_map", "without a path", "do not use this checkpoint"]);
        assert!(!hub.asked().iter().any(|asked| asked.path.contains("passwd") || asked.path.contains("/x.")));
    }
}

#[test]
fn hostile_names_never_reach_the_hub() {
    let hub = Hub::new();
    for name in [
        "../../absent",
        "a b/c",
        "a/",
        "/absent/b",
        "org/tiny/x",
        "org/..",
        "org/t?x",
        "org--a/b",
        "https://x/y",
    ] {
        hub.kivi(&["inspect", "-m", name]).fails(1, &["no such directory"]);
    }
    hub.kivi(&["generate", "Once upon a time"]).fails(2, &["no such directory", "--prompt"]);
    assert_eq!(hub.asked(), []);
}

#[test]
fn hostile_answers_stay_in_the_cache() {
    let hub = Hub::new();
    hub.twist(|asked, _| {
        let mut list = listing(["config.json", "tokenizer.json", WEIGHTS].into_iter());
        list.body =
            String::from_utf8(list.body).unwrap().replace(COMMIT, "../../../../escaped/to/commit").into();
        list.headers = vec![("Content-Length", list.body.len().to_string())];
        asked.path.starts_with("/api/").then_some(list)
    });
    hub.generate(&[]).fails(1, &["a commit that is none"]);
    hub.twist(|asked, files| {
        let mut wrong = answer(asked, files);
        wrong.headers.retain(|(name, _)| *name != "ETag");
        wrong.headers.push(("ETag", "\"../../escaped\"".into()));
        Some(wrong)
    });
    hub.generate(&[]).fails(1, &["ETag and size"]);
    assert!(!hub.home.path().join("hub/escaped").exists() && hub.names("blobs").is_empty());
}

#[test]
fn two_at_once_download_once() {
    let hub = Hub::new();
    let slow = AtomicBool::new(true);
    hub.twist(move |asked, _| {
        if is_weights(asked) && slow.swap(false, Ordering::SeqCst) {
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        None
    });
    std::thread::scope(|scope| {
        let both = [scope.spawn(|| hub.generate(&[])), scope.spawn(|| hub.generate(&[]))];
        both.into_iter().for_each(|one| assert_eq!(one.join().unwrap().stdout, expected()));
    });
    assert_eq!(hub.asked().iter().filter(|asked| is_weights(asked)).count(), 1);
}
