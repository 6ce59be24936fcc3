//! `cargo xtask report`: writes the tables of `docs/*.md` from the results in `docs/results`.
//!
//! A table stands between `<!-- report NAME -->` and `<!-- end of report -->`; `NAME.json` is what a command of kivi-cli wrote by
//! `--json`. A line above the table says where, when, from which commit and by which command.

mod tables;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

const BEGIN: &str = "<!-- report ";
const END: &str = "<!-- end of report -->";

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Change nothing; fail where a document is not what the results say
    #[arg(long)]
    check: bool,
}

/// Rewrites the documents, or compares them.
pub fn run(args: &Args) -> Result<()> {
    let docs = crate::root().join("docs");
    for path in documents(&docs)? {
        let old = fs::read_to_string(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
        let new = with_tables(&old, &docs.join("results")).with_context(|| path.display().to_string())?;
        if new == old {
            continue;
        }
        ensure!(!args.check, "{}: is not what docs/results says; run `cargo xtask report`", path.display());
        fs::write(&path, new).with_context(|| format!("{}: cannot be written", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// The Markdown files of `docs`.
fn documents(docs: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(docs).with_context(|| format!("{}: cannot be read", docs.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.sort();
    Ok(paths)
}

/// The text with each table made again.
fn with_tables(text: &str, results: &Path) -> Result<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(BEGIN) {
        let (name, after) = after.split_once(" -->").context("a report mark has no end")?;
        let (_, after) = after.split_once(END).with_context(|| format!("report {name}: expected `{END}`"))?;
        let table = table(&read(results, name)?).with_context(|| format!("report {name}"))?;
        out += &format!("{before}{BEGIN}{name} -->\n{table}{END}");
        rest = after;
    }
    Ok(out + rest)
}

fn read(results: &Path, name: &str) -> Result<Value> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    ensure!(name.chars().all(plain), "report {name}: expected letters, digits and `-`");
    let path = results.join(name).with_extension("json");
    let bytes = fs::read(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{}: is not JSON", path.display()))
}

/// What stands between the marks.
fn table(result: &Value) -> Result<String> {
    let rows = match result["command"].as_str() {
        Some("perplexity") => tables::perplexity(result)?,
        Some("ablate") => tables::ablate(result)?,
        Some("bench") => tables::bench(result)?,
        Some("eval") => tables::eval(result)?,
        other => bail!("expected a result of perplexity, ablate, bench or eval, found {other:?}"),
    };
    Ok(format!("{}\n\n{rows}", provenance(result)?))
}

/// The command line, but for where it wrote, and where and when it ran.
fn provenance(result: &Value) -> Result<String> {
    let words = result["command_line"].as_array().context("has no command_line")?;
    let words: Vec<&str> = words.iter().skip(1).filter_map(Value::as_str).collect();
    let output = |i: usize| {
        ["--json", "-q"].contains(&words[i])
            || i > 0 && words[i - 1] == "--json" && !words[i].starts_with('-')
    };
    let words: Vec<&str> = (0..words.len()).filter(|&i| !output(i)).map(|i| words[i]).collect();
    let text = |key: &str| result[key].as_str().with_context(|| format!("has no {key}"));
    let (device, date) = (text("device")?, text("date")?);
    let mut place = match result["driver"].as_str() {
        Some(driver) => format!("{device} ({}, driver {driver})", text("dtype")?),
        None => format!("{} threads of {}", result["threads"], text("cpu")?),
    };
    if let Some(commit) = result["commit"].as_str() {
        place += &format!(", commit {}", &commit[..commit.len().min(9)]);
    }
    Ok(format!("`kivi-cli {}`: {place}, {}.", words.join(" "), date.split('T').next().unwrap_or(date)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_are_what_the_results_say() {
        run(&Args { check: true }).unwrap();
    }

    #[test]
    fn a_table_is_made_between_its_marks() {
        let dir = std::env::temp_dir().join(format!("kivi-report-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let result = json!({"command": "eval", "task": "passkey", "command_line": ["x", "eval", "--json", "to", "passkey", "-q"], "device": "cpu",
            "cpu": "processor", "threads": 2, "date": "2026-01-02T03:04:05Z", "commit": "0123456789abcdef", "cache": "K2 V2",
            "lengths": [{"length": 500, "correct": 3, "prompts": 4}]});
        fs::write(dir.join("a-1.json"), result.to_string()).unwrap();
        let page =
            |between: &str| format!("Before.\n<!-- report a-1 -->{between}<!-- end of report -->\nAfter.\n");
        let made = with_tables(&page("\nold\n"), &dir).unwrap();
        assert!(
            made.starts_with("Before.\n<!-- report a-1 -->\n`kivi-cli eval passkey`: 2 threads of processor")
        );
        assert!(made.contains("commit 012345678, 2026-01-02.\n\nK2 V2\n\n| tokens | found |"), "{made}");
        assert!(made.contains("| 500 | 3 of 4 |") && made.ends_with("<!-- end of report -->\nAfter.\n"));
        assert_eq!(with_tables(&made, &dir).unwrap(), made, "nothing changes the second time");
        for (text, part) in [
            ("<!-- report absent --><!-- end of report -->", "cannot be read"),
            ("<!-- report ../a --><!-- end of report -->", "expected letters"),
            ("<!-- report a-1 -->", "expected `<!-- end of report"),
        ] {
            let error = format!("{:#}", with_tables(text, &dir).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
