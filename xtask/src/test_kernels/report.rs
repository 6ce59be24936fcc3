//! What came out of the suite, for people and as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use kivi_kernels_ref::conformance::{CacheShape, Report, Verdict};
use serde_json::{Value, json};

/// How many cases went how.
#[derive(Default)]
pub struct Counts {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl Counts {
    pub fn of<'a>(reports: impl IntoIterator<Item = &'a Report>) -> Self {
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

/// What cache the cases of a row have, in the order of the columns: bits of keys and of values, group size, head_dim, type
/// of full-precision rows.
type Cache = ([u32; 2], [usize; 2], String);

fn cache(shape: &CacheShape) -> Cache {
    ([shape.k_bits, shape.v_bits], [shape.group_size, shape.head_dim], shape.kv_dtype.to_string())
}

/// What the cases of a row have in common: op, dtype, cache, query heads to a KV head.
type Row = (&'static str, &'static str, Option<(Cache, usize)>);

fn row(report: &Report) -> Row {
    (report.op, report.dtype.name(), report.cache.map(|shape| (cache(&shape), shape.gqa)))
}

/// One line a row, with the errors of the case that is worst for its yardstick.
pub fn table(reports: &[Report]) -> String {
    let mut rows: BTreeMap<Row, Vec<&Report>> = BTreeMap::new();
    reports.iter().for_each(|report| rows.entry(row(report)).or_default().push(report));
    let mut out = format!(
        "{:<12} {:<5} {:>6} {:>6} {:>9} {:>5} {:>4} {:>6} {:>10} {:>10}  verdict\n",
        "op", "dtype", "K:V", "group", "head_dim", "kv", "gqa", "cases", "max error", "yardstick"
    );
    for ((op, dtype, cache), reports) in rows {
        let cache = cache.map(|(([k, v], [group, head_dim], kv_dtype), gqa)| {
            format!("{:>6} {group:>6} {head_dim:>9} {kv_dtype:>5} {gqa:>4}", format!("{k}:{v}"))
        });
        let cache = cache.unwrap_or_default();
        let worst = reports.iter().max_by(|a, b| badness(a).total_cmp(&badness(b))).expect("rows have cases");
        let errors = format!("{:>10.1e} {:>10.1e}", worst.max_err, worst.yardstick_err);
        let verdict = Counts::of(reports.iter().copied()).verdict();
        let n = reports.len();
        writeln!(out, "{op:<12} {dtype:<5} {cache:<34} {n:>6} {errors}  {verdict}").expect("a string grows");
    }
    out
}

/// The caches of the cases that were run.
fn covered(reports: &[Report]) -> BTreeSet<Cache> {
    let run = reports.iter().filter(|report| !matches!(report.verdict, Verdict::Skipped(_)));
    run.filter_map(|report| Some(cache(report.cache.as_ref()?))).collect()
}

/// How many caches were covered, and which values each setting had; nothing if no case had a cache.
pub fn coverage(reports: &[Report]) -> Option<String> {
    let caches = covered(reports);
    let line = format!(
        "{} caches: K:V {}; group {}; head_dim {}; kv {}",
        caches.len(),
        values(caches.iter().map(|(bits, ..)| *bits), |[k, v]| format!("{k}:{v}")),
        values(caches.iter().map(|(_, [group, _], _)| *group), usize::to_string),
        values(caches.iter().map(|(_, [_, head_dim], _)| *head_dim), usize::to_string),
        values(caches.iter().map(|(_, _, kv_dtype)| kv_dtype), |kv_dtype| kv_dtype.to_string()),
    );
    (!caches.is_empty()).then_some(line)
}

/// Each value once, in order.
fn values<T: Ord>(values: impl Iterator<Item = T>, show: impl Fn(&T) -> String) -> String {
    let values: BTreeSet<T> = values.collect();
    values.iter().map(show).collect::<Vec<_>>().join(" ")
}

/// The error in units of the yardstick's; a case without errors, or that did not run, is not bad.
fn badness(report: &Report) -> f64 {
    let ratio = report.max_err / report.yardstick_err;
    if ratio.is_nan() { 0.0 } else { ratio }
}

/// Everything; `device` as it was asked for, and its name.
pub fn to_json((device, name): (&str, &str), random: u32, reports: &[Report]) -> Value {
    let counts = Counts::of(reports);
    let cases: Vec<Value> = reports.iter().map(case_json).collect();
    let covered = covered(reports).into_iter().map(|([k, v], [group_size, head_dim], kv_dtype)| {
        json!({ "k_bits": k, "v_bits": v, "group_size": group_size, "head_dim": head_dim, "kv_dtype": kv_dtype })
    });
    json!({
        "device": device,
        "name": name,
        "passed": counts.passed,
        "failed": counts.failed,
        "skipped": counts.skipped,
        "random_cases_of_each_op": random,
        "covered": covered.collect::<Vec<_>>(),
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
    use kivi_quant::KvDtype;

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
        let found = to_json(("cpu", "a CPU"), 0, &reports);
        assert_eq!((&found["failed"], &found["device"]), (&json!(1), &json!("cpu")));
        let case = &found["cases"][0];
        assert_eq!(
            (&case["case"], &case["why"], &case["max_err"]),
            (&json!("Case { n: 1 }"), &json!("panicked"), &Value::Null)
        );
    }

    #[test]
    fn caches_are_covered_by_cases_that_ran() {
        let case = |k_bits, kv_dtype, verdict| {
            let (v_bits, group_size, residual_length, head_dim, gqa) = (2, 32, 64, 128, 4);
            let cache = CacheShape { k_bits, v_bits, group_size, residual_length, head_dim, gqa, kv_dtype };
            Report { cache: Some(cache), ..report("attend", 0.0, verdict) }
        };
        let reports = [
            case(4, KvDtype::F16, Verdict::Pass),
            case(2, KvDtype::F32, Verdict::Fail("wrong".into())),
            case(4, KvDtype::F16, Verdict::Pass),
            case(8, KvDtype::Bf16, Verdict::Skipped("not supported".into())),
        ];
        let line = "2 caches: K:V 2:2 4:2; group 32; head_dim 128; kv f16 f32";
        assert_eq!(coverage(&reports).as_deref(), Some(line));
        assert_eq!(coverage(&reports[3..]), None);
        assert_eq!(to_json(("cpu", ""), 0, &reports)["covered"].as_array().unwrap().len(), 2);
    }
}
