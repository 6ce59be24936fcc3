//! Notes the commit that is built, for the files of `bench`; nothing if there is no git, or no repository.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=KIVI_COMMIT");
    let given = std::env::var("KIVI_COMMIT").ok();
    if let Some(file) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={file}");
    }
    if let Some(commit) = given.or_else(|| git(&["rev-parse", "--short=12", "HEAD"])) {
        println!("cargo::rustc-env=KIVI_COMMIT={commit}");
    }
}

/// What git prints, if it succeeds.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}
