//! `tojson` as transformers defines it for chat templates: `json.dumps`, with characters as they are.

use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// Values within values, at most; nothing that a chat holds goes this deep.
const MAX_DEPTH: usize = 100;
/// Bytes of JSON for one unit of fuel.
const BYTES_PER_FUEL: usize = 16;

/// How `json.dumps` writes: its arguments of the same names.
struct Style {
    ensure_ascii: bool,
    /// What a level is indented by; `None` writes one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// The filter, with the arguments of transformers: by place or by name.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    args: Rest<Value>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let mut writer = Writer { state, style: style(&args, &kwargs)?, out: String::new(), charged: 0 };
    writer.value(value, 0)?;
    Ok(writer.out)
}

fn style(args: &[Value], kwargs: &Kwargs) -> Result<Style, Error> {
    type Given = Option<Value>;
    let (ensure_ascii, indent, separators, sort_keys): (Given, Given, Given, Given) = from_args(args)?;
    let named = |by_place: Given, name: &str| -> Result<Given, Error> {
        let by_name = kwargs.get::<Given>(name)?;
        Ok(by_place.or(by_name).filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let ensure_ascii = named(ensure_ascii, "ensure_ascii")?.is_some_and(|v| v.is_true());
    let indent = named(indent, "indent")?.map(|v| indentation(&v)).transpose()?;
    let separators = named(separators, "separators")?;
    let sort_keys = named(sort_keys, "sort_keys")?.is_some_and(|v| v.is_true());
    kwargs.assert_all_used()?;
    let (item_separator, key_separator) = match separators {
        Some(pair) => (text(&pair.get_item_by_index(0)?)?, text(&pair.get_item_by_index(1)?)?),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    Ok(Style { ensure_ascii, indent, item_separator, key_separator, sort_keys })
}

/// An indent is a number of spaces or the text itself.
fn indentation(value: &Value) -> Result<String, Error> {
    match i64::try_from(value.clone()) {
        Ok(spaces) if spaces <= 64 => Ok(" ".repeat(spaces.max(0) as usize)),
        Ok(_) => Err(invalid("tojson: expected an indent of at most 64")),
        Err(_) => text(value),
    }
}

fn text(value: &Value) -> Result<String, Error> {
    let text = value.as_str().ok_or_else(|| invalid("tojson: expected separators and indent to be text"));
    text.map(str::to_string)
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

struct Writer<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    style: Style,
    out: String,
    /// Bytes of `out` that are paid for.
    charged: usize,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid(format!("tojson: values nested more than {MAX_DEPTH} deep")));
        }
        self.charge()?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Map => self.object(value, depth)?,
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth)?,
            kind => return Err(invalid(format!("tojson: a value of type {kind} has no JSON"))),
        }
        Ok(())
    }

    /// Pays for what was written: a value that is in many places is written as often.
    fn charge(&mut self) -> Result<(), Error> {
        let fuel = (self.out.len() - self.charged) / BYTES_PER_FUEL;
        self.charged += fuel * BYTES_PER_FUEL;
        self.state.consume_fuel(1 + fuel as u64)
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.out.push('[');
        let mut empty = true;
        for item in value.try_iter()?.checked() {
            self.separate(empty, depth + 1);
            self.value(&item?, depth + 1)?;
            empty = false;
        }
        self.close(']', empty, depth);
        Ok(())
    }

    fn object(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut fields = Vec::new();
        for key in value.try_iter()?.checked() {
            let key = key?;
            fields.push((key_text(&key)?, value.get_item(&key)?));
        }
        if self.style.sort_keys {
            fields.sort_by(|a, b| a.0.cmp(&b.0));
        }
        self.out.push('{');
        for (i, (key, value)) in fields.iter().enumerate() {
            self.separate(i == 0, depth + 1);
            self.string(key);
            self.out.push_str(&self.style.key_separator);
            self.value(value, depth + 1)?;
        }
        self.close('}', fields.is_empty(), depth);
        Ok(())
    }

    /// What stands before an item.
    fn separate(&mut self, first: bool, depth: usize) {
        if !first {
            self.out.push_str(&self.style.item_separator);
        }
        self.new_line(depth);
    }

    fn close(&mut self, bracket: char, empty: bool, depth: usize) {
        if !empty {
            self.new_line(depth);
        }
        self.out.push(bracket);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            (0..depth).for_each(|_| self.out.push_str(indent));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        text.chars().for_each(|c| self.character(c));
        self.out.push('"');
    }

    fn character(&mut self, c: char) {
        match c {
            '"' => self.out.push_str("\\\""),
            '\\' => self.out.push_str("\\\\"),
            '\n' => self.out.push_str("\\n"),
            '\r' => self.out.push_str("\\r"),
            '\t' => self.out.push_str("\\t"),
            '\u{8}' => self.out.push_str("\\b"),
            '\u{c}' => self.out.push_str("\\f"),
            c if c < ' ' || (self.style.ensure_ascii && c > '~') => {
                let units =
                    c.encode_utf16(&mut [0; 2]).iter().map(|u| format!("\\u{u:04x}")).collect::<String>();
                self.out.push_str(&units);
            }
            c => self.out.push(c),
        }
    }
}

/// A number as Python writes it.
fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(x) if !value.is_integer() => float(x),
        _ => value.to_string(),
    }
}

/// The shortest digits that give the number back; small and large ones with an exponent of two digits.
fn float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    if x == 0.0 || (1e-4..1e16).contains(&x.abs()) {
        return format!("{x:?}");
    }
    let text = format!("{x:e}");
    match text.split_once("e-") {
        Some((digits, exponent)) => format!("{digits}e-{exponent:0>2}"),
        None => text.replacen('e', "e+", 1),
    }
}

/// The name that `json.dumps` gives a key.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_string()),
        ValueKind::Number => Ok(number(key)),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::None => Ok("null".into()),
        kind => Err(invalid(format!("tojson: a key of type {kind} has no JSON"))),
    }
}
