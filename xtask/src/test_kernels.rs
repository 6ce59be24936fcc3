//! `cargo xtask test-kernels`: the conformance suite as a table.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Result, bail, ensure};
use kivi_kernels_ref::Cpu;
use kivi_kernels_ref::conformance::{self, Report, Verdict};
use serde_json::{Value, json};

/// Arguments of the task.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The backend: cpu
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// Cases of this op only, by the name of its method in `Backend`
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    op: String,
    /// Print one JSON object with every case instead of the table
    #[arg(long)]
    json: bool,
}

/// Runs the cases and prints what came out.
pub fn run(args: &Args) -> Result<()> {
    let ops = conformance::ops();
    let known = args.op.is_empty() || ops.contains(&args.op.as_str());
    ensure!(known, "--op: unknown op {:?}; known: {}", args.op, ops.join(", "));
    let reports = match args.device.as_str() {
        "cpu" => conformance::run(&Cpu::<f32>::new(), &args.op),
        device => bail!("--device: unknown device {device:?}; known: cpu"),
    };
    let counts = Counts::of(&reports);
    if args.json {
        println!("{:#}", to_json(&args.device, &counts, &reports));
    } else {
        print!("{}", table(&reports));
        reports
            .iter()
            .filter(|report| report.verdict != Verdict::Pass)
            .for_each(|report| println!("{report}"));
        println!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped);
    }
    ensure!(counts.failed == 0, "{} of {} cases failed", counts.failed, reports.len());
    Ok(())
}

/// How many cases went how.
#[derive(Default)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Counts {
    fn of<'a>(reports: impl IntoIterator<Item = &'a Report>) -> Self {
        let mut counts = Self::default();
        for report in reports {
            match report.verdict {
                Verdict::Pass => counts.passed += 1,
                Verdict::Fail(_) => counts.failed += 1,
                Verdict::Skipped(_) => counts.skipped += 1,
            }
        }
        counts
    }

    fn verdict(&self) -> &'static str {
        match self {
            Self { failed: 1.., .. } => "FAIL",
            Self { passed: 0, .. } => "skipped",
            _ => "pass",
        }
    }
}

/// What the cases of a row have in common, in the order of the columns: op, dtype, bits of keys and of values, group
/// size, head_dim, query heads to a KV head.
type Row = (&'static str, &'static str, [u32; 2], [usize; 3]);

fn row(report: &Report) -> Row {
    let (bits, sizes) = report.cache.map_or(([0; 2], [0; 3]), |cache| {
        ([cache.k_bits, cache.v_bits], [cache.group_size, cache.head_dim, cache.gqa])
    });
    (report.op, report.dtype.name(), bits, sizes)
}

/// One line a row, with the errors of the case that is worst for its yardstick.
fn table(reports: &[Report]) -> String {
    let mut rows: BTreeMap<Row, Vec<&Report>> = BTreeMap::new();
    reports.iter().for_each(|report| rows.entry(row(report)).or_default().push(report));
    let mut out = format!(
        "{:<12} {:<5} {:>6} {:>6} {:>9} {:>4} {:>6} {:>10} {:>10}  verdict\n",
        "op", "dtype", "K:V", "group", "head_dim", "gqa", "cases", "max error", "yardstick"
    );
    for ((op, dtype, [k, v], sizes), reports) in rows {
        let cache = match sizes {
            [0, ..] => format!("{:>6} {:>6} {:>9} {:>4}", "", "", "", ""),
            [group, head_dim, gqa] => format!("{:>6} {group:>6} {head_dim:>9} {gqa:>4}", format!("{k}:{v}")),
        };
        let worst = reports.iter().max_by(|a, b| badness(a).total_cmp(&badness(b))).expect("rows have cases");
        let errors = format!("{:>10.1e} {:>10.1e}", worst.max_err, worst.yardstick_err);
        let verdict = Counts::of(reports.iter().copied()).verdict();
        let n = reports.len();
        writeln!(out, "{op:<12} {dtype:<5} {cache} {n:>6} {errors}  {verdict}").expect("a string grows");
    }
    out
}

/// The error in units of the yardstick's; a case without errors, or that did not run, is not bad.
fn badness(report: &Report) -> f64 {
    let ratio = report.max_err / report.yardstick_err;
    if ratio.is_nan() { 0.0 } else { ratio }
}

fn to_json(device: &str, counts: &Counts, reports: &[Report]) -> Value {
    let cases: Vec<Value> = reports.iter().map(case_json).collect();
    json!({
        "device": device,
        "passed": counts.passed,
        "failed": counts.failed,
        "skipped": counts.skipped,
        "cases": cases,
    })
}

fn case_json(report: &Report) -> Value {
    let (verdict, why) = match &report.verdict {
        Verdict::Pass => ("pass", None),
        Verdict::Fail(why) => ("fail", Some(why)),
        Verdict::Skipped(why) => ("skipped", Some(why)),
    };
    let cache = report.cache.map(|cache| {
        json!({
            "k_bits": cache.k_bits,
            "v_bits": cache.v_bits,
            "group_size": cache.group_size,
            "residual_length": cache.residual_length,
            "head_dim": cache.head_dim,
            "gqa": cache.gqa,
            "kv_dtype": cache.kv_dtype.to_string(),
        })
    });
    // A number that is not finite becomes null.
    json!({
        "op": report.op,
        "dtype": report.dtype.name(),
        "case": report.case,
        "cache": cache,
        "max_err": report.max_err,
        "yardstick_err": report.yardstick_err,
        "verdict": verdict,
        "why": why,
    })
}

#[cfg(test)]
mod tests {
    use kivi_kernels::DType;

    use super::*;

    fn report(op: &'static str, max_err: f64, verdict: Verdict) -> Report {
        let case = "Case { n: 1 }".to_owned();
        Report { op, dtype: DType::F32, case, cache: None, max_err, yardstick_err: 1e-6, verdict }
    }

    #[test]
    fn one_failure_fails_its_row_and_the_worst_case_is_shown() {
        let fail = Verdict::Fail("element 0".into());
        let reports = [
            report("add", 1e-7, Verdict::Pass),
            report("add", 3e-6, fail),
            report("rope", 0.0, Verdict::Pass),
        ];
        let lines: Vec<String> = table(&reports)
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(lines[1..], ["add f32 2 3.0e-6 1.0e-6 FAIL", "rope f32 1 0.0e0 1.0e-6 pass"]);
        let counts = Counts::of(&reports);
        assert_eq!((counts.passed, counts.failed, counts.skipped), (2, 1, 0));
    }

    #[test]
    fn json_names_the_case_that_failed() {
        let reports = [report("add", f64::NAN, Verdict::Fail("panicked".into()))];
        let found = to_json("cpu", &Counts::of(&reports), &reports);
        assert_eq!(found["failed"], 1);
        let case = &found["cases"][0];
        assert_eq!(
            (&case["case"], &case["why"], &case["max_err"]),
            (&json!("Case { n: 1 }"), &json!("panicked"), &Value::Null)
        );
    }

    #[test]
    fn unknown_names_list_the_known_ones() {
        let run = |device: &str, op: &str| {
            run(&Args { device: device.into(), op: op.into(), json: false }).unwrap_err().to_string()
        };
        assert_eq!(run("gpu", "add"), "--device: unknown device \"gpu\"; known: cpu");
        assert!(run("cpu", "ad").starts_with("--op: unknown op \"ad\"; known: embed, linear"));
    }
}
