//! The pages of a run and of a comparison, opened in headless Chromium: they load without errors, and sorting,
//! filtering, the matrix, the charts and the selects do what they say.

use crate::report_plots::ladder;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clip_engine::data::demo::{World, all_kinds, draw};
use clip_engine::data::{Cache, MemoryImage, Preprocess, Split};
use clip_engine::progress::Silent;
use clip_engine::random;
use clip_engine::report::compare::MeanRow;
use clip_engine::report::page::{write_comparison_page, write_run_page};
use clip_engine::report::plots::run_plots;
use clip_engine::report::seeds::Scores;
use clip_engine::report::{Comparison, RunData};
use clip_engine::settings::Recipe;
use clip_engine::settings::Settings;
use clip_engine::train::metrics::{CalibrationBin, ClassMetrics, EvalMetrics, Evaluation, ImageResult};
use clip_engine::train::records::EpochRecord;
use rand::RngExt;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, UNIX_EPOCH};

/// A name that would end the page's data, or become markup, if it were not escaped.
const HOSTILE: &str = "</script><b>&\"'<!--";
/// Larger than a thumbnail.
const SIDE: usize = 80;

/// Collects errors from the first line of the page on.
const WATCH: &str = r#"<script>
const errors = [];
addEventListener("error", (event) => errors.push(String(event.message)));
addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => errors.push("refused: " + event.violatedDirective));
console.error = (...words) => errors.push(words.join(" "));
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);
const sectionOf = (title) => all("section").find((section) => one("h2", section).textContent === title);
const column = (table, i) => all("tbody tr", table).map((row) => row.children[i].textContent);
const key = (node, name) => node.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
const tip = (chart) => one(".tip", chart).textContent;
const opens = (root) => one(".spot[tabindex='0']", root).getAttribute("aria-label");
const at = (node, type, x, y) => node.dispatchEvent(new PointerEvent(type, { clientX: x, clientY: y, bubbles: true }));
</script>"#;

/// The page as in a window of its own, which could not be as narrow as a phone's.
const FRAME: &str = r#"<!doctype html><body>
<script>
addEventListener("message", (event) => {
  const probe = document.createElement("pre");
  probe.id = "probe";
  probe.textContent = event.data;
  document.body.append(probe);
});
</script>
<iframe src="page.html" width="WIDTH" height="900" style="border: 0"></iframe>
</body>"#;

/// Headless Chromium, which the build script looks for.
fn chromium() -> &'static Path {
    let Some(path) = option_env!("CLIP_ENGINE_CHROMIUM") else {
        panic!("Chromium was not found when this was built");
    };
    Path::new(path)
}

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The document that Chromium makes of the file at an address, and what it complains about.
fn dump(chromium: &Path, profile: &Path, address: &str) -> (String, String) {
    let output = Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"])
        .args(["--virtual-time-budget=2000", "--window-size=1400,1000"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("file://{address}"))
        .output()
        .unwrap();
    [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).into()
}

/// Opens a copy of `page`, `width` pixels wide, runs `script` in it, and returns what that returns.
/// The page itself must not have caused an error.
fn visit(page: &Path, width: u32, script: &str) -> Value {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let dir = tempfile::tempdir().unwrap();
    let html = std::fs::read_to_string(page).unwrap();
    let probe = format!(
        r#"<script>
let probed;
try {{ probed = (() => {{ {script} }})(); }} catch (error) {{ errors.push(String(error)); }}
const report = JSON.stringify({{ probed: probed ?? null, errors }});
parent.postMessage(btoa(String.fromCharCode(...new TextEncoder().encode(report))), "*");
</script>
</body>"#
    );
    assert_eq!((html.matches("<head>").count(), html.matches("</body>").count()), (1, 1));
    let html = html.replacen("<head>", &format!("<head>{WATCH}"), 1).replacen("</body>", &probe, 1);
    std::fs::write(dir.path().join("page.html"), html).unwrap();
    let frame = dir.path().join("frame.html");
    std::fs::write(&frame, FRAME.replace("WIDTH", &width.to_string())).unwrap();
    let (dom, err) = dump(chromium(), &dir.path().join("profile"), &frame.display().to_string());
    let report = dom.split_once("<pre id=\"probe\">").and_then(|(_, rest)| rest.split_once("</pre>"));
    let Some((report, _)) = report else {
        panic!("the probe did not run: {err}\n{}", &dom[..dom.len().min(2000)])
    };
    let report: Value = serde_json::from_slice(&STANDARD.decode(report).unwrap()).unwrap();
    assert_eq!(report["errors"], json!([]), "errors of the page or of the probe");
    report["probed"].clone()
}

/// Names as the demo has them, the hostile one among them.
fn class_names(classes: usize) -> Vec<String> {
    let kinds = all_kinds();
    let mut names: Vec<String> = (0..classes).map(|i| kinds[i * kinds.len() / classes].name()).collect();
    names[1] = HOSTILE.into();
    names[2] = "a name without any place to break ".replace(' ', "_").repeat(3);
    names
}

/// One flower drawn for each class, and mirrored for its other images.
fn cache(classes: usize, per_class: usize) -> Cache {
    let kinds = all_kinds();
    let images = (0..classes).flat_map(|label| {
        let kind = &kinds[label * kinds.len() / classes];
        let flower = draw(kind, World::Field, &mut random::stream(5, label as u64), SIDE);
        (0..per_class).map(move |i| MemoryImage {
            pixels: mirrored(&flower, i),
            label: label as u32,
            name: format!("test/{label:03}/{i:05}.png"),
            split: Split::Test,
        })
    });
    Cache::from_images(class_names(classes), &Preprocess::clip(SIDE), images).unwrap()
}

fn mirrored(flower: &[u8], way: usize) -> Vec<u8> {
    let mut rows: Vec<Vec<[u8; 3]>> =
        flower.chunks_exact(SIDE * 3).map(|row| row.as_chunks().0.to_vec()).collect();
    if way % 2 == 1 {
        rows.reverse();
    }
    if way / 2 % 2 == 1 {
        rows.iter_mut().for_each(|row| row.reverse());
    }
    rows.concat().concat()
}

static SMALL: LazyLock<Cache> = LazyLock::new(|| cache(12, 20));
static LARGE: LazyLock<Cache> = LazyLock::new(|| cache(102, 10));

/// Results of a classifier that is right about `skill` of the time.
fn images(classes: usize, per_class: usize, skill: f64, seed: u64) -> Vec<ImageResult> {
    let mut rng = random::stream(seed, 0);
    let image = |i: usize| {
        let label = i / per_class;
        let near = (label + 1 + rng.random_range(0..3usize.min(classes - 1))) % classes;
        let predicted = if rng.random_bool(skill) { label } else { near };
        let text = if rng.random_bool(0.6) { label } else { near };
        ImageResult {
            path: format!("flowers/test/{label:03}/{i:05}.png"),
            label: label as u32,
            predicted: predicted as u32,
            confidence: rng.random_range(0.3..1.0),
            text_predicted: text as u32,
        }
    };
    (0..classes * per_class).map(image).collect()
}

fn class_metrics(classes: usize, pairs: &[(u32, u32)]) -> Vec<ClassMetrics> {
    let count =
        |wanted: &dyn Fn(&(u32, u32)) -> bool| pairs.iter().filter(|pair| wanted(pair)).count() as u32;
    let ratio = |a: u32, b: u32| (b > 0).then(|| f64::from(a) / f64::from(b));
    let class = |class: u32| {
        let images = count(&|pair| pair.0 == class);
        let predicted = count(&|pair| pair.1 == class);
        let right = count(&|pair| *pair == (class, class));
        ClassMetrics {
            images,
            predicted,
            right,
            precision: ratio(right, predicted),
            recall: ratio(right, images),
            f1: ratio(2 * right, images + predicted),
        }
    };
    (0..classes as u32).map(class).collect()
}

fn calibration(images: &[ImageResult]) -> Vec<CalibrationBin> {
    let bin = |bin: usize| {
        let inside: Vec<_> =
            images.iter().filter(|i| ((i.confidence * 15.0) as usize).min(14) == bin).collect();
        let n = inside.len().max(1) as f64;
        CalibrationBin {
            images: inside.len() as u32,
            confidence: inside.iter().map(|i| f64::from(i.confidence)).sum::<f64>() / n,
            accuracy: inside.iter().filter(|i| i.label == i.predicted).count() as f64 / n,
        }
    };
    (0..15).map(bin).collect()
}

fn metrics(images: usize, top1: f64, loss: f64) -> EvalMetrics {
    let metrics = json!({
        "images": images, "loss": loss, "loss_head": loss * 0.8, "loss_text": loss * 0.6,
        "top1": top1, "top5": top1.max(0.97), "text_top1": top1 * 0.8, "text_top5": 0.9,
        "macro_f1": top1 * 0.99, "ece": 0.05,
    });
    serde_json::from_value(metrics).unwrap()
}

fn evaluation(split: &str, classes: usize, per_class: usize, skill: f64, seed: u64) -> Evaluation {
    let images = images(classes, per_class, skill, seed);
    let mut confusion = vec![vec![0; classes]; classes];
    for image in &images {
        confusion[image.label as usize][image.predicted as usize] += 1;
    }
    let right = images.iter().filter(|i| i.label == i.predicted).count() as f64;
    let pairs = |of: fn(&ImageResult) -> u32| -> Vec<(u32, u32)> {
        images.iter().map(|i| (i.label, of(i))).collect()
    };
    Evaluation {
        split: split.into(),
        class_names: class_names(classes),
        metrics: metrics(images.len(), right / images.len() as f64, 0.4),
        classes: class_metrics(classes, &pairs(|i| i.predicted)),
        zero_shot: class_metrics(classes, &pairs(|i| i.text_predicted)),
        confusion,
        calibration: calibration(&images),
        images,
    }
}

fn epochs(skill: f64) -> Vec<EpochRecord> {
    let epoch = |epoch: u32| {
        let loss = 0.2 + 2.0 * (-0.3 * f64::from(epoch)).exp();
        let train = json!({
            "loss": loss * 0.9, "loss_head": loss * 0.6, "loss_text": loss, "loss_triplet": 0.0,
            "top1": skill * (1.05 - 1.0 / f64::from(epoch + 1)), "text_top1": 0.6,
        });
        let val = metrics(120, skill * (1.0 - 0.5 / f64::from(epoch)), loss);
        serde_json::from_value(json!({ "epoch": epoch, "train": train, "val": val })).unwrap()
    };
    (1..=12).map(epoch).collect()
}

fn run(name: &str, split: &str, classes: usize, per_class: usize, skill: f64, seed: u64) -> RunData {
    let evaluation = evaluation(split, classes, per_class, skill, seed);
    let mut settings = Settings::of(Recipe::Lora);
    (settings.demo, settings.epochs, settings.batch_size) = (true, 12, 64);
    let n = evaluation.images.len();
    let summary = json!({
        "recipe": "lora", "classes": classes, "trained_parameters": 642_150, "epochs": 12, "best_epoch": 9,
        "stopped_early": true, "val": metrics(120, skill, 0.42), "seconds": 83.2, "images_per_s": 1204.0,
        "test": (split == "test").then(|| evaluation.metrics.clone()), "device": "CPU, 2 threads",
        "zero_shot": { "split": split, "images": n, "loss": 1.2, "top1": 0.6, "top5": 0.9 },
        "zero_shot_val": { "split": "val", "images": 120, "loss": 1.2, "top1": 0.55, "top5": 0.9 },
    });
    let summary = serde_json::from_value(summary).unwrap();
    let ended = Some(UNIX_EPOCH + Duration::from_secs(1_795_910_400));
    RunData {
        name: name.into(),
        settings,
        summary,
        steps: Vec::new(),
        epochs: epochs(skill),
        evaluation,
        ended,
    }
}

fn comparison(runs: &[RunData]) -> Comparison {
    let row = |run: &RunData| {
        json!({
            "name": run.name, "recipe": "lora", "val_top1": 0.9, "test_top1": run.evaluation.metrics.top1,
            "test_top5": 0.99, "text_top1": 0.7, "macro_f1": 0.88, "ece": 0.05, "trained_parameters": 642_150,
            "epochs": 12, "best_epoch": 9, "seconds": 83.2, "images_per_s": 1204.0,
            "published": { "test_top1": [0.912, 0.9205], "val_top1": 0.9176 },
        })
    };
    let plain = json!({
        "name": "plain CLIP", "recipe": "plain CLIP", "val_top1": null, "test_top1": 0.6, "test_top5": 0.9,
        "text_top1": 0.6, "macro_f1": null, "ece": null, "trained_parameters": 0, "epochs": 0,
        "best_epoch": 0, "seconds": 0.0, "images_per_s": 0.0,
        "published": { "test_top1": [0.665, 0.665], "val_top1": null },
    });
    let rows: Vec<Value> = std::iter::once(plain).chain(runs.iter().map(row)).collect();
    let split = &runs[0].evaluation.split;
    let classes = runs[0].evaluation.class_names.len();
    serde_json::from_value(json!({ "split": split, "classes": classes, "rows": rows })).unwrap()
}

/// A folder for pages: a temporary one, or the one that is named, to look at the pages.
struct Pages {
    dir: PathBuf,
    _temporary: tempfile::TempDir,
}

impl Pages {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let kept = std::env::var_os("CLIP_ENGINE_KEEP_PAGES").map(PathBuf::from);
        Pages { dir: kept.unwrap_or_else(|| temporary.path().to_path_buf()), _temporary: temporary }
    }

    fn run(&self, file: &str, run: &RunData, cache: Option<&Cache>) -> PathBuf {
        let path = self.dir.join(file);
        let split = cache.map(|cache| cache.split(Split::Test));
        write_run_page(run, split.as_ref(), &path).unwrap();
        path
    }
}

fn small_page(pages: &Pages) -> (PathBuf, RunData) {
    let run = run("lora", "test", 12, 20, 0.8, 3);
    (pages.run("run-12.html", &run, Some(&SMALL)), run)
}

fn large_page(pages: &Pages) -> (PathBuf, RunData) {
    let run = run("lora-102", "test", 102, 10, 0.85, 4);
    (pages.run("run-102.html", &run, Some(&LARGE)), run)
}

fn compared_page(pages: &Pages) -> (PathBuf, Vec<RunData>) {
    let runs = [("lora", 0.9), ("linear probe", 0.85), ("vpt#1?", 0.8)];
    let runs: Vec<_> =
        (10..).zip(runs).map(|(seed, (name, skill))| run(name, "test", 12, 20, skill, seed)).collect();
    for name in ["linear probe", "vpt#1?"] {
        let dir = pages.dir.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("report.html"), "<!doctype html><title>a run</title>").unwrap();
    }
    let (path, split) = (pages.dir.join("comparison.html"), SMALL.split(Split::Test));
    write_comparison_page(&comparison(&runs), &runs, Some(&split), &path).unwrap();
    (path, runs)
}

/// Two techniques of three seeds each and one of a single run, whose folders have names to be escaped.
fn seeded_page(pages: &Pages) -> (PathBuf, Vec<RunData>, Comparison) {
    let mut runs = Vec::new();
    for (folder, recipe, seeds, skill) in
        [("lora", Recipe::Lora, 3, 0.85), ("vpt#1?", Recipe::Vpt, 3, 0.7), ("mixup", Recipe::Mixup, 1, 0.8)]
    {
        for seed in 42..42 + seeds {
            let name = format!("{folder}/seed {seed}");
            let skill = skill + 0.02 * (seed - 42) as f64;
            let mut run = run(&name, "test", 12, 20, skill, 20 + runs.len() as u64);
            run.settings = Settings { recipe, seed, data_seed: Some(42), ..run.settings };
            run.settings.method = Settings::of(recipe).method;
            run.settings.mixup = Settings::of(recipe).mixup;
            run.summary.recipe = recipe;
            runs.push(run);
        }
    }
    // Early stopping ended this one sooner.
    runs[0].epochs.truncate(8);
    for run in &runs {
        let dir = pages.dir.join(&run.name);
        std::fs::create_dir_all(&dir).unwrap();
        let page = format!("<!doctype html><title>the run {}</title>", run.name);
        std::fs::write(dir.join("report.html"), page).unwrap();
    }
    let mut comparison = Comparison::of(&runs).unwrap();
    let published = json!({ "test_top1": [0.912, 0.9205], "val_top1": 0.9176 });
    comparison.means[0].published = serde_json::from_value(published).unwrap();
    let (path, split) = (pages.dir.join("seeds.html"), SMALL.split(Split::Test));
    write_comparison_page(&comparison, &runs, Some(&split), &path).unwrap();
    (path, runs, comparison)
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

#[test]
#[cfg_attr(not(chromium), ignore = "needs Chromium")]
fn every_text_is_text() {
    let pages = Pages::new();
    let (path, run) = small_page(&pages);
    let script = r#"
        const table = one("table", sectionOf("Classes"));
        return { names: column(table, 0), bold: all("b").length,
                 scripts: document.scripts.length, title: document.title };
    "#;
    let found = visit(&path, 1280, script);
    assert_eq!(strings(&found["names"]), run.evaluation.class_names);
    // The page's data and script, and the two of the probe.
    assert_eq!((&found["bold"], &found["scripts"]), (&json!(0), &json!(4)));
    assert!(found["title"].as_str().unwrap().starts_with("lora"));
}

#[test]
#[cfg_attr(not(chromium), ignore = "needs Chromium")]
fn the_headline_and_the_settings_are_those_of_the_run() {
    let pages = Pages::new();
    let (path, run) = small_page(&pages);
    let script = r#"
        const facts = all(".facts div").map((div) => [one("dt", div).textContent, one("dd", div).firstChild.textContent]);
        const marked = all(".settings tr.marked").map((row) => row.innerText.split(/\s+/).join(" "));
        return { facts: Object.fromEntries(facts), marked, lines: all(".settings tbody tr").length };
    "#;
    let found = visit(&path, 1280, script);
    let top1 = run.evaluation.metrics.top1;
    assert_eq!(found["facts"]["Test top-1"], format!("{:.1} %", 100.0 * top1));
    assert_eq!(found["facts"]["Gain"], format!("+{:.1} points", 100.0 * (top1 - 0.6)));
    assert_eq!(found["facts"]["Kept epoch"], "9");
    assert_eq!(found["facts"]["Trained parameters"], "642,150");
    let marked = ["demo true default: false", "epochs 12 default: 40", "batch-size 64 default: 32"];
    assert_eq!(strings(&found["marked"]), marked);
    assert!(found["lines"].as_u64().unwrap() > 20);
}

#[test]
#[cfg_attr(not(chromium), ignore = "needs Chromium")]
fn a_click_on_a_head_sorts_and_the_box_filters() {
    let pages = Pages::new();
    let (path, run) = small_page(&pages);
    let script = r#"
        const section = sectionOf("Classes");
        const table = one("table", section);
        const heads = all("thead th", table);
        const click = (i) => (one("button", heads[i]).click(), heads.map((head) => head.getAttribute("aria-sort")));
        const state = [];
        for (const i of [4, 4, 0]) state.push({ sort: click(i), recall: column(table, 4), names: column(table, 0) });
        const input = one("input", section);
        input.value = "SCRIPT";
        input.dispatchEvent(new Event("input"));
        const shown = all("tbody tr", table).filter((row) => row.offsetHeight > 0).map((row) => row.children[0].textContent);
        return { state, shown, count: one(".controls output", section).textContent };
    "#;
    let found = visit(&path, 1280, script);
    let recalls = |state: &Value| -> Vec<f64> {
        strings(&state["recall"]).iter().map(|text| text.trim_end_matches(" %").parse().unwrap()).collect()
    };
    let state = &found["state"];
    let mut expected: Vec<f64> =
        run.evaluation.classes.iter().map(|c| (c.recall.unwrap() * 1000.0).round() / 10.0).collect();
    expected.sort_by(|a, b| b.total_cmp(a));
    assert_ne!(expected.first(), expected.last());
    assert_eq!(recalls(&state[0]), expected);
    expected.reverse();
    assert_eq!(recalls(&state[1]), expected);
    let none = json!("none");
    assert_eq!(state[0]["sort"], json!([none, none, none, none, "descending", none, none, none]));
    assert_eq!(state[1]["sort"], json!([none, none, none, none, "ascending", none, none, none]));
    assert_eq!(state[2]["sort"], json!(["ascending", none, none, none, none, none, none, none]));
    assert_ne!(strings(&state[2]["names"]), run.evaluation.class_names);
    assert_eq!((found["shown"].clone(), found["count"].clone()), (json!([HOSTILE]), json!("1 of 12")));
}

/// Names, counts and images of a cell, as the page must show them.
fn expected_cell(run: &RunData, label: usize, predicted: usize, most: usize) -> (String, Vec<String>) {
    let e = &run.evaluation;
    let mut inside: Vec<_> =
        e.images.iter().filter(|i| (i.label as usize, i.predicted as usize) == (label, predicted)).collect();
    inside.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    let (n, of, name) = (inside.len(), e.classes[label].images, &e.class_names[label]);
    let mut text = match label == predicted {
        true => format!("{name}: {n} of {of} images right"),
        false => format!("{name} taken for {}: {n} of {of} images", e.class_names[predicted]),
    };
    if n > most {
        text += &format!(" ({most} of {n} shown)");
    }
    let images = inside.iter().take(most);
    let images = images
        .map(|i| format!("{:.1} % {}", 100.0 * i.confidence, i.path.strip_prefix("flowers/test/").unwrap()));
    (text, images.collect())
}

/// Clicks cells of the matrix, and opens one with the keyboard.
const OPEN_CELLS: &str = r##"
    const svg = one(".matrix svg");
    const opened = () => {
        const images = all("#cell-images li");
        const words = (li) => [...one("figcaption", li).children].map((line) => line.textContent).join(" ");
        return { text: one("#cell-images h3").textContent, images: images.map(words),
                 sources: all("#cell-images img").map((img) => img.src.slice(0, 23)) };
    };
    const readout = () => one("output", sectionOf("Confusion matrix")).textContent;
    const results = CELLS.map(([i, j]) => {
        const box = one(".field", svg).getBoundingClientRect();
        const [x, y] = [box.left + (j + 0.5) * box.width / CLASSES, box.top + (i + 0.5) * box.height / CLASSES];
        at(svg, "pointermove", x, y);
        const hovered = readout();
        at(svg, "click", x, y);
        return { hovered, ...opened() };
    });
    key(svg, "ArrowRight");
    key(svg, "ArrowDown");
    const before = opened().text;
    key(svg, "Enter");
    results.push({ hovered: readout(), moved: before === results.at(-1).text, ...opened() });
    return results;
"##;

fn check_cells(path: &Path, run: &RunData, pictures: bool) {
    let classes = run.evaluation.class_names.len();
    // A cell of more than twelve images, one of few, one of none, and two of what is right.
    let largest = |i: usize| (0..classes).filter(|&j| j != i).max_by_key(|&j| run.evaluation.confusion[i][j]);
    let mut cells = vec![(0, largest(0).unwrap()), (1, 0), (1, 1), (classes - 2, classes - 3), (3, 3)];
    let list = serde_json::to_string(&cells).unwrap();
    let script = OPEN_CELLS.replace("CELLS", &list).replace("CLASSES", &classes.to_string());
    let found = visit(path, 1280, &script);
    cells.push((4, 4));
    for (&(label, predicted), found) in cells.iter().zip(found.as_array().unwrap()) {
        let (text, images) = expected_cell(run, label, predicted, if label == predicted { 6 } else { 12 });
        assert_eq!(found["text"], text);
        assert_eq!(found["hovered"], text.split(" (").next().unwrap());
        assert_eq!(strings(&found["images"]), images);
        let sources = if pictures { images.len() } else { 0 };
        assert_eq!(strings(&found["sources"]), vec!["data:image/jpeg;base64,"; sources]);
    }
    assert_eq!(found[cells.len() - 1]["moved"], true);
}

#[test]
#[cfg_attr(not(chromium), ignore = "needs Chromium")]
fn a_cell_of_the_matrix_opens_its_images() {
    let pages = Pages::new();
    let (path, run) = small_page(&pages);
    check_cells(&path, &run, true);
    let mut bad = run.clone();
    bad.evaluation = evaluation("test", 12, 60, 0.1, 8);
    assert!(bad.evaluation.confusion[0].iter().any(|&n| n > 12));
    check_cells(&pages.run("run-bad.html", &bad, None), &bad, false);
}

#[test]
#[cfg_attr(not(chromium), ignore = "needs Chromium")]
fn a_matrix_of_102_classes_is_read_by_pointing_at_it() {
    let pages = Pages::new();
    let (path, run) = large_page(&pages);
    check_cells(&path, &run, true);
}

#[test]
#[cfg_attr(not(chromium), ignore = "needs Chromium")]
fn curves_show_their_values_under_the_pointer_and_by_keyboard() {
    let pages = Pages::new();
    let (path, run) = small_page(&pages);
    let script = r#"
        const charts = all("figure.chart", sectionOf("Curves"));
        const svg = one("svg", charts[0]);
        const box = svg.getBoundingClientRect();
        at(svg, "pointermove", box.right - 16, box.top + 50);
        const hovered = tip(charts[0]);
        at(svg, "pointerleave", 0, 0);
        const left = one(".tip", charts[0]).hidden;
        key(svg, "Home");
        key(svg, "ArrowRight");
        const keyed = tip(charts[0]);
        const focused = document.activeElement.getAttribute("aria-label");
        return { start: opens(charts[1]), hovered, left, keyed, focused, titles: charts.map((c) => one("figcaption", c).textContent),
                 parts: opens(charts[2]), calibration: opens(sectionOf("Calibration")) };
    "#;
    let found = visit(&path, 1280, script);
    let percent = |value: f64| format!("{:.1} %", 100.0 * value);
    for (state, epoch) in [("hovered", 12), ("keyed", 2), ("focused", 2)] {
        let record = &run.epochs[epoch - 1];
        let expected = format!(
            "epoch {epoch}\ntraining: {}\nvalidation: {}\ntraining, text logits: {}\n\
             validation, text logits: {}\nplain CLIP, validation: 55.0 %",
            percent(record.train.top1),
            percent(record.val.top1),
            percent(record.train.text_top1),
            percent(record.val.text_top1),
        );
        assert_eq!(found[state], expected, "{state}");
    }
    assert_eq!(found["left"], true);
    assert_eq!(strings(&found["titles"]), ["Accuracy (top-1)", "Loss", "Parts of the training loss"]);
    let (train, val) = (&run.epochs[8].train, &run.epochs[8].val);
    assert_eq!(found["start"], format!("epoch 9\ntraining: {:.4}\nvalidation: {:.4}", train.loss, val.loss));
    let (head, text) = (train.parts.loss_head, train.parts.loss_text);
    let parts = format!(
        "epoch 9\ntotal: {:.4}\nhead (weight 1): {head:.4}\ntext (weight 0.3): {text:.4}",
        train.loss
    );
    assert_eq!(found["parts"], parts);
    let last = run.evaluation.calibration.last().unwrap();
    assert!(found["calibration"].as_str().unwrap().contains(&format!("{} images", last.images)));
}

#[test]
fn the_charts_of_the_page_are_those_of_the_files() {
    let pages = Pages::new();
    let mut run = run("lora", "test", 12, 20, 0.8, 3);
    run.summary.ladder = Some(ladder());
    let html = std::fs::read_to_string(pages.run("same.html", &run, None)).unwrap();
    let (_, data) = html.split_once("<script id=\"data\" type=\"application/json\">").unwrap();
    let data: Value = serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap();
    run_plots(&run, &pages.dir, &Silent).unwrap();
    let charts = &data["charts"];
    for (chart, file) in [
        (&charts["curves"][0], "curves"),
        (&charts["curves"][1], "curves"),
        (&charts["curves"][2], "losses"),
        (&charts["calibration"], "calibration"),
        (&charts["ladder"], "ladder"),
    ] {
        let svg = std::fs::read_to_string(pages.dir.join(format!("plots/{file}.svg"))).unwrap();
        let chart = chart["svg"].as_str().unwrap();
        assert!(
            chart.lines().count() > 40
                && svg.contains(chart.split_once('\n').unwrap().1.trim_end_matches("</svg>\n"))
        );
    }
}

#[test]
#[cfg_attr(not(chromium), ignore = "needs Chromium")]
fn a_run_without_a_test_split_and_without_images_says_so() {
    let pages = Pages::new();
    let mut run = run("val-only", "val", 12, 20, 0.8, 3);
    run.settings.text_weight = 0.0;
    run.epochs[2].val.loss = f64::NAN;
    let path = pages.run("run-val.html", &run, None);
    let script = r#"
        return { terms: all(".facts dt").map((dt) => dt.textContent), images: all("img").length,
                 mistakes: all(".thumbnails li", sectionOf("Most confident mistakes")).length,
                 charts: all("figure.chart", sectionOf("Curves")).length };
    "#;
    let found = visit(&path, 1280, script);
    let terms = strings(&found["terms"]);
    assert!(terms.contains(&"Validation top-1") && !terms.contains(&"Test top-1"), "{terms:?}");
    assert_eq!((&found["images"], &found["mistakes"]), (&json!(0), &json!(24)));
    assert_eq!(found["charts"], 2, "the head's is the only part of the loss");
}

#[test]
#[cfg_attr(not(chromium), ignore = "needs Chromium")]
fn mistakes_are_shown_with_their_images_each_kept_once() {
    let pages = Pages::new();
    let (path, run) = large_page(&pages);
    let html = std::fs::read_to_string(&path).unwrap();
    let shown = html.matches("data:image/jpeg;base64,").count();
    // All that is wrong, and six of each class that is right: no cell has more than twelve mistakes here.
    let wrong = run.evaluation.images.iter().filter(|i| i.label != i.predicted).count();
    let right: usize = run.evaluation.classes.iter().map(|c| c.right.min(6) as usize).sum();
    assert_eq!(shown, wrong + right);
    assert!(html.len() < 5_000_000, "{} bytes", html.len());
    let script = r#"
        const images = all("img", sectionOf("Most confident mistakes"));
        return images.map((img) => [img.complete, img.naturalWidth, img.naturalHeight]);
    "#;
    let found = visit(&path, 1280, script);
    assert_eq!(found, json!(vec![json!([true, 64, 64]); 24]));
}

#[test]
#[cfg_attr(not(chromium), ignore = "needs Chromium")]
fn a_narrow_window_and_print_lose_nothing() {
    let pages = Pages::new();
    // Print's rules for the screen, so that a script can measure what they do.
    let script = r#"
        const measure = () => ({ scroll: document.documentElement.scrollWidth, window: innerWidth,
            hidden: all("section, figure, table, tbody tr, img, .matrix svg").filter((node) => node.offsetHeight === 0
                && node.getBoundingClientRect().height === 0).length });
        const screen = measure();
        for (const sheet of document.styleSheets) for (const rule of sheet.cssRules) {
            if (!(rule instanceof CSSMediaRule)) continue;
            rule.media.mediaText = rule.media.mediaText.includes("print") ? "all" : "not all";
        }
        const cut = all(".scroll").filter((box) => box.scrollHeight > box.clientHeight + 1 && getComputedStyle(box).overflowY !== "visible");
        return { screen, print: measure(), cut: cut.length, sections: all("section").length };
    "#;
    let (small, large, compared) = (small_page(&pages).0, large_page(&pages).0, compared_page(&pages).0);
    let (seeded, world) = (seeded_page(&pages).0, pages.run("world-narrow.html", &world_run(), None));
    for (page, sections) in [(small, 7), (large, 7), (world, 8), (compared, 4), (seeded, 4)] {
        let found = visit(&page, 360, script);
        let page = page.display();
        assert_eq!(found["screen"], json!({ "scroll": 360, "window": 360, "hidden": 0 }), "{page}");
        assert_eq!(found["print"]["hidden"], 0, "{page}");
        assert_eq!((&found["cut"], &found["sections"]), (&json!(0), &json!(sections)), "{page}");
    }
}

#[test]
#[cfg_attr(not(chromium), ignore = "needs Chromium")]
fn a_comparison_sorts_links_and_sets_two_runs_against_each_other() {
    let pages = Pages::new();
    let (path, runs) = compared_page(&pages);
    let script = r#"
        const results = one("table", sectionOf("Results"));
        const links = all("a", results).map((a) => [a.textContent, a.getAttribute("href")]);
        const heads = all("thead button", results);
        heads.find((head) => head.textContent === "Test top\u20111").click();
        const sorted = column(results, 0);
        const section = sectionOf("Classes");
        const [first, second] = all("select", section);
        const options = [...first.options].map((option) => option.textContent);
        const choose = (select, name) => {
            select.value = [...select.options].find((option) => option.textContent === name).value;
            select.dispatchEvent(new Event("change"));
        };
        choose(first, "linear probe");
        choose(second, "vpt#1?");
        const table = one("table", section);
        const rows = Object.fromEntries(all("tbody tr", table).map((row) => [row.children[0].textContent, [row.children[1].textContent, row.children[2].textContent]]));
        const [bars, curves] = all("figure.chart", sectionOf("Accuracy")).map(opens);
        return { links, sorted, options, rows, heads: all("thead th", table).map((th) => th.textContent),
                 curves, bars,
                 circles: all("circle", section).length, images: all("img").length };
    "#;
    let found = visit(&path, 1280, script);
    let links = json!([["linear probe", "linear%20probe/report.html"], ["vpt#1?", "vpt%231%3F/report.html"]]);
    assert_eq!(found["links"], links, "the run lora has no page");
    let mut names: Vec<_> = runs.iter().map(|run| (run.evaluation.metrics.top1, &*run.name)).collect();
    names.push((0.6, "plain CLIP"));
    names.sort_by(|a, b| b.0.total_cmp(&a.0));
    assert_eq!(strings(&found["sorted"]), names.iter().map(|n| n.1).collect::<Vec<_>>());
    assert_eq!(strings(&found["options"]), ["plain CLIP", "lora", "linear probe", "vpt#1?"]);
    assert_eq!(strings(&found["heads"]), ["Class", "linear probe", "vpt#1?", "Difference"]);
    for (i, name) in runs[0].evaluation.class_names.iter().enumerate() {
        let recall = |run: &RunData| format!("{:.1} %", 100.0 * run.evaluation.classes[i].recall.unwrap());
        assert_eq!(found["rows"][name], json!([recall(&runs[1]), recall(&runs[2])]), "{name}");
    }
    let curve = |run: &RunData| format!("{}: {:.1} %", run.name, 100.0 * run.epochs[11].val.top1);
    let mut curves: Vec<&str> = found["curves"].as_str().unwrap().lines().collect();
    curves[1..].sort_unstable();
    let mut expected: Vec<String> = runs.iter().map(curve).collect();
    expected.sort_unstable();
    assert_eq!(
        (curves[0], &curves[1..]),
        ("epoch 12", &expected.iter().map(String::as_str).collect::<Vec<_>>()[..])
    );
    assert_eq!(found["bars"], "plain CLIP: 60.0 %\npublished: 66.5 %");
    assert!(found["circles"].as_u64().unwrap() > 3);
    let wrong_in_all =
        |i: &usize| runs.iter().all(|r| r.evaluation.images[*i].label != r.evaluation.images[*i].predicted);
    assert_eq!(found["images"], (0..240).filter(wrong_in_all).count().min(24));
}

#[test]
#[cfg_attr(not(chromium), ignore = "needs Chromium")]
fn several_seeds_are_one_technique_above_their_runs() {
    let pages = Pages::new();
    let (path, runs, comparison) = seeded_page(&pages);
    let script = r#"
        const [means, results] = all("table", sectionOf("Results"));
        const accuracy = sectionOf("Accuracy");
        const [bars, curves] = all("figure.chart", accuracy);
        const words = [];
        for (const press of ["Home", "ArrowRight", "ArrowRight", "ArrowDown"]) {
            key(one("svg", bars), press);
            words.push(tip(bars));
        }
        const last = opens(curves);
        key(one("svg", curves), "Home");
        // Of twelve epochs, as the legend's are not.
        const lines = all("polyline", curves).filter((line) => line.points.length > 2);
        const stroke = (line) => line.getAttribute("stroke");
        return { means: all("tbody tr", means).map((row) => [...row.children].map((cell) => cell.textContent)),
                 heads: all("thead th", means).map((th) => th.textContent), links: all("a", means).length,
                 runs: column(results, 0), addresses: all("a", results).map((a) => a.getAttribute("href")), words,
                 values: all("text", bars).map((text) => text.textContent), first: tip(curves), last,
                 strokes: lines.filter((line) => !line.hasAttribute("stroke-opacity")).map(stroke),
                 faint: lines.filter((line) => line.hasAttribute("stroke-opacity")).map(stroke) };
    "#;
    let found = visit(&path, 1280, script);
    let percent = |v: f64| format!("{:.1} %", 100.0 * v);
    let spread = |mean: f64, std: Option<f64>| match std {
        Some(std) => format!("{:.1} ± {:.1} %", 100.0 * mean, 100.0 * std),
        None => percent(mean),
    };
    let means = &comparison.means;
    assert_eq!(means.iter().map(|row| row.runs.len()).collect::<Vec<_>>(), [3, 3, 1]);

    // The table of the means, plain CLIP first.
    let rows: Vec<Vec<&str>> = found["means"].as_array().unwrap().iter().map(strings).collect();
    assert_eq!(
        strings(&found["heads"])[..6],
        ["Technique", "Seeds", "Validation top\u{2011}1", "Test top\u{2011}1", "Top\u{2011}5", "Macro F1"]
    );
    assert_eq!(
        strings(&found["heads"])[6..],
        ["ECE", "Trained parameters", "Published test", "Published validation"]
    );
    let none = "\u{2013}";
    // 66 of 120 and 144 of 240 images.
    assert_eq!(rows[0][..4], ["plain CLIP", none, "55.0 %46.1–63.6 %", "60.0 %53.7–66.0 %"]);
    for (cells, row) in rows[1..].iter().zip(means) {
        let score = |of: fn(&Scores) -> f64| spread(of(&row.mean), row.std.as_ref().map(of));
        let mut expected = vec![row.name.clone(), row.seeds.len().to_string(), score(|s| s.val_top1)];
        expected.extend([
            score(|s| s.test_top1),
            score(|s| s.test_top5),
            score(|s| s.macro_f1),
            score(|s| s.ece),
        ]);
        expected.push("642,150".into());
        let published = if row.published.is_some() { ["91.2 to 92.05 %", "91.76 %"] } else { [none; 2] };
        assert_eq!(
            *cells,
            [&expected.iter().map(String::as_str).collect::<Vec<_>>()[..], &published].concat()
        );
    }
    assert_eq!(rows.len(), 4);

    // Below it every run, with a link to the page that is there.
    let names: Vec<&str> = runs.iter().map(|run| &*run.name).collect();
    assert_eq!(strings(&found["runs"]), [&["plain CLIP"], &names[..]].concat());
    let addresses: Vec<String> =
        names.iter().map(|name| name.replace('#', "%23").replace('?', "%3F").replace(' ', "%20")).collect();
    let addresses = addresses.iter().map(|address| format!("{address}/report.html"));
    assert_eq!(strings(&found["addresses"]), addresses.collect::<Vec<_>>());
    let address = format!("{}/{}", pages.dir.display(), strings(&found["addresses"])[4]);
    let profile = tempfile::tempdir().unwrap();
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (linked, _) = dump(chromium(), profile.path(), &address);
    assert!(linked.contains("<title>the run vpt#1?/seed 43</title>"), "{address}: {linked}");

    // Bars of the means.
    let test = |row: &MeanRow| spread(row.mean.test_top1, row.std.map(|std| std.test_top1));
    let val = |row: &MeanRow| spread(row.mean.val_top1, row.std.map(|std| std.val_top1));
    let seeds = |row: &MeanRow| {
        let recipe = if row.name == row.recipe { String::new() } else { format!("{}, ", row.recipe) };
        format!("{recipe}{} seed{}", row.seeds.len(), if row.seeds.len() == 1 { "" } else { "s" })
    };
    let words = means
        .iter()
        .map(|row| format!("{}: {}, {}\nvalidation: {}", row.name, test(row), seeds(row), val(row)));
    let mut words: Vec<String> = words.collect();
    words[0] += "\npublished: 91.2–92.05 %";
    words.insert(0, "plain CLIP: 60.0 %\nvalidation: 55.0 %".into());
    assert_eq!(strings(&found["words"]), words);
    let values = strings(&found["values"]);
    for row in means {
        assert!(
            values.contains(&&*row.name) && values.contains(&&*test(row)) && values.contains(&&*val(row))
        );
    }

    // A curve of the mean of those that had the epoch, the best in front, with the runs behind it.
    let value = |runs: &[RunData], epoch: usize| {
        let values: Vec<f64> =
            runs.iter().filter_map(|run| run.epochs.get(epoch)).map(|e| e.val.top1).collect();
        percent(values.iter().sum::<f64>() / values.len() as f64)
    };
    for (state, epoch) in [("first", 0), ("last", 11)] {
        let of = |name: &str, runs: &[RunData]| format!("{name}: {}", value(runs, epoch));
        let mut expected =
            [of(&means[0].name, &runs[..3]), of(&means[1].name, &runs[3..6]), of(&means[2].name, &runs[6..])];
        expected.sort_unstable();
        let found = found[state].as_str().unwrap();
        let mut lines: Vec<&str> = found.lines().collect();
        lines[1..4].sort_unstable();
        assert_eq!((lines[0], lines[4]), (&*format!("epoch {}", epoch + 1), "plain CLIP: 55.0 %"), "{state}");
        assert_eq!(lines[1..4], expected, "{state}");
    }
    let (strokes, faint) = (strings(&found["strokes"]), strings(&found["faint"]));
    let runs_of = |stroke: &&str| faint.iter().filter(|faint| *faint == stroke).count();
    let mut behind: Vec<usize> = strokes.iter().map(runs_of).collect();
    behind.sort_unstable();
    assert_eq!((behind, faint.len()), (vec![0, 3, 3], 6));
}

#[test]
fn images_and_runs_that_do_not_belong_together_are_refused() {
    let pages = Pages::new();
    let (path, cache) = (pages.dir.join("refused.html"), cache(12, 3));
    let split = cache.split(Split::Test);
    let twelve = run("a", "test", 12, 20, 0.8, 3);
    let error = write_run_page(&twelve, Some(&split), &path).unwrap_err().to_string();
    assert!(error.contains("240 images of test") && error.contains("these 36"), "{error}");
    for (other, what) in
        [(run("b", "test", 13, 20, 0.8, 3), "classes"), (run("b", "val", 12, 20, 0.8, 3), "images")]
    {
        let runs = [twelve.clone(), other];
        let error = write_comparison_page(&comparison(&runs), &runs, None, &path).unwrap_err().to_string();
        assert!(error.contains(&format!("a and b were evaluated on different {what}")), "{error}");
    }
    assert!(!path.exists());
}

/// Names in the scripts of the world, short and very long, and some that are read from the right.
const WORLD: [&str; 10] = [
    "玫瑰花",
    "ばら (薔薇)",
    "وردة حمراء",
    "שושנה (אדומה)",
    "गुलाब का फूल",
    "กุหลาบ",
    "🌹 rose",
    "Роза морщинистая",
    "Épine-vinette à fruits rouges, cultivée dans les jardins du nord et du sud de l’Europe depuis fort longtemps",
    "Änderungsschneidereigewerbeblume",
];

/// A run on as many classes as there are in [`WORLD`], called like these.
fn world_run() -> RunData {
    let mut run = run(
        "世界 — a run with a long name that has to be read to its end on a telephone",
        "test",
        10,
        20,
        0.8,
        3,
    );
    run.evaluation.class_names = WORLD.map(String::from).to_vec();
    run.summary.ladder = Some(ladder());
    run
}

#[test]
#[cfg_attr(not(chromium), ignore = "needs Chromium")]
fn nothing_is_clipped_at_any_width() {
    let pages = Pages::new();
    let world = world_run();
    let mut other = world.clone();
    other.name = "another run, whose name is as long as that of the first one, and then some more".into();
    let runs = [world.clone(), other];
    let path = pages.dir.join("world-compared.html");
    write_comparison_page(&Comparison::of(&runs).unwrap(), &runs, None, &path).unwrap();
    // A list that is closed shows the beginning of a long name; opened, all of it.
    let script = r#"
        const outside = (node) => {
            const [box, svg] = [node.getBoundingClientRect(), node.closest("svg").getBoundingClientRect()];
            return box.left < svg.left - 1 || box.right > svg.right + 1 || box.top < svg.top - 1 || box.bottom > svg.bottom + 1;
        };
        const cut = all("body *").filter((node) => node instanceof HTMLElement && !node.closest(".scroll")
            && node.tagName !== "CAPTION" && node.tagName !== "SELECT" && node.scrollWidth > node.clientWidth + 1 && node.clientWidth > 0);
        const low = all(".readout").filter((node) => node.scrollHeight > node.clientHeight + 1);
        return { texts: all("svg text").filter(outside).map((text) => text.textContent), cut: cut.map((node) => node.outerHTML.slice(0, 90)),
                 low: low.map((node) => node.textContent), dots: all("svg text, td, th, li, button").filter((node) => node.textContent.includes("\u2026")).length,
                 page: document.documentElement.scrollWidth, names: all("table").flatMap((table) => column(table, 0)) };
    "#;
    for page in [pages.run("world.html", &world, None), path] {
        for width in [390, 800, 1280] {
            let found = visit(&page, width, script);
            let page = page.display();
            for what in ["texts", "cut", "low"] {
                assert_eq!(found[what], json!([]), "{what} of {page} at {width}");
            }
            assert_eq!((&found["page"], &found["dots"]), (&json!(width), &json!(0)), "{page}");
            let names = strings(&found["names"]);
            assert!(WORLD.iter().all(|name| names.contains(name)), "{page}: {names:?}");
        }
    }
}

#[test]
#[cfg_attr(not(chromium), ignore = "needs Chromium")]
fn the_page_says_what_it_is_of() {
    let pages = Pages::new();
    let mut run = run("lora", "test", 12, 20, 0.8, 3);
    run.settings.demo = false;
    (run.settings.model, run.settings.data) =
        (Some("openai/clip-vit-base-patch32".into()), Some("/somewhere/flowers5".into()));
    let script = r#"return { title: document.title, under: one("h1 + .note").textContent };"#;
    let found = visit(&pages.run("run-of.html", &run, None), 1280, script);
    let version = env!("CARGO_PKG_VERSION");
    let of = format!("openai/clip-vit-base-patch32 on flowers5 · 2026-11-29 · clip-engine {version}");
    assert_eq!((&found["under"], &found["title"]), (&json!(of), &json!(format!("lora – {of}"))));
    let path = pages.dir.join("of.html");
    let mut earlier = run.clone();
    (earlier.name, earlier.ended) = ("vpt".into(), Some(UNIX_EPOCH));
    earlier.settings.model = Some("/models/clip-b16".into());
    let runs = [earlier, run];
    write_comparison_page(&Comparison::of(&runs).unwrap(), &runs, None, &path).unwrap();
    let found = visit(&path, 1280, script);
    let of =
        format!("clip-b16, openai/clip-vit-base-patch32 on flowers5 · 2026-11-29 · clip-engine {version}");
    assert_eq!((&found["under"], &found["title"]), (&json!(of), &json!(format!("Comparison – {of}"))));
}

#[test]
#[cfg_attr(not(chromium), ignore = "needs Chromium")]
fn results_stand_with_their_intervals_and_the_baseline() {
    let pages = Pages::new();
    let mut run = run("lora", "test", 5, 20, 0.8, 3);
    let baseline = json!({
        "split": "test", "images": 100, "top1": 0.7, "macro_f1": 0.69, "nll": 0.8123, "ece": 0.042,
        "seconds": 1.5, "c": 0.1,
    });
    run.summary.baseline = Some(serde_json::from_value(baseline).unwrap());
    let at = |nll: f64| json!({ "nll": nll, "brier": nll / 2.0, "ece": nll / 10.0 });
    let temperature =
        json!({ "value": 0.25, "before": at(0.9), "after": at(0.4), "chance": [0.012, 0.0551] });
    run.summary.temperature = Some(serde_json::from_value(temperature).unwrap());
    run.evaluation.metrics.top1 = 0.81;
    (run.evaluation.metrics.nll, run.evaluation.metrics.brier) = (0.4, 0.2);
    run.evaluation.calibration.iter_mut().rev().take(4).for_each(|bin| bin.images = 0);
    let script = r#"
        const cells = (table) => all("tr", table).map((row) => [...row.children].map((cell) => cell.textContent));
        return { results: cells(one("table", sectionOf("Results"))), temperature: cells(one("table.temperature")),
                 opens: opens(sectionOf("Calibration")),
                 chance: document.body.textContent.match(/ECE of ([^a-z]* to [^a-z]*) in 95/)[1],
                 cards: all(".facts dt").map((dt) => dt.textContent) };
    "#;
    let found = visit(&pages.run("results.html", &run, None), 1280, script);
    let rows: Vec<Vec<&str>> = found["results"].as_array().unwrap().iter().map(strings).collect();
    let top1 = "Top\u{2011}1";
    assert_eq!(rows[0], ["Classifier", "Split", top1, "Macro F1", "NLL", "Brier", "ECE", "Time"]);
    assert_eq!(rows[1][..3], ["lora", "test", "81.0 %72.2–87.5 %"]);
    assert_eq!(rows[1][4..], ["0.4000", "0.2000", "5.0 %", "1 min 23 s"]);
    assert_eq!(rows[2][..3], ["plain CLIP", "test", "60.0 %50.2–69.1 %"]);
    let baseline =
        ["logistic regression", "test", "70.0 %60.4–78.1 %", "69.0 %", "0.8123", "–", "4.2 %", "1.5 s"];
    assert_eq!((rows.len(), &rows[3][..]), (4, &baseline[..]));
    assert_eq!(found["chance"], "1.2 % to 5.5 %");
    assert_eq!(
        found["temperature"],
        json!([
            ["", "before (T = 1)", "after (T = 0.250)"],
            ["NLL", "0.9000", "0.4000"],
            ["Brier score", "0.4500", "0.2000"],
            ["ECE", "9.0 %", "4.0 %"],
        ])
    );
    let bins = &run.evaluation.calibration;
    let last = bins.iter().rposition(|bin| bin.images > 0).unwrap();
    assert!(last < bins.len() - 1);
    let opens = found["opens"].as_str().unwrap();
    let share = |bin: usize| format!("{:.0} %", 100.0 * bin as f64 / bins.len() as f64);
    assert!(opens.starts_with(&format!("Confidence {} to {}", share(last), share(last + 1))), "{opens}");
    assert!(opens.contains(&format!("{} image", bins[last].images)), "{opens}");
    assert!(
        !strings(&found["cards"]).iter().any(|card| card.contains("top-5")),
        "five classes have no top-5"
    );

    let path = pages.dir.join("baseline.html");
    let runs = [run];
    write_comparison_page(&Comparison::of(&runs).unwrap(), &runs, None, &path).unwrap();
    let script = r#"
        const table = one("table", sectionOf("Results"));
        return all("tr", table).map((row) => [...row.children].map((cell) => cell.textContent));
    "#;
    let found = visit(&path, 1280, script);
    let rows: Vec<Vec<&str>> = found.as_array().unwrap().iter().map(strings).collect();
    assert_eq!(
        rows.iter().map(|row| row[0]).collect::<Vec<_>>(),
        ["Technique", "plain CLIP", "logistic regression", "lora"]
    );
    assert!(!rows[0].iter().any(|head| head.contains("5")), "{:?}", rows[0]);
    let place = |head: &str| rows[0].iter().position(|cell| *cell == head).unwrap();
    assert_eq!(rows[2][place("Seconds")], "1.5");
    assert_eq!(rows[2][place("ECE")], "4.2 %");
    assert_eq!(rows[2][place("Test top\u{2011}1")], "70.0 %60.4–78.1 %");
}

#[test]
#[cfg_attr(not(chromium), ignore = "needs Chromium")]
fn a_ladder_stands_below_the_results() {
    let pages = Pages::new();
    let mut run = run("auto", "test", 12, 20, 0.8, 3);
    run.summary.ladder = Some(ladder());
    let script = r#"
        const section = sectionOf("What was tried");
        const table = one("table", section);
        const cells = all("tr", table).map((row) => [...row.children].map((cell) => cell.textContent));
        const marked = all(".marked", table).map((row) => row.children[0].textContent);
        const chosen = opens(section);
        const svg = one("figure.chart svg", section);
        key(svg, "ArrowDown");
        const next = tip(one("figure.chart", section));
        const heads = all("thead button", table);
        heads.at(-1).click();
        const slowest = column(table, 0)[0];
        heads[0].click();
        return { sections: all("h2").map((h2) => h2.textContent).slice(0, 3), note: one(".note", section).textContent,
                 cells, marked, chosen, next, slowest, first: column(table, 0)[0] };
    "#;
    let found = visit(&pages.run("ladder.html", &run, None), 1280, script);
    assert_eq!(strings(&found["sections"]), ["Results", "What was tried", "Curves"]);
    assert_eq!(found["note"], ladder().reason);
    let rows: Vec<Vec<&str>> = found["cells"].as_array().unwrap().iter().map(strings).collect();
    let heads =
        ["Classifier", "Validation top\u{2011}1", "Validation NLL", "Test top\u{2011}1", "Test NLL", "Time"];
    assert_eq!(rows[0], heads);
    let plain = ["plain CLIP", "62.5 %55.6–68.9 %", "1.3000", "60.5 %57.4–63.5 %", "1.3500", "0.4 s"];
    assert_eq!(rows[1], plain);
    assert_eq!(rows[5][5], "1 min 1 s");
    assert_eq!(rows[6][1..3], ["94.5 %90.4–96.9 %", "–"]);
    assert_eq!(rows[7][..3], ["final fit", "–", "–"]);
    let kept = "logistic regressionC 31.6, text × 0.5, with cropskept";
    assert_eq!((rows[3][0], strings(&found["marked"])), (kept, vec![kept]));
    assert!(found["chosen"].as_str().unwrap().starts_with("logistic regression, kept\n"), "{found}");
    assert!(found["next"].as_str().unwrap().starts_with("mean of the two\n"), "{found}");
    assert!(found["slowest"].as_str().unwrap().starts_with("LoRA"), "{found}");
    assert_eq!(found["first"], "plain CLIP");
    let mut untested = ladder();
    untested.rungs.iter_mut().for_each(|rung| rung.test = None);
    run.summary.ladder = Some(untested);
    let script =
        r#"return all("thead th", one("table", sectionOf("What was tried"))).map((th) => th.textContent);"#;
    let found = visit(&pages.run("ladder-val.html", &run, None), 1280, script);
    assert_eq!(strings(&found), [&heads[..3], &heads[5..]].concat());
}

#[test]
#[cfg_attr(not(chromium), ignore = "needs Chromium")]
fn losses_on_each_other_are_both_seen_and_triplets_have_a_chart() {
    let pages = Pages::new();
    let mut run = run("triplet", "test", 12, 20, 0.8, 3);
    // Of a run without text loss the total is the head's; of the triplets every second step knows the distances.
    run.settings.text_weight = 0.0;
    run.settings.triplet = 0.5;
    for record in &mut run.epochs {
        (record.train.parts.loss_head, record.train.parts.loss_text) = (record.train.loss, f64::NAN);
        record.train.parts.loss_triplet = 0.1;
    }
    run.steps = (0..24)
        .map(|step| {
            let distance = (step % 2 == 0).then_some(0.25);
            serde_json::from_value(json!({
                "step": step + 1, "epoch": step / 2 + 1, "loss": 1.0, "loss_head": 1.0, "lr": 0.1, "grad_norm": 1.0,
                "images_per_s": 9.0, "triplets_active": 0.5, "distance_positive": distance,
                "distance_negative": distance.map(|d| d + 0.5),
            }))
            .unwrap()
        })
        .collect();
    assert!(run.steps[0].parts.loss_triplet.is_nan() && run.steps[0].parts.loss_text.is_nan());
    let script = r#"
        return all("figure.chart", sectionOf("Curves")).map((chart) => ({
            title: one("figcaption", chart).textContent,
            opens: opens(chart),
            texts: all("text", chart).map((text) => text.textContent),
            lines: all("polyline", chart).filter((line) => line.points.length === 12)
                .map((line) => [line.getAttribute("stroke-width"), line.getAttribute("stroke")]),
        }));
    "#;
    let found = visit(&pages.run("triplet.html", &run, None), 1280, script);
    let charts = found.as_array().unwrap();
    let titles: Vec<&str> = charts.iter().map(|chart| chart["title"].as_str().unwrap()).collect();
    let [parts, active, distances] =
        ["Parts of the training loss", "Triplets with a loss", "Mean distance of an image in a triplet"];
    assert_eq!(titles, ["Accuracy (top-1)", "Loss", parts, active, distances]);
    let legend: Vec<&str> = strings(&charts[2]["texts"])[..3].to_vec();
    assert_eq!(legend, ["total", "head (weight 0.5)", "triplet (weight 0.5)"]);
    let line = |i: usize| {
        let line = &charts[2]["lines"][i];
        (line[0].as_str().unwrap().parse::<f64>().unwrap(), line[1].as_str().unwrap())
    };
    assert!(line(0).0 > line(1).0 + 2.0 && line(1).0 == line(2).0 && line(0).1 != line(1).1, "{charts:?}");
    let values = |i: usize| charts[i]["opens"].as_str().unwrap().lines().skip(1).collect::<Vec<_>>();
    assert_eq!(values(3), ["triplets with a loss: 50.0 %"]);
    assert_eq!(values(4), ["to its own class: 0.2500", "to another class: 0.7500"]);
}

#[test]
#[cfg_attr(not(chromium), ignore = "needs Chromium")]
fn the_diagonal_is_told_from_mistakes_by_colour_and_legend() {
    let pages = Pages::new();
    let (path, run) = small_page(&pages);
    let script = r#"
        const [swatches, cells] = [[], []];
        for (const rect of all(".matrix rect[fill-opacity]")) {
            const isCell = rect.getAttribute("width") === rect.getAttribute("height");
            (isCell ? cells : swatches).push([rect.classList[0], getComputedStyle(rect).fill]);
        }
        const texts = all(".matrix text").map((text) => text.textContent);
        return { cells, legend: swatches.map((swatch, i) => [texts[i], swatch[1]]) };
    "#;
    let found = visit(&path, 1280, script);
    let fills = |class: &str| -> Vec<&str> {
        let cells = found["cells"].as_array().unwrap().iter();
        cells.filter(|cell| cell[0] == class).map(|cell| cell[1].as_str().unwrap()).collect()
    };
    let (right, wrong) = (fills("blue"), fills("red"));
    let confusion = &run.evaluation.confusion;
    let diagonal = (0..12).filter(|&i| confusion[i][i] > 0).count();
    assert_eq!(
        (right.len(), right.len() + wrong.len()),
        (diagonal, confusion.concat().iter().filter(|n| **n > 0).count())
    );
    assert!(right.iter().all(|fill| *fill == right[0]) && wrong.iter().all(|fill| *fill == wrong[0]));
    assert_ne!(right[0], wrong[0]);
    let legend = &found["legend"];
    assert_eq!((&legend[0][1], &legend[1][1]), (&json!(right[0]), &json!(wrong[0])));
    assert!(
        legend[0][0].as_str().unwrap().starts_with("right")
            && legend[1][0].as_str().unwrap().starts_with("mistakes")
    );
}
