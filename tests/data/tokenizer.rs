//! The tokenizer gives the ids, the padding and the pooled positions that `transformers` gives, from
//! `tokenizer.json` as from `vocab.json` and `merges.txt`. Cases: tools/loading_fixtures.py.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use clip_engine::clip::ClipError;
use clip_engine::clip::config::{ClipConfig, TextConfig};
use clip_engine::clip::tokenizer::ClipTokenizer;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

#[derive(Deserialize)]
struct Cases {
    rows: Vec<Row>,
    batches: Vec<Batch>,
}

#[derive(Deserialize)]
struct Row {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Batch {
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    pooled: Vec<u32>,
    pooled_legacy: Vec<u32>,
}

static CASES: LazyLock<Cases> = LazyLock::new(|| serde_json::from_str(&fixture("cases.json")).unwrap());
static MERGES: LazyLock<String> = LazyLock::new(|| fixture("merges.txt"));

fn fixture(name: &str) -> String {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer");
    fs::read_to_string(dir.join(name)).unwrap()
}

/// CLIP's vocabulary in the order of its ids: 256 byte symbols, printable bytes first; the same at the end
/// of a word; the results of the merges; the two special tokens.
fn vocabulary() -> Vec<String> {
    let printable = |b: &u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let first = (0..256).filter(printable);
    let others = (0..256u32).filter(|b| !printable(b)).enumerate().map(|(i, _)| 256 + i as u32);
    let bytes: Vec<String> = first.chain(others).map(|c| char::from_u32(c).unwrap().to_string()).collect();
    let closing = bytes.iter().map(|b| format!("{b}</w>"));
    let merged = MERGES.lines().skip(1).map(|line| line.replace(' ', ""));
    let special = ["<|startoftext|>", "<|endoftext|>"].map(String::from);
    bytes.iter().cloned().chain(closing).chain(merged).chain(special).collect()
}

fn vocabulary_json() -> Value {
    Value::Object(vocabulary().into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect())
}

fn directory(files: &[(&str, String)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

fn two_files() -> TempDir {
    directory(&[("vocab.json", vocabulary_json().to_string()), ("merges.txt", MERGES.clone())])
}

/// What `transformers` saves, with the vocabulary put back in; `edit` changes it on the way.
fn one_file(edit: impl FnOnce(&mut Value)) -> TempDir {
    let mut pipeline: Value = serde_json::from_str(&fixture("pipeline.json")).unwrap();
    let merges = MERGES.lines().skip(1).map(|line| json!(line.split(' ').collect::<Vec<_>>())).collect();
    pipeline["model"]["vocab"] = vocabulary_json();
    pipeline["model"]["merges"] = Value::Array(merges);
    edit(&mut pipeline);
    directory(&[("tokenizer.json", pipeline.to_string())])
}

fn text_config() -> TextConfig {
    ClipConfig::vit_b_32().text
}

fn load(dir: &Path) -> ClipTokenizer {
    ClipTokenizer::load(dir, &text_config()).unwrap()
}

fn assert_equal_to_transformers(tokenizer: &ClipTokenizer) {
    for Row { text, ids } in &CASES.rows {
        let batch = tokenizer.encode_batch(std::slice::from_ref(text)).unwrap();
        assert_eq!(&batch.ids, ids, "{text:?}");
        assert_eq!((batch.rows, batch.len), (1, ids.len()), "{text:?}");
    }
    for batch in &CASES.batches {
        let ours = tokenizer.encode_batch(&batch.texts).unwrap();
        assert_eq!((ours.rows, ours.len), (batch.ids.len(), batch.ids[0].len()));
        assert_eq!(ours.ids, batch.ids.concat());
        assert_eq!(ours.eos_rows, batch.pooled);
    }
}

#[test]
fn the_vocabulary_follows_from_the_merges() {
    let vocabulary = vocabulary();
    assert_eq!(vocabulary.len(), text_config().vocabulary);
    for (id, token) in [(93, "~"), (94, "¡"), (188, "Ā"), (255, "Ń"), (256, "!</w>"), (2368, "cat</w>")] {
        assert_eq!(vocabulary[id], token);
    }
}

#[test]
fn vocabulary_and_merges_encode_as_transformers_does() {
    assert_equal_to_transformers(&load(two_files().path()));
}

#[test]
fn tokenizer_json_encodes_as_transformers_does() {
    assert_equal_to_transformers(&load(one_file(|_| {}).path()));
}

#[test]
fn stored_padding_and_truncation_are_ignored_and_old_files_read() {
    // Merges as strings, and settings that some checkpoints carry: pad to 77 with 0, cut at 10.
    let dir = one_file(|file| {
        file["model"]["merges"] = MERGES.lines().skip(1).map(Value::from).collect();
        file["padding"] = json!({
            "strategy": {"Fixed": 77}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "!",
        });
        file["truncation"] =
            json!({"max_length": 10, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
    });
    assert_equal_to_transformers(&load(dir.path()));
}

#[test]
fn the_legacy_end_token_pools_at_the_largest_id() {
    let config = TextConfig { eos: TextConfig::LEGACY_EOS, ..text_config() };
    let tokenizer = ClipTokenizer::load(two_files().path(), &config).unwrap();
    for batch in &CASES.batches {
        assert_eq!(tokenizer.encode_batch(&batch.texts).unwrap().eos_rows, batch.pooled_legacy);
    }
    // A token above the end token tells the two rules apart: only the legacy one pools there.
    let extra = |file: &mut Value| {
        let mut token = file["added_tokens"][1].clone();
        (token["id"], token["content"]) = (json!(49_408), json!("<|new|>"));
        file["added_tokens"].as_array_mut().unwrap().push(token);
    };
    let (dir, text) = (one_file(extra), ["a <|new|> cat".to_string()]);
    for (eos, row) in [(TextConfig::LEGACY_EOS, 2), (49_407, 4)] {
        let config = TextConfig { eos, vocabulary: 49_409, ..text_config() };
        let batch = ClipTokenizer::load(dir.path(), &config).unwrap().encode_batch(&text).unwrap();
        assert_eq!((batch.ids, batch.eos_rows), (vec![49_406, 320, 49_408, 2368, 49_407], vec![row]));
    }
}

#[test]
fn texts_are_cut_to_the_tower_and_keep_their_end() {
    let config = TextConfig { max_tokens: 5, ..text_config() };
    let tokenizer = ClipTokenizer::load(two_files().path(), &config).unwrap();
    let texts = ["a photo of a cat".to_string(), "a cat".to_string()];
    let batch = tokenizer.encode_batch(&texts).unwrap();
    assert_eq!(batch.ids, [49406, 320, 1125, 539, 49407, 49406, 320, 2368, 49407, 49407]);
    assert_eq!(batch.eos_rows, [4, 3]);
}

#[test]
fn no_texts_make_an_empty_batch() {
    let batch = load(two_files().path()).encode_batch(&[]).unwrap();
    assert_eq!((batch.ids.len(), batch.len, batch.rows, batch.eos_rows.len()), (0, 0, 0, 0));
}

#[test]
fn a_token_without_an_embedding_is_an_error() {
    let config = TextConfig { vocabulary: 49_406, eos: TextConfig::LEGACY_EOS, ..text_config() };
    let tokenizer = ClipTokenizer::load(two_files().path(), &config).unwrap();
    let error = tokenizer.encode_batch(&["a cat".to_string()]).unwrap_err();
    assert!(matches!(error, ClipError::Encode { .. }), "{error}");
    assert!(error.to_string().contains("49406"), "{error}");
}

#[test]
fn unusable_files_are_named_in_one_line() {
    let vocab = || vocabulary_json().to_string();
    let cut: String = vocab().chars().take(1000).collect();
    let foreign = r#"{"a":0,"b":1}"#.to_string();
    let unframed = |file: &mut Value| file["post_processor"] = Value::Null;
    let other_end = |file: &mut Value| {
        file["post_processor"]["sep"] = json!(["!", 0]);
    };
    let cases: [(TempDir, &str, &str); 8] = [
        (directory(&[]), "", "no tokenizer"),
        (directory(&[("vocab.json", vocab())]), "", "merges.txt"),
        (directory(&[("tokenizer.json", "{".into())]), "tokenizer.json", "not a usable tokenizer"),
        (directory(&[("vocab.json", cut), ("merges.txt", MERGES.clone())]), "vocab.json", "EOF"),
        (
            directory(&[("vocab.json", foreign), ("merges.txt", MERGES.clone())]),
            "vocab.json",
            "<|startoftext|>",
        ),
        (
            directory(&[("vocab.json", vocab()), ("merges.txt", "#version\ni n g\n".into())]),
            "merges.txt",
            "line 2",
        ),
        (one_file(unframed), "tokenizer.json", "one start and one end token"),
        (one_file(other_end), "tokenizer.json", "config.json says 49407"),
    ];
    for (dir, file, problem) in cases {
        let Err(error) = ClipTokenizer::load(dir.path(), &text_config()) else {
            panic!("{problem}: accepted")
        };
        let message = error.to_string();
        assert!(
            message.starts_with(dir.path().join(file).to_str().unwrap().trim_end_matches('/')),
            "{message}"
        );
        assert!(message.contains(problem), "{problem}: {message}");
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn tokenizers_that_do_without_bound_are_refused() {
    type Edit = fn(&mut Value);
    fn grow(content: &str, times: usize) -> Value {
        let step = json!({"type": "Replace", "pattern": {"String": "a"}, "content": content});
        json!({"type": "Sequence", "normalizers": vec![step; times]})
    }
    fn split(pattern: &str) -> Value {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": true})
    }
    let level = || json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
    let more: [(Edit, &str); 7] = [
        (
            |file| file["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
            "Sentence",
        ),
        (|file| file["model"]["type"] = json!("Unigram"), "not a tokenizer of byte pairs"),
        (|file| file["normalizer"] = grow("aaaaaaa", 3), "its normalizer does more"),
        (|file| file["normalizer"] = grow("", 8), "its normalizer does more"),
        (|file| file["pre_tokenizer"] = split("a{999}"), "a counted repetition"),
        (|file| file["pre_tokenizer"] = split(&"a|".repeat(129)), "more than 256 bytes"),
        (|file| file["decoder"] = split("(?=a{2,})"), "a counted repetition"),
    ];
    for (edit, problem) in more {
        let message = ClipTokenizer::load(one_file(edit).path(), &text_config()).err().unwrap().to_string();
        assert!(message.contains(problem) && !message.contains('\n'), "{problem}: {message}");
    }
    let fewer = one_file(|file| file["normalizer"] = grow("aaaaaaa", 2));
    assert_eq!(load(fewer.path()).encode_batch(&["a".to_owned()]).unwrap().rows, 1);
    let levels = |file: &mut Value| {
        file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": vec![level(); 16]});
    };
    let message = ClipTokenizer::load(one_file(levels).path(), &text_config()).err().unwrap().to_string();
    assert!(message.contains("its pre_tokenizer does more"), "{message}");
}
