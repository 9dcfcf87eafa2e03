//! SECURITY.md names every file with unsafe code, and none that has no more.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// True for a line of code, not of comment, with the keyword in it.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
}

/// The Rust files of the engine that have such a line, by their paths in the repository.
fn unsafe_files(root: &Path) -> BTreeSet<String> {
    let sources = walkdir::WalkDir::new(root.join("src")).into_iter().map(|entry| entry.unwrap().into_path());
    let files =
        sources.filter(|path| path.extension().is_some_and(|e| e == "rs")).chain([root.join("build.rs")]);
    let found = files.filter(|path| fs::read_to_string(path).unwrap().lines().any(is_unsafe));
    let name =
        |path: std::path::PathBuf| path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
    found.map(name).collect()
}

#[test]
fn the_list_of_unsafe_code_is_complete() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let note = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let (_, list) = note.split_once("## Unsafe code").unwrap();
    let rows = list.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let mut listed = BTreeSet::new();
    for (file, reason) in rows {
        assert!(reason.len() > 12, "{file}: no reason is given");
        assert!(listed.insert(file.to_owned()), "{file} is listed twice");
    }
    let found = unsafe_files(root);
    assert!(found.len() > 10, "{found:?}");
    assert_eq!(listed, found, "SECURITY.md lists the left, src/ has the right");
}

#[test]
fn comments_and_longer_words_are_not_unsafe_code() {
    for line in ["// unsafe", "    /// an unsafe fn", "let unsafely = 1; // unsafe", "is_unsafe(line)"] {
        assert!(!is_unsafe(line), "{line}");
    }
    for line in ["unsafe { x }", "    pub unsafe fn f();", "Ok(unsafe{f()})", "#[unsafe(no_mangle)] // why"] {
        assert!(is_unsafe(line), "{line}");
    }
}
