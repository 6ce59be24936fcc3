//! What Jinja2 and transformers accept and minijinja does not, put in other words before parsing.
//!
//! Lines stay where they are, so that messages name the line of the original.

/// The template as minijinja reads it: line ends are `\n`, as in Jinja2, and the blocks
/// `{% generation %}`, with which transformers marks what an assistant said, only open a scope.
pub(super) fn prepare(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = rest.find('{') {
        let (text, tag) = rest.split_at(at);
        out.push_str(text);
        rest = match tag.get(..2) {
            Some("{#") => copy(tag, past(tag, "#}"), &mut out),
            Some("{{") => copy(tag, expression_end(tag, "}}"), &mut out),
            Some("{%") => statement(tag, &mut out),
            _ => copy(tag, 1, &mut out),
        };
    }
    out + rest
}

/// Copies the first `len` bytes and returns the others.
fn copy<'a>(text: &'a str, len: usize, out: &mut String) -> &'a str {
    let (head, tail) = text.split_at(len);
    out.push_str(head);
    tail
}

/// The place after the next `end`, or the end of the text.
fn past(text: &str, end: &str) -> usize {
    text.find(end).map_or(text.len(), |at| at + end.len())
}

/// Copies a statement that begins here, with a known name in place of `generation`; raw text as a whole.
fn statement<'a>(tag: &'a str, out: &mut String) -> &'a str {
    let start = tag.len() - tag[2..].trim_start_matches(['-', '+']).trim_start().len();
    let name_len = tag[start..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(0);
    let after = start + name_len;
    let len = expression_end(tag, "%}");
    let other = match &tag[start..after] {
        "generation" => "with",
        "endgeneration" => "endwith",
        "raw" => return raw(tag, len, out),
        _ => return copy(tag, len, out),
    };
    out.push_str(&tag[..start]);
    out.push_str(other);
    copy(&tag[after..], len - after, out)
}

/// Copies raw text, of which Jinja2 keeps a line end at the beginning.
fn raw<'a>(tag: &'a str, len: usize, out: &mut String) -> &'a str {
    let end = raw_end(tag, len);
    match tag[..len].strip_suffix("%}") {
        Some(open) if !open.ends_with(['-', '+']) => {
            out.push_str(open);
            out.push_str("+%}");
            copy(&tag[len..], end - len, out)
        }
        _ => copy(tag, end, out),
    }
}

/// The place where the statement that ends raw text begins, searched from `from` on.
fn raw_end(text: &str, from: usize) -> usize {
    let ends = |at: &usize| text[at + 2..].trim_start_matches(['-', '+']).trim_start().starts_with("endraw");
    let found = text[from..].match_indices("{%").map(|(at, _)| from + at).find(ends);
    found.unwrap_or(text.len())
}

/// The place after `end`, which counts neither within a string nor within braces.
fn expression_end(text: &str, end: &str) -> usize {
    let (mut quote, mut depth, mut escaped) = (None, 0usize, false);
    for (at, c) in text.char_indices().skip(2) {
        match (quote, c) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(q), _) => quote = Some(q).filter(|q| *q != c),
            (None, '\'' | '"') => quote = Some(c),
            (None, _) if depth == 0 && text[at..].starts_with(end) => return at + end.len(),
            (None, '{') => depth += 1,
            (None, '}') => depth = depth.saturating_sub(1),
            (None, _) => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::prepare;

    #[test]
    fn generation_blocks_become_scopes() {
        assert_eq!(prepare("{%- generation -%}x{% endgeneration%}"), "{%- with -%}x{% endwith%}");
        assert_eq!(prepare("{%\n generation\n%}"), "{%\n with\n%}");
    }

    #[test]
    fn all_else_stays() {
        for text in [
            "{{ '{% generation %}' }}{# {% generation %} #}{% raw -%}{% generation %}{%- endraw %}",
            "{{ {'a': {}} }}{% set generation = '%} {% generation %}' %}{% generations %}",
            "{",
            "{%",
            "{{ '\\'{% generation %}' }}",
            "{% raw +%}{%",
            "{% generation",
            "{#",
            "é{%é",
        ] {
            assert_eq!(prepare(text), text);
        }
    }

    #[test]
    fn raw_text_keeps_its_first_line_end() {
        assert_eq!(
            prepare("{% raw %}\n{% generation %}{% endraw %}"),
            "{% raw +%}\n{% generation %}{% endraw %}"
        );
        assert_eq!(prepare("{% raw"), "{% raw");
    }

    #[test]
    fn lines_end_as_in_jinja2() {
        assert_eq!(prepare("a\r\nb\rc\n"), "a\nb\nc\n");
    }
}
