//! How a run fails: one line on standard error, and an exit code that says whose fault it is.

use std::any::Any;
use std::fmt;
use std::io::ErrorKind;
use std::process::ExitCode;

use clap::error::ErrorKind as ClapKind;

/// The command line asks for something that does not exist: exit code 2, where any other failure has 1.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Prints what a command failed with, and returns the exit code. A closed standard output (`| head`) is no failure:
/// the reader has enough.
pub fn report(error: &anyhow::Error) -> u8 {
    let broken_pipe = |e: &std::io::Error| e.kind() == ErrorKind::BrokenPipe;
    if error.downcast_ref::<std::io::Error>().is_some_and(broken_pipe) {
        return 0;
    }
    eprintln!("error: {}", one_line(&chain(error)));
    if error.is::<Usage>() { 2 } else { 1 }
}

/// Prints a panic: a fault of kivi, since everything else is an error.
pub fn fault(panic: &(dyn Any + Send)) -> ExitCode {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
    eprintln!("error: internal fault: {}; please report it, with what -vv prints", one_line(text));
    ExitCode::FAILURE
}

/// Prints what clap refused, or the help that was asked for.
pub fn usage(error: &clap::Error) -> ExitCode {
    let help =
        [ClapKind::DisplayHelp, ClapKind::DisplayVersion, ClapKind::DisplayHelpOnMissingArgumentOrSubcommand];
    if help.contains(&error.kind()) {
        let _ = error.print(); // A reader that has gone does not want the help.
        return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
    }
    let command = std::env::args_os().nth(1);
    let known = ["generate", "chat", "perplexity", "ablate", "eval", "bench", "inspect", "plot", "devices"]
        .into_iter()
        .find(|name| command.as_deref() == Some(name.as_ref()));
    let help = known.map_or("kivi-cli --help".to_owned(), |name| format!("kivi-cli {name} --help"));
    eprintln!("{}; see {help}", one_line(&first_part(&error.to_string())));
    ExitCode::from(2)
}

/// Clap's message without the usage that follows, its lines joined.
fn first_part(message: &str) -> String {
    let mut out = String::new();
    // A prompt could be a value that begins with a dash; a flag that does not exist is likelier.
    let noise = |line: &str| line.is_empty() || line.starts_with("tip: to pass");
    let body = message.lines().map(str::trim).filter(|line| !noise(line));
    for line in body.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more")) {
        let joint = if out.is_empty() {
            ""
        } else if out.ends_with(':') {
            " "
        } else {
            "; "
        };
        out.push_str(joint);
        out.push_str(line.strip_prefix("tip: ").unwrap_or(line));
    }
    out
}

/// The message with its causes, each once: some messages already end with their cause.
fn chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |line, cause| match line {
        line if line.is_empty() => cause,
        line if line.contains(&cause) => line,
        line => format!("{line}: {cause}"),
    })
}

/// Text that neither breaks the line nor moves the cursor.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
