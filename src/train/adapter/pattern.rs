//! Names of layers as PEFT's configurations write them: lists of names and regular expressions.

use crate::words::one_line;
use fancy_regex::{Regex, RegexBuilder};
use serde_json::Value;

/// Steps back after which a match is given up: the expression comes from a file.
const BACKTRACK_LIMIT: usize = 100_000;

/// The longest expression that is read.
const MAX_LENGTH: usize = 2048;

/// Bytes that a part of an expression may take once it is compiled: repetitions can make much of little.
const COMPILED_LIMIT: usize = 1 << 20;

/// A regular expression of Python's kind.
#[derive(Debug)]
pub(super) struct Pattern(Regex);

impl Pattern {
    /// An expression that must match the whole name, as `re.fullmatch` asks.
    pub fn whole(text: &str) -> Result<Self, String> {
        Pattern::compile(text, &format!(r"\A(?:{text})\z"))
    }

    /// An expression that must match a name's last components, as PEFT's rank and alpha patterns do.
    pub fn ending(text: &str) -> Result<Self, String> {
        Pattern::compile(text, &format!(r"\A(.*\.)?({text})\z"))
    }

    /// A list of blocks, followed by a block's number, as PEFT's layers patterns do.
    pub(crate) fn list_of_blocks(text: &str) -> Result<Self, String> {
        Pattern::compile(text, &format!(r"\A(?:|.*?\.){text}\.(?P<idx>\d+)\."))
    }

    fn compile(text: &str, whole: &str) -> Result<Self, String> {
        let unusable = |why: String| format!("{text:?} is no regular expression that can be used ({why})");
        if text.len() > MAX_LENGTH {
            return Err(format!(
                "holds a regular expression of {} bytes, more than {MAX_LENGTH}",
                text.len()
            ));
        }
        let built = RegexBuilder::new(whole)
            .backtrack_limit(BACKTRACK_LIMIT)
            .delegate_size_limit(COMPILED_LIMIT)
            .build();
        built.map(Pattern).map_err(|e| unusable(one_line(&e)))
    }

    pub fn matches(&self, name: &str) -> Result<bool, String> {
        self.0.is_match(name).map_err(|e| gave_up(&self.0, &e))
    }

    /// The block's number that the group `idx` found.
    pub fn block(&self, name: &str) -> Result<Option<usize>, String> {
        let found = self.0.captures(name).map_err(|e| gave_up(&self.0, &e))?;
        Ok(found.and_then(|groups| groups.name("idx")?.as_str().parse().ok()))
    }
}

fn gave_up(regex: &Regex, error: &fancy_regex::Error) -> String {
    format!("{:?} takes too long to match ({}); write it simpler", regex.as_str(), one_line(error))
}

/// Which layers an option names.
#[derive(Debug)]
pub(super) enum Names {
    /// Whole names, or their last components.
    Listed(Vec<String>),
    Matching(Pattern),
    /// PEFT's word for all linear layers.
    AllLinear,
}

impl Names {
    /// Reads the option `name`; `None` where it is null or missing.
    pub fn read(name: &str, value: &Value) -> Result<Option<Self>, String> {
        match value {
            Value::Null => Ok(None),
            Value::String(word) if word.eq_ignore_ascii_case("all-linear") => Ok(Some(Names::AllLinear)),
            Value::String(text) => {
                let pattern = Pattern::whole(text).map_err(|why| format!("{name} {why}; correct it"))?;
                Ok(Some(Names::Matching(pattern)))
            }
            Value::Array(_) => strings(value).map(|list| Some(Names::Listed(list))).ok_or_else(|| {
                format!("{name} is neither a list of layer names nor a regular expression; correct it")
            }),
            _ => Err(format!("{name} is neither a list of layer names nor a regular expression; correct it")),
        }
    }

    pub(crate) fn contain(&self, module: &str) -> Result<bool, String> {
        match self {
            Names::Listed(names) => Ok(names.iter().any(|name| {
                module
                    .strip_suffix(name.as_str())
                    .is_some_and(|front| front.is_empty() || front.ends_with('.'))
            })),
            Names::Matching(pattern) => pattern.matches(module),
            Names::AllLinear => Ok(!module.contains("embedding")),
        }
    }
}

/// A list of strings.
pub(super) fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|entry| entry.as_str().map(String::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const QUERY: &str = "vision_model.encoder.layers.11.self_attn.q_proj";

    fn names(value: Value) -> Names {
        Names::read("target_modules", &value).unwrap().unwrap()
    }

    #[test]
    fn a_list_names_whole_components() {
        assert!(names(json!(["q_proj"])).contain(QUERY).unwrap());
        assert!(names(json!(["11.self_attn.q_proj"])).contain(QUERY).unwrap());
        assert!(names(json!([QUERY])).contain(QUERY).unwrap());
        assert!(!names(json!(["proj"])).contain(QUERY).unwrap());
        assert!(!names(json!(["1.self_attn.q_proj"])).contain(QUERY).unwrap());
        assert!(!names(json!([])).contain(QUERY).unwrap());
    }

    #[test]
    fn an_expression_matches_the_whole_name() {
        assert!(names(json!(r".*vision_model.*(k|q)_proj")).contain(QUERY).unwrap());
        // Without the brackets around it, the expression would match by its first alternative alone.
        assert!(!names(json!("vision_model|q_proj")).contain(QUERY).unwrap());
        assert!(!names(json!(r".*self_attn")).contain(QUERY).unwrap());
        assert!(names(json!(r"(?!text).*\.q_proj")).contain(QUERY).unwrap());
    }

    #[test]
    fn patterns_of_ranks_match_the_end_of_a_name() {
        assert!(Pattern::ending(r"layers\.(10|11)\.self_attn\.q_proj").unwrap().matches(QUERY).unwrap());
        assert!(!Pattern::ending("_proj").unwrap().matches(QUERY).unwrap());
        assert_eq!(Pattern::list_of_blocks("layers").unwrap().block(QUERY).unwrap(), Some(11));
        assert_eq!(Pattern::list_of_blocks("blocks").unwrap().block(QUERY).unwrap(), None);
    }

    #[test]
    fn expressions_that_cannot_be_used_are_refused() {
        let read = |text: &str| Names::read("target_modules", &json!(text));
        assert!(read("(q_proj").unwrap_err().contains("(q_proj"));
        assert!(read(&"a".repeat(MAX_LENGTH + 1)).unwrap_err().contains("more than"));
        assert!(read(&"(".repeat(MAX_LENGTH)).is_err());
        assert!(read("((a{1000}){1000}){1000}").is_err());
        assert!(Names::read("target_modules", &json!(["q_proj", 3])).is_err());
        assert!(Names::read("target_modules", &json!({"q_proj": 1})).is_err());
    }

    #[test]
    fn a_match_that_takes_too_long_is_given_up() {
        // A back-reference keeps it from the engine that needs no backtracking.
        let slow = names(json!(r"(?:(\w|\1|_)+)+!"));
        let why = slow.contain(&"a".repeat(60)).unwrap_err();
        assert!(why.contains("takes too long"), "{why}");
    }
}
