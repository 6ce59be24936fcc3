//! Where the model is: a directory, a repository of the hub, or the one that is part of the program.

use std::sync::OnceLock;

use anyhow::Result;
use kivi_model::source::Source;

use crate::args::ModelArgs;
use crate::failure::Usage;
#[cfg(feature = "hub")]
use crate::hub;
use crate::hub_name::HubName;

macro_rules! embedded {
    ($($file:literal)*) => {
        &[$(($file, include_bytes!(concat!("../assets/kivi-tiny/", $file)))),*]
    };
}

/// The model that runs where none is given.
pub const EMBEDDED: Source = Source::Embedded {
    name: "kivi-tiny",
    files: embedded!["config.json" "generation_config.json" "model.safetensors" "tokenizer.json" "tokenizer_config.json"],
};

/// The checkpoint that is asked for: a directory, else a model of the hub, which is downloaded; `progress` shows that.
/// A run has one model: the second call asks nobody again.
pub fn open(args: &ModelArgs, progress: bool) -> Result<Source> {
    static OPENED: OnceLock<Source> = OnceLock::new();
    if let Some(source) = OPENED.get() {
        return Ok(source.clone());
    }
    let source = find(args, progress)?;
    Ok(OPENED.get_or_init(|| source).clone())
}

fn find(args: &ModelArgs, progress: bool) -> Result<Source> {
    let Some(path) = args.model.as_ref().or(args.dir.as_ref()) else {
        return if args.revision.is_some() { Err(no_revisions("kivi-tiny")) } else { Ok(EMBEDDED) };
    };
    let source = Source::Dir(path.clone());
    match HubName::parse(path).filter(|_| !path.exists()) {
        Some(name) => from_hub(name, args, progress),
        None => {
            source.check()?;
            if args.revision.is_some() { Err(no_revisions(&source.place(""))) } else { Ok(source) }
        }
    }
}

fn no_revisions(place: &str) -> anyhow::Error {
    Usage(format!("--revision: expected a model of the hub, found {place}")).into()
}

#[cfg(feature = "hub")]
fn from_hub(name: HubName, args: &ModelArgs, progress: bool) -> Result<Source> {
    let revision = args.revision.clone().unwrap_or_else(|| "main".to_owned());
    let offline = args.offline || hub::is_offline()?;
    Ok(Source::Dir(hub::fetch(&hub::Wanted { name, revision }, offline, progress)?))
}

#[cfg(not(feature = "hub"))]
fn from_hub(name: HubName, args: &ModelArgs, _progress: bool) -> Result<Source> {
    let _ = args.offline; // There is nothing else here.
    anyhow::bail!(
        "{name}: no such directory, and this build has no hub support (feature `hub`); give a directory"
    )
}

/// Catches a prompt without its flag, which is taken for a model.
pub fn refuse_prompt(args: &ModelArgs) -> Result<()> {
    match &args.dir {
        Some(dir) if !dir.exists() && HubName::parse(dir).is_none() => {
            let place = Source::Dir(dir.clone()).place("");
            Err(Usage(format!("{place}: no such directory; a prompt goes after --prompt")).into())
        }
        _ => Ok(()),
    }
}
