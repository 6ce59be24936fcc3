//! `strftime_now`: today, in the words of the template.

use std::sync::Arc;

use jiff::Zoned;
use jiff::civil::DateTime;
use jiff::fmt::strtime::{BrokenDownTime, Config};
use minijinja::{Error, ErrorKind};

/// Tells the local time.
pub(super) type Clock = Arc<dyn Fn() -> DateTime + Send + Sync>;

/// The clock of the computer.
pub(super) fn system_clock() -> Clock {
    Arc::new(|| Zoned::now().datetime())
}

/// The time in the words of C's `strftime`, as Python's `datetime.now().strftime(format)`.
pub(super) fn strftime(now: DateTime, format: &str) -> Result<String, Error> {
    let mut text = String::new();
    let time = BrokenDownTime::from(now);
    let config = Config::new().lenient(true);
    let result = time.format_with_config(&config, spelled_out(format), &mut text);
    result.map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))?;
    Ok(text)
}

/// The format without what is particular to the C locale and to Python's naive times, which have no zone.
fn spelled_out(format: &str) -> String {
    let mut out = String::with_capacity(format.len());
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match (c, chars.as_str().chars().next()) {
            ('%', Some(name)) => {
                chars.next();
                match name {
                    'c' => out.push_str("%a %b %e %H:%M:%S %Y"),
                    'x' => out.push_str("%m/%d/%y"),
                    'X' => out.push_str("%H:%M:%S"),
                    'f' => out.push_str("%6f"),
                    'z' | 'Z' => {}
                    name => out.extend(['%', name]),
                }
            }
            (c, _) => out.push(c),
        }
    }
    out
}
