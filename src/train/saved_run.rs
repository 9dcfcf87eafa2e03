//! What a run has saved, read together.

use super::adapter::{HeadFile, WEIGHTS_FILE};
use super::model::Model;
use super::provenance::Stamp;
use super::run_dir::RunDir;
use super::{Result, TrainError};
use crate::data::Cache;
use crate::settings::Settings;
use crate::settings::{Key, flag};
use std::path::{Path, PathBuf};

/// Reads files of the run in `dir` with `read` and makes sure that they belong together.
///
/// # Errors
/// Files of different epochs, as a run has them for a moment when it saves a better epoch, or for longer where it was
/// killed just then. Files without a stamp go with any.
pub fn of_one_epoch<T>(dir: &RunDir, settings: &Settings, read: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = common_stamp(dir, settings)?;
    let found = read()?;
    match common_stamp(dir, settings)? == before {
        true => Ok(found),
        false => Err(TrainError::file(dir.path(), "a better epoch was saved just now; try again")),
    }
}

fn common_stamp(dir: &RunDir, settings: &Settings) -> Result<Option<Stamp>> {
    let adapter = settings.lora().map(|_| dir.adapter().join(WEIGHTS_FILE));
    let prompts = settings.prompt_spec().map(|_| dir.prompts());
    let paths = [Some(dir.head()), adapter, prompts].into_iter().flatten();
    let mut stamps = paths.filter_map(|path| Some((Stamp::read(&path)?, path)));
    let Some((first, head)) = stamps.next() else { return Ok(None) };
    match stamps.find(|(stamp, _)| *stamp != first) {
        None => Ok(Some(first)),
        Some((other, path)) => Err(mixture(dir, [(&head, &first), (&path, &other)])),
    }
}

fn mixture(dir: &RunDir, [(a, first), (b, second)]: [(&PathBuf, &Stamp); 2]) -> TrainError {
    let name = |path: &Path| path.strip_prefix(dir.path()).unwrap_or(path).display().to_string();
    let problem = format!(
        "{} is of epoch {} and {} of epoch {} of another moment: try again if the run is being trained, else make it \
         whole with engine train {} {} {}",
        name(a),
        first.epoch,
        name(b),
        second.epoch,
        flag::RESUME,
        flag::OUTPUT,
        dir.path().display(),
    );
    TrainError::file(dir.path(), problem)
}

/// Returns a warning where `model` has other weights than those that the run in `dir` was trained on; none for a run
/// whose files have no stamp.
pub fn other_weights(dir: &RunDir, model: &Model) -> Result<Option<String>> {
    let Some(stamp) = Stamp::read(&dir.head()) else { return Ok(None) };
    let found = model.weights_id()?;
    Ok((found.hash != stamp.weights.hash).then(|| {
        format!(
            "{}: was trained on other weights ({}) than those of {} ({}), with which its results do not hold; name \
             the model that it was trained on by {}",
            dir.path().display(),
            stamp.weights.name(),
            model.base.name(),
            found.name(),
            Key::model,
        )
    }))
}

/// The head of the best epoch of a run so far, for features of width `width`.
///
/// # Errors
/// A run that has none yet.
pub(crate) fn head_of_run(dir: &RunDir, width: usize) -> Result<HeadFile> {
    HeadFile::load(&head_file_of_run(dir)?, width)
}

/// Where that head is.
fn head_file_of_run(dir: &RunDir) -> Result<PathBuf> {
    if !dir.head().is_file() {
        let problem = "no head.safetensors here; the run ended before its first epoch did";
        return Err(TrainError::file(dir.path(), problem));
    }
    Ok(dir.head())
}

/// The classes of the run in `dir`, in label order.
pub fn class_names_of_run(dir: &RunDir) -> Result<Vec<String>> {
    HeadFile::load_class_names(&head_file_of_run(dir)?)
}

/// Whether the photos of `cache` are known not to be those that the run in `dir` was trained on.
pub fn other_photos(dir: &RunDir, cache: &Cache) -> Result<bool> {
    let known = dir.read_summary()?.and_then(|summary| summary.photos);
    Ok(known.is_some_and(|photos| !photos.is_empty() && photos != cache.photos()))
}
