//! The loop of `chat`: reads lines, runs commands, prints answers.

use std::io::{ErrorKind, IsTerminal, stdin};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Error, Result, anyhow};
use kivi_kernels::Backend;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::Session;
use crate::{failure, output};

const HELP: &str = "\
/clear       begin anew
/stats       figures of the last turn and of the cache
/save FILE   write the conversation and its cache to a file
/load FILE   go on with the conversation of a file
/exit        leave, as Ctrl-D does; Ctrl-C ends an answer";

/// Whether an answer is being made, so that Ctrl-C ends it and not the program.
static ANSWERING: AtomicBool = AtomicBool::new(false);
/// Whether the answer is to end.
static STOP: AtomicBool = AtomicBool::new(false);
/// What shells say of a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Reads lines until there are no more; `quiet` leaves the greeting out.
///
/// # Errors
/// Standard input or output fails. What a line fails with is printed, and the next one is read; where nobody is at a
/// terminal to see it, it ends the program.
pub fn run<B: Backend>(session: &mut Session<'_, B>, quiet: bool) -> Result<()> {
    ctrlc::set_handler(interrupted).context("Ctrl-C: cannot be caught")?;
    let mut editor = DefaultEditor::new().context("standard input: cannot be read")?;
    let terminal = stdin().is_terminal();
    if terminal && !quiet {
        eprintln!("Type to talk; /help lists the commands.");
    }
    let mut failed = None;
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            // Typed by mistake: no reason to lose the conversation.
            Err(ReadlineError::Io(error)) if terminal && error.kind() == ErrorKind::InvalidData => {
                failure::report(&anyhow!("the line: expected UTF-8 text, found other bytes"));
                continue;
            }
            Err(error) => return Err(Error::new(error).context("standard input: cannot be read")),
        };
        let _ = editor.add_history_entry(line.as_str()); // Without a history one types again.
        match take(session, line.trim()) {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => break,
            Err(error) if output::is_gone(&error) || !terminal => {
                failed = Some(error);
                break;
            }
            Err(error) => drop(failure::report(&error)),
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Does what a line says.
fn take<B: Backend>(session: &mut Session<'_, B>, line: &str) -> Result<ControlFlow<()>> {
    let (command, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let file = || {
        let file = Some(argument.trim()).filter(|file| !file.is_empty());
        file.map(Path::new).with_context(|| format!("{command}: expected a file, found none"))
    };
    match command {
        "" => {}
        "/exit" | "/quit" => return Ok(ControlFlow::Break(())),
        "/clear" => session.clear(),
        "/stats" => eprint!("{}", session.stats()),
        "/help" => eprintln!("{HELP}"),
        "/save" => {
            session.save(file()?)?;
            eprintln!("saved");
        }
        "/load" => {
            session.load(file()?)?;
            eprintln!("loaded");
        }
        other if other.starts_with('/') => {
            anyhow::bail!("{other}: no such command; /help lists them");
        }
        _ => answer(session, line)?,
    }
    Ok(ControlFlow::Continue(()))
}

/// Prints the answer to a line as it is made.
fn answer<B: Backend>(session: &mut Session<'_, B>, line: &str) -> Result<()> {
    let mut failed = None;
    STOP.store(false, Ordering::SeqCst);
    ANSWERING.store(true, Ordering::SeqCst);
    let said = session.say(line, &mut |text| {
        failed = failed.take().or_else(|| output::write(text).err());
        if failed.is_some() || STOP.load(Ordering::SeqCst) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    ANSWERING.store(false, Ordering::SeqCst);
    failed.map_or(Ok(()), Err)?;
    said?;
    output::write("\n")
}

/// Ctrl-C: ends the answer with the step that runs; once more, or between answers, it ends the program.
fn interrupted() {
    if !ANSWERING.load(Ordering::SeqCst) || STOP.swap(true, Ordering::SeqCst) {
        std::process::exit(INTERRUPTED);
    }
}
