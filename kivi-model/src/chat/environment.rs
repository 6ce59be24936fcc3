//! The functions, filters, tests and methods of chat templates, with the meaning that transformers and
//! Jinja2 give them.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};

use super::dates::{Clock, strftime};
use super::error::Refusal;
use super::json::tojson;
use super::methods::call_method;

/// Work that a template may do: instructions, or 64 bytes of text each. The largest templates of the
/// tests use a thousandth of it for a message.
const FUEL: u64 = 2_000_000;

/// What every chat template finds.
pub(super) fn environment(clock: Clock) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_debug(true); // errors name what is undefined
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.unwrap_or_default());
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(call_method);
    env.remove_global("debug");
    env.add_filter("tojson", tojson);
    env.add_function("raise_exception", raise_exception);
    set_clock(&mut env, clock);
    env.add_filter("int", int);
    env.add_filter("float", |value: &Value, default: Option<Value>| {
        float(value).map_or(default.unwrap_or(0.0.into()), Value::from)
    });
    env.add_test("sequence", is_sequence);
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    env
}

/// Says what time `strftime_now` takes.
pub(super) fn set_clock(env: &mut Environment<'static>, clock: Clock) {
    env.add_function("strftime_now", move |format: Option<&str>, kwargs: Kwargs| {
        let format = format.map_or_else(|| kwargs.get("format"), Ok)?;
        kwargs.assert_all_used()?;
        strftime(clock(), format)
    });
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let refusal = Refusal(message.to_string());
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(refusal))
}

/// Python calls text and mappings sequences, too.
fn is_sequence(value: &Value) -> bool {
    let sized =
        matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::String | ValueKind::Map);
    sized || value.is_undefined()
}

/// What `int(value)` of Python gives, or the default.
fn int(value: &Value, default: Option<Value>) -> Value {
    let whole = match value.as_str() {
        Some(text) => text.trim().parse::<i64>().ok(),
        None => i64::try_from(value.clone()).ok(),
    };
    let whole = whole.or_else(|| float(value).filter(|x| x.abs() < 9e15).map(|x| x as i64));
    whole.map_or_else(|| default.unwrap_or(0.into()), Value::from)
}

/// What `float(value)` of Python gives.
fn float(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None => f64::try_from(value.clone()).ok(),
    }
}
