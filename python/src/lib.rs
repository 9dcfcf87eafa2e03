//! The native module of the Python package: what `clip_engine::commands` has, with text, bytes and numbers on both sides.
//! Everything that has a shape or a type of Python's world is made of that in Python.

mod models;
mod watch;

use anyhow::Result;
use clip_engine::commands::open::{Judged, SplitChoice, material, model_of_run};
use clip_engine::commands::{comparison, evaluation, refused_value, training};
use clip_engine::settings::{Augment, Given, Precision, Settings, TABLE, parse_word};
use clip_engine::train::export::{Export, OnnxInput};
use clip_engine::train::run_dir::RunDir;
use pyo3::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use watch::{run, setting_error};

/// Settings by their names, each with its values as the flag takes them.
type Values = BTreeMap<String, Vec<String>>;

/// Reads settings. An unknown name and a value that the setting does not take are errors.
pub(crate) fn read(values: &Values) -> PyResult<Given> {
    let mut given = Given::default();
    for (name, texts) in values {
        let setting = TABLE.iter().find(|setting| setting.name == name);
        let setting = setting.ok_or_else(|| setting_error(format!("{name}: there is no such setting")))?;
        for text in texts {
            let refused = |problem: String| {
                setting_error(format!("{}: {}", setting.flag, refused_value(text, &problem)))
            };
            setting.set(&mut given, OsStr::new(text)).map_err(refused)?;
        }
    }
    Ok(given)
}

fn split(name: &str) -> PyResult<SplitChoice> {
    name.parse().map_err(setting_error)
}

fn text(value: &impl serde::Serialize) -> Result<String> {
    Ok(serde_json::to_string(value)?)
}

/// All settings as a JSON list.
#[pyfunction]
fn settings() -> String {
    let entries = TABLE.iter().map(|setting| {
        json!({
            "name": setting.name, "flag": setting.flag, "heading": setting.heading, "help": setting.help(),
            "kind": format!("{:?}", setting.kind).to_lowercase(), "value": setting.value_name,
        })
    });
    json!(entries.collect::<Vec<_>>()).to_string()
}

/// Trains a run, or goes on with one, and returns its directory.
#[pyfunction]
fn train(
    py: Python<'_>,
    given: Values,
    output: Option<PathBuf>,
    overwrite: bool,
    resume: bool,
    watch: Option<Py<PyAny>>,
) -> PyResult<PathBuf> {
    let given = read(&given)?;
    run(py, watch, move |monitor| {
        let (dir, settings) = if resume {
            training::resume(output.as_deref(), given, monitor)?
        } else {
            let settings = training::settings(Given::default(), &given, monitor)?;
            (training::vacant(&settings, output.as_deref(), overwrite)?, settings)
        };
        training::train(&dir, settings, resume, monitor)?;
        Ok(dir.path().to_path_buf())
    })
}

/// Evaluates a finished run; what `engine eval --json` prints.
#[pyfunction]
fn evaluate(
    py: Python<'_>,
    directory: PathBuf,
    split_name: &str,
    given: Values,
    watch: Option<Py<PyAny>>,
) -> PyResult<String> {
    let (given, split) = (read(&given)?, split(split_name)?);
    run(py, watch, move |monitor| {
        let evaluation = evaluation::evaluate_run(&directory, split, given, monitor)?;
        let mut report = evaluation.to_json()?;
        report["class_names"] = json!(evaluation.class_names);
        report["split"] = json!(split.name());
        text(&report)
    })
}

/// Scores of plain CLIP, as JSON.
#[pyfunction]
fn zero_shot(py: Python<'_>, split_name: &str, given: Values, watch: Option<Py<PyAny>>) -> PyResult<String> {
    let (given, split) = (read(&given)?, split(split_name)?);
    run(py, watch, move |monitor| {
        let (scores, class_names) = evaluation::zero_shot(split, given, monitor)?;
        text(&json!({
            "split": split.name(), "images": scores.images, "top1": scores.text_top1, "top5": scores.text_top5,
            "loss": scores.loss_text, "class_names": class_names,
        }))
    })
}

/// Pixels \[N, S, S, 3\] u8 of a split as the model sees them, S, labels \[N\], names of the classes, paths \[N\].
type Pixels = (Vec<u8>, usize, Vec<u32>, Vec<String>, Vec<Option<PathBuf>>);

/// Images of a split.
#[pyfunction]
fn photos(py: Python<'_>, split_name: &str, given: Values, watch: Option<Py<PyAny>>) -> PyResult<Pixels> {
    let (given, split) = (read(&given)?, split(split_name)?);
    run(py, watch, move |monitor| {
        let settings = training::settings(Given::default(), &given, monitor)?;
        let settings = Settings { augment: Augment::Off, ..settings };
        let judged = Judged { any: true, all: split == SplitChoice::All, classes: None };
        let cache = material(&settings, &judged, monitor)?.cache;
        let view = cache.split(split.of_cache());
        let (mut pixels, mut paths) = (Vec::new(), Vec::new());
        for index in 0..view.len() {
            pixels.extend(view.rgb(index)?);
            // The demo's are drawn.
            paths.push(view.path(index).filter(|_| !settings.demo));
        }
        let names = cache.class_names().to_vec();
        Ok((pixels, cache.preprocess().image_size(), view.labels().to_vec(), names, paths))
    })
}

/// Compares finished runs; the content of comparison.json.
#[pyfunction]
fn compare(
    py: Python<'_>,
    runs: Vec<PathBuf>,
    out: Option<PathBuf>,
    overwrite: bool,
    watch: Option<Py<PyAny>>,
) -> PyResult<String> {
    run(py, watch, move |monitor| text(&comparison::compare(&runs, out.as_deref(), overwrite, monitor)?))
}

/// Writes a run for other programs, to a folder for each of them.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "those of the function in Python")]
fn export(
    py: Python<'_>,
    directory: PathBuf,
    peft: Option<PathBuf>,
    merged: Option<PathBuf>,
    dtype: &str,
    onnx: Option<PathBuf>,
    onnx_input: &str,
    overwrite: bool,
    watch: Option<Py<PyAny>>,
) -> PyResult<()> {
    let dtype: Precision = parse_word(dtype).map_err(|problem| setting_error(format!("dtype: {problem}")))?;
    let input: OnnxInput =
        parse_word(onnx_input).map_err(|problem| setting_error(format!("onnx_input: {problem}")))?;
    run(py, watch, move |monitor| {
        let dir = RunDir::existing(&directory)?;
        let settings = dir.read_settings()?;
        let model = model_of_run(&dir, &settings, None, monitor)?;
        let export = Export::open(&dir, &settings, &model)?;
        peft.iter().try_for_each(|to| export.peft(to, overwrite))?;
        merged.iter().try_for_each(|to| export.merged(to, overwrite, dtype.into()))?;
        onnx.iter().try_for_each(|to| export.onnx(to, overwrite, input))?;
        Ok(())
    })
}

/// The command `engine` with these arguments, without the program's name; its exit status.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<std::ffi::OsString>) -> u8 {
    let arguments = std::iter::once("engine".into()).chain(arguments).collect();
    py.detach(|| clip_engine::command(arguments))
}

#[pymodule]
fn _engine(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("EngineError", watch::engine_error_type(py)?)?;
    module.add("SettingError", watch::setting_error_type(py)?)?;
    module.add_class::<models::Predictor>()?;
    module.add_class::<models::Model>()?;
    module.add_function(wrap_pyfunction!(settings, module)?)?;
    module.add_function(wrap_pyfunction!(train, module)?)?;
    module.add_function(wrap_pyfunction!(evaluate, module)?)?;
    module.add_function(wrap_pyfunction!(zero_shot, module)?)?;
    module.add_function(wrap_pyfunction!(photos, module)?)?;
    module.add_function(wrap_pyfunction!(models::list_photos, module)?)?;
    module.add_function(wrap_pyfunction!(compare, module)?)?;
    module.add_function(wrap_pyfunction!(export, module)?)?;
    module.add_function(wrap_pyfunction!(main, module)?)?;
    Ok(())
}
