//! Methods of Python's `str`, `list` and `dict` that minijinja's collection lacks.

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// The widest text that `ljust` and its like make, in characters.
const MAX_WIDTH: usize = 10_000;

/// Calls a method that a value does not have by itself.
pub(super) fn call_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let own = match value.as_str() {
        Some(text) => text_method(text, method, args)?,
        None => container_method(state, value, method, args)?,
    };
    own.map_or_else(|| unknown_method_callback(state, value, method, args), Ok)
}

/// Methods of `str`; `None` leaves it to the collection.
fn text_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "split" | "rsplit" => split(text, args, method == "rsplit")?,
        "splitlines" if args.is_empty() => split_lines(text),
        "partition" | "rpartition" => partition(text, args, method == "rpartition")?,
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "index" => {
            let (part,): (&str,) = from_args(args)?;
            let at = text.find(part).ok_or_else(|| invalid("index: no such text in it"))?;
            text[..at].chars().count().into()
        }
        "ljust" | "rjust" | "center" | "zfill" => pad(text, method, args)?.into(),
        "format" if too_wide(text) => {
            return Err(invalid("format: expected widths of at most 9999 characters"));
        }
        "casefold" => text.to_lowercase().into(),
        _ => return Ok(None),
    }))
}

/// Methods of `list` and `dict`; `None` leaves it to the collection.
fn container_method(
    state: &State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    match (value.kind(), method) {
        (ValueKind::Seq | ValueKind::Iterable, "index") => {
            let (item,): (&Value,) = from_args(args)?;
            for (at, other) in value.try_iter()?.checked().enumerate() {
                state.consume_fuel(1)?;
                if other? == *item {
                    return Ok(Some(at.into()));
                }
            }
            Err(invalid("index: no such item in it"))
        }
        (ValueKind::Seq | ValueKind::Map, "copy") => {
            let () = from_args(args)?;
            Ok(Some(value.clone()))
        }
        _ => Ok(None),
    }
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// `split(sep=None, maxsplit=-1)` and `rsplit`, by place or by name.
fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (places, kwargs): (Rest<Value>, Kwargs) = from_args(args)?;
    let (sep, count): (Option<Value>, Option<i64>) = from_args(&places)?;
    let sep = sep.map_or_else(|| kwargs.get::<Option<Value>>("sep"), |sep| Ok(Some(sep)))?;
    let count = count.map_or_else(|| kwargs.get::<Option<i64>>("maxsplit"), |n| Ok(Some(n)))?;
    kwargs.assert_all_used()?;
    let parts = usize::try_from(count.unwrap_or(-1)).map_or(usize::MAX, |n| n.saturating_add(1));
    let sep = sep.filter(|sep| !sep.is_none());
    let found: Vec<&str> = match sep.as_ref().map(|sep| sep.as_str().filter(|s| !s.is_empty())) {
        Some(None) => return Err(invalid("split: expected a separator that is not empty")),
        Some(Some(sep)) if from_right => reversed(text.rsplitn(parts, sep)),
        Some(Some(sep)) => text.splitn(parts, sep).collect(),
        None if from_right => words_from_right(text, parts),
        None => words(text, parts),
    };
    Ok(found.into_iter().collect())
}

fn reversed<'a>(parts: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut parts: Vec<_> = parts.collect();
    parts.reverse();
    parts
}

/// Words between white space, at most `parts`; the last has the rest.
fn words(text: &str, parts: usize) -> Vec<&str> {
    let (mut found, mut rest) = (Vec::new(), text.trim_start());
    while !rest.is_empty() && found.len() + 1 < parts {
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        found.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    if !rest.is_empty() {
        found.push(if parts == usize::MAX { rest.trim_end() } else { rest });
    }
    found
}

/// The same from the end; the first has the rest.
fn words_from_right(text: &str, parts: usize) -> Vec<&str> {
    let (mut found, mut rest) = (Vec::new(), text.trim_end());
    while !rest.is_empty() && found.len() + 1 < parts {
        let start = rest.rfind(char::is_whitespace);
        let start = start.map_or(0, |at| at + rest[at..].chars().next().map_or(0, char::len_utf8));
        found.push(&rest[start..]);
        rest = rest[..start].trim_end();
    }
    if !rest.is_empty() {
        found.push(rest);
    }
    found.reverse();
    found
}

/// Lines, which Python ends at more characters than `\n`.
fn split_lines(text: &str) -> Value {
    let ends = |c| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let text = text.replace("\r\n", "\n");
    let mut lines: Vec<&str> = text.split(ends).collect();
    if lines.last().is_some_and(|last| last.is_empty()) {
        lines.pop();
    }
    lines.into_iter().collect()
}

fn partition(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (sep,): (&str,) = from_args(args)?;
    let found = if from_right { text.rsplit_once(sep) } else { text.split_once(sep) };
    let parts = match found {
        Some((before, after)) => [before, sep, after],
        None if from_right => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

/// Whether a format has a number of five digits, which may be a width.
fn too_wide(format: &str) -> bool {
    format.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 4)
}

/// Text of at least a width, in characters.
fn pad(text: &str, method: &str, args: &[Value]) -> Result<String, Error> {
    let (width, fill): (usize, Option<char>) = from_args(args)?;
    if width > MAX_WIDTH {
        return Err(invalid("expected a width of at most 10000 characters"));
    }
    let missing = width.saturating_sub(text.chars().count());
    let fill = |n| String::from(fill.unwrap_or(' ')).repeat(n);
    Ok(match method {
        "ljust" => text.to_string() + &fill(missing),
        "rjust" => fill(missing) + text,
        "zfill" => {
            let digits = text.trim_start_matches(['-', '+']);
            let (sign, digits) = text.split_at(usize::from(digits.len() < text.len()));
            format!("{sign}{}{digits}", "0".repeat(missing))
        }
        _ => {
            // Python puts the odd one to the left if the width is odd.
            let left = missing / 2 + (missing & width & 1);
            fill(left) + text + &fill(missing - left)
        }
    })
}
