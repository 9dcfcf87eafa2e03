//! What `--data` opens: every layout, and every way in which it can be wrong.

use crate::files::{flowers, photo, write_mat};
use clip_engine::data::{DataError, Item, Source, SourceKind, Split};
use std::collections::BTreeMap;
use std::path::Path;

/// Makes files of the given names (their content does not matter here).
fn touch(root: &Path, names: &[&str]) {
    for name in names {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }
}

fn names(source: &Source, split: Split) -> Vec<(String, u32)> {
    let root = &source.root;
    let name = |path: &Path| path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
    source.split(split).iter().map(|item| (name(&item.path), item.label)).collect()
}

/// The message of opening `root`, which must fail with one line that names `mentions`.
fn failure(root: &Path, mentions: &[&str]) -> DataError {
    let error = Source::open(root, 0).expect_err("this layout is wrong");
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message}");
    for text in mentions {
        assert!(message.contains(text), "{message:?} does not mention {text:?}");
    }
    error
}

#[test]
fn split_folders_are_listed_in_the_order_of_their_names() {
    let dir = tempfile::tempdir().unwrap();
    touch(
        dir.path(),
        &[
            "train/b_lily/2.PNG",
            "train/b_lily/10.jpeg",
            "train/a_rose/z.webp",
            "train/a_rose/notes.txt",
            "train/a_rose/.hidden.jpg",
            "valid/a_rose/1.bmp",
            "valid/b_lily/1.tiff",
            "test/b_lily/q.gif",
            "test/a_rose/q.jpg",
            "train/readme.md",
        ],
    );
    let source = Source::open(dir.path(), 7).unwrap();
    assert_eq!(source.kind, SourceKind::SplitFolders);
    assert_eq!(source.class_names, ["a_rose", "b_lily"]);
    let expected = [("train/a_rose/z.webp", 0), ("train/b_lily/10.jpeg", 1), ("train/b_lily/2.PNG", 1)];
    assert_eq!(names(&source, Split::Train), expected.map(|(n, l)| (n.to_owned(), l)));
    assert_eq!(names(&source, Split::Val)[1], ("valid/b_lily/1.tiff".to_owned(), 1));
    assert_eq!(names(&source, Split::Test).len(), 2);
    assert_eq!(source.len(), 7);
}

#[test]
fn the_test_split_may_be_missing_but_not_the_others() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg"]);
    assert!(Source::open(dir.path(), 0).unwrap().test.is_empty());
    std::fs::remove_dir_all(dir.path().join("val")).unwrap();
    failure(dir.path(), &["no val folder"]);
    std::fs::rename(dir.path().join("train"), dir.path().join("val")).unwrap();
    failure(dir.path(), &["no train folder"]);
}

#[test]
fn splits_with_other_classes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/c/1.jpg"]);
    failure(dir.path(), &["\"b\"", "in train", "val"]);
    touch(dir.path(), &["val/b/1.jpg"]);
    failure(dir.path(), &["\"c\"", "in val", "train"]);
    touch(dir.path(), &["train/c/1.jpg", "test/a/1.jpg", "test/b/1.jpg"]);
    failure(dir.path(), &["\"c\"", "in train", "test"]);
    // A folder without photos is no class either, in whichever split.
    for split in ["test", "val", "train"] {
        let copy = tempfile::tempdir().unwrap();
        for part in ["train", "val", "test"] {
            let name = if part == split { "notes.txt" } else { "1.jpg" };
            touch(copy.path(), &[&format!("{part}/a/1.jpg"), &format!("{part}/c/{name}")]);
        }
        failure(copy.path(), &[&format!("{split}/c"), "without images"]);
    }
}

#[test]
fn folders_without_images_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    failure(&dir.path().join("nowhere"), &["nowhere", "no such folder", "--data"]);
    failure(dir.path(), &["empty"]);
    touch(dir.path(), &["a.jpg"]);
    failure(&dir.path().join("a.jpg"), &["a.jpg", "not a folder"]);
    failure(dir.path(), &["one folder per class"]);
    touch(dir.path(), &["rose/1.jpg"]);
    failure(dir.path(), &["only one class"]);
    touch(dir.path(), &["tulip/readme.txt"]);
    assert!(matches!(failure(dir.path(), &["tulip"]), DataError::EmptyClass { .. }));
}

#[test]
fn a_folder_of_classes_is_split_by_seed_and_by_names_only() {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<String> = [("x", 1), ("y", 2), ("z", 3), ("w", 40)]
        .iter()
        .flat_map(|(class, n)| (0..*n).map(move |i| format!("{class}/{i:02}.jpg")))
        .collect();
    touch(dir.path(), &files.iter().map(String::as_str).collect::<Vec<_>>());
    let source = Source::open(dir.path(), 5).unwrap();
    assert_eq!(source.kind, SourceKind::ClassFolders { seed: 5 });
    let mut counts = BTreeMap::new();
    for split in Split::ALL {
        for (name, label) in names(&source, split) {
            assert!(name.starts_with(&source.class_names[label as usize]));
            *counts.entry((label, split)).or_insert(0) += 1;
        }
    }
    let count = |label, split| counts.get(&(label, split)).copied().unwrap_or(0);
    let per_class: Vec<[usize; 3]> = (0..4).map(|l| Split::ALL.map(|s| count(l, s))).collect();
    assert_eq!(per_class, [[28, 6, 6], [1, 0, 0], [1, 1, 0], [1, 1, 1]]);

    assert_eq!(Source::open(dir.path(), 5).unwrap(), source);
    let copy = tempfile::tempdir().unwrap();
    touch(copy.path(), &files.iter().rev().map(String::as_str).collect::<Vec<_>>());
    let moved = Source::open(copy.path(), 5).unwrap();
    assert_eq!(names(&moved, Split::Train), names(&source, Split::Train));
    let other = Source::open(dir.path(), 6).unwrap();
    assert_ne!(names(&other, Split::Test), names(&source, Split::Test));
}

#[test]
fn one_split_alone_keeps_its_photos_and_the_names_of_all_classes() {
    let dir = tempfile::tempdir().unwrap();
    flowers(dir.path(), true);
    let source = Source::open(dir.path(), 0).unwrap();
    for split in Split::ALL {
        let only = source.only(split);
        for other in Split::ALL {
            let expected: &[Item] = if other == split { source.split(split) } else { &[] };
            assert_eq!(only.split(other), expected);
        }
        assert_eq!((only.kind, &only.root), (source.kind, &source.root));
        assert_eq!(only.class_names, source.class_names);
    }
}

#[test]
fn flowers_102_is_read_in_both_places_and_all_element_types() {
    for (inner, uint8) in [("flowers-102", true), ("", false)] {
        let dir = tempfile::tempdir().unwrap();
        flowers(&dir.path().join(inner), uint8);
        let source = Source::open(dir.path(), 0).unwrap();
        assert_eq!(source.kind, SourceKind::Flowers102);
        assert_eq!(source.class_names.len(), 102);
        assert_eq!(
            (source.class_names[0].as_str(), source.class_names[101].as_str()),
            ("pink primrose", "blackberry lily")
        );
        let numbers = |split| -> Vec<(String, u32)> {
            let items: &[Item] = source.split(split);
            items
                .iter()
                .map(|i| (i.path.file_name().unwrap().to_string_lossy().into_owned(), i.label))
                .collect()
        };
        assert_eq!(
            numbers(Split::Train),
            [("image_00001.jpg".to_owned(), 76), ("image_00004.jpg".to_owned(), 0)]
        );
        assert_eq!(numbers(Split::Val), [("image_00002.jpg".to_owned(), 101)]);
        assert_eq!(
            numbers(Split::Test),
            [("image_00003.jpg".to_owned(), 9), ("image_00005.jpg".to_owned(), 1)]
        );
    }
}

#[test]
fn a_real_matlab_writers_files_are_read() {
    // Written by SciPy, as tools/make_image_fixtures.py does: compressed, uint8 labels, uint16 splits.
    let dir = tempfile::tempdir().unwrap();
    flowers(dir.path(), true);
    for name in ["imagelabels.mat", "setid.mat"] {
        std::fs::copy(crate::files::fixtures().join("mat").join(name), dir.path().join(name)).unwrap();
    }
    let source = Source::open(dir.path(), 0).unwrap();
    let labels: Vec<u32> = source.items().map(|item| item.label).collect();
    assert_eq!(labels, [76, 0, 101, 9, 1]);
    // The same values as doubles, not compressed.
    for name in ["imagelabels", "setid"] {
        let from = crate::files::fixtures().join("mat").join(format!("{name}_double.mat"));
        std::fs::copy(from, dir.path().join(format!("{name}.mat"))).unwrap();
    }
    assert_eq!(Source::open(dir.path(), 0).unwrap(), source);
}

#[test]
fn wrong_flowers_102_files_are_named() {
    let make = || {
        let dir = tempfile::tempdir().unwrap();
        flowers(dir.path(), true);
        dir
    };
    let dir = make();
    std::fs::remove_file(dir.path().join("setid.mat")).unwrap();
    failure(dir.path(), &["setid.mat", "missing"]);

    let dir = make();
    std::fs::remove_dir_all(dir.path().join("jpg")).unwrap();
    failure(dir.path(), &["jpg", "missing"]);

    let dir = make();
    std::fs::remove_file(dir.path().join("jpg/image_00003.jpg")).unwrap();
    assert!(matches!(failure(dir.path(), &["image_00003.jpg"]), DataError::PhotoMissing { number: 3, .. }));

    for (label, text) in [(0.0, "label 0"), (103.0, "label 103"), (1.5, "label 1.5")] {
        let dir = make();
        write_mat(&dir.path().join("imagelabels.mat"), &[("labels", &[1.0, 2.0, label, 4.0, 5.0])], false);
        failure(dir.path(), &["imagelabels.mat", "photo 3", text, "1 to 102"]);
    }
    for (number, text) in [(0.0, "photo 0"), (6.0, "photo 6"), (-1.0, "photo -1")] {
        let dir = make();
        let splits: [(&str, &[f64]); 3] = [("trnid", &[1.0]), ("valid", &[2.0]), ("tstid", &[number])];
        write_mat(&dir.path().join("setid.mat"), &splits, false);
        failure(dir.path(), &["setid.mat", "tstid", text]);
    }
    let dir = make();
    write_mat(&dir.path().join("setid.mat"), &[("trnid", &[1.0]), ("valid", &[2.0])], false);
    failure(dir.path(), &["setid.mat", "tstid"]);

    for content in ["", "<html>404</html>"] {
        let dir = make();
        std::fs::write(dir.path().join("imagelabels.mat"), content).unwrap();
        failure(dir.path(), &["imagelabels.mat", "not a MATLAB 5 file"]);
    }
}

#[test]
fn a_damaged_mat_file_is_an_error_wherever_it_is_cut_and_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    flowers(dir.path(), true);
    for name in ["imagelabels.mat", "imagelabels_double.mat"] {
        let whole = std::fs::read(crate::files::fixtures().join("mat").join(name)).unwrap();
        let path = dir.path().join("imagelabels.mat");
        for length in 0..whole.len() - 8 {
            std::fs::write(&path, &whole[..length]).unwrap();
            failure(dir.path(), &["imagelabels.mat"]);
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xff;
            std::fs::write(&path, &damaged).unwrap();
            if let Err(error) = Source::open(dir.path(), 0) {
                assert!(error.to_string().contains("imagelabels.mat"), "{error}");
            }
        }
    }
}

#[test]
fn split_names_are_those_of_the_command_line() {
    for split in Split::ALL {
        assert_eq!(split.to_string().parse::<Split>().unwrap(), split);
    }
    assert!("dev".parse::<Split>().unwrap_err().to_string().contains("\"dev\""));
    assert!(photo("rgb.png").is_file());
}
