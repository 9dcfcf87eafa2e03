//! Judging finished runs and plain CLIP on photos.

use super::device::{self, on_device};
use super::open::{Judged, Material, SplitChoice, material, open_cache, open_model_or_default, warn_of_run};
use crate::TrainError;
use crate::data::Cache;
use crate::fetch::{settled_data, settled_model};
use crate::progress::Monitor;
use crate::settings::{Augment, Given, Key, Recipe, Settings, default_templates};
use crate::train::demo;
use crate::train::evaluate;
use crate::train::metrics::{EvalMetrics, Evaluation};
use crate::train::model::Model;
use crate::train::run_dir::RunDir;
use crate::train::saved_run::{class_names_of_run, other_photos};
use anyhow::{Result, bail};
use std::path::Path;

/// Settings of how data are read.
pub const SOURCE: [Key; 7] = [
    Key::images,
    Key::class_names,
    Key::groups,
    Key::val_share,
    Key::refuse_duplicates,
    Key::skip_bad_images,
    Key::orientation,
];

/// Settings that evaluation of a run has a use for, beside [`SOURCE`].
const OF_RUN: [Key; 6] = [Key::data, Key::cache, Key::model, Key::batch_size, Key::device, Key::precision];

/// Settings that evaluation of plain CLIP has a use for, beside [`SOURCE`].
const OF_PLAIN_CLIP: [Key; 9] = [
    Key::data,
    Key::demo,
    Key::cache,
    Key::model,
    Key::seed,
    Key::templates,
    Key::batch_size,
    Key::device,
    Key::precision,
];

/// Evaluates the finished run in `run` on a split. What is given takes the place of the run's own: where its model and data
/// are, other data with the same classes and how they are read, batch size, device and precision.
///
/// # Errors
/// A run that has not finished an epoch, photos or a model that are not there, other classes, and settings without effect.
pub fn evaluate_run(
    run: &Path,
    split: SplitChoice,
    mut given: Given,
    monitor: &dyn Monitor,
) -> Result<Evaluation> {
    check_use(&given, &OF_RUN)?;
    let dir = RunDir::existing(run)?;
    let mut settings = dir.read_settings()?;
    let of_files = |key| [Key::data, Key::model, Key::cache].contains(&key) || SOURCE.contains(&key);
    if settings.demo && (given.keys().any(of_files) || split == SplitChoice::All) {
        let text = "--data, --model, --cache, --split all and what says how data are read: a demo run knows its own \
                    flowers and model only; leave them out";
        bail!(TrainError::Setting(text.into()));
    }
    let other = given.data.is_some();
    if other {
        // They were for the run's own.
        (settings.images, settings.class_names, settings.groups) = (None, None, None);
    }
    let (precision, own) = (given.precision, settings.precision);
    // The run's own are settled, whatever lies in this folder.
    given.data = given.data.as_deref().map(settled_data);
    given.model = given.model.as_deref().map(settled_model);
    given.apply(&mut settings);
    settings.validate()?;
    let name = &settings.device;
    let device = match (precision, own) {
        // The numbers of the summary come from the same precision, which a device at hand may not have.
        (None, Some(own)) => {
            device::open(name, Some(own), monitor).or_else(|_| device::open(name, None, monitor))?
        }
        (precision, _) => device::open(name, precision, monitor)?,
    };
    settings.augment = Augment::Off;
    let judged = Judged {
        classes: if other { Some(class_names_of_run(&dir)?) } else { None },
        any: other,
        all: split == SplitChoice::All,
    };
    let Material { model, cache, .. } = material(&settings, &judged, monitor)?;
    warn_of_run(&dir, &model, monitor)?;
    if !other && !judged.all && other_photos(&dir, &cache)? {
        monitor.warn(
            "the photos are not those that the run was trained on: files were added, changed or removed",
        );
    }
    split.explain(&cache, monitor);
    Ok(on_device!(device, backend => {
        evaluate::evaluate_run(backend, model, &cache, split.of_cache(), &settings, &dir, monitor)
    })?)
}

/// Evaluates plain CLIP on a split, by its text features. Returns the scores and the names of the classes.
///
/// # Errors
/// Photos or a model that are not there, and settings without effect.
pub fn zero_shot(
    split: SplitChoice,
    given: Given,
    monitor: &dyn Monitor,
) -> Result<(EvalMetrics, Vec<String>)> {
    check_use(&given, &OF_PLAIN_CLIP)?;
    let (model_is_given, templates_are_given) = (given.model.is_some(), given.templates.is_some());
    let mut settings = Settings::of(Recipe::Linear);
    given.apply(&mut settings);
    settings.data = settings.data.as_deref().map(settled_data);
    if !templates_are_given {
        settings.templates = default_templates(Recipe::Linear, settings.is_of_flowers());
    }
    settings.validate()?;
    let device = device::open(&settings.device, settings.precision, monitor)?;
    let judged = Judged { any: true, all: split == SplitChoice::All, classes: None };
    let (model, cache): (Model, Cache) = if settings.demo {
        (demo::model()?, demo::cache(settings.image_seed())?)
    } else {
        let model = open_model_or_default(settings.model.as_deref().filter(|_| model_is_given), monitor)?;
        let cache = open_cache(&settings, &judged, &model.preprocess, monitor)?;
        (model, cache)
    };
    split.explain(&cache, monitor);
    let (templates, batch) = (&settings.templates, settings.batch_size);
    let metrics = on_device!(device, backend => {
        evaluate::zero_shot(backend, model, &cache, split.of_cache(), templates, batch, monitor)
    })?;
    Ok((metrics, cache.class_names().to_vec()))
}

/// Refuses settings that are neither in `known` nor in [`SOURCE`].
fn check_use(given: &Given, known: &[Key]) -> Result<()> {
    match given.keys().find(|key| !known.contains(key) && !SOURCE.contains(key)) {
        Some(key) => {
            bail!(TrainError::Setting(format!("{key}: has no effect on an evaluation; leave it out")))
        }
        None => Ok(()),
    }
}
