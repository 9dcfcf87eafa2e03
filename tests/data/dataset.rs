//! What `--data` opens: every layout, and every way in which it can be wrong.

use crate::files::{flowers, photo, write_mat};
use clip_engine::data::{DataError, Dataset, DatasetKind, DatasetOptions, Groups, Item, Purpose, Split};
use std::collections::BTreeMap;
use std::path::Path;

/// Makes files of the given names (their content does not matter here).
fn touch(root: &Path, names: &[&str]) {
    for name in names {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, [0xff, 0xd8, 0xff, 0xe0]).unwrap();
    }
}

fn names(source: &Dataset, split: Split) -> Vec<(String, u32)> {
    let root = &source.root;
    let name = |path: &Path| path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
    source.split(split).iter().map(|item| (name(&item.path), item.label)).collect()
}

/// Everything that is said of a dataset, one line each.
fn said(source: &Dataset) -> String {
    source.notes.iter().map(|note| note.text.clone()).collect::<Vec<_>>().join("\n")
}

/// The message of opening `root`, which must fail with one line that names `mentions`.
fn failure(root: &Path, mentions: &[&str]) -> DataError {
    let error = Dataset::open(root, 0).expect_err("this layout is wrong");
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
    let source = Dataset::open(dir.path(), 7).unwrap();
    assert_eq!(source.kind, DatasetKind::SplitFolders);
    assert_eq!(source.class_names, ["a_rose", "b_lily"]);
    let expected = [("train/a_rose/z.webp", 0), ("train/b_lily/10.jpeg", 1), ("train/b_lily/2.PNG", 1)];
    assert_eq!(names(&source, Split::Train), expected.map(|(n, l)| (n.to_owned(), l)));
    assert_eq!(names(&source, Split::Val)[1], ("valid/b_lily/1.tiff".to_owned(), 1));
    assert_eq!(names(&source, Split::Test).len(), 2);
    assert_eq!(source.len(), 7);
}

#[test]
fn val_is_drawn_from_train_where_there_is_none_and_test_may_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let train: Vec<String> =
        (0..20).flat_map(|i| [format!("train/a/{i}.jpg"), format!("train/b/{i}.jpg")]).collect();
    touch(dir.path(), &train.iter().map(String::as_str).collect::<Vec<_>>());
    touch(dir.path(), &["val/a/1.jpg", "val/b/1.jpg"]);
    let own = Dataset::open(dir.path(), 0).unwrap();
    assert_eq!((own.test.len(), own.drawn, own.train.len()), (0, None, 40));
    std::fs::remove_dir_all(dir.path().join("val")).unwrap();
    let drawn = Dataset::open(dir.path(), 0).unwrap();
    assert_eq!((drawn.train.len(), drawn.val.len(), drawn.test.len(), drawn.drawn), (34, 6, 0, Some(0)));
    assert!(said(&drawn).contains("6 of 40 training photos were drawn"), "{}", said(&drawn));
    assert_ne!(Dataset::open(dir.path(), 1).unwrap().val, drawn.val);
    let half = DatasetOptions { val_share: 0.5, ..0.into() };
    assert_eq!(Dataset::open(dir.path(), half).unwrap().val.len(), 20);
    std::fs::rename(dir.path().join("train"), dir.path().join("val")).unwrap();
    failure(dir.path(), &["no train folder"]);
}

#[test]
fn val_and_test_may_lack_classes_and_have_none_that_train_lacks() {
    let dir = tempfile::tempdir().unwrap();
    touch(
        dir.path(),
        &["train/a/1.jpg", "train/Red_rose/1.jpg", "val/a/1.jpg", "test/a/1.jpg", "test/Red_rose/notes.txt"],
    );
    let source = Dataset::open(dir.path(), 0).unwrap();
    assert_eq!((source.val.len(), source.test.len()), (1, 1));
    touch(dir.path(), &["test/red rose/1.jpg"]);
    failure(dir.path(), &["\"red rose\"", "in test", "in train", "did you mean \"Red_rose\"?"]);
    // In train a folder without photos is no class.
    let copy = tempfile::tempdir().unwrap();
    touch(copy.path(), &["train/a/1.jpg", "train/b/1.heic", "train/b/2.heic", "val/a/1.jpg"]);
    failure(copy.path(), &["train/b", "without images", "2 .heic files"]);
}

#[test]
fn folders_without_images_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    failure(&dir.path().join("nowhere"), &["nowhere", "no such folder", "--data"]);
    failure(dir.path(), &["empty"]);
    touch(dir.path(), &["a.jpg"]);
    failure(&dir.path().join("a.jpg"), &["a.jpg", "UTF-8"]);
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
    let source = Dataset::open(dir.path(), 5).unwrap();
    assert_eq!((source.kind, source.drawn), (DatasetKind::ClassFolders, Some(5)));
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

    assert_eq!(Dataset::open(dir.path(), 5).unwrap(), source);
    let copy = tempfile::tempdir().unwrap();
    touch(copy.path(), &files.iter().rev().map(String::as_str).collect::<Vec<_>>());
    let moved = Dataset::open(copy.path(), 5).unwrap();
    assert_eq!(names(&moved, Split::Train), names(&source, Split::Train));
    let other = Dataset::open(dir.path(), 6).unwrap();
    assert_ne!(names(&other, Split::Test), names(&source, Split::Test));
}

#[test]
fn one_split_alone_keeps_its_photos_and_the_names_of_all_classes() {
    let dir = tempfile::tempdir().unwrap();
    flowers(dir.path(), true);
    let source = Dataset::open(dir.path(), 0).unwrap();
    for split in Split::ALL {
        let only = source.only(&[split]);
        for other in Split::ALL {
            let expected: &[Item] = if other == split { source.split(split) } else { &[] };
            assert_eq!(only.split(other), expected);
        }
        assert_eq!((only.kind, &only.root), (source.kind, &source.root));
        assert_eq!(only.class_names, source.class_names);
    }
}

#[test]
fn photos_in_subfolders_and_by_every_ending_are_read_and_others_counted() {
    let dir = tempfile::tempdir().unwrap();
    touch(
        dir.path(),
        &[
            "a/1.jfif",
            "a/2.JPE",
            "a/3.pjpeg",
            "a/noending",
            "a/IMG.2024",
            "a/deep/er/4.Jpg",
            "a/.hidden/5.jpg",
            "a/@eaDir/6.jpg",
            "a/7.HEIC",
            "a/8.heic",
            "a/clip.mp4",
            "a/notes.txt",
            "b/1.jpg",
            "b/2.avif",
            "__MACOSX/a/._1.jpg",
            "__MACOSX/b/1.jpg",
            ".ipynb_checkpoints/1.jpg",
            "beside.jpg",
        ],
    );
    std::fs::write(dir.path().join("a/README"), "of content that is no image").unwrap();
    // What the engine itself leaves is no class.
    for file in
        ["runs/demo/config.toml", "runs/demo/metrics.jsonl", "runs/demo/plots/curves.png", "cache/x.pixels"]
    {
        touch(dir.path(), &[file]);
    }
    let source = Dataset::open(dir.path(), 0).unwrap();
    let mut found: Vec<String> = source
        .items()
        .map(|item| item.path.strip_prefix(dir.path()).unwrap().to_string_lossy().into_owned())
        .collect();
    found.sort();
    let expected =
        ["a/1.jfif", "a/2.JPE", "a/3.pjpeg", "a/IMG.2024", "a/deep/er/4.Jpg", "a/noending", "b/1.jpg"];
    assert_eq!(found, expected);
    assert_eq!(source.class_names, ["a", "b"]);
    let said = said(&source);
    assert!(said.contains("left out 1 .avif, 2 .heic, 1 .mp4 files"), "{said}");
    assert!(said.contains("left out 1 photo that lies beside"), "{said}");
}

#[cfg(unix)]
#[test]
fn what_cannot_be_reached_is_a_photo_that_cannot_be_read() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["a/1.jpg", "b/1.jpg"]);
    symlink("nowhere.jpg", dir.path().join("a/gone.jpg")).unwrap();
    symlink("nowhere.txt", dir.path().join("a/gone.txt")).unwrap();
    symlink("..", dir.path().join("b/loop")).unwrap();
    let (below, _) = clip_engine::data::images_below(&dir.path().join("a")).unwrap();
    assert_eq!(below, [dir.path().join("a/1.jpg"), dir.path().join("a/gone.jpg")]);
    let source = Dataset::open(dir.path(), 0).unwrap();
    let mut found: Vec<String> = source.items().map(|item| item.path.display().to_string()).collect();
    found.sort();
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(found[1].ends_with("a/gone.jpg") && found[3].ends_with("b/loop"), "{found:?}");
}

#[test]
fn splits_go_by_the_names_that_people_give_them() {
    for [train, val, test] in [
        ["Training", "", "Testing"],
        ["Train", "Val", "Test"],
        ["training_set", "validation_set", "test_set"],
        ["train", "dev", "test"],
        ["train", "", ""],
    ] {
        let dir = tempfile::tempdir().unwrap();
        for class in ["cats", "dogs"] {
            (0..7).for_each(|i| touch(dir.path(), &[&format!("{train}/{class}/{i}.jpg")]));
            for split in [val, test].into_iter().filter(|split| !split.is_empty()) {
                touch(dir.path(), &[&format!("{split}/{class}/1.jpg")]);
            }
        }
        let source = Dataset::open(dir.path(), 3).unwrap();
        assert_eq!(source.kind, DatasetKind::SplitFolders, "{train} {val} {test}");
        assert_eq!(source.class_names, ["cats", "dogs"]);
        assert_eq!(source.test.len(), if test.is_empty() { 0 } else { 2 });
        assert_eq!((source.val.len(), source.drawn), if val.is_empty() { (2, Some(3)) } else { (2, None) });
    }
    let dir = tempfile::tempdir().unwrap();
    touch(
        dir.path(),
        &["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg", "validation/a/1.jpg"],
    );
    failure(dir.path(), &["validation", "is the val split too"]);
}

#[test]
fn classes_may_be_called_as_splits_are() {
    for classes in [
        &["bus", "car", "train"][..],
        &["invalid", "valid"],
        &["control", "test"],
        &["test", "train-station"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        classes
            .iter()
            .for_each(|class| touch(dir.path(), &[&format!("{class}/1.jpg"), &format!("{class}/2/3.jpg")]));
        let source = Dataset::open(dir.path(), 0).unwrap();
        assert_eq!(
            (source.kind, &source.class_names[..]),
            (DatasetKind::ClassFolders, &classes.iter().map(|c| c.to_string()).collect::<Vec<_>>()[..])
        );
        assert_eq!(source.len(), 2 * classes.len());
    }
    // Splits of other names, and splits within classes, look like classes.
    for (outer, inner, what) in [
        (
            ["seg_a", "seg_b"],
            ["roses", "tulips"],
            "seg_a, seg_b are taken for classes, and all hold the same folders",
        ),
        (["roses", "tulips"], ["train", "test"], "whose photos are split anew"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        for folder in outer {
            inner.iter().for_each(|inner| {
                touch(dir.path(), &[&format!("{folder}/{inner}/1.jpg"), &format!("{folder}/{inner}/2.jpg")])
            });
        }
        let source = Dataset::open(dir.path(), 0).unwrap();
        assert!(said(&source).contains(what), "{}", said(&source));
    }
    // Photos of each split side by side have no classes at all.
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["train/1.jpg", "test/1.jpg"]);
    failure(dir.path(), &["no class folders", "--data LIST"]);
}

#[test]
fn test_folders_without_labels_are_left_out_with_a_line() {
    for (file, why) in [
        ("test/1.jpg", "1 photos lie in no class"),
        ("test/unknown/1.jpg", "unknown, is no class"),
        ("test/", "empty"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg"]);
        match file.ends_with('/') {
            true => std::fs::create_dir(dir.path().join(file)).unwrap(),
            false => touch(dir.path(), &[file]),
        }
        let source = Dataset::open(dir.path(), 0).unwrap();
        assert!(source.test.is_empty() && said(&source).contains(why), "{}", said(&source));
    }
}

#[test]
fn one_folder_around_the_data_is_looked_into() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("archive/data");
    touch(&inner, &["a/1.jpg", "a/2.jpg", "b/1.jpg"]);
    touch(dir.path(), &["__MACOSX/archive/._data", "archive/readme.txt"]);
    let source = Dataset::open(dir.path(), 0).unwrap();
    assert_eq!((&source.root, source.class_names.len()), (&inner, 2));
    assert!(said(&source).contains("the data are in"), "{}", said(&source));
    let wrapped = tempfile::tempdir().unwrap();
    flowers(&wrapped.path().join("oxford"), true);
    assert_eq!(Dataset::open(wrapped.path(), 0).unwrap().kind, DatasetKind::Flowers102);
    // A class is no folder around data.
    let class = tempfile::tempdir().unwrap();
    touch(class.path(), &["roses/1.jpg"]);
    failure(class.path(), &["only one class"]);
}

#[test]
fn folders_win_over_the_files_of_flowers_102_without_its_photos() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["imagelabels.mat", "setid.mat", "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg"]);
    assert_eq!(Dataset::open(dir.path(), 0).unwrap().kind, DatasetKind::SplitFolders);
}

#[test]
fn a_run_judges_photos_of_some_of_its_classes_in_its_own_order() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["test/tulip/1.jpg", "test/cafe\u{301}/1.jpg"]);
    failure(dir.path(), &["no train folder"]);
    let classes: Vec<String> = ["tulip", "rose", "caf\u{e9}"].map(String::from).into();
    let options = DatasetOptions {
        purpose: Purpose::Evaluate,
        classes: Some(classes.clone()),
        ..DatasetOptions::default()
    };
    let source = Dataset::open(dir.path(), options.clone()).unwrap();
    assert_eq!(source.class_names, classes);
    assert_eq!(source.test.iter().map(|item| item.label).collect::<Vec<_>>(), [0, 2]);
    touch(dir.path(), &["test/Rose/1.jpg"]);
    let error = Dataset::open(dir.path(), options.clone()).unwrap_err().to_string();
    assert!(
        error.contains("\"Rose\" is none of the 3 classes") && error.contains("did you mean \"rose\""),
        "{error}"
    );
    // Class folders, of which all are wanted.
    let flat = tempfile::tempdir().unwrap();
    (0..9).for_each(|i| touch(flat.path(), &[&format!("rose/{i}.jpg")]));
    let all = Dataset::open(flat.path(), options).unwrap().all_as_test();
    assert_eq!((all.train.len(), all.val.len(), all.test.len(), all.test[0].label), (0, 0, 9, 1));
}

#[test]
fn numbered_folders_get_their_names_from_a_file_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["train/1/1.jpg", "train/10/1.jpg", "train/2/1.jpg", "valid/1/1.jpg"]);
    let numbered = Dataset::open(dir.path(), 0).unwrap();
    assert!(said(&numbered).contains("are numbers") && said(&numbered).contains("--class-names"));
    let names = dir.path().join("cat_to_name.json");
    std::fs::write(
        &names,
        r#"{"1": "pink primrose", "2": "hard-leaved orchid", "10": "globe thistle", "11": "x"}"#,
    )
    .unwrap();
    let source = Dataset::open(dir.path(), 0).unwrap();
    assert_eq!(source.class_names, ["pink primrose", "globe thistle", "hard-leaved orchid"]);
    assert!(said(&source).contains("class names from") && !said(&source).contains("numbers"));
    let chosen = dir.path().join("names.txt");
    std::fs::write(&chosen, "rose\naster\nlily\n").unwrap();
    let options = DatasetOptions { class_names: Some(chosen), ..0.into() };
    assert_eq!(Dataset::open(dir.path(), options).unwrap().class_names, ["rose", "lily", "aster"]);
}

#[test]
fn groups_stay_in_one_split() {
    let dir = tempfile::tempdir().unwrap();
    let photo = |i: usize| format!("{}/plant{:02}_{i}.jpg", ["a", "b"][i % 2], i / 10);
    (0..200).for_each(|i| touch(dir.path(), &[&photo(i)]));
    let split_of = |source: &Dataset| -> BTreeMap<String, Vec<Split>> {
        let mut splits: BTreeMap<String, Vec<Split>> = BTreeMap::new();
        for split in Split::ALL {
            for (name, _) in names(source, split) {
                splits.entry(name[2..9].to_owned()).or_default().push(split);
            }
        }
        splits
    };
    let plain = Dataset::open(dir.path(), 1).unwrap();
    assert!(split_of(&plain).values().any(|splits| splits.iter().any(|split| *split != splits[0])));
    let table = dir.path().join("groups.csv");
    let rows: String = (0..200).map(|i| format!("{},plant {}\n", photo(i), i / 10)).collect();
    std::fs::write(&table, format!("path,group\n{rows}")).unwrap();
    for word in ["(plant[0-9]+)_", table.to_str().unwrap()] {
        let options = DatasetOptions { groups: Some(Groups::open(word).unwrap()), ..1.into() };
        let grouped = Dataset::open(dir.path(), options).unwrap();
        let splits = split_of(&grouped);
        assert!(splits.values().all(|splits| splits.iter().all(|split| *split == splits[0])), "{splits:?}");
        assert_eq!(splits.len(), 20);
        for split in [&grouped.val, &grouped.test] {
            assert!((20..=40).contains(&split.len()), "{}", split.len());
        }
    }
    assert!(
        Groups::open("(unclosed")
            .unwrap_err()
            .to_string()
            .contains("neither a file nor a regular expression")
    );
    assert!(Groups::open("lost/groups.csv").unwrap_err().to_string().contains("no such file"));
    let nowhere = DatasetOptions { groups: Some(Groups::open("(zzz)").unwrap()), ..1.into() };
    assert!(Dataset::open(dir.path(), nowhere).unwrap_err().to_string().contains("found in no path"));
    std::fs::write(&table, "path,group\na/plant00_0.jpg,x\n").unwrap();
    let options = DatasetOptions { groups: Some(Groups::open(table.to_str().unwrap()).unwrap()), ..1.into() };
    let error = Dataset::open(dir.path(), options).unwrap_err().to_string();
    assert!(error.contains("groups.csv") && error.contains("has no group for"), "{error}");
}

#[test]
fn lists_name_photos_classes_splits_and_groups() {
    let dir = tempfile::tempdir().unwrap();
    (0..12).for_each(|i| touch(dir.path(), &[&format!("photos/{i}.jpg")]));
    let list = dir.path().join("list.csv");
    let open = |text: &str, options: DatasetOptions| {
        std::fs::write(&list, text).unwrap();
        Dataset::open(&list, options)
    };
    let there = || DatasetOptions { images: Some(dir.path().join("photos")), ..0.into() };
    // Without a split: drawn by class.
    let rows: String = (0..12).map(|i| format!("photos/{i}.jpg,{}\r\n", ["cat", "dog"][i % 2])).collect();
    let source = open(&format!("\u{feff}Path,Label\r\n{rows}"), 0.into()).unwrap();
    assert_eq!((source.kind, source.drawn, source.len()), (DatasetKind::List, Some(0), 12));
    assert_eq!((source.train.len(), source.val.len(), source.test.len()), (8, 2, 2));
    assert_eq!(source.class_names, ["cat", "dog"]);
    // With splits, by ids without an ending, elsewhere.
    let source =
        open("id,class,split\n0,cat,Training\n1,dog,train\n2,cat,valid\n3,dog,TEST\n", there()).unwrap();
    assert_eq!(names(&source, Split::Train), [("0.jpg".to_owned(), 0), ("1.jpg".to_owned(), 1)]);
    assert_eq!((source.val.len(), source.test.len(), source.drawn), (1, 1, None));
    // A name beside a number.
    let source =
        open("file_name\tlabel\tclass_name\n0.jpg\t1\tcat\n1.jpg\t0\tdog\n2.jpg\t1\tcat\n", there()).unwrap();
    assert_eq!(source.class_names, ["cat", "dog"]);
    // Groups by a column.
    let rows: String = (0..12).map(|i| format!("{i}.jpg,{},{}\n", ["cat", "dog"][i % 2], i / 4)).collect();
    let source = open(&format!("file,label,group\n{rows}"), there()).unwrap();
    for group in 0..3 {
        let of = |split: Split| {
            names(&source, split)
                .iter()
                .any(|(name, _)| name[..name.len() - 4].parse::<usize>().unwrap() / 4 == group)
        };
        assert_eq!(Split::ALL.iter().filter(|split| of(**split)).count(), 1, "group {group}");
    }
    for (text, problem) in [
        ("name,weight\nx,3\n", "needs a column path"),
        ("path,label\nnowhere.jpg,cat\nlost.jpg,dog\n", "--images DIR"),
        ("path,label\n0.jpg,cat\n0.jpg,dog\n", "0.jpg the classes \"cat\" and \"dog\""),
        ("path,label,split\n0.jpg,cat,train\n0.jpg,cat,test\n", "0.jpg two splits"),
        ("path,label,split\n0.jpg,cat,train\n1.jpg,dog,\n", "no split for 1 of 2"),
        ("path,label,split\n0.jpg,cat,first\n", "the split \"first\""),
        ("path,label\n0.jpg,cat\n1.jpg,cat\n", "only one class"),
        ("path,label\n", "names no photo"),
        ("path,label\n0.jpg,[3]\n1.jpg,dog\n", "has [3] for a class"),
    ] {
        let error = open(text, there()).unwrap_err().to_string();
        assert!(error.contains("list.csv") && error.contains(problem), "{error}");
    }
    let untrained = open("path,label,split\n0.jpg,cat,val\n1.jpg,dog,test\n", there()).unwrap_err();
    assert!(untrained.to_string().contains("no photo is in the train split"), "{untrained}");
    let lost = DatasetOptions { images: Some(dir.path().join("lost")), ..0.into() };
    assert!(open("path,label\n0.jpg,cat\n", lost).unwrap_err().to_string().starts_with("--images: "));
    let torn =
        open("path,label,split,group\n0.jpg,cat,train,x\n1.jpg,dog,train,y\n2.jpg,cat,val,x\n", there());
    assert!(said(&torn.unwrap()).contains("1 of 2 groups are in more than one split"));
    let lacking = open("path,label,split\n0.jpg,cat,train\n1.jpg,dog,train\n2.jpg,Cat,val\n", there());
    let error = lacking.unwrap_err().to_string();
    assert!(error.contains("\"Cat\" is in val and not in train (did you mean \"cat\"?)"), "{error}");
    let source = open("path,label\n0.jpg,cat\n0.jpg,cat\n1.jpg,dog\n2.jpg,\n3.jpg,cat\n", there()).unwrap();
    assert!(
        said(&source).contains("1 rows repeat") && said(&source).contains("1 rows without a class"),
        "{}",
        said(&source)
    );
}

#[test]
fn lists_of_hugging_face_and_of_coop_are_read() {
    let dir = tempfile::tempdir().unwrap();
    (0..6).for_each(|i| touch(dir.path(), &[&format!("{i}.jpg")]));
    let rows: String = (0..6)
        .map(|i| format!("{{\"file_name\": \"{i}.jpg\", \"label\": \"{}\"}}\n", ["cat", "dog"][i % 2]))
        .collect();
    std::fs::write(dir.path().join("metadata.jsonl"), rows).unwrap();
    let source = Dataset::open(dir.path(), 0).unwrap();
    assert_eq!((source.kind, source.len(), source.class_names.len()), (DatasetKind::List, 6, 2));
    assert!(said(&source).contains("metadata.jsonl"));

    let split = tempfile::tempdir().unwrap();
    for (folder, text) in
        [("train", "file_name,label\n0.jpg,cat\n1.jpg,dog\n"), ("validation", "file_name,label\n0.jpg,dog\n")]
    {
        touch(split.path(), &[&format!("{folder}/0.jpg"), &format!("{folder}/1.jpg")]);
        std::fs::write(split.path().join(folder).join("metadata.csv"), text).unwrap();
    }
    let source = Dataset::open(split.path(), 0).unwrap();
    assert_eq!(names(&source, Split::Val), [("validation/0.jpg".to_owned(), 1)]);

    // One list around the folders of the splits.
    std::fs::remove_file(split.path().join("train/metadata.csv")).unwrap();
    std::fs::remove_file(split.path().join("validation/metadata.csv")).unwrap();
    let rows = "file_name,label\ntrain/0.jpg,cat\ntrain/1.jpg,dog\nvalidation/0.jpg,dog\n";
    std::fs::write(split.path().join("metadata.csv"), rows).unwrap();
    let source = Dataset::open(split.path(), 0).unwrap();
    assert_eq!((source.train.len(), source.val.len(), source.drawn), (2, 1, None));
    assert!(said(&source).contains("the splits are the folders"), "{}", said(&source));

    let coop = dir.path().join("split_of_somebody.json");
    std::fs::write(
        &coop,
        r#"{"train": [["0.jpg", 0, "pink rose"], ["1.jpg", 1, "lily"]], "val": [["2.jpg", 1, "lily"]], "test": [["3.jpg", 0, "pink rose"]]}"#,
    )
    .unwrap();
    let source = Dataset::open(&coop, 0).unwrap();
    assert_eq!((source.train.len(), source.val.len(), source.test.len()), (2, 1, 1));
    assert_eq!(source.class_names, ["lily", "pink rose"]);
    std::fs::write(&coop, r#"{"train": [["0.jpg", 0]], "val": []}"#).unwrap();
    failure(&coop, &["[path, label, class name]"]);
    // A flat folder with a table beside the photos: the message says how to use it.
    let flat = tempfile::tempdir().unwrap();
    touch(flat.path(), &["0.jpg", "1.jpg"]);
    std::fs::write(flat.path().join("train.csv"), "id,breed\n").unwrap();
    failure(flat.path(), &["train.csv has their labels", "--data"]);
}

#[test]
fn flowers_102_is_read_in_both_places_and_all_element_types() {
    for (inner, uint8) in [("flowers-102", true), ("", false)] {
        let dir = tempfile::tempdir().unwrap();
        flowers(&dir.path().join(inner), uint8);
        let source = Dataset::open(dir.path(), 0).unwrap();
        assert_eq!(source.kind, DatasetKind::Flowers102);
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
    let source = Dataset::open(dir.path(), 0).unwrap();
    let labels: Vec<u32> = source.items().map(|item| item.label).collect();
    assert_eq!(labels, [76, 0, 101, 9, 1]);
    // The same values as doubles, not compressed.
    for name in ["imagelabels", "setid"] {
        let from = crate::files::fixtures().join("mat").join(format!("{name}_double.mat"));
        std::fs::copy(from, dir.path().join(format!("{name}.mat"))).unwrap();
    }
    assert_eq!(Dataset::open(dir.path(), 0).unwrap(), source);
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
            if let Err(error) = Dataset::open(dir.path(), 0) {
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
