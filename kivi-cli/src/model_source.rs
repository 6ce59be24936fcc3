//! Where the model is: a directory, or the one that is part of the program.

use anyhow::Result;
use kivi_model::source::Source;

use crate::args::ModelArgs;
use crate::failure::Usage;

macro_rules! embedded {
    ($($file:literal)*) => {
        &[$(($file, include_bytes!(concat!("../assets/kivi-tiny/", $file)))),*]
    };
}

/// The model that runs where none is given.
const EMBEDDED: Source = Source::Embedded {
    name: "kivi-tiny",
    files: embedded!["config.json" "generation_config.json" "model.safetensors" "tokenizer.json" "tokenizer_config.json"],
};

/// The checkpoint that is asked for.
pub fn open(args: &ModelArgs) -> Result<Source> {
    let Some(dir) = args.model.as_ref().or(args.dir.as_ref()) else { return Ok(EMBEDDED) };
    let source = Source::Dir(dir.clone());
    source.check()?;
    Ok(source)
}

/// Catches a prompt without its flag, which is taken for a directory.
pub fn refuse_prompt(args: &ModelArgs) -> Result<()> {
    match &args.dir {
        Some(dir) if !dir.exists() => {
            let place = Source::Dir(dir.clone()).place("");
            Err(Usage(format!("{place}: no such directory; a prompt goes after --prompt")).into())
        }
        _ => Ok(()),
    }
}
