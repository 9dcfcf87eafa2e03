//! The pictures of runs and comparisons: all there, sharp, legible, and saying the right numbers.

use clip_engine::objective::Objective;
use clip_engine::progress::{Monitor, Silent};
use clip_engine::report::compare::{ComparisonRow, Published};
use clip_engine::report::plots::{comparison_plots, run_plots, run_plots_with_fonts};
use clip_engine::report::{Comparison, RunData};
use clip_engine::settings::Recipe;
use clip_engine::settings::Settings;
use clip_engine::tensor::Tensor;
use clip_engine::train::learner::LossParts;
use clip_engine::train::metrics::{Accumulator, EvalMetrics};
use clip_engine::train::records::{EpochRecord, StepRecord, TrainRecord};
use clip_engine::train::records::{Ladder, Rung, RungKind, RungScores, Summary, ZeroShot};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use skrifa::instance::{LocationRef, Size};
use skrifa::{FontRef, MetadataProvider};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

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
        let mut sums = Accumulator::new(classes, Objective::new(1.0, 0.3));
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
        vision: None,
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
        zero_shot_val: Some(ZeroShot {
            split: "val".into(),
            images: metrics.images,
            loss: 2.0,
            top1: 0.398,
            top5: 0.8,
        }),
        baseline: None,
        temperature: None,
        seconds: 61.0,
        images_per_s: 250.0,
        ladder: None,
        text_left_out: false,
        photos: None,
        device: "CPU".into(),
    };
    RunData {
        name: name.into(),
        settings: Settings::of(Recipe::Lora),
        summary,
        steps,
        epochs,
        evaluation,
        ended: None,
    }
}

/// A ladder of every rung, of which the logistic regression is kept; the last was fitted to the validation split.
pub(crate) fn ladder() -> Ladder {
    let rungs = [
        (RungKind::PlainClip, "", Some((0.625, 1.3)), (0.605, 1.35), 0.4),
        (RungKind::Discriminant, "shrinkage 0.3, text × 0.5", Some((0.9, 0.33)), (0.895, 0.36), 1.25),
        (
            RungKind::LogisticRegression,
            "C 31.6, text × 0.5, with crops",
            Some((0.95, 0.2)),
            (0.93, 0.25),
            8.0,
        ),
        (RungKind::Mean, "0.6 of the logistic regression", Some((0.95, 0.21)), (0.935, 0.24), 0.1),
        (
            RungKind::Lora,
            "3 epochs from the mean of the two, learning rate 2e-4, rank 8, with crops and flips of every photo",
            Some((0.94, 0.22)),
            (0.925, 0.26),
            61.0,
        ),
        (RungKind::Blend, "0.5", Some((0.945, f64::NAN)), (0.93, 0.25), 2.0),
        (RungKind::FinalFit, "", None, (0.94, 0.23), 3.0),
    ];
    let scores = |images| move |(top1, nll)| RungScores { images, top1, nll };
    let rung = |(kind, chosen, val, test, seconds): (_, &str, Option<_>, _, _)| Rung {
        kind,
        chosen: chosen.into(),
        val: val.map(scores(200)),
        test: Some(scores(1000)(test)),
        seconds,
    };
    let reason =
        "The logistic regression has the lowest NLL on validation; adapters did not lower it.".into();
    Ladder { rungs: rungs.map(rung).to_vec(), kept: 2, reason }
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
                parts: LossParts {
                    loss_head: head * noise,
                    loss_text: text * noise,
                    loss_triplet: 0.0,
                    ..LossParts::default()
                },
                // An overflow of f16 leaves no number.
                grad_norm: if step == 3 { f64::NAN } else { 1.0 },
                loss_scale: 1.0,
                skipped: false,
                images_per_s: 250.0,
                lr: Some(1e-3),
                lr_lora: None,
                lr_prompt: None,
            });
        }
        let top1 = last.top1 * (1.0 - 0.5 * left) + 0.01 * rng.random::<f64>();
        let val = EvalMetrics { top1, loss: 1.1 * head + 0.3 * text, loss_head: 1.1 * head, ..last.clone() };
        let train = TrainRecord {
            loss: head + 0.3 * text,
            parts: LossParts { loss_head: head, loss_text: text, loss_triplet: 0.0, ..LossParts::default() },
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
        seed: Some(42),
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
        name: "plain CLIP".into(),
        recipe: "plain CLIP".into(),
        val_top1: None,
        test_top1: 0.412,
        seed: None,
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
    let rows = std::iter::once(plain).chain(rows).collect();
    Comparison { split: "test".into(), classes, images: 172, rows, means: Vec::new(), warnings: Vec::new() }
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

/// The lines of an SVG, each with how far its part of the picture is from the corner.
fn elements(svg: &str) -> impl Iterator<Item = (&str, (f64, f64))> {
    svg.lines().scan((0.0, 0.0), |moved, line| {
        if let Some(by) = line.strip_prefix("<g transform=\"translate(") {
            let (x, y) = by.split_once(')').unwrap().0.split_once(' ').unwrap();
            *moved = (x.parse().unwrap(), y.parse().unwrap());
        }
        Some((line, *moved))
    })
}

fn texts(svg: &str) -> Vec<Text> {
    let bytes = include_bytes!("../../assets/fonts/DejaVuSans-subset.ttf");
    let font = FontRef::new(bytes).unwrap();
    let (letters, metrics) = (font.charmap(), font.glyph_metrics(Size::new(1.0), LocationRef::default()));
    let mut found = Vec::new();
    for (line, moved) in elements(svg) {
        let Some((tag, rest)) = line.strip_prefix("<text").and_then(|element| element.split_once('>')) else {
            continue;
        };
        let text = rest.split('<').next().unwrap().trim();
        let text = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&amp;", "&")]
            .iter()
            .fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
        let value = |name| attribute(tag, name).unwrap().parse::<f64>().unwrap();
        let (x, y, size) = (value("x"), value("y"), value("font-size"));
        let advance = |c| metrics.advance_width(letters.map(c).unwrap_or_default()).unwrap();
        let width = f64::from(text.chars().map(advance).sum::<f32>()) * size;
        let start = match attribute(tag, "text-anchor").unwrap() {
            "start" => 0.0,
            "middle" => -width / 2.0,
            "end" => -width,
            other => panic!("{other}"),
        };
        // From the top of a digit to its foot; letters below the line may reach into the next.
        let (above, below) = (0.73 * size, 0.01 * size);
        let [left, top, right, bottom] = if tag.contains("rotate(-90") {
            [x - above, y - start - width, x + below, y - start]
        } else {
            [x + start, y - above, x + start + width, y + below]
        };
        let (left, right) = (moved.0 + left, moved.0 + right);
        found.push(Text { text, left, top: moved.1 + top, right, bottom: moved.1 + bottom });
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
        let files = run_plots(&run("lora", classes, epochs, 0.9), &dir, &Silent).unwrap();
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
    let files = comparison_plots(&comparison(&runs), &runs, &dir, &Silent).unwrap();
    let expected =
        ["techniques.png", "techniques.svg", "curves.png", "curves.svg", "classes.png", "classes.svg"];
    assert_eq!(names(&files), expected);
    files.chunks(2).for_each(|pair| check_picture(&pair[0], &pair[1]));
}

#[test]
fn the_numbers_are_those_of_the_run() {
    let dir = folder("numbers");
    let run = run("a & b", 12, 8, 0.9);
    run_plots(&run, &dir, &Silent).unwrap();
    let plots = dir.join("plots");
    let percent = |v: f64| format!("{:.1} %", 100.0 * v);
    let (metrics, summary) = (&run.evaluation.metrics, &run.summary);

    let curves = svg_texts(&plots, "curves.svg");
    let kept = format!("kept epoch {}: validation top-1 {}", summary.best_epoch, percent(summary.val.top1));
    assert!(curves.contains(&kept), "{curves:?}");
    assert!(curves.contains(&"plain CLIP, validation: 39.8 %".to_owned()), "{curves:?}");

    let calibration = svg_texts(&plots, "calibration.svg");
    let error = format!("expected calibration error {}, test split", percent(metrics.ece));
    assert!(calibration.contains(&error), "{calibration:?}");

    let mut counts: Vec<String> = run.evaluation.confusion.concat().iter().map(u32::to_string).collect();
    counts.retain(|count| count != "0");
    // The scale's numbers are there as well.
    counts.extend(["0", "20", "40", "60", "80", "100"].map(String::from));
    let mut written = svg_texts(&plots, "confusion.svg");
    written.retain(|text| text.parse::<u32>().is_ok());
    counts.sort();
    written.sort();
    assert_eq!(written, counts);

    let svg = std::fs::read_to_string(plots.join("classes.svg")).unwrap();
    let rows = texts(&svg);
    for (class, name) in run.evaluation.classes.iter().zip(&run.evaluation.class_names) {
        // The long name alone has two lines.
        let start: String = name.chars().take(12).collect();
        let row = rows.iter().find(|text| text.text.starts_with(&start)).unwrap();
        let count = format!("{} / {}", class.right, class.images);
        let beside = |other: &&Text| (other.bottom - row.bottom).abs() < 8.0;
        let found: Vec<&str> = rows.iter().filter(beside).map(|text| text.text.as_str()).collect();
        assert!(found.contains(&count.as_str()), "{name}: {found:?} has no {count}");
        let value = class.recall.map_or("no images".to_owned(), percent);
        assert!(found.contains(&value.as_str()), "{name}: {found:?} has no {value}");
    }
    // The best class comes first.
    let share = |text: &Text| text.text.split_once(" / ")?.0.parse::<u32>().ok();
    let column: Vec<u32> = rows.iter().filter_map(share).collect();
    assert!(column.len() == 12 && column.is_sorted_by(|a, b| a >= b), "{column:?}");
}

#[test]
fn every_cell_is_in_its_row_and_column() {
    let dir = folder("cells");
    let mut run = run("cells", 12, 1, 0.6);
    run.evaluation.class_names[2] = "globe thistle".into();
    run_plots(&run, &dir, &Silent).unwrap();
    let found = texts(&std::fs::read_to_string(dir.join("plots/confusion.svg")).unwrap());
    let middle = |text: &Text| ((text.left + text.right) / 2.0, (text.top + text.bottom) / 2.0);
    let names = |start: &str| found.iter().filter(|text| text.text.starts_with(start)).collect::<Vec<_>>();
    // The scale, far to the right of the last column, has numbers too.
    let last_column = middle(names("hard-leaved")[1]).0;
    let cell = |text: &&Text| text.text.parse::<u32>().is_ok() && middle(text).0 < last_column + 40.0;
    let sum = |near: &dyn Fn(&Text) -> bool| -> u32 {
        found
            .iter()
            .filter(cell)
            .filter(|text| near(text))
            .map(|text| text.text.parse::<u32>().unwrap())
            .sum()
    };
    for (class, name) in run.evaluation.classes.iter().zip(&run.evaluation.class_names) {
        let start: String = name.chars().take(10).collect();
        let [row, column] = names(&start)[..] else { panic!("{name}") };
        let (row, column) = (middle(row).1, middle(column).0);
        assert_eq!(sum(&|text| (middle(text).1 - row).abs() < 4.0), class.images, "row of {name}");
        assert_eq!(sum(&|text| (middle(text).0 - column).abs() < 4.0), class.predicted, "column of {name}");
    }
}

#[test]
fn curves_follow_their_values() {
    let dir = folder("curves");
    let run = run("curves", 2, 9, 0.9);
    run_plots(&run, &dir, &Silent).unwrap();
    let svg = std::fs::read_to_string(dir.join("plots/curves.svg")).unwrap();
    // Training is blue, validation vermilion; losses on the left come first.
    let curves = |colour: &str| -> Vec<Vec<(f64, f64)>> {
        let lines = svg.lines().filter(|l| l.starts_with("<polyline") && l.contains(colour));
        let point =
            |p: &str| p.split_once(',').map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).unwrap();
        let points = lines.map(|l| attribute(l, "points").unwrap().split_whitespace().map(point).collect());
        points.filter(|points: &Vec<_>| points.len() == 9).collect()
    };
    let of = |value: fn(&EpochRecord) -> f64| run.epochs.iter().map(value).collect::<Vec<_>>();
    let expected = [
        ("#0072B2", [of(|e| e.train.loss), of(|e| e.train.top1)]),
        ("#D55E00", [of(|e| e.val.loss), of(|e| e.val.top1)]),
    ];
    for (colour, values) in expected {
        let curves = curves(colour);
        assert_eq!(curves.len(), 2, "{colour}");
        for (points, values) in curves.iter().zip(&values) {
            let (first, last) = (points[0], points[8]);
            assert!(points.windows(2).all(|pair| pair[1].0 > pair[0].0));
            // Heights are a linear function of the values.
            let slope = (last.1 - first.1) / (values[8] - values[0]);
            assert!(slope < 0.0, "{colour} {points:?}");
            for (point, value) in points.iter().zip(values) {
                let height = first.1 + slope * (value - values[0]);
                assert!((point.1 - height).abs() < 0.5, "{colour} {point:?} {height}");
            }
        }
    }
}

#[test]
fn names_are_escaped_and_whole() {
    let dir = folder("names");
    let mut run = run("<run> & \"co\"", 12, 2, 0.9);
    run.evaluation.class_names[4] = "a\u{1}tab\there".into();
    run_plots(&run, &dir, &Silent).unwrap();
    for name in ["classes", "confusion"] {
        let svg = std::fs::read_to_string(dir.join("plots").join(format!("{name}.svg"))).unwrap();
        assert!(svg.contains("a&lt;b &amp; &quot;c&quot;"), "{name}");
        assert!(svg.contains("&lt;run&gt; &amp; &quot;co&quot;: "), "{name}");
        assert!(!svg.contains("a<b") && !svg.contains('\u{1}'), "{name}");
        let written = svg_texts(&dir.join("plots"), &format!("{name}.svg"));
        for whole in ["pink primrose", "Ηλιοτρόπιο", "hard-leaved pocket orchid", "a\u{fffd}tab\u{fffd}here"]
        {
            assert!(written.iter().any(|text| text == whole), "{name}: {whole}");
        }
        // The long name has more lines than one, and no letter is lost.
        let long = &run.evaluation.class_names[2];
        let lines: Vec<&str> =
            written.iter().map(String::as_str).filter(|t| long.contains(t) && t.len() > 9).collect();
        let whole = if name == "classes" { long.clone() } else { format!("{long} {long}") };
        assert!(lines.len() > 1, "{name}: {lines:?}");
        let words = |text: &str| {
            let mut words: Vec<String> = text.split(' ').map(String::from).collect();
            words.sort();
            words
        };
        assert_eq!(words(&lines.join(" ")), words(&whole), "{name}");
        assert!(!written.iter().any(|text| text.contains('…')), "{name}");
    }
}

#[test]
fn the_losses_are_those_that_count() {
    let dir = folder("losses");
    let mut run = run("triplet", 2, 3, 0.9);
    run.settings.text_weight = 0.0;
    for record in &mut run.epochs {
        record.train.parts.loss_triplet = 0.7;
    }
    run.steps[5].loss = f64::NAN;
    run_plots(&run, &dir, &Silent).unwrap();
    let written = svg_texts(&dir.join("plots"), "losses.svg");
    for (name, there) in [("total", true), ("head (weight 1)", true), ("triplet", true), ("text", false)] {
        assert_eq!(written.iter().any(|text| text.starts_with(name)), there, "{name}: {written:?}");
    }
    let svg = std::fs::read_to_string(dir.join("plots/losses.svg")).unwrap();
    assert!(!svg.contains("NaN"));
}

#[test]
fn a_run_without_numbers_is_drawn() {
    let dir = folder("nothing");
    let mut run = run("nothing", 2, 1, 0.9);
    run.evaluation.metrics.ece = f64::NAN;
    run.epochs[0].val.loss = f64::NAN;
    let files = run_plots(&run, &dir, &Silent).unwrap();
    files.chunks(2).for_each(|pair| check_picture(&pair[0], &pair[1]));
    let written = svg_texts(&dir.join("plots"), "calibration.svg");
    assert!(written.contains(&"expected calibration error not a number, test split".to_owned()));
    (run.epochs, run.steps) = (Vec::new(), Vec::new());
    run_plots(&run, &dir, &Silent).unwrap();
    let written = svg_texts(&dir.join("plots"), "curves.svg");
    assert!(written.contains(&"no epoch was recorded".to_owned()));
}

#[test]
fn numbers_stand_for_the_names_of_very_many_classes() {
    let dir = folder("run-160");
    let run = run("many", 160, 2, 0.9);
    run_plots(&run, &dir, &Silent).unwrap();
    let svg = std::fs::read_to_string(dir.join("plots/confusion.svg")).unwrap();
    check_layout(&svg, "confusion");
    let written: Vec<String> = texts(&svg).into_iter().map(|text| text.text).collect();
    // Every number is in the key, some are at the matrix; they are those of the page.
    let count = |wanted: &str| written.iter().filter(|text| *text == wanted).count();
    assert!((1..=160).all(|number| count(&number.to_string()) >= 1));
    assert_eq!((count("moon orchid"), count("155"), count("7")), (1, 3, 1));
    let place = written.iter().position(|text| text == "moon orchid").unwrap();
    assert_eq!(written[place - 1], "8");
}

#[test]
fn the_numbers_are_those_of_the_comparison() {
    let dir = folder("comparison-numbers");
    let mut runs = vec![run("lora", 12, 5, 0.9), run("linear", 12, 5, 0.6)];
    let comparison = comparison(&runs);
    comparison_plots(&comparison, &runs, &dir, &Silent).unwrap();
    let techniques = svg_texts(&dir, "techniques.svg");
    for row in &comparison.rows {
        for value in [Some(row.test_top1), row.val_top1].into_iter().flatten() {
            let value = format!("{:.1} %", 100.0 * value);
            assert!(techniques.contains(&value), "{value}: {techniques:?}");
        }
    }
    for published in ["66.5 %", "91.2–92.05 %", "91.76 %"] {
        assert!(techniques.contains(&published.to_owned()), "{published}: {techniques:?}");
    }
    // Without a test split the published results are of another one.
    let val = Comparison { split: "val".into(), ..comparison.clone() };
    comparison_plots(&val, &runs, &dir, &Silent).unwrap();
    let techniques = svg_texts(&dir, "techniques.svg");
    assert!(!techniques.iter().any(|text| text.contains("published") || text == "test"), "{techniques:?}");

    let classes = svg_texts(&dir, "classes.svg");
    let classes_of = |run: &RunData| run.evaluation.classes.clone();
    for (first, second) in classes_of(&runs[0]).iter().zip(&classes_of(&runs[1])) {
        let (Some(first), Some(second)) = (first.recall, second.recall) else { continue };
        let lead = 100.0 * (first - second);
        let value = if lead.abs() < 0.05 { "0.0".to_owned() } else { format!("{lead:+.1}") };
        assert!(classes.contains(&value), "{value}: {classes:?}");
    }
    let best = |runs: &[RunData]| -> String {
        comparison_plots(&val, runs, &dir, &Silent).unwrap();
        svg_texts(&dir, "classes.svg")[0].clone()
    };
    assert_eq!(best(&runs), "lora against linear: accuracy per class");
    runs.reverse();
    assert_eq!(best(&runs), "lora against linear: accuracy per class");
    assert_eq!(best(&runs[..1]), "linear: accuracy per class");
}

#[test]
fn many_runs_have_a_line_each_in_the_key() {
    let dir = folder("comparison-many");
    let runs: Vec<RunData> =
        (0..30).map(|i| run(&format!("lora, seed {i}"), 2, 3, 0.6 + 0.01 * f64::from(i))).collect();
    let files = comparison_plots(&comparison(&runs), &runs, &dir, &Silent).unwrap();
    files.chunks(2).for_each(|pair| check_picture(&pair[0], &pair[1]));
    let key = svg_texts(&dir, "curves.svg");
    assert!(runs.iter().all(|run| key.contains(&run.name)));
}

#[test]
fn runs_that_cannot_be_compared_are_refused() {
    let dir = folder("refused");
    let mut runs = [run("first", 2, 1, 0.9), run("second", 2, 1, 0.8)];
    let comparison = comparison(&runs);
    let error = comparison_plots(&comparison, &[], &dir, &Silent).unwrap_err().to_string();
    assert!(error.contains("there is no run to draw"), "{error}");
    runs[1].evaluation.class_names[0] = "another".into();
    let error = comparison_plots(&comparison, &runs, &dir, &Silent).unwrap_err().to_string();
    assert!(error.contains("different classes") && error.contains("first"), "{error}");
    assert!(!dir.exists());
    // A file is where the folder should be.
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("plots"), "").unwrap();
    let error = run_plots(&runs[0], &dir, &Silent).unwrap_err().to_string();
    assert!(error.contains("plots: cannot create the folder"), "{error}");
}

/// Runs of techniques with several seeds each, named as engine compare names them, with their comparison.
/// `skills` are those of linear, lora, mixup, triplet and vpt; the next seed is better by a hundredth.
fn seeded(skills: &[f64], seeds: u64, epochs: u32) -> (Comparison, Vec<RunData>) {
    let mut runs = Vec::new();
    for (&recipe, &skill) in Recipe::ALL.iter().zip(skills) {
        for seed in 0..seeds {
            let name = format!("{}/seed-{}", recipe.name(), 42 + seed);
            let mut run = run(&name, 12, epochs, skill + 0.01 * seed as f64);
            run.settings = Settings { seed: 42 + seed, ..Settings::of(recipe) };
            run.summary.recipe = recipe;
            runs.push(run);
        }
    }
    let mut comparison = Comparison::of(&runs).unwrap();
    let published = Some(Published { test_top1: [0.62, 0.68], val_top1: Some(0.66) });
    comparison.means.iter_mut().for_each(|row| row.published = published.clone());
    (comparison, runs)
}

/// Ends of the straight lines of an SVG in a colour, in points.
fn lines_of(svg: &str, colour: &str) -> Vec<[(f64, f64); 2]> {
    let number = |text: &str| text.parse::<f64>().unwrap();
    let lines = elements(svg).filter(|(line, _)| line.starts_with("<polyline") && line.contains(colour));
    let points = lines.map(|(line, (right, down))| {
        let point = |p: &str| p.split_once(',').map(|(x, y)| (right + number(x), down + number(y))).unwrap();
        attribute(line, "points").unwrap().split_whitespace().map(point).collect()
    });
    points.filter_map(|points: Vec<_>| <[(f64, f64); 2]>::try_from(points).ok()).collect()
}

fn mean_text(mean: f64, std: f64) -> String {
    format!("{:.1} ± {:.1} %", 100.0 * mean, 100.0 * std)
}

#[test]
fn several_seeds_are_one_row_with_its_deviation() {
    let dir = folder("seeds");
    // The last reaches beyond the axis.
    let (mut comparison, runs) = seeded(&[0.5, 0.7, 0.62, 0.66, 0.8], 5, 12);
    let last = comparison.means.last_mut().unwrap();
    (last.mean.test_top1, last.std.as_mut().unwrap().test_top1) = (0.98, 0.05);
    let files = comparison_plots(&comparison, &runs, &dir, &Silent).unwrap();
    files.chunks(2).for_each(|pair| check_picture(&pair[0], &pair[1]));
    let svg = std::fs::read_to_string(dir.join("techniques.svg")).unwrap();
    let found = texts(&svg);
    let written: Vec<&str> = found.iter().map(|text| text.text.as_str()).collect();
    assert_eq!(written[0], "Techniques, means of 5 seeds");
    assert_eq!(written[1], "top-1 accuracy ± standard deviation, 12 classes");
    assert!(!written.iter().any(|text| text.contains("seed-")), "{written:?}");
    // In the key and at its row.
    assert_eq!(written.iter().filter(|text| **text == "plain CLIP").count(), 2);
    let tick = |label: &str| {
        let text = found.iter().find(|text| text.text == label).unwrap();
        (text.left + text.right) / 2.0
    };
    let (zero, whole) = (tick("0"), tick("100"));
    let place = |share: f64| zero + (whole - zero) * share.clamp(0.0, 1.0);
    let lines = lines_of(&svg, "#222222");
    let near = |a: f64, b: f64| (a - b).abs() < 0.5;
    for row in &comparison.means {
        let std = row.std.unwrap();
        assert_eq!(written.iter().filter(|text| **text == row.name).count(), 1, "{}", row.name);
        for (mean, std) in [(row.mean.test_top1, std.test_top1), (row.mean.val_top1, std.val_top1)] {
            assert!(std > 0.001, "{row:?}");
            let value = mean_text(mean, std);
            let text = found.iter().find(|text| text.text == value).unwrap_or_else(|| panic!("{value}"));
            let y = (text.top + 0.46 * 10.0).round();
            let bar = lines.iter().find(|[a, b]| {
                (a.1 - y).abs() < 1.0
                    && a.1 == b.1
                    && near(a.0, place(mean - std))
                    && near(b.0, place(mean + std))
            });
            assert!(bar.is_some(), "no line from {} to {} at {y}", place(mean - std), place(mean + std));
            let stroke = |x: f64| {
                lines
                    .iter()
                    .any(|[a, b]| near(a.0, x) && a.0 == b.0 && near(a.1, y - 3.0) && near(b.1, y + 3.0))
            };
            assert!(stroke(place(mean - std)), "{value}");
            assert_eq!(stroke(place(mean + std)), mean + std <= 1.0, "{value}");
        }
    }
}

#[test]
fn several_seeds_are_one_colour_and_one_line_in_the_key() {
    let dir = folder("seeds-curves");
    // The third has the best run, but not the best mean.
    let (comparison, mut runs) = seeded(&[0.5, 0.9, 0.64], 3, 9);
    (runs[4].summary.val.top1, runs[8].summary.val.top1) = (0.98, 0.99);
    comparison_plots(&comparison, &runs, &dir, &Silent).unwrap();
    let svg = std::fs::read_to_string(dir.join("curves.svg")).unwrap();
    let written: Vec<String> = texts(&svg).into_iter().map(|text| text.text).collect();
    assert!(!written.iter().any(|text| text.contains("seed-")), "{written:?}");
    assert!(written[1..4].join(" ").contains("mean ± standard deviation of 3 seeds"), "{written:?}");
    let names: Vec<&String> =
        written.iter().filter(|t| comparison.means.iter().any(|m| m.name == **t)).collect();
    assert_eq!(names, ["lora", "mixup", "linear"]);
    for row in &comparison.means {
        let value = mean_text(row.mean.val_top1, row.std.unwrap().val_top1);
        assert!(written.contains(&value), "{value}: {written:?}");
    }
    let mut colours: Vec<&str> = svg
        .lines()
        .filter(|line| line.starts_with("<polyline"))
        .filter(|line| attribute(line, "points").unwrap().split_whitespace().count() == 9)
        .map(|line| attribute(line, "stroke").unwrap())
        .collect();
    colours.sort_unstable();
    assert_eq!(colours, [["#0072B2"; 4], ["#009E73"; 4], ["#E69F00"; 4]].concat());
    assert_eq!(svg_texts(&dir, "classes.svg")[0], "lora/seed-43 against mixup/seed-44: accuracy per class");
    // Of a single technique, its best run beside plain CLIP.
    let (comparison, mut runs) = seeded(&[0.5], 3, 2);
    runs[1].summary.val.top1 = 0.98;
    comparison_plots(&comparison, &runs, &dir, &Silent).unwrap();
    assert_eq!(svg_texts(&dir, "classes.svg")[0], "linear/seed-43: accuracy per class");
}

#[test]
fn runs_without_a_mean_stand_by_themselves_beside_means() {
    let dir = folder("seeds-uneven");
    let (mut comparison, runs) = seeded(&[0.5, 0.7, 0.62], 2, 4);
    // One run of mixup is in no mean, the other is one by itself; lora has one more than the others.
    let alone = comparison.means[2].runs.pop().unwrap();
    comparison.means[2].seeds.pop();
    comparison.means[2].std = None;
    let files = comparison_plots(&comparison, &runs, &dir, &Silent).unwrap();
    files.chunks(2).for_each(|pair| check_picture(&pair[0], &pair[1]));
    let written = svg_texts(&dir, "techniques.svg");
    assert_eq!(written[0], "Techniques, means of 1 to 2 seeds");
    let count = |wanted: &str| written.iter().filter(|text| *text == wanted).count();
    assert_eq!((count("2 seeds"), count("1 seed"), count(&alone), count("mixup/seed-42")), (2, 1, 1, 0));
    let row = comparison.rows.iter().find(|row| row.name == alone).unwrap();
    assert!(count(&format!("{:.1} %", 100.0 * row.test_top1)) > 0, "{written:?}");
    assert_eq!(written.iter().filter(|text| text.contains('±')).count(), 2 + 2 * 2, "{written:?}");
    let key = svg_texts(&dir, "curves.svg");
    assert!([&alone[..], "linear", "lora", "mixup"].iter().all(|name| key.iter().any(|text| text == name)));
}

/// Keeps what it is warned of.
#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl Monitor for Warnings {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn state(&self, _: &str) {}
    fn finish(&self) {}
    fn line(&self, _: &str) {}
    fn warn(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
    fn stopped(&self) -> bool {
        false
    }
}

fn drawn(name: &str, run: &RunData, fonts: &[PathBuf]) -> (PathBuf, Vec<String>) {
    let (dir, warnings) = (folder(name), Warnings::default());
    run_plots_with_fonts(run, &dir, fonts, &warnings).unwrap();
    (dir.join("plots"), warnings.0.into_inner().unwrap())
}

#[test]
fn names_without_a_font_are_numbers_in_a_png_and_names_in_an_svg() {
    let fonts = [Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fonts")];
    let mut run = run("names", 5, 2, 0.9);
    let names = ["玫瑰花", "وردة حمراء", "गुलाब का फूल", "🌹 rose", "rose"];
    run.evaluation.class_names = names.map(String::from).to_vec();
    let (without, warnings) = drawn("fonts-none", &run, &[]);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("Arabic") && warnings[0].contains("fonts-noto-cjk"), "{}", warnings[0]);
    let (with, warnings) = drawn("fonts-some", &run, &fonts);
    assert_eq!(warnings, [""; 0]);
    for stem in ["classes", "confusion"] {
        let [a, b] = [&without, &with].map(|dir| std::fs::read(dir.join(format!("{stem}.png"))).unwrap());
        assert!(a != b, "{stem}");
        for dir in [&without, &with] {
            let svg = std::fs::read_to_string(dir.join(format!("{stem}.svg"))).unwrap();
            assert!(names.iter().all(|name| svg.contains(name)) && !svg.contains("class 1"), "{stem}");
        }
    }
    // Latin names are drawn alike whatever fonts there are.
    run.evaluation.class_names = class_names(5);
    let [a, b] = [drawn("latin-none", &run, &[]), drawn("latin-some", &run, &fonts)];
    for stem in ["curves", "losses", "classes", "confusion", "calibration"] {
        let [a, b] = [&a.0, &b.0].map(|dir| std::fs::read(dir.join(format!("{stem}.png"))).unwrap());
        assert!(a == b, "{stem}");
    }
}

#[test]
fn a_run_with_triplets_has_a_picture_of_them() {
    let dir = folder("triplets");
    let mut run = run("triplet", 2, 6, 0.9);
    for step in &mut run.steps {
        step.parts.triplets_active = 1.0 / f64::from(step.epoch);
        step.parts.distance_positive = 0.2;
        step.parts.distance_negative = 0.2 * f64::from(step.epoch);
    }
    let files = run_plots(&run, &dir, &Silent).unwrap();
    assert_eq!(names(&files)[10..], ["triplets.png", "triplets.svg"]);
    check_picture(&files[10], &files[11]);
    let written = svg_texts(&dir.join("plots"), "triplets.svg");
    for name in ["triplets with a loss", "to its own class", "to another class"] {
        assert!(written.iter().any(|text| text == name), "{name}: {written:?}");
    }
    for step in &mut run.steps {
        (step.parts.distance_positive, step.parts.distance_negative) = (f64::NAN, f64::NAN);
    }
    run_plots(&run, &dir, &Silent).unwrap();
    let written = svg_texts(&dir.join("plots"), "triplets.svg");
    assert!(!written.iter().any(|text| text.starts_with("to ")), "{written:?}");
}

/// The place of a share on the axis of a picture, by the numbers below it.
fn scale(found: &[Text]) -> impl Fn(f64) -> f64 {
    let numbers = || found.iter().filter_map(|text| Some((text.text.parse::<f64>().ok()?, text)));
    let lowest = numbers().map(|(_, text)| text.bottom).fold(0.0, f64::max);
    let ticks = numbers().filter(|(_, text)| text.bottom == lowest);
    let mut ticks: Vec<(f64, f64)> = ticks.map(|(of, text)| (of, (text.left + text.right) / 2.0)).collect();
    ticks.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (first, last) = (ticks[0], ticks[ticks.len() - 1]);
    move |share| first.1 + (last.1 - first.1) * (100.0 * share - first.0) / (last.0 - first.0)
}

#[test]
fn a_run_with_a_ladder_has_a_picture_of_it() {
    let dir = folder("ladder");
    let mut run = run("auto", 12, 2, 0.9);
    run.summary.ladder = Some(ladder());
    let files = run_plots(&run, &dir, &Silent).unwrap();
    assert_eq!(names(&files)[10..], ["ladder.png", "ladder.svg"]);
    check_picture(&files[10], &files[11]);
    let svg = std::fs::read_to_string(&files[11]).unwrap();
    let found = texts(&svg);
    let place = scale(&found);
    // By Wilson's formula, for 190 of 200 images, 930 and 605 of 1,000.
    let values = [
        ("#56B4E9", "95.0 % (91.0–97.3)", [0.9104, 0.95, 0.9726]),
        ("#0072B2", "93.0 % (91.2–94.4)", [0.9125, 0.93, 0.9442]),
        ("#0072B2", "60.5 % (57.4–63.5)", [0.5744, 0.605, 0.6348]),
    ];
    let near = |a: f64, b: f64| (a - b).abs() < 0.5;
    for (colour, value, [low, top1, high]) in values {
        let text = found.iter().find(|text| text.text == value).unwrap_or_else(|| panic!("{value}"));
        let y = (text.top + text.bottom) / 2.0;
        let on = |a: (f64, f64)| (a.1 - y).abs() < 3.0;
        let lines = lines_of(&svg, colour);
        let drawn = |[a, b]: &[(f64, f64); 2]| {
            on(*a) && a.1 == b.1 && near(a.0, place(low)) && near(b.0, place(high))
        };
        assert!(lines.iter().any(drawn), "{value}: {lines:?}");
        let centres = elements(&svg).filter(|(line, _)| line.starts_with("<circle") && line.contains(colour));
        let centre = |(line, (right, down)): (&str, (f64, f64))| {
            let number = |name| attribute(line, name).unwrap().parse::<f64>().unwrap();
            (right + number("cx"), down + number("cy"))
        };
        assert!(centres.map(centre).any(|at| on(at) && near(at.0, place(top1))), "{value}");
    }
    let row = |text: &str| found.iter().filter(|found| found.text == text).collect::<Vec<_>>();
    // In the key, and beside the name of that one.
    let [_, kept] = row("kept")[..] else { panic!("{:?}", row("kept")) };
    assert!((kept.bottom - row("logistic regression")[0].bottom).abs() < 2.0, "{kept:?}");
    assert_eq!(svg.lines().filter(|line| line.contains("class=\"spot first\"")).count(), 1);
    let first = "<title>logistic regression, kept\nC 31.6, text × 0.5, with crops\nvalidation: 95.0 % (91.0–97.3), \
                 NLL 0.2000\ntest: 93.0 % (91.2–94.4), NLL 0.2500\n8.0 s</title>";
    assert!(svg.contains(first), "{svg}");
}

#[test]
fn a_ladder_without_a_test_split_is_drawn() {
    let dir = folder("ladder-val");
    let mut run = run("auto", 12, 2, 0.9);
    let mut ladder = ladder();
    ladder.rungs.iter_mut().for_each(|rung| rung.test = None);
    run.summary.ladder = Some(ladder);
    let files = run_plots(&run, &dir, &Silent).unwrap();
    check_picture(&files[10], &files[11]);
    let written = svg_texts(&dir.join("plots"), "ladder.svg");
    let count = |wanted: &str| written.iter().filter(|text| *text == wanted).count();
    assert_eq!((count("validation"), count("test"), count("not measured")), (1, 0, 1), "{written:?}");
}

#[test]
fn a_loss_under_another_is_wider() {
    let dir = folder("same-losses");
    let mut run = run("same", 2, 9, 0.9);
    run.settings.text_weight = 0.0;
    run.epochs.iter_mut().for_each(|record| record.train.loss = record.train.parts.loss_head);
    run_plots(&run, &dir, &Silent).unwrap();
    let svg = std::fs::read_to_string(dir.join("plots/losses.svg")).unwrap();
    let width = |colour: &str| -> Vec<f64> {
        let curves = svg.lines().filter(|line| line.starts_with("<polyline") && line.contains(colour));
        let whole = curves.filter(|l| attribute(l, "points").unwrap().split_whitespace().count() == 9);
        whole.map(|line| attribute(line, "stroke-width").unwrap().parse().unwrap()).collect()
    };
    let (total, head) = (width("#222222"), width("#0072B2"));
    assert!(total.len() == 1 && head.len() == 1 && total[0] > head[0] + 2.0, "{total:?} {head:?}");
}

#[test]
fn the_diagonal_has_a_hue_of_its_own() {
    let dir = folder("hues");
    let run = run("hues", 12, 1, 0.6);
    run_plots(&run, &dir, &Silent).unwrap();
    let svg = std::fs::read_to_string(dir.join("plots/confusion.svg")).unwrap();
    let number = |tag: &str, name| attribute(tag, name).unwrap().parse::<f64>().unwrap();
    // Cells alone are as wide as high.
    let cells = svg.lines().filter(|line| line.starts_with("<rect x=")).filter(|tag| {
        (number(tag, "width") - number(tag, "height")).abs() < 0.6 && number(tag, "width") > 20.0
    });
    let (mut blue, mut orange) = (0, 0);
    for tag in cells {
        let fill = attribute(tag, "fill").unwrap();
        let [r, _, b] = [1, 3, 5].map(|i| u8::from_str_radix(&fill[i..i + 2], 16).unwrap());
        if b > r { blue += 1 } else { orange += 1 }
    }
    let confusion = &run.evaluation.confusion;
    let diagonal = (0..12).filter(|&i| confusion[i][i] > 0).count();
    let all = confusion.concat().iter().filter(|count| **count > 0).count();
    assert_eq!((blue, orange), (diagonal, all - diagonal));
    let written = svg_texts(&dir.join("plots"), "confusion.svg");
    assert!(["right (diagonal)", "mistakes"].iter().all(|name| written.iter().any(|text| text == name)));
}
