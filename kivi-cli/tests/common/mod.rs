//! Runs of the program, and checkpoints to damage.
#![allow(dead_code)] // Each test binary uses a part.

#[cfg(feature = "hub")]
pub mod hub;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// A prompt that kivi-tiny continues with prose.
pub const PROMPT: &str = "Once upon a time there was a king who";

/// What a run of the program left behind.
pub struct Ran {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The exit code.
    pub code: i32,
    /// How long it took.
    pub time: Duration,
}

/// Runs the program with nothing on standard input.
pub fn kivi<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Ran {
    kivi_with(args, "")
}

/// Runs the program with this on standard input.
pub fn kivi_with<S: AsRef<std::ffi::OsStr>>(args: &[S], stdin: impl Into<Vec<u8>>) -> Ran {
    kivi_in(Path::new("."), args, stdin)
}

/// Runs the program in this directory.
pub fn kivi_in<S: AsRef<std::ffi::OsStr>>(dir: &Path, args: &[S], stdin: impl Into<Vec<u8>>) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kivi-cli"));
    command.current_dir(dir).args(args);
    run(command, stdin)
}

/// Runs the program as it is set up.
pub fn run(mut command: Command, stdin: impl Into<Vec<u8>>) -> Ran {
    // What is expected was made on the CPU.
    command.env("CUDA_VISIBLE_DEVICES", "");
    command.env_remove("RUST_LOG").env_remove("RUST_BACKTRACE").timeout(Duration::from_secs(120));
    let start = Instant::now();
    let output = command.write_stdin(stdin).output().unwrap();
    Ran {
        stdout: String::from_utf8(output.stdout).expect("standard output is UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("standard error is UTF-8"),
        code: output.status.code().expect("the program was not killed"),
        time: start.elapsed(),
    }
}

impl Ran {
    /// Checks that the run succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self
    }

    /// Checks that the run failed as every run should: one line, soon, and nothing on standard output.
    #[track_caller]
    pub fn fails(self, code: i32, parts: &[&str]) {
        let stderr = &self.stderr;
        assert!(stderr.starts_with("error: "), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.ends_with('\n'), "{stderr}");
        assert_eq!(self.code, code, "{stderr}");
        assert_eq!(self.stdout, "", "{stderr}");
        for part in parts {
            assert!(stderr.contains(part), "expected {part:?} in: {stderr}");
        }
        assert!(self.time < Duration::from_secs(5), "took {:?}: {stderr}", self.time);
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

/// `generate --json` with these arguments.
pub fn generate_json(args: &[&str]) -> Value {
    kivi(&[&["generate", "--json"], args].concat()).ok().json()
}

/// The text with every number replaced by `#`, and every run of blanks by one, so that times do not matter.
pub fn masked(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let c = if c.is_ascii_digit() { '#' } else { c };
        let repeats = matches!(c, '#' | ' ') && out.ends_with(c);
        let inside = matches!(c, '.' | ',') && out.ends_with('#');
        if !repeats && !inside {
            out.push(c);
        }
    }
    out
}

/// The directory of the built-in model's files.
pub fn tiny_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/kivi-tiny")
}

/// A copy of kivi-tiny to damage.
pub struct Checkpoint {
    dir: TempDir,
}

impl Checkpoint {
    /// An undamaged copy.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(tiny_dir()).unwrap() {
            let path = entry.unwrap().path();
            // Not `copy`, which would keep the files read-only.
            std::fs::write(dir.path().join(path.file_name().unwrap()), std::fs::read(&path).unwrap())
                .unwrap();
        }
        Self { dir }
    }

    /// A file of it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Its directory, as an argument.
    pub fn path(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    /// Replaces a file.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.file(name), bytes).unwrap();
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.file(name)).unwrap();
    }

    /// Changes a JSON file.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&std::fs::read(self.file(name)).unwrap()).unwrap();
        change(&mut value);
        self.write(name, value.to_string());
    }

    /// Changes header and data of the weights.
    pub fn edit_weights(&self, change: impl FnOnce(&mut Value, &mut Vec<u8>)) {
        let bytes = std::fs::read(self.file("model.safetensors")).unwrap();
        let (len, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
        let (mut header, mut data) = (serde_json::from_slice(header).unwrap(), data.to_vec());
        change(&mut header, &mut data);
        self.write("model.safetensors", safetensors(&header, &data));
    }

    /// Runs `generate` on it.
    pub fn generate(&self) -> Ran {
        kivi(&["generate", "-q", "-n", "2", "-p", "Hello", "-m", self.path()])
    }
}

/// A safetensors file.
pub fn safetensors(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}
