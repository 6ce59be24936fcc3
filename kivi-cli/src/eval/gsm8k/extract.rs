//! The number that a solution ends with, by the regular expressions of lm-eval's task `gsm8k`.

use std::sync::LazyLock;

use regex::Regex;

/// What stands after `####`.
static STRICT: LazyLock<Regex> = LazyLock::new(|| pattern(r"#### (\-?[0-9\.\,]+)"));
/// Anything that looks like a number.
static FLEXIBLE: LazyLock<Regex> = LazyLock::new(|| pattern(r"(-?[$0-9.,]{2,})|(-?[0-9]+)"));
/// What does not count: commas, dollars, all up to `####`, a period at the end.
static IGNORED: LazyLock<[Regex; 4]> = LazyLock::new(|| [",", r"\$", r"(?s).*#### ", r"\.$"].map(pattern));

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a pattern of this file")
}

/// The first number after `#### `.
pub fn strict(solution: &str) -> Option<&str> {
    Some(STRICT.captures(solution)?.get(1)?.as_str())
}

/// The last number.
pub fn flexible(solution: &str) -> Option<&str> {
    Some(FLEXIBLE.find_iter(solution).last()?.as_str())
}

/// Whether a number that was found is that of the worked solution.
pub fn is_same(found: Option<&str>, solution: &str) -> bool {
    found.is_some_and(|found| plain(found) == plain(solution))
}

/// A number, or the solution that ends with it, without what does not count.
fn plain(text: &str) -> String {
    IGNORED.iter().fold(text.to_owned(), |text, ignored| ignored.replace_all(&text, "").into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each pattern finds, with what does not count taken away.
    fn found(solution: &str) -> (Option<String>, Option<String>) {
        (strict(solution).map(plain), flexible(solution).map(plain))
    }

    fn both(number: &str) -> (Option<String>, Option<String>) {
        (Some(number.to_owned()), Some(number.to_owned()))
    }

    #[test]
    fn numbers_are_found_however_they_are_written() {
        assert_eq!(found("5 - 12 = -7\n#### -7"), both("-7"));
        assert_eq!(found("So 1,000 and 234.\n#### 1,234"), both("1234"));
        assert_eq!(found("#### 12,345,678."), both("12345678"));
        assert_eq!(found("It is 2.50.\n#### 2.50"), both("2.50"));
        assert_eq!(found("#### 18. That is all"), both("18"));
        // Only the flexible one takes dollars, or an answer without a mark.
        assert_eq!(found("#### $1,250.00"), (None, Some("1250.00".into())));
        assert_eq!(found("The answer is $70,000."), (None, Some("70000".into())));
        assert_eq!(found("so she has 9 left"), (None, Some("9".into())));
        assert_eq!(found("####9"), (None, Some("9".into())));
    }

    #[test]
    fn the_first_mark_and_the_last_number_count() {
        assert_eq!(found("#### 5\n#### 6"), (Some("5".into()), Some("6".into())));
        assert_eq!(found("#### 5 of 100"), (Some("5".into()), Some("100".into())));
    }

    #[test]
    fn nothing_is_found_where_there_is_no_number() {
        for text in ["", "I do not know", "####", "#### none", "-", "$ #"] {
            assert_eq!(found(text), (None, None), "{text}");
        }
    }

    #[test]
    fn a_number_is_compared_with_the_worked_solution() {
        let solution = "She pays 3 * $500 = $<<3*500=1500>>1,500.\n#### 1,500";
        assert!(is_same(Some("1500"), solution) && is_same(Some("$1,500."), solution));
        assert!(!is_same(Some("1500.00"), solution) && !is_same(Some("-1500"), solution));
        assert!(!is_same(None, solution) && !is_same(Some("150"), solution));
        assert!(is_same(strict("#### -3"), "#### -3") && !is_same(strict("#### 3"), "#### -3"));
    }

    /// What stands behind the last `#### `, read without the patterns, is what both of them find, in the solution as it is and
    /// worded otherwise.
    #[test]
    fn numbers_of_50_real_solutions_are_found() {
        let Some(data) = std::env::var_os("KIVI_DATA") else {
            println!("skipped: KIVI_DATA is not set to the folder that has gsm8k");
            return;
        };
        let file = std::path::Path::new(&data).join("gsm8k/test.jsonl");
        let text = std::fs::read_to_string(&file).expect("KIVI_DATA has gsm8k/test.jsonl");
        let solutions = text.lines().take(50).map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            row["answer"].as_str().expect("an answer").to_owned()
        });
        let solutions: Vec<String> = solutions.collect();
        assert_eq!(solutions.len(), 50);
        for solution in solutions {
            let (steps, end) = solution.rsplit_once("#### ").expect("a mark");
            let number = end.trim().replace(',', "");
            assert!(number.parse::<i64>().is_ok(), "{solution}");
            assert_eq!(found(&solution), both(&number), "{solution}");
            assert!(is_same(strict(&solution), &solution) && is_same(flexible(&solution), &solution));
            let said = format!("{steps}So the answer is ${}.", end.trim());
            assert_eq!(found(&said), (None, Some(number.clone())), "{said}");
            assert!(is_same(flexible(&said), &solution), "{said}");
            let wrong = format!("{steps}#### {}1", end.trim());
            assert!(!is_same(strict(&wrong), &solution) && !is_same(flexible(&wrong), &solution));
        }
    }
}
