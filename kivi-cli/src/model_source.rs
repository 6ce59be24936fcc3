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
    if args.dir.is_some() && !dir.exists() {
        // A prompt without its flag lands here.
        let place = source.place("");
        return Err(Usage(format!("{place}: no such directory; a prompt goes after --prompt")).into());
    }
    source.check()?;
    Ok(source)
}
