//! Data as people have them, through whole commands: what is said, what is refused, and what is judged.

use crate::command::*;
use std::path::Path;

/// A photo like no other of the same place.
fn photo(path: &Path, number: u32) {
    let spot = |x: u32, y: u32, c: u32| ((x * 7 + y * (3 + number) + c * 80 + number * 37) % 251) as u8;
    let image = image::RgbImage::from_fn(24, 20, |x, y| image::Rgb([0, 1, 2].map(|c| spot(x, y, c))));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image.save_with_format(path, image::ImageFormat::Png).unwrap();
}

/// `count` photos for each class, none like another.
fn classes(root: &Path, names: &[&str], count: u32) {
    for (class, name) in (0..).zip(names) {
        (0..count).for_each(|i| photo(&root.join(name).join(format!("{i}.png")), 100 * class + i));
    }
}

fn train<'a>(place: &'a Place, data: &'a str, run: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let own = [
        "train",
        "--data",
        data,
        "--model",
        &place.model,
        "--output",
        run,
        "--epochs",
        "1",
        "--baseline",
        "false",
    ];
    [&own[..], more].concat()
}

#[test]
fn classes_that_clip_cannot_tell_apart_and_prompts_that_are_cut_are_said() {
    let place = Place::new([0, 0, 0]);
    let data = place.at("same");
    classes(Path::new(&data), &["Red Rose", "red_rose", "lily"], 5);
    // A run without a head, to the end of its report.
    let done = succeed(&train(&place, &data, &place.at("run"), &["--recipe", "clip-lora"]), place.path());
    let same = "the classes \"Red Rose\" and \"red_rose\" have the same prompts";
    assert!(done.err.contains(same) && !done.err.contains("longer than"), "{}", done.err);
    let (long, data) = ("a very long name ".repeat(12), place.at("long"));
    let [one, two] = ["one", "two"].map(|end| format!("{long}{end}"));
    classes(Path::new(&data), &[&one, &two], 5);
    let done = succeed(&train(&place, &data, &place.at("long-run"), &["--recipe", "linear"]), place.path());
    let all = done.err.contains("8 of 8 prompts are longer than the");
    assert!(all && done.err.contains("have the same prompts, and text features"), "{}", done.err);
}

#[test]
fn a_run_judges_all_photos_of_a_folder_with_some_of_its_classes() {
    let place = Place::new([0, 0, 0]);
    let (data, run) = (place.at("data"), place.at("run"));
    classes(Path::new(&data), &["rose", "tulip", "lily"], 10);
    succeed(&train(&place, &data, &run, &["--recipe", "linear"]), place.path());
    let eval = |data: &str, more: &[&str]| {
        let own = ["eval", "--run", &run, "--data", data, "--json"];
        let done = succeed(&[&own[..], more].concat(), place.path());
        (serde_json::from_str::<serde_json::Value>(&done.out).unwrap(), done.err)
    };
    let (part, said) = eval(&data, &[]);
    assert_eq!(part["images"], 6);
    assert!(said.contains("6 of 30 images, the test split; --split all takes all"), "{said}");
    assert_eq!(eval(&data, &["--split", "all"]).0["images"], 30);
    // A test folder alone, with a class less, gives the numbers of its classes.
    let other = place.at("other");
    classes(&Path::new(&other).join("test"), &["tulip", "rose"], 4);
    let (report, _) = eval(&other, &[]);
    let images: Vec<_> =
        report["classes"].as_array().unwrap().iter().map(|class| class["images"].clone()).collect();
    assert_eq!((report["images"].clone(), images), (8.into(), vec![0.into(), 4.into(), 4.into()]));
    photo(&Path::new(&other).join("test/Lilly/0.png"), 7);
    let done = engine(&["eval", "--run", &run, "--data", &other], place.path());
    assert_eq!(done.code, 1);
    assert!(
        done.err.contains("\"Lilly\" is none of the 3 classes") && done.err.contains("did you mean \"lily\""),
        "{}",
        done.err
    );
    // The run's own photos, of which one changed.
    let own = ["eval", "--run", &run];
    assert!(!succeed(&own, place.path()).err.contains("not those"));
    photo(&Path::new(&data).join("rose/3.png"), 999);
    let done = succeed(&own, place.path());
    assert!(done.err.contains("the photos are not those that the run was trained on"), "{}", done.err);
}

#[test]
fn the_same_photos_in_two_splits_are_warned_of_or_refused() {
    let place = Place::new([0, 0, 0]);
    let data = place.at("data");
    ["train", "test"].iter().for_each(|split| classes(&Path::new(&data).join(split), &["rose", "tulip"], 4));
    let prep = ["prep", "--data", &data, "--model", &place.model];
    let done = succeed(&prep, place.path());
    assert!(done.err.contains("photos are in train and in test"), "{}", done.err);
    let refused = engine(&[&prep[..], &["--refuse-duplicates"]].concat(), place.path());
    assert_eq!(refused.code, 1);
    assert!(
        refused.err.contains("error: ") && refused.err.contains("are in train and in test"),
        "{}",
        refused.err
    );
}

#[test]
fn a_list_trains_as_its_folders_would_and_a_dry_run_says_what_is_wrong_with_it() {
    let place = Place::new([0, 0, 0]);
    let (data, list) = (place.at("photos"), place.at("list.csv"));
    classes(Path::new(&data), &["rose", "tulip"], 8);
    let rows: String = ["rose", "tulip"]
        .iter()
        .flat_map(|c| (0..8).map(move |i| format!("{c}/{i}.png;{c};{}\r\n", ["train", "val"][i / 6])))
        .collect();
    std::fs::write(&list, format!("\u{feff}Path;Class;Split\r\n{rows}")).unwrap();
    let run = place.at("run");
    let flags = ["--recipe", "linear", "--images", &data];
    let done = succeed(&train(&place, &list, &run, &flags), place.path());
    assert!(done.err.contains("2 classes, images: 12 train, 4 val, 0 test"), "{}", done.err);
    // What is written repeats it from anywhere.
    let config = format!("{run}/config.toml");
    let again = ["train", "--config", &config, "--output", &place.at("again")];
    succeed(&again, Path::new("/"));
    assert_eq!(metrics(&run), metrics(&place.at("again")));
    std::fs::write(&list, "Path;Class\nrose/0.png;rose\n").unwrap();
    let done =
        engine(&train(&place, &list, &place.at("dry"), &["--images", &data, "--dry-run"]), place.path());
    assert_eq!(done.code, 1);
    assert!(done.err.contains("list.csv: has only one class"), "{}", done.err);
}

#[test]
fn what_is_not_finished_and_what_would_be_overwritten_are_said() {
    let place = Place::new([0, 0, 0]);
    let (data, run) = (place.at("data"), place.at("run"));
    classes(Path::new(&data), &["rose", "tulip"], 5);
    succeed(&train(&place, &data, &run, &["--recipe", "linear"]), place.path());
    let predict = ["predict", "--run", &run, &format!("{data}/rose/1.png")];
    assert!(!succeed(&predict, place.path()).err.contains("finished"));
    std::fs::remove_file(format!("{run}/summary.json")).unwrap();
    for command in [&predict[..], &["eval", "--run", &run]] {
        let done = succeed(command, place.path());
        assert!(done.err.contains("this run has not finished; engine train --resume"), "{}", done.err);
    }
    let out = format!("{data}/rose/1.png");
    let embed = ["embed", "--model", &place.model, "--images", &data, "--out", &out];
    fail(2, &embed, place.path(), &["--out", "is a photo"]);
    let other = place.at("other");
    let groups = train(&place, &data, &other, &["--groups", "nowhere.csv", "--recipe", "linear"]);
    fail(2, &groups, place.path(), &["--groups", "nowhere.csv: no such file"]);
}

#[test]
fn predict_says_what_to_do_with_addresses_and_patterns_and_reads_lists_of_every_line_ending() {
    let place = Place::new([0, 0, 0]);
    let (data, run) = (place.at("data"), place.at("run"));
    classes(Path::new(&data), &["rose", "tulip"], 5);
    succeed(&train(&place, &data, &run, &["--recipe", "linear"]), place.path());
    for (name, what) in
        [("https://example.org/rose.jpg", "download it first"), ("photos/*.jpeg", "no file matches")]
    {
        fail(1, &["predict", "--run", &run, name], place.path(), &[name, what]);
    }
    let [a, b] = ["rose/1.png", "tulip/2.png"].map(|name| format!("{data}/{name}"));
    let mut command = command(&["predict", "--run", &run, "--json", "-"], place.path());
    let list = place.at("list.txt");
    std::fs::write(&list, format!("\u{feff}{a}\r\n\r\n{b}\r\n")).unwrap();
    let done = succeed_of(command.stdin(std::fs::File::open(&list).unwrap()));
    let found: Vec<String> = done
        .out
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["path"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(found, [a, b]);
}
