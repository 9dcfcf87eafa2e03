//! Results in parts: that processes which share a list make what one makes, whatever was killed on the way.

use crate::command::*;
use crate::predict::{CLASSES, floats, linear_run, metadata, photo};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// Photos, of which some are none, and the list of them.
struct Place {
    dir: tempfile::TempDir,
    run: String,
    list: String,
}

const BAD: [u32; 3] = [5, 11, 12];

impl Place {
    fn new(photos: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let run = linear_run(dir.path());
        let mut list = String::new();
        for number in 0..photos {
            let path = dir.path().join(format!("photos/{number:02}.png"));
            photo(&path, number);
            if BAD.contains(&number) {
                std::fs::write(&path, "not an image").unwrap();
            }
            list += &format!("{}\n", path.display());
        }
        Place { dir, run, list }
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn predict<'a>(&'a self, parts: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let args =
            ["predict", "--run", &self.run, "-", "--parts", parts, "--part-size", "4", "--batch-size", "3"];
        [&args[..], more].concat()
    }

    fn started(&self, args: &[&str]) -> Child {
        let path = self.dir.path().join("list.txt");
        std::fs::write(&path, &self.list).unwrap();
        let mut command = command(args, self.dir.path());
        let out = Stdio::piped;
        command.stdin(File::open(path).unwrap()).stdout(out()).stderr(out()).spawn().unwrap()
    }

    /// Exit code, standard output and standard error.
    fn done(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let output = self.started(args).wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}

/// The files of a folder, but those that a killed process left half-written.
fn files(dir: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: &PathBuf| !path.file_name().unwrap().to_string_lossy().starts_with('.');
    let file = |path: PathBuf| (path.file_name().unwrap().into(), std::fs::read(&path).unwrap());
    entries.filter(named).map(file).collect()
}

fn json_of(dir: &str, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(Path::new(dir).join(name)).unwrap()).unwrap()
}

#[test]
fn all_shards_together_are_one_run() {
    let place = Place::new(23);
    for form in ["--csv", "--json"] {
        let whole = place.at(&format!("whole{form}"));
        let (code, out, err) = place.done(&place.predict(&whole, &[form]));
        assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
        assert!(
            err.contains("3 photos without a result") && err.contains("all 6 parts of 23 photos"),
            "{err}"
        );
        assert_eq!(json_of(&whole, "total.json"), json!({"photos": 23, "parts": 6}));
        let bad = json_of(&whole, "part-000002.json")["bad"][0].clone();
        assert!(bad["path"].as_str().unwrap().ends_with("11.png"), "{bad}");
        assert!(bad["error"].as_str().unwrap().contains("11.png"), "{bad}");

        for of in [2, 3, 8] {
            let shared = place.at(&format!("shared{form}{of}"));
            for index in (1..=of).rev() {
                let shard = format!("{index}/{of}");
                let (_, out, err) = place.done(&place.predict(&shared, &[form, "--shard", &shard]));
                assert_eq!(format!("{out}{err}").contains("all 6 parts"), index == 1, "{out}{err}");
            }
            assert_eq!(files(&shared), files(&whole), "{form}, {of} shards");
        }
        // And they are what is printed without parts.
        let printed = place.done(&["predict", "--run", &place.run, "-", form, "--batch-size", "3"]).1;
        let ending = if form == "--csv" { "csv" } else { "jsonl" };
        let text: String = (0..6)
            .map(|part| format!("{whole}/part-{part:06}.{ending}"))
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect();
        let header = |line: &&str| !line.starts_with("path,");
        // A photo's place in its batch changes its probabilities by rounding alone.
        let words = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(header);
            lines.map(|line| line.split("0.").next().unwrap().to_owned()).collect()
        };
        assert_eq!(words(&text), words(&printed));
        assert_eq!(words(&text).len(), if form == "--csv" { 20 * CLASSES.len() } else { 23 });
    }
}

#[test]
fn features_in_parts_are_those_in_one_file() {
    let place = Place::new(23);
    let (one, parts, shared) = (place.at("one.safetensors"), place.at("parts"), place.at("shared"));
    let photos = place.at("photos");
    let embed = ["embed", "--run", &place.run, "--skip-bad-images", "--images"];
    let (code, _, err) = place.done(&[&embed[..], &[&photos, "--out", &one]].concat());
    assert_eq!(code, Some(0), "{err}");
    let sized = |parts| ["--parts", parts, "--part-size", "5"];
    let (code, _, err) = place.done(&[&embed[..], &[&photos], &sized(&parts)].concat());
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("3 photos without a result"), "{err}");
    for shard in ["2/2", "1/2"] {
        place.done(&[&embed[..], &[&photos], &sized(&shared), &["--shard", shard]].concat());
    }
    assert_eq!(files(&shared), files(&parts));

    let read = |path: &str| std::fs::read(path).unwrap();
    let (mut names, mut features) = (Vec::<String>::new(), Vec::new());
    for part in 0..5 {
        let file = read(&format!("{parts}/part-{part:06}.safetensors"));
        names.extend(metadata::<Vec<String>>(&file, "paths"));
        features.extend(floats(&file, "features"));
    }
    assert_eq!(names, metadata::<Vec<String>>(&read(&one), "paths"));
    let expected = floats(&read(&one), "features");
    assert_eq!(features.len(), expected.len());
    assert!(features.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6));

    // A list names them as it does; and the first bad photo ends the work where such are not to be passed over.
    let listed = place.at("listed");
    let (code, _, err) = place.done(&["embed", "--run", &place.run, "--images", "-", "--parts", &listed]);
    assert_eq!(code, Some(1));
    assert!(err.contains("05.png") && err.contains("--skip-bad-images"), "{err}");
    assert_eq!(files(&listed).len(), 1, "the manifest alone");
    let (_, _, err) = place.done(&[&embed[..], &["-", "--out", &one]].concat());
    let names = metadata::<Vec<String>>(&read(&one), "paths");
    assert_eq!(names[0], place.list.lines().next().unwrap(), "{err}");
}

/// Kills a shard at some moment and goes on with it, `times` times, and compares with what nobody killed.
#[cfg(unix)]
fn killed_and_gone_on_with(times: u32) {
    let place = Place::new(40);
    let whole = place.at("whole");
    place.done(&place.predict(&whole, &["--json"]));
    let expected = files(&whole);
    let mut cut = 0;
    for time in 0..times {
        let parts = place.at(&format!("parts{time}"));
        for shard in ["1/2", "2/2"] {
            let args = place.predict(&parts, &["--json", "--shard", shard, "--resume"]);
            let mut child = place.started(&args);
            std::thread::sleep(Duration::from_millis(u64::from(20 + 37 * time % 180)));
            child.kill().unwrap();
            child.wait().unwrap();
            let there = std::fs::read_dir(&parts).map_or(0, |_| files(&parts).len());
            cut += u32::from(there > 2 && there < expected.len());
            let (_, out, err) = place.done(&args);
            assert!(format!("{out}{err}").contains("10 parts"), "{out}{err}");
        }
        assert_eq!(files(&parts), expected, "{time}");
    }
    assert!(times < 10 || cut > 0, "some were killed between two parts");
}

#[cfg(unix)]
#[test]
fn a_killed_shard_loses_and_doubles_nothing() {
    killed_and_gone_on_with(2);
}

#[cfg(unix)]
#[test]
#[ignore = "long: two kills stay"]
fn fifty_killed_runs_lose_and_double_nothing() {
    killed_and_gone_on_with(50);
}

#[test]
fn parts_of_something_else_are_not_mixed_in() {
    let mut place = Place::new(10);
    let parts = place.at("parts");
    let made = place.predict(&parts, &["--csv"]);
    place.done(&made);
    let before = files(&parts);
    let refused = |place: &Place, args: &[&str], code: i32, words: &[&str]| {
        let (found, _, err) = place.done(args);
        assert_eq!(found, Some(code), "{err}");
        words.iter().for_each(|word| assert!(err.contains(word), "{word}: {err}"));
        assert_eq!(files(&parts), before);
    };
    refused(&place, &made, 1, &["part-000000.csv", "--resume keeps it"]);
    let resumed = |more: &[&'static str]| [place.predict(&parts, &["--resume"]), more.to_vec()].concat();
    refused(&place, &resumed(&["--csv", "--top-k", "2"]), 1, &["manifest.json", "top_k 5", "2"]);
    refused(&place, &resumed(&["--json"]), 1, &["manifest.json", "ending \"csv\"", "jsonl"]);
    let args = ["predict", "--run", &place.run, "-", "--parts", &parts, "--resume", "--csv"];
    refused(&place, &args, 1, &["part_size 4", "10000"]);
    refused(&place, &resumed(&[]), 2, &["--parts", "--json or --csv"]);
    refused(&place, &resumed(&["--csv", "--shard", "3/2"]), 2, &["--shard", "1/4"]);
    refused(&place, &["predict", "--run", &place.run, "-", "--shard", "1/2"], 2, &["--parts"]);
    // A photo without a result is one when its part is kept, too.
    refused(&place, &resumed(&["--csv"]), 1, &["1 photo without a result", "all 3 parts of 10 photos"]);
    // Another list, and the same in another order.
    let resumed = resumed(&["--csv"]).iter().map(ToString::to_string).collect::<Vec<_>>();
    let resumed: Vec<&str> = resumed.iter().map(String::as_str).collect();
    let list = place.list.clone();
    place.list = list.lines().rev().map(|line| format!("{line}\n")).collect();
    refused(&place, &resumed, 1, &["part-000000.csv", "the same list, in the same order"]);
    place.list = list.lines().take(9).map(|line| format!("{line}\n")).collect();
    refused(&place, &resumed, 1, &["part-000002.csv", "the same list, in the same order"]);
    // One that ends with a part leaves the part behind it to no list.
    place.list = list.lines().take(8).map(|line| format!("{line}\n")).collect();
    let (code, _, err) = place.done(&resumed);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("part-000002.json: the list ends before it, with 8 photos"), "{err}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_million_listed_paths_take_no_more_memory_than_a_few() {
    let place = Place::new(4);
    let peak = |lines: usize| {
        let parts = place.at(&format!("parts{lines}"));
        let args = ["predict", "--run", &place.run, "-", "--json", "--parts", &parts];
        let more = ["--part-size", "100", "--shard", "1/1000000"];
        let mut command = command(&[&args[..], &more].concat(), place.dir.path());
        let null = Stdio::null;
        let mut child =
            command.env("RAYON_NUM_THREADS", "2").stdin(Stdio::piped()).stdout(null()).spawn().unwrap();
        let mut stdin = std::io::BufWriter::new(child.stdin.take().unwrap());
        (0..lines / 4).for_each(|_| stdin.write_all(place.list.as_bytes()).unwrap());
        stdin.flush().unwrap();
        // A pipe holds 64 KiB: the lines before are read.
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        drop(stdin);
        assert!(child.wait().unwrap().success());
        assert_eq!(json_of(&parts, "total.json")["photos"], lines);
        let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB"));
        kib.unwrap().trim().parse::<u64>().unwrap()
    };
    let (few, million) = (peak(10_000), peak(1_000_000));
    assert!(million < few + 2048, "{few} KiB for ten thousand paths, {million} KiB for a million");
}

/// Runs a script of examples/slurm as SLURM does, as a task of an array.
#[cfg(unix)]
fn slurm_task(place: &Place, script: &str, (task, of): (u32, u32), variables: &[(&str, &str)]) -> Child {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/slurm").join(script);
    let mut command = std::process::Command::new("bash");
    command.arg(script).current_dir(place.dir.path()).envs(variables.iter().copied());
    command.env("SLURM_ARRAY_TASK_ID", task.to_string()).env("SLURM_ARRAY_TASK_COUNT", of.to_string());
    command.env("SLURM_CPUS_PER_TASK", "1").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[cfg(unix)]
#[test]
#[cfg_attr(not(bash), ignore = "needs bash")]
fn the_tasks_of_a_slurm_array_share_a_list_and_another_job_gathers_it() {
    let place = Place::new(23);
    std::fs::write(place.dir.path().join("list.txt"), &place.list).unwrap();
    let variables = [
        ("ENGINE", env!("CARGO_BIN_EXE_engine")),
        ("RUN", &place.run),
        ("LIST", "list.txt"),
        ("OUT", "out"),
        ("FLAGS", "--part-size 4 --batch-size 3"),
    ];
    let gathered = || slurm_task(&place, "gather.sbatch", (1, 1), &variables).wait_with_output().unwrap();
    let tasks = [1, 3].map(|task| slurm_task(&place, "predict.sbatch", (task, 3), &variables));
    tasks.into_iter().for_each(|task| drop(task.wait_with_output().unwrap()));
    let early = gathered();
    assert!(!early.status.success());
    let err = String::from_utf8(early.stderr).unwrap();
    assert_eq!(
        err.lines().collect::<Vec<_>>(),
        ["out/part-000001.csv is missing", "out/part-000004.csv is missing"]
    );
    slurm_task(&place, "predict.sbatch", (2, 3), &variables).wait_with_output().unwrap();
    assert!(gathered().status.success());

    let csv = std::fs::read_to_string(place.at("out.csv")).unwrap();
    let whole = place.at("whole");
    place.done(&place.predict(&whole, &["--csv"]));
    let mut expected = String::new();
    for part in 0..6 {
        let text = std::fs::read_to_string(format!("{whole}/part-{part:06}.csv")).unwrap();
        expected += if part == 0 { &text } else { text.split_once('\n').unwrap().1 };
    }
    assert_eq!(csv, expected);
    let bad = std::fs::read_to_string(place.at("out.bad.jsonl")).unwrap();
    let photos = bad.lines().flat_map(|line| {
        let part: Value = serde_json::from_str(line).unwrap();
        part["bad"].as_array().unwrap().clone()
    });
    assert_eq!(photos.count(), BAD.len(), "{bad}");
}

#[cfg(unix)]
#[test]
#[cfg_attr(not(bash), ignore = "needs bash")]
fn a_slurm_array_trains_every_recipe_with_every_seed_and_goes_on_with_what_is_there() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new(1);
    let engine = place.at("engine");
    std::fs::write(&engine, "#!/bin/sh\necho \"$@\"\n").unwrap();
    std::fs::set_permissions(&engine, std::fs::Permissions::from_mode(0o755)).unwrap();
    let variables = [
        ("ENGINE", engine.as_str()),
        ("DATA", "photos"),
        ("OUT", "runs"),
        ("RECIPES", "linear lora"),
        ("SEEDS", "1 2 3"),
        ("FLAGS", "--epochs 5"),
    ];
    let task = |task| {
        let output = slurm_task(&place, "train.sbatch", (task, 6), &variables).wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    for (index, (recipe, seed)) in
        ["linear", "lora"].iter().flat_map(|r| [1, 2, 3].map(|s| (r, s))).enumerate()
    {
        let run = format!("runs/{recipe}-{seed}");
        let train = format!(
            "train --data photos --recipe {recipe} --seed {seed} --overwrite --output {run} --epochs 5\n"
        );
        assert_eq!(task(index as u32), (Some(0), train));
        let made = place.dir.path().join(&run);
        std::fs::create_dir_all(&made).unwrap();
        std::fs::write(made.join("state.safetensors"), "").unwrap();
        assert_eq!(task(index as u32), (Some(0), format!("train --resume --output {run}\n")));
        std::fs::write(made.join("summary.json"), "").unwrap();
        assert_eq!(task(index as u32), (Some(0), format!("{run} is finished\n")));
    }
    assert_eq!(task(6).0, Some(2));
}
