//! `chat` as a user sees it, its lines coming through a pipe.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Checkpoint, Ran, generate_json, kivi, kivi_with, tiny_dir};
use kivi_model::chat::{ChatTemplate, Message};
use kivi_model::saved::SavedCache;
use kivi_model::source::Source;
use kivi_model::tokenizer::Tokenizer;
use serde_json::json;

const QUESTIONS: [&str; 5] = [
    "A farmer has 12 hens. How many eggs does he have?",
    "And if each of them lays 3 eggs a week?",
    "Who was the king?",
    "What is 2 + 2?",
    "Why?",
];

/// Runs `chat` on these lines.
fn chat(flags: &[&str], lines: &[&str]) -> Ran {
    kivi_with(&[&["chat"], flags].concat(), lines.join("\n") + "\n")
}

fn messages(file: &Path) -> Vec<Message> {
    serde_json::from_str(&SavedCache::read(file).unwrap().notes["chat"]).unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&Source::Dir(tiny_dir()), 4096).unwrap()
}

/// What a prompt of the whole conversation before message `n` is answered with.
fn in_one_prompt(messages: &[Message], template: &ChatTemplate, n: usize, flags: &[&str]) -> String {
    let text = template.render(&messages[..n], true).unwrap();
    let ids = tokenizer().encode(&text, false).unwrap();
    let ids = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let text = generate_json(&[&["--prompt-ids", &ids], flags].concat())["text"].clone();
    text.as_str().unwrap().trim().to_owned()
}

/// Tokens of the last prompt, and how many of them were in the cache already, by the last `/stats`.
fn reused(ran: &Ran) -> (usize, usize) {
    let line = ran.stderr.lines().rfind(|line| line.starts_with("prompt ")).unwrap();
    let numbers: Vec<usize> =
        line.split_whitespace().filter_map(|word| word.replace(',', "").parse().ok()).collect();
    (numbers[0], numbers[1])
}

#[test]
fn five_turns_are_as_one_prompt_and_compute_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("chat.kivi");
    let save = format!("/save {}", file.display());
    let flags = ["-n", "24", "--kv-bits", "16", "--kv-dtype", "f32"];
    for system in [None, Some("You answer briefly.")] {
        let args = [&flags[..], system.map_or(&[][..], |_| &["--system", "You answer briefly."])].concat();
        let lines = [&QUESTIONS[..], &["/stats", &save]].concat();
        let ran = chat(&args, &lines).ok();
        let said = messages(&file);
        let first = usize::from(system.is_some());
        assert_eq!(said.len(), first + 10);
        let template = ChatTemplate::load(&Source::Dir(tiny_dir())).unwrap().unwrap();
        for (turn, question) in QUESTIONS.into_iter().enumerate() {
            let answer = first + 2 * turn + 1;
            assert_eq!(
                (said[answer - 1].role.as_str(), said[answer - 1].content.as_str()),
                ("user", question)
            );
            assert_eq!(said[answer].content, in_one_prompt(&said, &template, answer, &flags), "turn {turn}");
            assert!(ran.stdout.contains(&said[answer].content));
        }
        // The tokens of an answer need not be those that its text has in the next prompt, but most are.
        let (prompt, reused) = reused(&ran);
        assert!(reused < prompt && reused * 2 > prompt, "{prompt} {reused}");
    }
}

/// Saved, loaded by another run, and gone on with: every answer is that of the conversation that never stopped, at 2 bits
/// and with a seed, too.
#[test]
fn a_loaded_conversation_goes_on_as_if_it_had_never_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, part] = ["whole", "part"].map(|name| dir.path().join(name));
    let flags =
        ["-n", "40", "--temperature", "0.9", "--seed", "5", "--kv-residual", "32", "--stop", "Question"];
    let save = |file: &Path| format!("/save {}", file.display());
    chat(&flags, &[&QUESTIONS[..], &[&save(&whole)]].concat()).ok();
    chat(&flags, &[&QUESTIONS[..2], &[&save(&part)]].concat()).ok();
    // Once by a flag, once by a command that drops another conversation.
    let load = ["--load-cache", part.to_str().unwrap()];
    chat(&[&flags[..], &load].concat(), &[QUESTIONS[2], "/stats", &save(&part)]).ok();
    let load = format!("/load {}", part.display());
    let ran = chat(&flags, &["Hello", &load, QUESTIONS[3], "/stats", QUESTIONS[4], &save(&part)]).ok();
    assert_eq!(messages(&part), messages(&whole));
    let (part, whole) = (SavedCache::read(&part).unwrap(), SavedCache::read(&whole).unwrap());
    assert_eq!(part.tokens(), whole.tokens());
    let (prompt, reused) = reused(&ran);
    assert!(reused * 2 > prompt, "{prompt} {reused}");
}

/// A template that shows no more than the first word of earlier answers, as some drop what a model thought.
const FORGETFUL: &str = "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}Answer: {{ m.content.split()[0] }}\n\
    {% else %}Question: {{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}";

#[test]
fn a_rewritten_history_is_rewound_and_computed_again() {
    let dir = tempfile::tempdir().unwrap();
    let [template, file] = ["forgetful.jinja", "chat.kivi"].map(|name| dir.path().join(name));
    std::fs::write(&template, FORGETFUL).unwrap();
    let save = format!("/save {}", file.display());
    for bits in [&["--kv-bits", "16", "--kv-dtype", "f32"][..], &["--kv-bits", "2", "--kv-residual", "32"]] {
        let flags = [&["-n", "60", "--chat-template", template.to_str().unwrap()], bits].concat();
        let ran = chat(&flags, &[&QUESTIONS[..], &["/stats", &save]].concat()).ok();
        let rewound = ran.stderr.lines().find(|line| line.starts_with("rewound")).expect("a line about it");
        assert!(rewound.contains("rewritten by the chat template"), "{rewound}");
        let (prompt, reused) = reused(&ran);
        assert!(reused > prompt / 4, "{bits:?}: {reused} of {prompt}");
        if bits[1] == "16" {
            let said = messages(&file);
            let template = ChatTemplate::from_file(&template, &Source::Dir(tiny_dir())).unwrap();
            for answer in [1, 3, 5, 7, 9] {
                let expected = in_one_prompt(&said, &template, answer, &[&["-n", "60"], bits].concat());
                assert_eq!(said[answer].content, expected, "message {answer}");
            }
        }
    }
}

#[test]
fn clear_begins_anew() {
    let one = chat(&["-n", "12"], &[QUESTIONS[0]]).ok();
    let again = chat(&["-n", "12"], &[QUESTIONS[3], "/clear", "/stats", QUESTIONS[0]]).ok();
    assert!(again.stdout.ends_with(&one.stdout) && again.stdout.len() > one.stdout.len());
    assert!(again.stderr.contains("0 asked, 0 answered"), "{}", again.stderr);
}

#[test]
fn generate_takes_a_conversation_too() {
    let args = ["generate", "-q", "--chat", "-n", "12"];
    let said = kivi(&[&args[..], &["-p", QUESTIONS[3]]].concat()).ok();
    let chat = chat(&["-n", "12"], &[QUESTIONS[3]]).ok();
    assert_eq!(said.stdout, chat.stdout);
    let system = kivi(&[&args[..], &["-p", QUESTIONS[3], "--system", "Be brief."]].concat()).ok();
    assert_ne!(system.stdout, said.stdout);
}

#[test]
fn wrong_lines_are_one_line_and_end_a_pipe() {
    let cases: &[(&[&str], &[&str], &[&str])] = &[
        (&[], &["/frob"], &["/frob", "/help"]),
        (&[], &["/save"], &["/save", "expected a file"]),
        (&[], &["/save /tmp/x"], &["nothing was said yet"]),
        (&[], &["/load absent"], &["absent", "no such file"]),
        (&["-c", "10"], &[QUESTIONS[0]], &["context holds 10", "/clear"]),
    ];
    for (flags, lines, parts) in cases {
        chat(&[flags, &["-n", "4"][..]].concat(), lines).fails(1, parts);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    kivi(&["generate", "-p", "a", "-n", "2", "--save-cache", &path("text")]).ok();
    chat(&["--load-cache", &path("text")], &["a"]).fails(1, &["text", "no conversation"]);
    std::fs::write(path("strict"), "{{ raise_exception('only poems') }}").unwrap();
    chat(&["--chat-template", &path("strict")], &["a"]).fails(1, &["strict", "only poems"]);
    kivi(&["generate", "-p", "a", "--chat", "--chat-template", &path("strict")])
        .fails(1, &["prompt 1", "only poems"]);
    std::fs::write(path("broken"), "{% for %}").unwrap();
    chat(&["--chat-template", &path("broken")], &["a"]).fails(1, &["broken", "line 1"]);
    kivi(&["generate", "-p", "a", "--system", "b"]).fails(2, &["--system", "--chat"]);
    kivi(&["generate", "--prompt-ids", "1", "--chat"]).fails(2, &["--chat", "--prompt-ids"]);
    let plain = Checkpoint::new();
    plain.edit("tokenizer_config.json", |config| config["chat_template"] = json!(null));
    chat(&["-m", plain.path()], &["a"]).fails(1, &["no chat template", "--chat-template FILE"]);
}

/// A long answer is ended by an interrupt, what was said of it stays, and the program goes on.
#[cfg(unix)]
#[test]
fn an_interrupt_ends_the_answer_and_not_the_program() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kivi-cli"))
        .args(["chat", "-n", "7000", "--ignore-eos"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdin.write_all(b"Tell me a story\n").unwrap();
    stdout.read_exact(&mut [0; 8]).unwrap(); // It has begun.
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    stdin.write_all(b"/stats\n/clear\n/exit\n").unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let status = child.wait().unwrap();
    let stats: Vec<String> =
        BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap).collect();
    assert!(status.success(), "{status}: {stats:?}");
    assert!(
        stats.iter().any(|line| line.starts_with("messages") && line.contains("1 asked, 1 answered")),
        "{stats:?}"
    );
    let generated = stats.iter().find(|line| line.starts_with("generated")).unwrap();
    let n: usize = generated.split_whitespace().nth(1).unwrap().replace(',', "").parse().unwrap();
    assert!(n < 7000, "{generated}");
}

#[test]
fn a_template_that_makes_no_text_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("empty.jinja");
    std::fs::write(&template, "").unwrap();
    chat(&["--chat-template", template.to_str().unwrap()], &["Hello"])
        .fails(1, &["the chat template makes no text of the conversation", "--chat-template FILE"]);
}

#[test]
fn a_conversation_is_not_saved_in_the_place_of_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().display();
    for (file, why) in [
        (format!("{dir}"), format!("error: {dir}: cannot be written: it is not a regular file\n")),
        (
            format!("{dir}/absent/chat"),
            format!("error: {dir}/absent/chat: cannot be written: {dir}/absent: no such directory\n"),
        ),
    ] {
        let ran = chat(&["-n", "2"], &["Hello", &format!("/save {file}")]);
        assert_eq!((ran.code, ran.stderr), (1, why));
    }
}
