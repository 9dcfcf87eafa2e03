//! CLIP's tokenizer: text to token ids, as the checkpoint's own files define it.
//!
//! The files are `tokenizer.json`, or `vocab.json` and `merges.txt`, from which the same pipeline is put
//! together: Unicode composition, collapsed white space, lower case, CLIP's word pattern, and byte-level
//! byte-pair merges in which `</w>` closes a word. The encoding itself is the `tokenizers` crate's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokenizers::{Tokenizer, TruncationParams};

use super::ClipError;
use super::config::TextConfig;
use crate::guard::guarded;
use crate::model_files::{TOKENIZER, TOKENIZER_PARTS};
use crate::words::one_line;

const BOS: &str = "<|startoftext|>";
const EOS: &str = "<|endoftext|>";
/// Pattern of a word: special tokens, English contractions, runs of letters, single digits, runs of anything
/// else but white space.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Encodes texts for one text tower.
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    config: TextConfig,
    /// The end token that the tokenizer really appends.
    eos: u32,
}

/// Texts as token ids, padded to the longest of the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBatch {
    /// Token ids, [rows, len], row-major; start token first, end token last and as padding.
    pub ids: Vec<u32>,
    /// Tokens per row.
    pub len: usize,
    /// Texts.
    pub rows: usize,
    /// For each row the position of the token whose features stand for the text.
    pub eos_rows: Vec<u32>,
    /// The rows whose texts were longer than the tower takes.
    pub cut: Vec<usize>,
}

impl TokenBatch {
    /// The tokens of `count` rows from `first` on.
    pub fn of_rows(&self, first: usize, count: usize) -> &[u32] {
        &self.ids[first * self.len..(first + count) * self.len]
    }
}

impl ClipTokenizer {
    /// Reads the tokenizer in `dir` for the text tower `config`. Padding and truncation stored in the
    /// files are ignored: texts are cut to the tower's `max_tokens`.
    pub fn load(dir: &Path, config: &TextConfig) -> Result<Self, ClipError> {
        let (path, description) = read(dir)?;
        let wrong = |problem: String| ClipError::Tokenizer { path: path.clone(), problem };
        check_description(&description).map_err(wrong)?;
        let built = guarded(|| build(&description, config.max_tokens));
        let (tokenizer, frame) = built.unwrap_or_else(|| Err(MALFORMED.to_owned())).map_err(wrong)?;
        let [_, eos] = frame[..] else {
            return Err(wrong("does not put one start and one end token around a text".into()));
        };
        if config.eos != TextConfig::LEGACY_EOS && config.eos != eos {
            return Err(wrong(format!("ends texts with token {eos}, config.json says {}", config.eos)));
        }
        Ok(ClipTokenizer { tokenizer, config: config.clone(), eos })
    }

    /// Encodes `texts`: start token, text, end token; cut to the tower's longest text with the end token
    /// kept; padded with end tokens to the longest of the batch. A token that the text tower has no
    /// embedding for is an error.
    pub fn encode_batch(&self, texts: &[String]) -> Result<TokenBatch, ClipError> {
        let mut cut = Vec::new();
        let mut rows = Vec::with_capacity(texts.len());
        for text in texts {
            let (row, whole) = self.encode(text)?;
            if !whole {
                cut.push(rows.len());
            }
            rows.push(row);
        }
        let len = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut batch = TokenBatch {
            ids: Vec::with_capacity(rows.len() * len),
            len,
            rows: rows.len(),
            eos_rows: rows.iter().map(|row| self.config.pooled_position(row)).collect(),
            cut,
        };
        for row in rows {
            let padding = len - row.len();
            batch.ids.extend(row);
            batch.ids.extend(std::iter::repeat_n(self.eos, padding));
        }
        Ok(batch)
    }

    /// The tokens of a text, and whether they are those of all of it.
    fn encode(&self, text: &str) -> Result<(Vec<u32>, bool), ClipError> {
        let failed = |problem| ClipError::Encode { text: text.to_string(), problem };
        let encoding = guarded(|| self.tokenizer.encode_fast(text, true).map_err(|e| one_line(&e)));
        let encoding = encoding.unwrap_or_else(|| Err(MALFORMED.to_owned())).map_err(failed)?;
        match encoding.get_ids().iter().find(|&&id| id as usize >= self.config.vocabulary) {
            Some(id) => {
                Err(failed(format!("has token {id}, the model knows {} tokens", self.config.vocabulary)))
            }
            None => Ok((encoding.get_ids().to_vec(), encoding.get_overflowing().is_empty())),
        }
    }
}

const MALFORMED: &str = "a malformed tokenizer";

/// The tokenizer, and the ids that it puts around an empty text; the error is what is wrong with it.
fn build(description: &str, max_length: usize) -> Result<(Tokenizer, Vec<u32>), String> {
    let unusable = |e: tokenizers::Error| format!("not a usable tokenizer ({})", one_line(&e));
    let mut tokenizer = Tokenizer::from_bytes(description).map_err(unusable)?;
    tokenizer.with_padding(None);
    let truncation = TruncationParams { max_length, ..Default::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(|e| one_line(&e))?;
    let frame = tokenizer.encode("", true).map_err(|e| one_line(&e))?.get_ids().to_vec();
    Ok((tokenizer, frame))
}

/// Bounds on what a `tokenizer.json` may have done to a text, far above what CLIP's own does (three
/// normalizers, two pre-tokenizers, patterns of a hundred bytes). The steps run one after the other, so their
/// growth multiplies.
mod limit {
    /// Objects in the description of the steps.
    pub const OBJECTS: usize = 16;
    /// How often longer a text may get by replacements.
    pub const GROWTH: usize = 64;
    pub const PATTERN_BYTES: usize = 256;
}

/// Refuses a `tokenizer.json` that takes unbounded memory or time to compile or to apply. Backtracking has a
/// bound of its own in the engine of the regular expressions.
fn check_description(text: &str) -> Result<(), String> {
    let root: Value = serde_json::from_str(text).map_err(|e| format!("not a usable tokenizer ({e})"))?;
    if !matches!(root["model"]["type"].as_str(), None | Some("BPE")) || !root["model"]["merges"].is_array() {
        return Err("not a tokenizer of byte pairs, as CLIP's is".to_owned());
    }
    for part in ["normalizer", "pre_tokenizer", "post_processor", "decoder"] {
        let (mut objects, mut growth) = (0, 1usize);
        let mut rest = vec![&root[part]];
        while let Some(value) = rest.pop() {
            rest.extend(value.as_array().into_iter().flatten());
            let Some(object) = value.as_object() else { continue };
            rest.extend(object.values());
            objects += 1;
            let content = object.get("content").and_then(Value::as_str).map_or(0, str::len);
            growth = growth.saturating_mul(1 + content);
            // Its lengths are believed when it is unpacked.
            if object.contains_key("precompiled_charsmap") {
                return Err("has a table of SentencePiece's, which CLIP does not use".to_owned());
            }
            if let Some(pattern) = object.get("Regex").and_then(Value::as_str) {
                check_pattern(pattern)?;
            }
        }
        let applied = matches!(part, "normalizer" | "pre_tokenizer");
        if applied && (objects > limit::OBJECTS || growth > limit::GROWTH) {
            return Err(format!("its {part} does more to a text than a CLIP tokenizer does"));
        }
    }
    Ok(())
}

/// A counted repetition makes a short pattern a large one.
fn check_pattern(pattern: &str) -> Result<(), String> {
    let counted = pattern.as_bytes().windows(2).any(|pair| pair[0] == b'{' && pair[1].is_ascii_digit());
    if counted || pattern.len() > limit::PATTERN_BYTES {
        let most = limit::PATTERN_BYTES;
        return Err(format!("has a pattern with a counted repetition or of more than {most} bytes"));
    }
    Ok(())
}

/// The description of the tokenizer of `dir`, and the file that errors should name.
fn read(dir: &Path) -> Result<(PathBuf, String), ClipError> {
    let whole = dir.join(TOKENIZER);
    let [vocabulary, merges] = TOKENIZER_PARTS.map(|part| dir.join(part));
    if whole.exists() {
        let text = read_text(&whole)?;
        Ok((whole, text))
    } else if vocabulary.exists() && merges.exists() {
        let description = describe(&vocabulary, &merges)?;
        Ok((vocabulary, description))
    } else {
        Err(ClipError::NoTokenizer { dir: dir.to_path_buf() })
    }
}

fn read_text(path: &Path) -> Result<String, ClipError> {
    std::fs::read_to_string(path).map_err(|source| ClipError::Read { path: path.to_path_buf(), source })
}

/// The `tokenizer.json` that belongs to a `vocab.json` and a `merges.txt`.
fn describe(vocabulary: &Path, merges: &Path) -> Result<String, ClipError> {
    let vocab: BTreeMap<String, u32> = serde_json::from_str(&read_text(vocabulary)?)
        .map_err(|e| ClipError::Json { path: vocabulary.to_path_buf(), problem: e.to_string() })?;
    let special = |token: &str| match vocab.get(token) {
        Some(&id) => Ok(id),
        None => Err(ClipError::Tokenizer {
            path: vocabulary.to_path_buf(),
            problem: format!("has no token {token}"),
        }),
    };
    let (bos, eos) = (special(BOS)?, special(EOS)?);
    let description = json!({
        "version": "1.0",
        "added_tokens": [added_token(bos, BOS), added_token(eos, EOS)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": {
            "type": "RobertaProcessing", "sep": [EOS, eos], "cls": [BOS, bos],
            "trim_offsets": false, "add_prefix_space": false,
        },
        "model": {
            "type": "BPE", "unk_token": EOS, "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
            "fuse_unk": false, "vocab": vocab, "merges": read_merges(merges)?,
        },
    });
    Ok(description.to_string())
}

fn added_token(id: u32, content: &str) -> Value {
    json!({
        "id": id, "content": content, "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false,
    })
}

/// The pairs to merge, most urgent first: two words a line, after a version line.
fn read_merges(path: &Path) -> Result<Vec<[String; 2]>, ClipError> {
    let text = read_text(path)?;
    let lines =
        text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with("#version"));
    let pairs = lines.map(|(number, line)| match line.split_once(' ') {
        Some((left, right)) if !right.contains(' ') => Ok([left.to_string(), right.to_string()]),
        _ => Err(ClipError::Tokenizer {
            path: path.to_path_buf(),
            problem: format!("line {} is not a pair of symbols", number + 1),
        }),
    });
    pairs.collect()
}
