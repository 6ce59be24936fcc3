//! A table of each kind of result.

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Rows of cells, the head first.
struct Table(Vec<Vec<String>>);

impl Table {
    fn new(head: &[&str]) -> Self {
        Self(vec![head.iter().map(|cell| (*cell).to_owned()).collect()])
    }

    fn text(&self) -> String {
        let line = |cells: &Vec<String>| format!("| {} |\n", cells.join(" | "));
        let rule = format!("|{}\n", "---|".repeat(self.0[0].len()));
        let rows: String = self.0[1..].iter().map(line).collect();
        line(&self.0[0]) + &rule + &rows
    }
}

fn rows<'a>(result: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    result[key].as_array().filter(|rows| !rows.is_empty()).with_context(|| format!("has no {key}"))
}

fn number(value: &Value, key: &str) -> Result<f64> {
    value[key].as_f64().with_context(|| format!("has no number {key}"))
}

fn text(value: &Value, key: &str) -> Result<String> {
    value[key].as_str().map(str::to_owned).with_context(|| format!("has no text {key}"))
}

/// What a setting of `perplexity` and of `ablate` have in common.
fn quality(setting: &Value, first: f64) -> Result<Vec<String>> {
    let of = |key| number(setting, key);
    Ok(vec![
        format!("{:.3} ± {:.3}", of("perplexity")?, of("perplexity_error")?),
        format!("{:+.2} %", (of("perplexity")? / first - 1.0) * 100.0),
        format!("{:.5} ± {:.5}", of("mean_kld")?, of("mean_kld_error")?),
        format!("{:.2} %", of("same_top")? * 100.0),
    ])
}

/// A row a setting.
pub fn perplexity(result: &Value) -> Result<String> {
    let settings = rows(result, "settings")?;
    let first = number(&settings[0], "perplexity")?;
    let mut table = Table::new(&[
        "cache",
        "perplexity",
        "of 16 bits",
        "mean KLD",
        "same top",
        "median KLD",
        "99 %",
        "max",
        "bits an element",
    ]);
    for setting in settings {
        let of = |key| number(setting, key);
        let mut cells = vec![text(setting, "cache")?];
        cells.extend(quality(setting, first)?);
        cells.extend([
            format!("{:.5}", of("median_kld")?),
            format!("{:.4}", of("p99_kld")?),
            format!("{:.2}", of("max_kld")?),
            format!("{:.2}", of("bits_per_element")?),
        ]);
        table.0.push(cells);
    }
    Ok(table.text())
}

/// A row a setting, with a column for each length of passkey.
pub fn ablate(result: &Value) -> Result<String> {
    let settings = rows(result, "settings")?;
    let first = number(&settings[0], "perplexity")?;
    let lengths: Vec<&Value> =
        settings[0]["passkey"].as_array().map_or(Vec::new(), |all| all.iter().collect());
    let heads: Vec<String> = lengths.iter().map(|of| format!("passkey {}", of["length"])).collect();
    let mut head = vec!["cache", "perplexity", "of 16 bits", "mean KLD", "same top"];
    head.extend(heads.iter().map(String::as_str));
    let mut table = Table::new(&head);
    for setting in settings {
        let mut cells = vec![text(setting, "name")?];
        cells.extend(quality(setting, first)?);
        for of in setting["passkey"].as_array().into_iter().flatten() {
            cells.push(format!("{} of {}", of["correct"], of["prompts"]));
        }
        table.0.push(cells);
    }
    Ok(table.text())
}

/// A row a measurement.
pub fn bench(result: &Value) -> Result<String> {
    let mut table = Table::new(&[
        "test",
        "sequences",
        "tokens before",
        "cache",
        "tokens/s",
        "ms a step",
        "over 16 bits",
        "memory, MiB",
    ]);
    for row in rows(result, "rows")? {
        let optional =
            |value: Option<f64>, digits: usize| value.map_or("".into(), |x| format!("{x:.digits$}"));
        table.0.push(vec![
            text(row, "test")?,
            row["batch_size"].to_string(),
            row["depth"].to_string(),
            cache(&row["cache"])?,
            format!("{:.0}", number(row, "tokens_per_second")?),
            optional(row["steps"]["median_ms"].as_f64(), 2),
            optional(row["over_16_bits"].as_f64(), 2),
            format!("{:.0}", number(&row["memory"], "sum")? / f64::from(1 << 20)),
        ]);
    }
    Ok(table.text())
}

/// A setting of the cache, as a bench has it.
fn cache(value: &Value) -> Result<String> {
    let of = |key| number(value, key);
    let bits = format!("K{} V{}", of("k_bits")?, of("v_bits")?);
    let packed = of("k_bits")? < 16.0 || of("v_bits")? < 16.0;
    Ok(if packed { format!("{bits} g{} R{}", of("group_size")?, of("residual_length")?) } else { bits })
}

/// A row a length, or a task.
pub fn eval(result: &Value) -> Result<String> {
    match result["task"].as_str() {
        Some("passkey" | "needle" | "lines") => {
            let mut table = Table::new(&["tokens", "found"]);
            for of in rows(result, "lengths")? {
                table
                    .0
                    .push(vec![of["length"].to_string(), format!("{} of {}", of["correct"], of["prompts"])]);
            }
            Ok(format!("{}\n\n{}", text(result, "cache")?, table.text()))
        }
        other => bail!("expected a task of lengths, found {other:?}"),
    }
}
