//! No floor of the library takes anything from one above it: docs/architecture.md has their order.

use std::fs;
use std::path::Path;

/// Floors that may take from `dev`: itself and the programs.
const ABOVE: [&str; 3] = ["dev", "commands", "cli"];

/// What code, not comments, names of `crate::`.
fn taken(text: &str) -> impl Iterator<Item = &str> {
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    code.flat_map(|line| {
        line.split("crate::")
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next())
    })
}

#[test]
fn floors_take_from_those_below_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| `") && !line.contains(".rs"));
    let floors: Vec<Vec<&str>> =
        rows.map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2).collect()).collect();
    let height = |name: &str| floors.iter().position(|floor| floor.contains(&name));
    let mut looked_at = 0;
    for (own, floor) in
        floors.iter().enumerate().flat_map(|(own, row)| row.iter().map(move |name| (own, name)))
    {
        let (folder, file) = (root.join("src").join(floor), root.join("src").join(format!("{floor}.rs")));
        let below = walkdir::WalkDir::new(if file.is_file() { file } else { folder });
        for file in below.into_iter().map(|entry| entry.unwrap().into_path()) {
            if file.extension().is_none_or(|e| e != "rs") {
                continue;
            }
            let text = fs::read_to_string(&file).unwrap();
            assert!(!text.contains("use crate::{"), "{}: one floor a line", file.display());
            for name in taken(&text) {
                assert!(height(name).is_none_or(|at| at <= own), "{}: crate::{name}", file.display());
            }
            looked_at += 1;
        }
    }
    assert!(looked_at > 200, "{looked_at}");
    let product = walkdir::WalkDir::new(root.join("src")).into_iter().map(|entry| entry.unwrap().into_path());
    for file in product
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .filter(|path| !ABOVE.iter().any(|floor| path.starts_with(root.join("src").join(floor))))
    {
        let text = fs::read_to_string(&file).unwrap();
        assert!(taken(&text).all(|name| name != "dev"), "{} takes from dev", file.display());
    }
}
