//! `plot` and `inspect --kv` from the command line: real results as pictures, and one line for what is none.

mod common;

use std::path::{Path, PathBuf};

use common::{Ran, kivi, kivi_in};
use serde_json::{Value, json};

const TEXT: &str =
    "Once upon a time there was a king who had three sons, and the youngest of them was called the fool. ";

fn plot(dir: &Path, args: &[&str]) -> Ran {
    kivi_in(dir, &[&["plot"], args].concat(), "")
}

/// A folder with results of every command that has some.
fn results() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let save = |name: &str, ran: Ran| std::fs::write(path.join(name), ran.ok().stdout).unwrap();
    let text = path.join("text.txt");
    std::fs::write(&text, TEXT.repeat(30)).unwrap();
    let text = text.to_str().unwrap();
    let bench = ["bench", "-p", "0", "-n", "2", "-d", "0,300", "-b", "1,2", "-r", "1", "--no-warmup", "-q"];
    let file = path.join("bench.json");
    kivi(&[&bench[..], &["--json", file.to_str().unwrap()]].concat()).ok();
    let perplexity =
        ["perplexity", "-f", text, "-c", "192", "--limit", "2", "--kv-bits", "2", "--kv-residual", "32"];
    save("perplexity.json", kivi(&[&perplexity[..], &["--json"]].concat()));
    let eval = ["eval", "passkey", "--lengths", "300,400", "--depths", "2", "--trials", "1", "--json"];
    save("eval.json", kivi(&eval));
    save("inspect.json", kivi(&["inspect", "--json"]));
    save("kv.json", kivi(&["inspect", "-f", text, "--layers", "0,-1", "--json"]));
    (dir, path)
}

fn read(path: PathBuf) -> Vec<u8> {
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The attributes and the text of each text element of an SVG.
fn texts(svg: &str) -> Vec<(&str, &str)> {
    let element =
        |part: &'_ str| -> Option<(usize, usize)> { Some((part.find('>')?, part.find("</text>")?)) };
    let parts = svg.split("<text ").skip(1);
    parts.filter_map(|part| element(part).map(|(a, b)| (&part[..a], part[a + 1..b].trim()))).collect()
}

#[test]
fn results_of_every_command_are_drawn() {
    let (_dir, path) = results();
    std::fs::create_dir(path.join("out")).unwrap();
    let all = plot(&path, &["bench.json", "-o", "out"]).ok().stdout;
    let kinds = ["memory-context", "memory-batch", "throughput-batch", "step-time"];
    assert_eq!(all.lines().count(), kinds.len(), "{all}");
    for kind in kinds {
        let svg = String::from_utf8(read(path.join(format!("out/{kind}.svg")))).unwrap();
        assert!(svg.starts_with("<svg width=\"800\"") && svg.trim_end().ends_with("</svg>"));
        let words: Vec<&str> = texts(&svg).iter().map(|(_, text)| *text).collect();
        assert!(words.contains(&"16 bits") && words.contains(&"K2 V2 g32 R128"), "{words:?}");
        // Two caches over two points in two panels.
        assert!(svg.matches("<polyline").count() >= 4, "{kind}");
        assert!(texts(&svg).iter().all(|(attributes, _)| attributes.contains("DejaVu Sans")));
    }
    for (result, axis) in [
        ("perplexity", "mean KL divergence (nats)"),
        ("eval", "length of the prompt (tokens)"),
        ("inspect", "memory (MiB)"),
        ("kv", "magnitude"),
    ] {
        let file = format!("{result}.json");
        plot(&path, &[&file, "-o", "one.svg"]).ok();
        let svg = String::from_utf8(read(path.join("one.svg"))).unwrap();
        assert!(texts(&svg).iter().any(|(_, text)| *text == axis), "{result}: {axis}");
    }
}

#[test]
fn a_png_has_what_the_svg_has() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let setting = |name, kld| json!({"name": name, "mean_kld": kld, "perplexity": 5.0});
    let ablate = json!({"command": "ablate", "settings": [setting("16 bits", 0.0), setting("2 bits", 0.5)]});
    std::fs::write(path.join("a.json"), ablate.to_string()).unwrap();
    for out in ["a.svg", "a.PNG"] {
        let ran = plot(path, &["a.json", "--kind", "ablate-kld", "-o", out]).ok();
        assert_eq!(ran.stdout, format!("{out}\n"));
    }
    let svg = String::from_utf8(read(path.join("a.svg"))).unwrap();
    let height: u32 = svg.split("height=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
    let png = read(path.join("a.PNG"));
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    assert_eq!(number(16), 1600);
    assert!(number(20).abs_diff(2 * height) <= 1, "{} and {height}", number(20));
    // An empty picture of this size takes a tenth of this.
    assert!(png.len() > 20_000, "{} bytes", png.len());
    let left: Vec<_> = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn what_cannot_be_drawn_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let write = |name: &str, text: &str| std::fs::write(path.join(name), text).unwrap();
    write("text.json", "no JSON");
    write("nan.json", r#"{"command": "ablate", "settings": [{"name": "a", "mean_kld": NaN}]}"#);
    write("huge.json", r#"{"command": "ablate", "settings": [{"name": "a", "mean_kld": 1e999}]}"#);
    write("array.json", "[1, 2]");
    write("other.json", r#"{"command": "generate"}"#);
    write("half.json", r#"{"command": "perplexity", "model": "m"}"#);
    write("rows.json", r#"{"command": "bench", "rows": []}"#);
    write("ok.json", r#"{"command": "ablate", "settings": [{"name": "a"}, {"name": "b", "mean_kld": 1.0}]}"#);
    write("old.svg", "old");
    let fails = |args: &[&str], code, parts: &[&str]| plot(path, args).fails(code, parts);
    fails(&["absent.json", "-o", "a.svg"], 1, &["absent.json: cannot be opened"]);
    fails(&[".", "-o", "a.svg"], 1, &["cannot be read"]);
    for name in ["text", "nan", "huge"] {
        fails(
            &[&format!("{name}.json"), "-o", "a.svg"],
            1,
            &[name, "expected JSON that kivi-cli wrote", "line 1"],
        );
    }
    fails(&["array.json", "-o", "a.svg"], 1, &["array.json: has no text `command`"]);
    fails(&["other.json", "-o", "a.svg"], 1, &["is of `generate`, expected a result of bench"]);
    fails(&["half.json", "-o", "a.svg"], 1, &["half.json", "missing field"]);
    fails(&["rows.json", "-o", "a.svg"], 1, &["rows.json: expected a result of `bench`", "missing field"]);
    fails(&["ok.json", "-o", "a.svg"], 2, &["--kind: expected one of ablate-kld, ablate-perplexity"]);
    fails(&["ok.json", "-o", "a.svg", "--kind", "heat"], 2, &["expected ablate-kld", "found heat"]);
    fails(&["ok.json", "-o", "a.svg", "--kind", "pie"], 2, &["pie", "see kivi-cli plot --help"]);
    fails(&["ok.json", "--kind", "ablate-perplexity", "-o", "old.svg"], 1, &["b: has no `perplexity`"]);
    assert_eq!(read(path.join("old.svg")), b"old", "what cannot be drawn replaces nothing");
    for out in ["a.pdf", "a", "a.svg.gz"] {
        fails(&["ok.json", "-o", out], 2, &["expected a name that ends in .svg or .png"]);
    }
    fails(&["ok.json", "-o", "no/a.svg"], 1, &["no such directory: no"]);
    fails(&["ok.json", "ok.json", "--kind", "ablate-kld", "-o", "a.svg"], 1, &["expected one result"]);
    fails(&["ok.json"], 2, &["--out"]);
    assert!(!path.join("a.svg").exists());
}

fn kv(args: &[&str]) -> Value {
    kivi(&[&["inspect", "--json"], args].concat()).ok().json()
}

#[test]
fn magnitudes_of_keys_and_values() {
    let text = TEXT.repeat(40);
    let found = kv(&["--kv", &text, "--layers", "-1,2", "--head", "1"]);
    assert_eq!(
        (&found["command"], &found["head"], &found["n_kv_heads"]),
        (&json!("inspect --kv"), &json!(1), &json!(2))
    );
    let tokens = found["prompt_tokens"].as_u64().unwrap() as usize;
    assert!(tokens > 512, "{tokens}");
    let layers = found["layers"].as_array().unwrap();
    assert_eq!(layers.iter().map(|layer| layer["layer"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 7]);
    for layer in layers {
        let places = layer["tokens"].as_array().unwrap();
        assert!(
            places.len() <= 256
                && places.len() > 128
                && places.last().unwrap().as_u64().unwrap() < tokens as u64
        );
        assert_eq!(layer["heads"].as_array().unwrap().len(), 2);
        for side in ["key", "value"] {
            let rows = layer[side]["magnitudes"].as_array().unwrap();
            assert_eq!((rows.len(), rows[0].as_array().unwrap().len()), (places.len(), 64));
            let all = rows.iter().flat_map(|row| row.as_array().unwrap()).map(|x| x.as_f64().unwrap());
            assert!(all.clone().all(|x| x >= 0.0) && all.sum::<f64>() > 0.0);
        }
    }
    // A prefix has the same keys and values: what a token sees is before it.
    let (short, long) =
        (kv(&["--kv", TEXT, "--layers", "3"]), kv(&["--kv", &TEXT.repeat(2), "--layers", "3"]));
    for side in ["key", "value"] {
        let rows = |found: &Value| found["layers"][0][side]["magnitudes"].clone();
        let (short, long) = (rows(&short), rows(&long));
        for (a, b) in short.as_array().unwrap().iter().zip(long.as_array().unwrap()).take(10) {
            for (a, b) in a.as_array().unwrap().iter().zip(b.as_array().unwrap()) {
                let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
                assert!((a - b).abs() <= 0.01 * (1.0 + a), "{side}: {a} and {b}");
            }
        }
    }
    let table = kivi(&["inspect", "--kv", TEXT]).ok().stdout;
    assert!(table.contains("| 7 | 1 |") && table.contains("keys after RoPE"), "{table}");
}

#[test]
fn what_has_no_magnitudes_is_one_line() {
    let fails = |args: &[&str], code, parts: &[&str]| kivi(&[&["inspect"], args].concat()).fails(code, parts);
    fails(&["--kv", ""], 2, &["expected a text, found an empty one"]);
    fails(&["-f", "absent.txt"], 1, &["absent.txt: cannot be opened"]);
    fails(&["--kv", "a", "--layers", "8"], 2, &["--layers: expected layers from -8 to 7, found 8"]);
    fails(&["--kv", "a", "--head", "2"], 2, &["--head: expected 0 to 1, found 2"]);
    fails(&["--layers", "1"], 2, &["--kv"]);
    fails(&["--kv", &"word ".repeat(9000)], 1, &["the context holds 8192"]);
    fails(&["--kv", "a", "-f", "b"], 2, &["--file"]);
}
