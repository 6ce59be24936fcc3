//! Chat templates made to do harm: each is stopped with one line, soon, and nothing panics.

mod common;

use std::time::{Duration, Instant};

use common::{checkpoint, source, write};
use kivi_model::chat::{ChatError, ChatTemplate, Message, SpecialTokens};
use kivi_model::error::LoadError;
use proptest::prelude::*;
use serde_json::json;

/// The longest that any of these may take, on a slow machine.
const SOON: Duration = Duration::from_secs(20);

fn render(template: &str) -> Result<String, ChatError> {
    let template = ChatTemplate::new("t.jinja".into(), template, SpecialTokens::default())?;
    template.render(&[Message::new("user", "Hello!"), Message::new("assistant", "Yes?")], true)
}

/// The message, which must come soon and be one line that begins with the file.
fn message(template: &str) -> String {
    let start = Instant::now();
    let error = render(template).expect_err(template).to_string();
    assert!(start.elapsed() < SOON, "{template:.80}: {:?}", start.elapsed());
    assert!(error.starts_with("t.jinja: line ") && !error.contains('\n') && error.len() < 400, "{error}");
    error
}

#[test]
fn endless_work_is_stopped() {
    for template in [
        "{% for i in range(1000000000) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
        "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ 'x' * 1000000000000 }}",
        "{{ ['x'] * 1000000000000 }}",
        "{% set ns = namespace(x='x') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x={}) %}{% for i in range(64) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x | tojson(indent=2) }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x.join(['a', 'b', 'c']) ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{{ range(1000000000) | list | length }}",
        "{{ range(1000000000) | sort | first }}",
        "{{ range(1000000000) | tojson | length }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ 'x'.ljust(999999999999) }}",
        "{{ ('x' * 1000000) | indent(1000000000) }}",
        "{{ 'a\\n' * 100000 | indent(1000000) }}",
        "{{ [1] | tojson(indent=1000000000) }}",
        "{{ [1] | tojson(indent='x' * 100000000) }}",
        "{{ strftime_now('%Y' * 100000000) }}",
        "{{ strftime_now('%999999999d') }}{{ 1 // 0 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ 1 // 0 }}",
    ] {
        message(template);
    }
}

#[test]
fn work_that_is_not_counted_ends_with_the_time() {
    let doubled = "{% set ns = namespace(x=[1]) %}{% for i in range(25) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}";
    let expected =
        "t.jinja: line 1 of the chat template: stopped, it takes too much work; do not use this template";
    assert_eq!(message(doubled), expected);
}

#[test]
fn deep_values_do_not_overflow_the_stack() {
    let deep = |then: &str| {
        let nest =
            "{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% set ns.y = {'a': ns.y} %}{% endfor %}";
        let text = format!("{{% set ns = namespace(x=[], y={{}}) %}}{}{then}", nest.repeat(5));
        let _ = render(&text);
    };
    for then in [
        "",
        "{{ ns.x }}",
        "{{ ns.y }}",
        "{{ ns.x | tojson }}",
        "{{ ns.x == [ns.x] }}",
        "{{ ns.x | string | length }}",
    ] {
        deep(then);
    }
    deep("{{ [ns.x, [ns.x]] | sort }}{{ [ns.x, [ns.x]] | unique | list | length }}{{ {ns.x: 1} }}");
    assert!(message("{% set ns = namespace(x=[]) %}{% for i in range(200) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}").contains("nested"));
}

#[test]
fn deep_syntax_does_not_overflow_the_stack() {
    for (open, close) in [
        ("(", ")"),
        ("[", "]"),
        ("{'a':", "}"),
        ("-", ""),
        ("not ", ""),
        ("1 + (", ")"),
        ("f(", ")"),
        ("x[", "]"),
    ] {
        let _ = render(&format!("{{{{ {}1{} }}}}", open.repeat(40_000), close.repeat(40_000)));
    }
    for unit in
        [" + 1", ".a", "[0]", " | trim", " and 1", " if 1 else 1", "()", " ** 1", " < 1", " is defined"]
    {
        let _ = render(&format!("{{{{ 1{} }}}}", unit.repeat(200_000 / unit.len())));
    }
    for (open, close) in [
        ("{% if 1 %}", "{% endif %}"),
        ("{% for x in [1] %}", "{% endfor %}"),
        ("{% generation %}", "{% endgeneration %}"),
    ] {
        let _ = render(&format!("{}x{}", open.repeat(9_000), close.repeat(9_000)));
        let _ = render(&open.repeat(9_000));
    }
    let _ = render(&format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(20_000)));
}

#[test]
fn errors_say_where_and_what() {
    for (template, expected) in [
        (
            "a\n{{ messages | shout }}",
            "t.jinja: line 2 of the chat template: unknown filter: filter shout is unknown; does it take messages of this form?",
        ),
        (
            "\n\n{% if %}",
            "t.jinja: line 3 of the chat template: syntax error: unexpected end of block; restore the original file",
        ),
        (
            "{% for m in messages %}\n{{ raise_exception('no\\n' ~ m.role) }}{% endfor %}",
            "t.jinja: line 2 of the chat template refuses these messages: no?user",
        ),
        (
            "{% macro m() %}\n{{ raise_exception('inner') }}{% endmacro %}{{ m() }}",
            "t.jinja: line 2 of the chat template refuses these messages: inner",
        ),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}\n{% endfor %}{% endfor %}",
            "t.jinja: line 1 of the chat template: stopped, it takes too much work; do not use this template",
        ),
        (
            "{{ messages[0].tool.name }}",
            "t.jinja: line 1 of the chat template: undefined value: `messages[0].tool` is undefined; does it take messages of this form?",
        ),
    ] {
        assert_eq!(message(template), expected);
    }
    assert_eq!(
        message("{% include 'x' %}"),
        "t.jinja: line 1 of the chat template: syntax error: unknown statement include; restore the original file"
    );
}

/// What loading a checkpoint with these files says.
fn load(files: &[(&str, String)]) -> Result<Option<ChatTemplate>, LoadError> {
    let dir = checkpoint();
    for (name, text) in files {
        write(&dir, name, text);
    }
    ChatTemplate::load(&source(&dir))
}

#[test]
fn files_come_in_order() {
    let text = |files: &[(&str, String)]| {
        let template = load(files).unwrap();
        template.map(|t| t.render(&[Message::new("user", "x")], false).unwrap())
    };
    let named = json!([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D{{ bos_token }}{{ eos_token }}"}]);
    let tokens =
        json!({"chat_template": named, "bos_token": {"content": "<b>"}, "eos_token": "<e>"}).to_string();
    let jinja = ("chat_template.jinja", "J{{ bos_token }}".to_string());
    let config = ("tokenizer_config.json", tokens);
    let other = ("chat_template.json", json!({"chat_template": "O"}).to_string());
    assert_eq!(text(&[]), None);
    assert_eq!(text(&[("tokenizer_config.json", "{}".into())]), None);
    assert_eq!(text(std::slice::from_ref(&other)).unwrap(), "O");
    assert_eq!(text(&[config.clone(), other.clone()]).unwrap(), "D<b><e>");
    assert_eq!(text(&[jinja, config, other]).unwrap(), "J<b>");
    let dir = checkpoint();
    write(&dir, "my.txt", "M{{ messages | length }}");
    let template = ChatTemplate::from_file(&dir.path().join("my.txt"), &source(&dir)).unwrap();
    assert_eq!(template.render(&[], false).unwrap(), "M0");
    let missing = ChatTemplate::from_file(&dir.path().join("no.txt"), &source(&dir)).unwrap_err().to_string();
    assert!(
        missing.ends_with("no.txt: no such file; pass a file that holds a Jinja chat template"),
        "{missing}"
    );
}

#[test]
fn damaged_files_are_refused_in_one_line() {
    let config = |template: serde_json::Value| {
        ("tokenizer_config.json", json!({"chat_template": template}).to_string())
    };
    for (file, expected) in [
        (
            config(json!(5)),
            "chat_template: expected a template, or a list of templates with one named default, found 5",
        ),
        (config(json!({"default": "x"})), "found an object with 1 fields"),
        (config(json!([{"name": "tool_use", "template": "x"}])), "with one named default, found a list of 1"),
        (config(json!([{"name": "default", "template": 5}])), "with one named default, found a list of 1"),
        (config(json!("x".repeat(300_000))), "expected a template of at most 262144 bytes"),
        (config(json!("a\n{{ b")), "tokenizer_config.json: line 2 of the chat template: syntax error"),
        (("tokenizer_config.json", "{".into()), "invalid JSON"),
        (
            ("tokenizer_config.json", json!({"chat_template": "x", "bos_token": 5}).to_string()),
            "bos_token: expected a token, found 5",
        ),
        (("chat_template.jinja", "x".repeat(300_000)), "has 300000 bytes, expected at most 262144"),
        (("chat_template.jinja", "{% endfor %}".into()), "chat_template.jinja: line 1 of the chat template"),
        (
            ("chat_template.json", "[]".into()),
            "chat_template.json: the whole file: expected an object, found a list of 0",
        ),
    ] {
        let error = load(std::slice::from_ref(&file)).expect_err(expected).to_string();
        assert!(error.contains(expected) && !error.contains('\n') && error.len() < 500, "{error}");
    }
    let dir = checkpoint();
    write(&dir, "chat_template.jinja", b"ab\xff");
    let error = ChatTemplate::load(&source(&dir)).unwrap_err().to_string();
    assert!(
        error.ends_with("the whole file: expected text in UTF-8, found byte 0xff at offset 2"),
        "{error}"
    );
}

/// Pieces that templates are made of.
fn piece() -> impl Strategy<Value = String> {
    let fixed = [
        "{{ ",
        " }}",
        "{% ",
        " %}",
        "{# ",
        " #}",
        "{%- ",
        " -%}",
        "for m in messages",
        "endfor",
        "if m",
        "else",
        "endif",
        "set x = ",
        "generation",
        "endgeneration",
        "raw",
        "endraw",
        "macro f(x)",
        "endmacro",
        "f(1)",
        "m.role",
        "messages",
        "[",
        "]",
        "(",
        ")",
        "{",
        "}",
        "| tojson",
        "| trim",
        ".split('x', ",
        "1",
        "-",
        ":",
        "'é'",
        "\"",
        "'",
        "~",
        "+",
        "%",
        ",",
        "is defined",
        "not ",
        "loop",
        "loop.index",
        "namespace()",
        "x.y = 1",
        "strftime_now('%",
        "raise_exception('x')",
        "break",
        "continue",
        "\\",
        "\r\n",
        "🦀",
    ];
    prop_oneof![
        4 => prop::sample::select(fixed.to_vec()).prop_map(str::to_string),
        1 => "\\PC{0,4}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    /// Whatever the template: a text or an error of one line.
    #[test]
    fn random_templates_render_or_fail(pieces in prop::collection::vec(piece(), 0..30)) {
        if let Err(error) = render(&pieces.concat()) {
            let error = error.to_string();
            prop_assert!(!error.contains('\n') && !error.contains("gave up"), "{}", error);
        }
    }

    /// Strftime takes any format.
    #[test]
    fn random_formats_have_dates(format in "(%?[-_0^#]?[0-9:]{0,3}[a-zA-Z%]|é){0,8}") {
        if let Err(error) = render(&format!("{{{{ strftime_now('{format}') }}}}")) {
            prop_assert!(!error.to_string().contains("gave up"), "{}", error);
        }
    }
}
