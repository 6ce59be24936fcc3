//! Typed access to the fields of a JSON object, with errors that name file and field.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::{LoadError, clean, invalid_json};

/// An object of a JSON file; `null` counts as absent.
pub(crate) struct Fields {
    file: String,
    /// Dotted path of the object within the file, with a final dot; empty for the file itself.
    prefix: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Parses a file whose content must be one object.
    pub fn parse(file: String, bytes: &[u8]) -> Result<Fields, LoadError> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(map)) => Ok(Fields { file, prefix: String::new(), map }),
            Ok(other) => Err(LoadError::Field {
                file,
                field: "the whole file".into(),
                expected: "an object".into(),
                found: show(&other),
            }),
            Err(error) => Err(invalid_json(file, &error)),
        }
    }

    /// The file, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The field's full name, for messages.
    pub fn name(&self, field: &str) -> String {
        format!("{}{}", self.prefix, clean(field))
    }

    /// The value of a field, if it is there and not `null`.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// Whether the field is there, `null` or not.
    pub fn contains(&self, field: &str) -> bool {
        self.map.contains_key(field)
    }

    /// All fields that are not `null`.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.map.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.as_str(), value))
    }

    /// The error of a field that is not as expected.
    pub fn error(&self, field: &str, expected: impl Into<String>) -> LoadError {
        let found = self.map.get(field).map_or_else(|| "nothing".into(), show);
        LoadError::Field {
            file: self.file.clone(),
            field: self.name(field),
            expected: expected.into(),
            found,
        }
    }

    /// A whole number within `range`, or nothing.
    pub fn integer(&self, field: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, LoadError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if range.contains(&n) => Ok(Some(n)),
            _ => Err(self.error(field, format!("a whole number from {} to {}", range.start(), range.end()))),
        }
    }

    /// A number within `range`, or nothing.
    pub fn number(&self, field: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, LoadError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if range.contains(&x) => Ok(Some(x)),
            _ => Err(self.error(field, format!("a number from {} to {}", range.start(), range.end()))),
        }
    }

    /// `true` or `false`, or nothing.
    pub fn boolean(&self, field: &str) -> Result<Option<bool>, LoadError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.error(field, "true or false"))
    }

    /// A string, or nothing.
    pub fn string(&self, field: &str) -> Result<Option<&str>, LoadError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.error(field, "a string"))
    }

    /// An object, or nothing.
    pub fn object(&self, field: &str) -> Result<Option<Fields>, LoadError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                let prefix = format!("{}{field}.", self.prefix);
                Ok(Some(Fields { file: self.file.clone(), prefix, map: map.clone() }))
            }
            Some(_) => Err(self.error(field, "an object")),
        }
    }

    /// Token ids, written as one number or as a list; negative ones mean "none" and are left out.
    pub fn token_ids(&self, field: &str) -> Result<Option<Vec<u32>>, LoadError> {
        let values = match self.get(field) {
            None => return Ok(None),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let mut ids = Vec::new();
        for value in values {
            match value.as_i64() {
                Some(id) if id < 0 => {}
                Some(id) if u32::try_from(id).is_ok() => ids.push(id as u32),
                _ => return Err(self.error(field, "a token id or a list of token ids")),
            }
        }
        Ok(Some(ids))
    }
}

/// A value as it appears in a message.
pub(crate) fn show(value: &Value) -> String {
    match value {
        Value::Array(values) => format!("a list of {}", values.len()),
        Value::Object(map) => format!("an object with {} fields", map.len()),
        other => clean(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse("c.json".into(), text.as_bytes()).unwrap()
    }

    #[test]
    fn messages_name_file_field_and_value() {
        let f = fields(r#"{"n": -3, "o": {"x": "a\nb"}}"#);
        let error = f.integer("n", 1..=9).unwrap_err().to_string();
        assert_eq!(error, "c.json: n: expected a whole number from 1 to 9, found -3");
        let error = f.object("o").unwrap().unwrap().number("x", 0.0..=1.0).unwrap_err().to_string();
        assert_eq!(error, r#"c.json: o.x: expected a number from 0 to 1, found "a\nb""#);
    }

    #[test]
    fn invalid_json_has_its_position_once() {
        let error = Fields::parse("c.json".into(), b"{\n \"a\": }").err().unwrap().to_string();
        assert_eq!(
            error,
            "c.json: line 2, column 7: invalid JSON: expected value; restore the original file"
        );
    }

    #[test]
    fn token_ids_are_one_or_many() {
        let f = fields(r#"{"a": 5, "b": [1, -1, 2], "c": null, "d": "x", "e": 4294967296}"#);
        assert_eq!(f.token_ids("a").unwrap(), Some(vec![5]));
        assert_eq!(f.token_ids("b").unwrap(), Some(vec![1, 2]));
        assert_eq!(f.token_ids("c").unwrap(), None);
        assert!(f.token_ids("d").is_err() && f.token_ids("e").is_err());
    }
}
