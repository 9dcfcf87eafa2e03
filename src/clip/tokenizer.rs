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

const BOS: &str = "<|startoftext|>";
const EOS: &str = "<|endoftext|>";
/// What counts as a word: special tokens, English contractions, runs of letters, single digits, runs of
/// anything else but white space.
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
}

impl ClipTokenizer {
    /// Reads the tokenizer in `dir` for the text tower `config`. Padding and truncation stored in the
    /// files are ignored: texts are cut to the tower's `max_tokens`.
    pub fn load(dir: &Path, config: &TextConfig) -> Result<Self, ClipError> {
        let (path, mut tokenizer) = read(dir)?;
        let wrong = |problem: String| ClipError::Tokenizer { path: path.clone(), problem };
        let truncation = TruncationParams { max_length: config.max_tokens, ..Default::default() };
        tokenizer.with_padding(None);
        tokenizer.with_truncation(Some(truncation)).map_err(|e| wrong(e.to_string()))?;
        let frame = tokenizer.encode("", true).map_err(|e| wrong(e.to_string()))?;
        let &[_, eos] = frame.get_ids() else {
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
        let rows = texts.iter().map(|text| self.encode(text)).collect::<Result<Vec<_>, _>>()?;
        let len = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut batch = TokenBatch {
            ids: Vec::with_capacity(rows.len() * len),
            len,
            rows: rows.len(),
            eos_rows: rows.iter().map(|row| self.config.pooled_position(row)).collect(),
        };
        for row in rows {
            let padding = len - row.len();
            batch.ids.extend(row);
            batch.ids.extend(std::iter::repeat_n(self.eos, padding));
        }
        Ok(batch)
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, ClipError> {
        let failed = |problem| ClipError::Encode { text: text.to_string(), problem };
        let encoding = self.tokenizer.encode_fast(text, true).map_err(|e| failed(e.to_string()))?;
        match encoding.get_ids().iter().find(|&&id| id as usize >= self.config.vocabulary) {
            Some(id) => {
                Err(failed(format!("has token {id}, the model knows {} tokens", self.config.vocabulary)))
            }
            None => Ok(encoding.get_ids().to_vec()),
        }
    }
}

/// The tokenizer of `dir`, and the file that errors should name.
fn read(dir: &Path) -> Result<(PathBuf, Tokenizer), ClipError> {
    let (whole, vocabulary, merges) =
        (dir.join("tokenizer.json"), dir.join("vocab.json"), dir.join("merges.txt"));
    let (path, description) = if whole.exists() {
        let text = read_text(&whole)?;
        (whole, text)
    } else if vocabulary.exists() && merges.exists() {
        let description = describe(&vocabulary, &merges)?;
        (vocabulary, description)
    } else {
        return Err(ClipError::NoTokenizer { dir: dir.to_path_buf() });
    };
    match Tokenizer::from_bytes(description) {
        Ok(tokenizer) => Ok((path, tokenizer)),
        Err(e) => Err(ClipError::Tokenizer { path, problem: format!("not a usable tokenizer ({e})") }),
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
