//! Stop strings over text that arrives in pieces.

/// Watches a stream of text for stop strings and holds back what might be the beginning of one.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that is not emitted yet: a suffix that begins some stop string.
    held: String,
    stopped: bool,
}

/// A stop string is empty, and would stop before the first token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stop: expected a stop string that is not empty, found an empty one; leave it out")]
pub struct EmptyStopString;

impl StopStrings {
    /// Watches for any of `stops`; none is fine.
    ///
    /// # Errors
    /// One of them is empty.
    pub fn new(stops: Vec<String>) -> Result<StopStrings, EmptyStopString> {
        if stops.iter().any(String::is_empty) {
            return Err(EmptyStopString);
        }
        Ok(StopStrings { stops, held: String::new(), stopped: false })
    }

    /// Adds text and returns what can be emitted now. Once a stop string has appeared, the text before
    /// it is returned and nothing after it ever is.
    pub fn push(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let rest = self.held.split_off(self.held.len() - self.ambiguous_bytes());
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop string has appeared.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// The end of the text: returns what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length of the longest suffix of the held text that begins a stop string, in bytes.
    fn ambiguous_bytes(&self) -> usize {
        let begins = |suffix: &str| self.stops.iter().any(|stop| stop.starts_with(suffix));
        let starts = self.held.char_indices().map(|(at, _)| at);
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        // A whole stop string was found above, so only shorter suffixes can begin one.
        let first = (self.held.len() + 1).saturating_sub(longest);
        starts
            .filter(|at| *at >= first)
            .find(|at| begins(&self.held[*at..]))
            .map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut watch = StopStrings::new(stops.iter().map(|s| (*s).to_string()).collect()).unwrap();
        let mut out: String = pieces.iter().map(|piece| watch.push(piece)).collect();
        out.push_str(&watch.finish());
        (out, watch.stopped())
    }

    #[test]
    fn what_may_begin_a_stop_string_is_held_back() {
        let mut watch = StopStrings::new(vec!["</s>".into()]).unwrap();
        assert_eq!(watch.push("a<"), "a");
        assert_eq!(watch.push("/"), "");
        assert_eq!(watch.push("b<</"), "</b<");
        assert_eq!(watch.push("s>c"), "");
        assert!(watch.stopped());
        assert_eq!(watch.push("d"), "");
        assert_eq!(watch.finish(), "");
    }

    #[test]
    fn without_a_match_nothing_is_lost() {
        assert_eq!(run(&["END"], &["the ", "E", "N"]), ("the EN".into(), false));
        assert_eq!(run(&[], &["a", "b"]), ("ab".into(), false));
        assert_eq!(run(&["éé"], &["é", "è"]), ("éè".into(), false));
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert_eq!(StopStrings::new(vec![String::new()]).unwrap_err(), EmptyStopString);
    }

    proptest! {
        /// However text is cut, the output is the text before the first stop string.
        #[test]
        fn cutting_changes_nothing(
            pieces in prop::collection::vec("[abé]{0,3}", 0..12),
            stop in "[abé]{1,4}",
        ) {
            let whole = pieces.concat();
            let expected = whole.find(&stop).map_or(whole.as_str(), |at| &whole[..at]);
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (out, stopped) = run(&[&stop], &pieces);
            prop_assert_eq!(out, expected);
            prop_assert_eq!(stopped, whole.contains(&stop));
        }
    }
}
