//! Chat templates render as Jinja2 renders them in transformers; `xtask/golden/chat.py` made the golden file.

mod random;

use std::path::{Path, PathBuf};

use kivi_model::chat::{ChatError, ChatTemplate, DateTime, Message, SpecialTokens, Value as Jinja};
use random::fnv1a;
use serde::Deserialize;
use serde_json::Value;

/// Templates that render where Jinja2 fails: they loop over `none`, or write a generator as JSON. Where
/// Jinja2 renders they agree.
const LENIENT: [&str; 4] = [
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "llama-cpp-deepseek-r1",
];

/// A template that joins text marked `safe` with other text, which Jinja2 then escapes for HTML, and
/// conversations in which it does.
const ESCAPED: (&str, [&str; 3]) =
    ("meetkai-functionary-medium-v3.1", ["tools", "tool called", "tool answered"]);

/// The golden file.
fn golden() -> Value {
    serde_json::from_str(include_str!("golden/chat.json")).expect("JSON")
}

/// A conversation that templates are tried with.
#[derive(Deserialize)]
struct Case {
    name: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    variables: Jinja,
}

fn cases() -> Vec<Case> {
    #[derive(Deserialize)]
    struct Cases {
        cases: Vec<Case>,
    }
    // From the text: a `Value` of serde_json sorts the fields of objects.
    serde_json::from_str::<Cases>(include_str!("golden/chat.json")).expect("cases").cases
}

fn load(path: &Path, golden: &Value) -> ChatTemplate {
    let tokens = golden["tokens"].as_object().expect("tokens").iter();
    let tokens =
        tokens.fold(SpecialTokens::default(), |t, (name, v)| t.with(name, v.as_str().expect("a token")));
    let text = std::fs::read_to_string(path).expect("a template");
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    let now: DateTime = golden["now"].as_str().expect("a time").parse().expect("a time");
    ChatTemplate::new(name, &text, tokens).expect("a template").at(now)
}

fn render(template: &ChatTemplate, case: &Case) -> Result<String, ChatError> {
    let names = case.variables.try_iter().expect("variables");
    let variables = names.map(|name| (name.to_string(), case.variables.get_item(&name).expect("a value")));
    template.render_with(&case.messages, case.add_generation_prompt, variables)
}

/// Compares lines, so that a failure shows the first that differs.
fn assert_same(got: &str, want: &str, place: &str) -> Vec<String> {
    let (got, want): (Vec<_>, Vec<_>) = (got.split('\n').collect(), want.split('\n').collect());
    let longest = got.len().max(want.len());
    let differ = (0..longest).filter(|i| got.get(*i) != want.get(*i));
    differ
        .map(|i| format!("{place}, line {}:\n  Jinja2 {:?}\n  kivi   {:?}", i + 1, want.get(i), got.get(i)))
        .collect()
}

#[test]
fn own_templates_render_as_in_jinja2() {
    let (golden, cases) = (golden(), cases());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chat_templates");
    let mut wrong = Vec::new();
    for (name, results) in golden["own"].as_object().expect("templates") {
        let template = load(&folder.join(format!("{name}.jinja")), &golden);
        for case in &cases {
            let Some(want) = results.get(&case.name) else { continue };
            let place = format!("{name}, {}", case.name);
            match (render(&template, case), want["text"].as_str(), want["refuses"].as_str()) {
                (Ok(got), Some(text), _) => wrong.extend(assert_same(&got, text, &place)),
                (Err(ChatError::Refused { message, .. }), _, Some(words)) => {
                    wrong.extend(assert_same(&message, words, &place));
                }
                (Err(ChatError::Failed { .. }), None, None) => {}
                (got, ..) => wrong.push(format!("{place}: {want} in Jinja2, {got:?}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The folder of templates that are not part of the repository, or nothing, with a message.
fn outside() -> Option<PathBuf> {
    let Some(data) = std::env::var_os("KIVI_DATA") else {
        println!("skipped: KIVI_DATA is not set to the folder that has chat_templates");
        return None;
    };
    let folder = Path::new(&data).join("chat_templates");
    assert!(folder.is_dir(), "KIVI_DATA: {} is not a folder", folder.display());
    Some(folder)
}

#[test]
fn templates_of_models_render_as_in_jinja2() {
    let Some(folder) = outside() else { return };
    let (golden, cases) = (golden(), cases());
    let mut wrong = Vec::new();
    for (name, results) in golden["others"].as_object().expect("templates") {
        let path = folder.join(format!("{name}.jinja"));
        let Ok(bytes) = std::fs::read(&path) else {
            println!("skipped: {name} is not in the folder");
            continue;
        };
        if format!("{:016x}", fnv1a(&bytes)) != results["template"] {
            println!("skipped: {name} is another version than that of the golden file");
            continue;
        }
        let template = load(&path, &golden);
        for (case, want) in cases.iter().zip(results["renderings"].as_array().expect("renderings")) {
            let got = match render(&template, case) {
                Ok(text) => format!("{:016x} {}", fnv1a(text.as_bytes()), text.len()),
                Err(ChatError::Refused { .. }) => "refuses".into(),
                Err(ChatError::Failed { .. }) if want == "fails" => "fails".into(),
                Err(error) => error.to_string(),
            };
            let lenient = want == "fails" && LENIENT.contains(&name.as_str());
            let escaped = name == ESCAPED.0 && ESCAPED.1.contains(&case.name.as_str());
            if got != *want && !lenient && !escaped {
                wrong.push(format!("{name}, {}: {want} in Jinja2, {got}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
