//! What the command says where: levels of messages, colours, TensorBoard's files, completions, manual pages.

use crate::command::*;
use crate::events::{Points, event_files, scalars};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

const COMMANDS: [&str; 13] = [
    "prep",
    "train",
    "compare",
    "eval",
    "zero-shot",
    "predict",
    "embed",
    "export",
    "check",
    "bench",
    "doctor",
    "completions",
    "man",
];

#[test]
fn each_level_says_what_those_before_it_say_and_more() {
    let place = Place::new([3, 2, 2]);
    let bad = place.class_dir("train").join("999.png");
    std::fs::write(bad, "this is no photo\n").unwrap();
    let run = place.at("run");
    let train =
        place.train(&run, &["--recipe", "linear", "--skip-bad-images", "--epochs", "2", "--overwrite"]);
    let said = |level: &[&str]| {
        let done = succeed(&[&train[..], level].concat(), place.path());
        assert!(done.out.contains("fine-tuned, test"), "the results stay: {}", done.out);
        done.err
    };
    for silent in [&["--quiet"][..], &["--log-level", "error"]] {
        assert_eq!(said(silent), "", "{silent:?}");
    }
    let warnings = said(&["--log-level", "warn"]);
    assert!(warnings.starts_with("warning: left out 1 "), "{warnings}");
    assert!(warnings.lines().all(|line| line.starts_with("warning: ")), "{warnings}");
    let default = said(&[]);
    // But for numbers, and the line about bf16, which is there where a run's own look at the clock says so.
    let without = |text: &str| -> String {
        let lines = text.lines().filter(|line| !line.starts_with("--precision bf16"));
        lines.map(|line| line.replace(|c: char| c.is_ascii_digit(), "") + "\n").collect()
    };
    assert_eq!(without(&default), without(&said(&["--log-level", "info"])));
    for word in ["device: CPU", "warning: left out 1 ", "using the cache", "epoch   2/2"] {
        assert!(default.contains(word), "{word} is not in\n{default}");
    }
    assert!(!default.contains("debug: "), "{default}");
    let all = said(&["--log-level", "debug"]);
    // Two epochs of two steps.
    assert_eq!(all.matches("debug: step ").count(), 4, "{all}");
    for word in ["device: CPU", "warning: left out 1 ", "debug: epoch 2/2: 9 in ", "debug: saved "] {
        assert!(all.contains(word), "{word} is not in\n{all}");
    }
    // Before the command too, and an error is said on every level.
    let eval = ["eval", "--run", "nowhere"];
    for args in [&[&["--quiet"], &eval[..]].concat(), &[&eval[..], &["--quiet"]].concat()] {
        let done = fail(1, args, place.path(), &["nowhere", "config.toml"]);
        assert_eq!(done.err.lines().count(), 1, "{}", done.err);
    }
    fail(2, &["doctor", "--quiet", "--log-level", "debug"], place.path(), &["--quiet", "--log-level"]);
    let done = engine(&["doctor", "--log-level", "loud"], place.path());
    assert_eq!(done.code, 2, "{}", done.err);
    assert!(done.err.contains("--log-level"), "{}", done.err);
}

#[test]
fn every_command_takes_the_flags_for_messages() {
    let place = tempfile::tempdir().unwrap();
    for command in COMMANDS {
        let help = succeed(&[command, "--help"], place.path());
        for flag in ["--quiet", "--log-level <error|warn|info|debug>"] {
            assert!(help.out.contains(flag), "engine {command} --help: no {flag} in\n{}", help.out);
        }
    }
}

/// What the command writes to a terminal.
#[cfg(target_os = "linux")]
fn on_terminal(args: &str, variables: &[(&str, &str)]) -> String {
    let line = format!("{} {args}", env!("CARGO_BIN_EXE_engine"));
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]).stdin(Stdio::null());
    let script = script.env_remove("NO_COLOR").env("TERM", "xterm").envs(variables.iter().copied());
    let output = script.output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[cfg(target_os = "linux")]
#[test]
#[cfg_attr(not(script), ignore = "needs script")]
fn colours_are_for_terminals_that_want_them() {
    /// How a colour, or bold or underlined text, begins.
    fn coloured(text: &str) -> bool {
        text.match_indices("\x1b[").any(|(at, _)| {
            let rest = text[at + 2..].trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
            rest.starts_with('m')
        })
    }
    let place = tempfile::tempdir().unwrap();
    for args in [&["--help"][..], &["train", "--help"], &["train", "--nonsense"], &["eval", "--run", "none"]]
    {
        let done = engine(args, place.path());
        assert!(
            !done.out.contains('\x1b') && !done.err.contains('\x1b'),
            "{args:?}: {}{}",
            done.out,
            done.err
        );
    }
    for args in ["--help", "train --nonsense"] {
        let with = on_terminal(args, &[]);
        assert!(coloured(&with), "engine {args}: a terminal shows colours by default: {with:?}");
        let without = on_terminal(args, &[("NO_COLOR", "1")]);
        assert!(!without.is_empty() && !coloured(&without), "engine {args}: {without:?}");
    }
    // Bars move the cursor; they have no colours to leave out.
    let demo =
        format!("train --demo --recipe linear --epochs 1 --output {}", place.path().join("run").display());
    let bars = on_terminal(&demo, &[("CUDA_VISIBLE_DEVICES", ""), ("NO_COLOR", "1")]);
    assert!(bars.contains("epoch 1/1") && bars.contains("\x1b["), "there are bars: {bars:?}");
    assert!(!coloured(&bars), "{bars:?}");
    // How much of the whole run is left; it may stop early.
    let long = demo.replace("--recipe linear --epochs 1", "--epochs 3 --overwrite");
    let bars = on_terminal(&long, &[("CUDA_VISIBLE_DEVICES", "")]);
    assert!(bars.contains("at most ") && bars.contains(" left  loss "), "{bars:?}");
    let quiet = on_terminal(&format!("{demo} --overwrite --quiet"), &[("CUDA_VISIBLE_DEVICES", "")]);
    assert!(quiet.starts_with("| ") && !quiet.contains('\x1b'), "results and nothing else: {quiet:?}");
}

/// The scalars that metrics.jsonl stands for.
fn expected(run: &str) -> Points {
    let text = String::from_utf8(bytes(run, "metrics.jsonl")).unwrap();
    let mut points = Points::new();
    let mut step = 0;
    for line in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let mut add = |tag: &str, step: u64, value: &Value| {
            // Records hold only what is trained.
            let Some(value) = value.as_f64() else { return };
            let value = value as f32;
            points.entry(tag.to_owned()).or_default().push((step, value));
        };
        if line["type"] == "step" {
            step = line["step"].as_u64().unwrap();
            for part in ["loss", "loss_head", "loss_text", "loss_triplet"] {
                add(&format!("{part}/step"), step, &line[part]);
            }
            for (key, tag) in [("lr", "lr/head"), ("lr_lora", "lr/lora"), ("lr_prompt", "lr/prompt")] {
                add(tag, step, &line[key]);
            }
            ["loss_scale", "grad_norm", "images_per_s"].iter().for_each(|&key| add(key, step, &line[key]));
            continue;
        }
        add("epoch", step, &line["epoch"]);
        for part in ["loss", "loss_head", "loss_text", "loss_triplet", "top1", "text_top1"] {
            add(&format!("{part}/train"), step, &line["train"][part]);
        }
        let val = [
            "loss",
            "loss_head",
            "loss_text",
            "top1",
            "top5",
            "text_top1",
            "text_top5",
            "macro_f1",
            "ece",
            "nll",
            "brier",
        ];
        val.iter().for_each(|part| add(&format!("{part}/val"), step, &line["val"][part]));
    }
    points
}

#[test]
fn event_files_hold_the_numbers_of_metrics_jsonl() {
    let place = Place::new([3, 2, 2]);
    let (run, plain) = (place.at("run"), place.at("plain"));
    let linear = ["--recipe", "linear", "--epochs", "2"];
    succeed(&place.train(&plain, &linear), place.path());
    assert!(!Path::new(&plain).join("tensorboard").exists());
    succeed(&place.train(&run, &[&linear[..], &["--tensorboard"]].concat()), place.path());
    let points = scalars(&run);
    assert_eq!(points, expected(&run));
    assert_eq!(points["loss/step"].len(), 4);
    assert_eq!(points["top1/val"].iter().map(|(step, _)| *step).collect::<Vec<_>>(), [2, 4]);
    // Lines and records behind the saved state are those of an epoch that was cut off.
    let metrics = Path::new(&run).join("metrics.jsonl");
    let whole = std::fs::read_to_string(&metrics).unwrap();
    std::fs::write(&metrics, whole.clone() + "{\"type\":\"step\",\"step\":5,\"ep").unwrap();
    let file = event_files(&run).remove(0);
    let events = std::fs::read(&file).unwrap();
    std::fs::write(&file, [&events[..], &events[events.len() - 100..]].concat()).unwrap();
    succeed(&["train", "--resume", "--output", &run, "--epochs", "3"], place.path());
    assert_eq!(scalars(&run), expected(&run));
    assert_eq!(scalars(&run)["loss/step"].len(), 6);
    assert!(std::fs::read_to_string(&metrics).unwrap().starts_with(&whole));
    // A run that began without them gets them for all its steps.
    succeed(&["train", "--resume", "--output", &plain, "--epochs", "3", "--tensorboard"], place.path());
    assert_eq!(scalars(&plain), expected(&plain));
    // They go with the run, and what else is there stays.
    let mine = Path::new(&run).join("tensorboard/events.out.tfevents.1.mine");
    std::fs::write(&mine, "mine").unwrap();
    succeed(&place.train(&run, &[&linear[..], &["--overwrite"]].concat()), place.path());
    assert_eq!(event_files(&run), [mine]);
    succeed(&place.train(&plain, &[&linear[..], &["--overwrite"]].concat()), place.path());
    assert!(!Path::new(&plain).join("tensorboard").exists());
}

#[test]
fn a_resumed_run_shows_no_results_of_the_epochs_before() {
    let place = Place::new([3, 2, 2]);
    let run = place.at("run");
    let linear = ["--recipe", "linear", "--epochs", "2", "--lr-head", "0.1"];
    succeed(&place.train(&run, &linear), place.path());
    let results = ["summary.json", "evaluation.json", "report.html", "plots/curves.png"];
    let there = || results.map(|file| Path::new(&run).join(file).is_file());
    assert_eq!(there(), [true; 4]);
    // The report is gone when the run fails in an epoch, whose files could be those of another model.
    let leftovers = [".engine-abcdef.tmp", "adapter/.engine-000000.tmp", "plots/.engine-Zz09aB.tmp"];
    let mine = ["plots/mine.tmp", ".engine-notes.txt"];
    std::fs::create_dir_all(Path::new(&run).join("adapter")).unwrap();
    for file in leftovers.iter().chain(&mine) {
        std::fs::write(Path::new(&run).join(file), "half").unwrap();
    }
    let state = Path::new(&run).join("config.toml");
    let wild = std::fs::read_to_string(&state).unwrap().replace("lr-head = 0.1", "lr-head = 1e38");
    std::fs::write(&state, wild).unwrap();
    fail(1, &["train", "--resume", "--output", &run, "--epochs", "4"], place.path(), &["not finite"]);
    assert_eq!(there(), [false; 4]);
    assert!(leftovers.iter().all(|file| !Path::new(&run).join(file).exists()), "what was half-written goes");
    assert!(mine.iter().all(|file| Path::new(&run).join(file).is_file()), "what is the user's stays");
    // With nothing left to train the results come back as they were.
    succeed(&["train", "--resume", "--output", &run, "--epochs", "2"], place.path());
    assert_eq!(there(), [true; 4]);
}

#[test]
fn a_folder_with_nothing_but_leftovers_may_become_a_run() {
    let place = Place::new([2, 2, 2]);
    let run = place.at("run");
    std::fs::create_dir(&run).unwrap();
    let leftover = Path::new(&run).join(".engine-abcdef.tmp");
    std::fs::write(&leftover, "half").unwrap();
    let linear = place.train(&run, &["--recipe", "linear", "--epochs", "1"]);
    succeed(&linear, place.path());
    assert!(!leftover.exists());
    // A run whose config.toml is all that is left, as after a kill while it was replaced.
    for file in ["state.safetensors", "metrics.jsonl", "summary.json"] {
        std::fs::remove_file(Path::new(&run).join(file)).unwrap();
    }
    fail(1, &["train", "--resume", "--output", &run], place.path(), &["no saved state", "--overwrite"]);
    let overwrite = [&linear[..], &["--overwrite"]].concat();
    succeed(&overwrite, place.path());
    // However far the removal of the old run comes, what is left may be replaced.
    let metrics = Path::new(&run).join("metrics.jsonl");
    std::fs::remove_file(&metrics).unwrap();
    std::fs::create_dir(&metrics).unwrap();
    fail(1, &overwrite, place.path(), &["metrics.jsonl", "remove"]);
    assert!(!Path::new(&run).join("state.safetensors").exists(), "half a run must not go on");
    std::fs::remove_dir(&metrics).unwrap();
    succeed(&overwrite, place.path());
}

#[test]
fn completions_are_scripts_of_their_shells() {
    let place = tempfile::tempdir().unwrap();
    for (shell, mark) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef engine"),
        ("fish", "complete -c engine"),
        ("elvish", "edit:completion"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let script = succeed(&["completions", shell], place.path()).out;
        assert!(script.contains(mark), "{shell}");
        for word in COMMANDS.iter().chain(&["tensorboard", "log-level"]) {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(engine(&["completions", "tcsh"], place.path()).code, 2);
}

/// Sources the script in a shell and asks it what it would offer.
#[cfg(unix)]
#[test]
#[cfg_attr(not(bash), ignore = "needs bash")]
fn bash_completes_commands_and_flags() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("engine.bash");
    std::fs::write(&file, succeed(&["completions", "bash"], place.path()).out).unwrap();
    let bash = |args: &[&str]| Command::new("bash").args(args).stdin(Stdio::null()).output();
    let parsed = bash(&["-n", file.to_str().unwrap()]).unwrap();
    assert!(parsed.status.success(), "{}", String::from_utf8_lossy(&parsed.stderr));
    let offers = |line: &str| {
        let ask = format!(
            "source {}; COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _engine engine \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo \"${{COMPREPLY[@]}}\"",
            file.display()
        );
        String::from_utf8(bash(&["-c", &ask]).unwrap().stdout).unwrap().trim().to_owned()
    };
    assert_eq!(offers("engine zer"), "zero-shot");
    assert_eq!(offers("engine train --tens"), "--tensorboard");
    assert_eq!(offers("engine eval --q"), "--quiet");
}

/// The flags that `--help` of a command names.
fn flags(help: &str) -> Vec<&str> {
    let words =
        help.lines().filter(|line| line.trim_start().starts_with('-')).flat_map(str::split_whitespace);
    words.filter(|word| word.starts_with("--") && word.len() > 2).collect()
}

#[test]
fn manual_pages_name_every_command_and_flag() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("man");
    let done = succeed(&["man", "--out", dir.to_str().unwrap()], place.path());
    let plain = |text: &str| text.replace("\\-", "-").replace("\\fB", "").replace("\\fR", "");
    let page = |name: &str| plain(&std::fs::read_to_string(dir.join(name)).unwrap());
    let main = page("engine.1");
    let all = plain(&succeed(&["man"], place.path()).out);
    for command in COMMANDS {
        assert!(main.contains(&format!("engine-{command}(1)")), "engine.1 does not name {command}");
        let own = page(&format!("engine-{command}.1"));
        let help = succeed(&[command, "--help"], place.path()).out;
        let flags = flags(&help);
        assert!(flags.contains(&"--quiet"), "{flags:?}");
        for flag in flags {
            assert!(own.contains(flag), "engine-{command}.1 does not name {flag}");
        }
        assert!(all.contains(own.trim_end()), "engine man prints the page of {command}");
    }
    let pages = std::fs::read_dir(&dir).unwrap().count();
    assert!(done.out.starts_with(&format!("{pages} pages in ")), "{}", done.out);
    assert!(pages > COMMANDS.len());
}
