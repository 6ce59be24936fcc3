//! One turn of a conversation.

use minijinja::Value;
use serde::{Deserialize, Serialize};

/// Names under which reasoning comes; templates read the first, a few the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A message: who speaks and what is said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
    /// More fields, such as `tool_calls`, `tool_call_id` or `reasoning_content`, as a map in the order of
    /// the file; undefined if there are none. The `arguments` of a tool call are a map, not its JSON.
    #[serde(flatten)]
    pub more: Value,
}

impl Message {
    /// A message of text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into(), more: Value::UNDEFINED }
    }

    /// What templates see: the fields in order, and reasoning under the names that transformers gives it.
    pub(super) fn to_value(&self) -> Value {
        let own = [("role", self.role.as_str()), ("content", &self.content)];
        let own = own.map(|(name, text)| (Value::from(name), Value::from(text)));
        let names = self.more.try_iter().into_iter().flatten();
        let more: Vec<_> =
            names.filter_map(|name| Some((name.clone(), self.more.get_item(&name).ok()?))).collect();
        let given = |name: &&str| self.more.get_attr(name).ok().filter(|v| !v.is_none() && !v.is_undefined());
        let fields = own.into_iter().chain(more);
        let Some(reasoning) = REASONING.iter().find_map(given) else { return Value::from_pairs(fields) };
        let first = [(Value::from("thinking"), reasoning.clone())];
        Value::from_pairs(
            first.into_iter().chain(fields).chain([(Value::from("reasoning_content"), reasoning)]),
        )
    }
}
