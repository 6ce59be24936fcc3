//! The text of a prompt, with places for what a row has.

use anyhow::{Result, bail};

/// A template: pieces of text, each followed by what stands there.
#[derive(Debug, PartialEq, Eq)]
pub struct Template(Vec<(String, Field)>);

/// What may stand in a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Context,
    Input,
    /// Nothing: a brace that stands for itself, or the end.
    Nothing,
}

impl Template {
    /// Takes a text apart, written as for `str.format` of Python.
    ///
    /// # Errors
    /// It has a place for something else, or none for the context.
    pub fn new(text: &str) -> Result<Self> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, brace) = rest.split_at(at);
            let fields = [
                ("{context}", Field::Context),
                ("{input}", Field::Input),
                ("{{", Field::Nothing),
                ("}}", Field::Nothing),
            ];
            let Some((name, field)) = fields.into_iter().find(|(name, _)| brace.starts_with(name)) else {
                let found: String = brace.chars().take(20).collect();
                bail!("expected {{context}} and {{input}} and no other braces, found {found:?}");
            };
            let literal = if field == Field::Nothing { &name[..1] } else { "" };
            pieces.push((before.to_owned() + literal, field));
            rest = &brace[name.len()..];
        }
        pieces.push((rest.to_owned(), Field::Nothing));
        if !pieces.iter().any(|(_, field)| *field == Field::Context) {
            bail!("expected a prompt with {{context}} in it, found none");
        }
        Ok(Self(pieces))
    }

    /// The prompt of a row.
    pub fn fill(&self, context: &str, input: &str) -> String {
        let mut prompt = String::new();
        for (text, field) in &self.0 {
            prompt += text;
            prompt += match field {
                Field::Context => context,
                Field::Input => input,
                Field::Nothing => "",
            };
        }
        prompt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fills_it_once() {
        let fill = |text: &str| Template::new(text).map(|template| template.fill("{input}", "IN"));
        assert_eq!(fill("A {context} B {input}{input} C").unwrap(), "A {input} B ININ C");
        assert_eq!(fill("{{{context}}}").unwrap(), "{{input}}");
        for wrong in ["", "none", "{input}", "{context} {length}", "{context} {", "{context}}", "{context!r}"]
        {
            let error = fill(wrong).unwrap_err().to_string();
            assert!(error.contains("{context}") && !error.contains('\n'), "{wrong}: {error}");
        }
    }
}
