//! Chinese words, as the Python package jieba 0.42.1 cuts them.

use anyhow::Result;

/// The words of an answer in lower case, without punctuation and white space.
///
/// # Errors
/// As [`words`].
pub fn answer_words(text: &str) -> Result<Vec<String>> {
    let plain = |word: &str| -> String {
        word.to_lowercase().chars().filter(|&c| !is_punctuation(c) && !super::is_space(c)).collect()
    };
    Ok(words(text)?.into_iter().map(plain).filter(|word| !word.is_empty()).collect())
}

/// The words of a text with spaces between them.
///
/// # Errors
/// As [`words`].
pub fn spaced(text: &str) -> Result<String> {
    Ok(words(text)?.join(" "))
}

/// ASCII's punctuation, and the Chinese that LongBench strikes out: it forgets 《 and ・, for example.
fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation()
        || matches!(c,
            '–' | '—' | '‘' | '’' | '‛'..='‟' | '…' | '‧' | '﹏'
            | '、'..='〃' | '》'..='】' | '〔'..='〟' | '〰' | '〾' | '〿'
            | '！'..='－' | '／' | '：'..='＠' | '［'..='｀' | '｛'..='､')
}

/// The words of a text; all of them together are the text.
///
/// # Errors
/// This build has no Chinese words.
#[cfg(not(feature = "chinese"))]
fn words(_: &str) -> Result<Vec<&str>> {
    anyhow::bail!("Chinese words: this build has none; build it with the feature `chinese`")
}

#[cfg(feature = "chinese")]
use cut::words;

/// jieba-rs, and where it differs from jieba: it takes more characters for Chinese, and keeps `a-b` together.
#[cfg(feature = "chinese")]
mod cut {
    use std::sync::LazyLock;

    use anyhow::Result;
    use jieba_rs::Jieba;
    use regex::Regex;

    static JIEBA: LazyLock<Jieba> = LazyLock::new(Jieba::new);

    fn pattern(text: &str) -> Regex {
        Regex::new(text).expect("it is right")
    }

    /// What goes through the dictionary; all else is a word a character.
    static BLOCK: LazyLock<Regex> =
        LazyLock::new(|| pattern(r"[\u{4E00}-\u{9FD5}a-zA-Z0-9+#&._%-]+|\r\n|(?s:.)"));
    /// What holds together outside Chinese and the dictionary.
    static LATIN: LazyLock<Regex> = LazyLock::new(|| pattern(r"[a-zA-Z0-9]+(?:\.[0-9]+)?%?"));

    /// The words of a text; all of them together are the text.
    pub fn words(text: &str) -> Result<Vec<&str>> {
        let mut words = Vec::new();
        for block in BLOCK.find_iter(text) {
            for token in JIEBA.cut(block.as_str(), true) {
                match token.word.is_ascii() && !JIEBA.has_word(token.word) {
                    true => split(token.word, &mut words),
                    false => words.push(token.word),
                }
            }
        }
        Ok(words)
    }

    /// Cuts a word that is in no dictionary into what [`LATIN`] matches and what is between.
    fn split<'a>(word: &'a str, words: &mut Vec<&'a str>) {
        let mut end = 0;
        for part in LATIN.find_iter(word) {
            words.extend(
                [&word[end..part.start()], part.as_str()].into_iter().filter(|part| !part.is_empty()),
            );
            end = part.end();
        }
        words.extend(Some(&word[end..]).filter(|rest| !rest.is_empty()));
    }
}
