//! CONTRIBUTING.md lists the long tests, and no others.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The tests that are marked long in the text of a Rust file.
fn long_tests(text: &str) -> Vec<String> {
    let marked = text.split("#[ignore = \"long: ").skip(1);
    let names = marked.map(|rest| rest.split_once("\nfn ").unwrap().1.split_once('(').unwrap().0);
    names.map(str::to_owned).collect()
}

#[test]
fn the_list_of_long_tests_is_complete() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut marked = BTreeSet::new();
    for folder in ["src", "tests"] {
        for entry in walkdir::WalkDir::new(root.join(folder)).into_iter().map(|entry| entry.unwrap()) {
            if entry.path().extension().is_some_and(|end| end == "rs") && !entry.path().ends_with(file!()) {
                marked.extend(long_tests(&fs::read_to_string(entry.path()).unwrap()));
            }
        }
    }
    let note = fs::read_to_string(root.join("CONTRIBUTING.md")).unwrap();
    let (_, list) = note.split_once("| module | long tests | why |").unwrap();
    let rows = list.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cells = rows.filter_map(|row| row.split('|').nth(2));
    let listed: BTreeSet<String> =
        cells.flat_map(|cell| cell.split(',')).map(|name| name.trim().replace('`', "")).collect();
    assert!(listed.len() > 10, "{listed:?}");
    assert_eq!(listed, marked, "CONTRIBUTING.md lists the left, the tests have the right");
}
