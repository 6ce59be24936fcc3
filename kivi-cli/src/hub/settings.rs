//! Where the hub and its cache are: the environment variables that `huggingface_hub` has.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// Where files are kept.
pub struct Place {
    /// `HF_HOME`, which has the token.
    home: PathBuf,
    /// `HF_HUB_CACHE`, which has the repositories.
    pub cache: PathBuf,
}

/// Where files come from.
pub struct Remote {
    /// Address without a slash at its end.
    pub endpoint: String,
    /// What says who asks.
    pub token: Option<String>,
}

impl Place {
    /// What the environment says.
    pub fn from_env() -> Result<Self> {
        let home = match (var("HF_HOME")?, var("XDG_CACHE_HOME")?) {
            (Some(home), _) => PathBuf::from(home),
            (None, Some(cache)) => PathBuf::from(cache).join("huggingface"),
            (None, None) => {
                let user = std::env::home_dir().filter(|dir| !dir.as_os_str().is_empty());
                let user = user.context("no home directory to keep models in; set HF_HOME")?;
                user.join(".cache/huggingface")
            }
        };
        let cache = var("HF_HUB_CACHE")?.map_or_else(|| home.join("hub"), PathBuf::from);
        Ok(Self { home, cache })
    }
}

impl Remote {
    /// What the environment says.
    pub fn from_env(place: &Place) -> Result<Self> {
        let endpoint = var("HF_ENDPOINT")?.unwrap_or_else(|| "https://huggingface.co".to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            bail!("HF_ENDPOINT: expected https://HOST, found {endpoint}");
        }
        Ok(Self { endpoint, token: token(place)? })
    }
}

/// Whether `HF_HUB_OFFLINE` forbids the network.
pub fn is_offline() -> Result<bool> {
    let value = var("HF_HUB_OFFLINE")?.unwrap_or_default().to_lowercase();
    Ok(["1", "true", "yes", "on"].contains(&value.trim()))
}

/// `HF_TOKEN`, or what `hf auth login` wrote.
fn token(place: &Place) -> Result<Option<String>> {
    let path = var("HF_TOKEN_PATH")?.map_or_else(|| place.home.join("token"), PathBuf::from);
    let (from, token) = match var("HF_TOKEN")? {
        Some(token) => ("HF_TOKEN".to_owned(), token),
        // A file that cannot be read is one that is not there: most models need no token.
        None => (path.display().to_string(), std::fs::read_to_string(&path).unwrap_or_default()),
    };
    let token = token.trim();
    if !token.chars().all(|c| c.is_ascii_graphic()) {
        bail!("{from}: expected a token as hf_..., found blanks or unprintable characters in it");
    }
    Ok((!token.is_empty()).then(|| token.to_owned()))
}

/// A variable that is set and not empty.
fn var(name: &str) -> Result<Option<String>> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.trim().is_empty())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => bail!("{name}: expected UTF-8, found something else"),
    }
}
