//! The pictures of runs and comparisons: all there, sharp, legible, and saying the right numbers.

use ab_glyph::{Font, FontRef};
use clip_engine::objective::Objective;
use clip_engine::report::compare::{ComparisonRow, Published};
use clip_engine::report::data::{EpochRecord, StepRecord, TrainRecord};
use clip_engine::report::plots::{comparison_plots, run_plots};
use clip_engine::report::{Comparison, RunData};
use clip_engine::tensor::Tensor;
use clip_engine::train::Settings;
use clip_engine::train::metrics::{Accumulator, EvalMetrics};
use clip_engine::train::run::{Summary, ZeroShot};
use clip_engine::train::settings::Recipe;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::{Path, PathBuf};

/// Names short and long, in several alphabets, and one that XML would misread.
fn class_names(classes: usize) -> Vec<String> {
    let some = [
        "pink primrose",
        "a<b & \"c\"",
        "globe thistle of the southern foothills and the adjoining plains, cultivated",
        "Gänseblümchen",
        "Подсолнух обыкновенный",
        "Ηλιοτρόπιο",
        "bird of paradise",
        "moon orchid",
        "fritillary",
        "sword lily",
        "rose",
        "hard-leaved pocket orchid",
    ];
    (0..classes)
        .map(
            |i| if i < some.len() { some[i].to_owned() } else { format!("{} no. {i}", some[i % some.len()]) },
        )
        .collect()
}

/// A run on `classes` classes that learns for `epochs` epochs to be right about `skill` of the time. The last
/// class has no image.
fn run(name: &str, classes: usize, epochs: u32, skill: f64) -> RunData {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let names = class_names(classes);
    let sums = |skill: f64, rng: &mut ChaCha8Rng| {
        let with_images = (classes - 1).max(2);
        let labels: Vec<u32> = (0..20 * with_images).map(|i| (i % with_images) as u32).collect();
        let mut logits = vec![0.0f32; labels.len() * classes];
        for (row, &label) in logits.chunks_exact_mut(classes).zip(&labels) {
            row.iter_mut().for_each(|z| *z = 2.0 * rng.random::<f32>());
            // Some classes are harder than others.
            let skill = skill * (1.0 - 0.5 * f64::from(label) / classes as f64);
            let chosen =
                if rng.random::<f64>() < skill { label as usize } else { rng.random_range(0..classes) };
            row[chosen] += 1.5 + 4.0 * rng.random::<f32>();
        }
        let logits = Tensor::from_slice([labels.len(), classes], &logits).unwrap();
        let mut sums = Accumulator::new(classes, Objective { head: 1.0, text: 0.3 });
        sums.add(&logits, &logits, &labels).unwrap();
        sums
    };
    let zero_shot = sums(0.4, &mut rng).text_classes();
    let found = sums(skill, &mut rng);
    let evaluation = found.evaluation("test", &names, |i| format!("{i}.jpg"), zero_shot);
    let metrics = &evaluation.metrics;
    let (steps, epochs) = history(epochs, metrics, &mut rng);
    let best = epochs.iter().max_by(|a, b| a.val.top1.total_cmp(&b.val.top1)).unwrap();
    let summary = Summary {
        recipe: Recipe::Lora,
        classes,
        trained_parameters: 123_456,
        epochs: epochs.len() as u32,
        best_epoch: best.epoch,
        stopped_early: false,
        val: best.val.clone(),
        test: Some(metrics.clone()),
        zero_shot: ZeroShot {
            split: "test".into(),
            images: metrics.images,
            loss: 2.0,
            top1: 0.412,
            top5: 0.8,
        },
        seconds: 61.0,
        images_per_s: 250.0,
        device: "CPU".into(),
    };
    RunData { name: name.into(), settings: Settings::of(Recipe::Lora), summary, steps, epochs, evaluation }
}

fn history(epochs: u32, last: &EvalMetrics, rng: &mut ChaCha8Rng) -> (Vec<StepRecord>, Vec<EpochRecord>) {
    let (mut steps, mut records) = (Vec::new(), Vec::new());
    for epoch in 1..=epochs {
        let left = (-f64::from(epoch) / 4.0).exp();
        let (head, text) = (0.3 + 3.0 * left, 0.9 + 0.5 * left);
        for step in 0..16 {
            let noise = 1.0 + 0.4 * (rng.random::<f64>() - 0.5);
            steps.push(StepRecord {
                step: u64::from(epoch - 1) * 16 + step,
                epoch,
                loss: (head + 0.3 * text) * noise,
                loss_head: head * noise,
                loss_text: text * noise,
                loss_triplet: 0.0,
                lr: 1e-3,
                // An overflow of f16 leaves no number.
                grad_norm: if step == 3 { f64::NAN } else { 1.0 },
                images_per_s: 250.0,
            });
        }
        let top1 = last.top1 * (1.0 - 0.5 * left) + 0.01 * rng.random::<f64>();
        let val = EvalMetrics { top1, loss: 1.1 * head + 0.3 * text, loss_head: 1.1 * head, ..last.clone() };
        let train = TrainRecord {
            loss: head + 0.3 * text,
            loss_head: head,
            loss_text: text,
            loss_triplet: 0.0,
            top1: (top1 + 0.05).min(1.0),
            text_top1: 0.6,
        };
        records.push(EpochRecord { epoch, train, val });
    }
    (steps, records)
}

fn row(run: &RunData, published: Option<Published>) -> ComparisonRow {
    ComparisonRow {
        name: run.name.clone(),
        recipe: "lora".into(),
        val_top1: Some(run.summary.val.top1),
        test_top1: run.evaluation.metrics.top1,
        test_top5: run.evaluation.metrics.top5,
        text_top1: None,
        macro_f1: None,
        ece: None,
        trained_parameters: 123_456,
        epochs: run.summary.epochs,
        best_epoch: run.summary.best_epoch,
        seconds: run.summary.seconds,
        images_per_s: run.summary.images_per_s,
        published,
    }
}

fn comparison(runs: &[RunData]) -> Comparison {
    let plain = ComparisonRow {
        name: "zero-shot".into(),
        recipe: "zero-shot".into(),
        val_top1: None,
        test_top1: 0.412,
        trained_parameters: 0,
        ..row(&runs[0], Some(Published { test_top1: [0.665, 0.665], val_top1: None }))
    };
    let published = [
        Some(Published { test_top1: [0.912, 0.9205], val_top1: Some(0.9176) }),
        Some(Published { test_top1: [0.8798, 0.9086], val_top1: Some(0.9363) }),
        None,
    ];
    let rows = runs.iter().zip(published.into_iter().cycle()).map(|(run, published)| row(run, published));
    let classes = runs[0].summary.classes;
    Comparison { split: "test".into(), classes, rows: std::iter::once(plain).chain(rows).collect() }
}

/// A folder under target/tmp that this test alone uses: the pictures stay there to be looked at.
fn folder(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report_plots").join(name);
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

/// A text in an SVG with the rectangle that it covers, in points.
#[derive(Debug)]
struct Text {
    text: String,
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    let start = tag.find(&format!(" {name}=\""))? + name.len() + 3;
    tag[start..].split('"').next()
}

fn texts(svg: &str) -> Vec<Text> {
    const UNITS: f64 = 4.0;
    let bytes = include_bytes!("../assets/fonts/DejaVuSans-subset.ttf");
    let font = FontRef::try_from_slice(bytes).unwrap();
    let mut found = Vec::new();
    for element in svg.split("<text").skip(1) {
        let (tag, rest) = element.split_once('>').unwrap();
        let text = rest.split('<').next().unwrap().trim();
        let text = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")]
            .iter()
            .fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
        let value = |name| attribute(tag, name).unwrap().parse::<f64>().unwrap() / UNITS;
        let (x, y, size) = (value("x"), value("y"), value("font-size"));
        let advance: f32 = text.chars().map(|c| font.h_advance_unscaled(font.glyph_id(c))).sum();
        let width = f64::from(advance / font.units_per_em().unwrap()) * size;
        let start = match attribute(tag, "text-anchor").unwrap() {
            "start" => 0.0,
            "middle" => -width / 2.0,
            "end" => -width,
            other => panic!("{other}"),
        };
        // From the top of a digit to its foot; letters below the line may reach into the next.
        let (above, below) = (0.46 * size, 0.28 * size);
        let [left, top, right, bottom] = if tag.contains("rotate(270") {
            [x - above, y - start - width, x + below, y - start]
        } else {
            [x + start, y - above, x + start + width, y + below]
        };
        found.push(Text { text, left, top, right, bottom });
    }
    found
}

/// Every text lies within the picture and apart from every other.
fn check_layout(svg: &str, what: &str) {
    let tag = svg.lines().next().unwrap();
    let value = |name| attribute(tag, name).unwrap().parse::<f64>().unwrap();
    let texts = texts(svg);
    assert!(texts.len() > 5, "{what}: {} texts", texts.len());
    for (i, a) in texts.iter().enumerate() {
        let inside =
            a.left >= 0.0 && a.top >= 0.0 && a.right <= value("width") && a.bottom <= value("height");
        assert!(inside, "{what}: {a:?} is cut off at {} by {}", value("width"), value("height"));
        for b in &texts[i + 1..] {
            let apart = a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
            assert!(apart, "{what}: {a:?} and {b:?} overlap");
        }
    }
}

/// The PNG has two pixels to each of the SVG's points, and is neither blank nor full.
fn check_picture(png: &Path, svg: &Path) {
    let text = std::fs::read_to_string(svg).unwrap();
    let tag = text.lines().next().unwrap();
    let size = ["width", "height"].map(|name| attribute(tag, name).unwrap().parse::<u32>().unwrap());
    let image = image::open(png).unwrap().into_rgb8();
    assert_eq!([image.width(), image.height()], size.map(|points| 2 * points), "{}", png.display());
    let inked = image.pixels().filter(|p| p.0.iter().any(|&v| v < 200)).count();
    let share = inked as f64 / f64::from(image.width() * image.height());
    assert!((0.002..0.6).contains(&share), "{}: {share}", png.display());
    check_layout(&text, &svg.display().to_string());
}

fn names(files: &[PathBuf]) -> Vec<&str> {
    files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect()
}

fn svg_texts(dir: &Path, name: &str) -> Vec<String> {
    let svg = std::fs::read_to_string(dir.join(name)).unwrap();
    texts(&svg).into_iter().map(|text| text.text).collect()
}

#[test]
fn a_run_has_every_picture() {
    for (classes, epochs) in [(2, 1), (12, 8), (102, 40)] {
        let dir = folder(&format!("run-{classes}"));
        let files = run_plots(&run("lora", classes, epochs, 0.9), &dir).unwrap();
        let stems = ["curves", "losses", "classes", "confusion", "calibration"];
        let expected: Vec<String> =
            stems.iter().flat_map(|stem| [format!("{stem}.png"), format!("{stem}.svg")]).collect();
        assert_eq!(names(&files), expected);
        assert!(files.iter().all(|path| path.parent() == Some(&dir.join("plots"))));
        files.chunks(2).for_each(|pair| check_picture(&pair[0], &pair[1]));
    }
}

#[test]
fn a_comparison_has_every_picture() {
    let runs = [
        run("lora-with-a-long-name-of-its-own, second attempt", 12, 12, 0.93),
        run("vpt", 12, 7, 0.8),
        run("linear", 12, 20, 0.7),
    ];
    let dir = folder("comparison");
    let files = comparison_plots(&comparison(&runs), &runs, &dir).unwrap();
    let expected =
        ["techniques.png", "techniques.svg", "curves.png", "curves.svg", "classes.png", "classes.svg"];
    assert_eq!(names(&files), expected);
    files.chunks(2).for_each(|pair| check_picture(&pair[0], &pair[1]));
}
