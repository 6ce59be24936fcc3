//! A hub on this computer: HTTP/1.1, one thread a connection, one request a connection.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use assert_cmd::Command;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{Ran, run, tiny_dir};

/// The commit of the main branch.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

/// An answer; without a length, the body ends with the connection.
pub struct Answer {
    pub status: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// An empty answer.
    pub fn status(status: &'static str) -> Self {
        Self { status, headers: vec![("Content-Length", "0".into())], body: Vec::new() }
    }
}

type Files = BTreeMap<String, Vec<u8>>;
/// Answers in another way than a hub would; gets that way, too.
type Twist = Box<dyn Fn(&Asked, &Files) -> Option<Answer> + Send>;

struct State {
    files: Files,
    asked: Vec<Asked>,
    twist: Twist,
}

/// A hub with `org/tiny`, and a cache that is empty at first.
pub struct Hub {
    state: Arc<Mutex<State>>,
    pub endpoint: String,
    pub home: TempDir,
}

impl Hub {
    /// A hub that has kivi-tiny.
    pub fn new() -> Self {
        let files = std::fs::read_dir(tiny_dir()).unwrap().map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap())
        });
        Self::with(files.collect())
    }

    /// A hub that has these files.
    pub fn with(files: Files) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { files, asked: Vec::new(), twist: Box::new(|_, _| None) }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(&stream, &shared));
            }
        });
        Self { state, endpoint, home: tempfile::tempdir().unwrap() }
    }

    /// Answers differently from now on.
    pub fn twist(&self, twist: impl Fn(&Asked, &Files) -> Option<Answer> + Send + 'static) {
        self.state.lock().unwrap().twist = Box::new(twist);
    }

    /// Changes the repository.
    pub fn edit(&self, change: impl FnOnce(&mut Files)) {
        change(&mut self.state.lock().unwrap().files);
    }

    /// What was asked since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    /// The program, with this hub and this cache.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kivi-cli"));
        for name in [
            "HF_TOKEN",
            "HF_TOKEN_PATH",
            "HF_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "http_proxy",
            "HTTP_PROXY",
            "ALL_PROXY",
            "all_proxy",
        ] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.endpoint).env("HF_HOME", self.home.path()).args(args);
        command
    }

    /// Runs it.
    pub fn kivi(&self, args: &[&str]) -> Ran {
        run(self.command(args), "")
    }

    /// Generates with `org/tiny`.
    pub fn generate(&self, more: &[&str]) -> Ran {
        self.kivi(&[&["generate", "-q", "-n", "8", "-p", super::PROMPT, "-m", "org/tiny"], more].concat())
    }

    /// The repository's folder in the cache.
    pub fn cached(&self, path: &str) -> std::path::PathBuf {
        self.home.path().join("hub/models--org--tiny").join(path)
    }

    /// Names of what is in a folder of it.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.cached(folder)) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// The ETag of some content: its SHA-256, as for large files.
pub fn etag(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn serve(stream: &TcpStream, state: &Mutex<State>) {
    let Some(asked) = read(stream) else { return };
    let answer = {
        let mut state = state.lock().unwrap();
        state.asked.push(asked.clone());
        (state.twist)(&asked, &state.files).unwrap_or_else(|| answer(&asked, &state.files))
    };
    let mut head = format!("HTTP/1.1 {}\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let mut out = stream;
    let body = if asked.method == "HEAD" { &[][..] } else { &answer.body };
    let _ = out.write_all((head + "\r\n").as_bytes()).and_then(|()| out.write_all(body));
}

fn read(stream: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let headers: BTreeMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let header = |name: &str| headers.get(name).cloned();
    Some(Asked { method, path, range: header("range"), authorization: header("authorization") })
}

/// What a hub says.
pub fn answer(asked: &Asked, files: &Files) -> Answer {
    if asked.path.starts_with("/api/models/org/tiny/revision/") {
        return listing(files.keys().map(String::as_str));
    }
    let name = asked.path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/"));
    let Some(bytes) = name.and_then(|name| files.get(name)) else { return Answer::status("404 Not Found") };
    let start =
        asked.range.as_ref().map(|range| range["bytes=".len()..].trim_end_matches('-').parse().unwrap());
    let mut headers = vec![("ETag", format!("\"{}\"", etag(bytes)))];
    if let Some(start) = start {
        headers.push(("Content-Range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len())));
    }
    let body = bytes[start.unwrap_or(0)..].to_vec();
    headers.push(("Content-Length", body.len().to_string()));
    Answer { status: if start.is_some() { "206 Partial Content" } else { "200 OK" }, headers, body }
}

/// The list of a repository's files.
pub fn listing<'a>(names: impl Iterator<Item = &'a str>) -> Answer {
    let siblings: Vec<_> = names.map(|name| serde_json::json!({ "rfilename": name })).collect();
    let body =
        serde_json::json!({ "sha": COMMIT, "siblings": siblings, "private": false }).to_string().into_bytes();
    Answer { status: "200 OK", headers: vec![("Content-Length", body.len().to_string())], body }
}

/// Whether a path is a symbolic link to something that exists.
pub fn is_link(path: &Path) -> bool {
    path.is_symlink() && path.exists()
}
