//! Names of models on the hub. They become parts of URLs and paths, so only plain ones are names.

use std::fmt;
use std::path::Path;

/// A repository, `ORG/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName(String);

impl HubName {
    /// The longest name that the hub gives.
    const MAX_LEN: usize = 96;

    /// The repository that a path would be on the hub, or `None` if it cannot be one.
    pub fn parse(path: &Path) -> Option<Self> {
        let text = path.to_str()?;
        let (org, name) = text.split_once('/')?;
        (text.len() <= Self::MAX_LEN && is_part(org) && is_part(name)).then(|| Self(text.to_owned()))
    }

    /// The repository's folder in the cache.
    #[cfg(feature = "hub")]
    pub fn folder(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether this is an organisation or a name. `--` stands for `/` in the cache, and `..` would leave it.
fn is_part(text: &str) -> bool {
    let edge = |c: char| c == '.' || c == '-';
    is_plain(text)
        && !text.starts_with(edge)
        && !text.ends_with(edge)
        && !text.contains("--")
        && !text.contains("..")
}

/// Whether a text is one harmless file name.
pub fn is_plain(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !text.is_empty() && text.len() <= 255 && text.chars().all(plain) && !text.chars().all(|c| c == '.')
}

/// A branch, a tag or a commit, as it is typed after `--revision`.
pub fn revision(text: &str) -> Result<String, String> {
    let good = text.len() <= 255 && text.split('/').all(|part| is_plain(part) && !part.starts_with('.'));
    good.then(|| text.to_owned()).ok_or_else(|| "expected a branch, a tag or a commit".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_names() {
        for good in ["org/tiny", "meta-llama/Llama-3.2-1B", "a/b", "0x_1/v1.0"] {
            assert!(HubName::parse(Path::new(good)).is_some(), "{good}");
        }
        let long = format!("a/{}", "b".repeat(95));
        let bad = [
            "../..", "./a", "a/..", "a", "a/", "/b", "a/b/c", "a b/c", "a/b%2f", "a/b?c", "a/b\n", "ä/b",
            "a--b/c", "-a/b", &long,
        ];
        for bad in bad {
            assert!(HubName::parse(Path::new(bad)).is_none(), "{bad}");
        }
    }

    #[test]
    fn revisions_stay_where_they_are() {
        for good in ["main", "refs/pr/1", "v1.0", "0123456789abcdef0123456789abcdef01234567"] {
            assert_eq!(revision(good).as_deref(), Ok(good));
        }
        for bad in ["", "..", "a/../b", "/a", "a/", "a b", "a?b", ".a"] {
            assert!(revision(bad).is_err(), "{bad}");
        }
    }
}
