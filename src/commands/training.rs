//! One run: its settings, its folder, its training.

use super::device::{self, on_device};
use super::open::{Judged, Material, describe, material, say_default_model, warn_of_adapter};
use super::output::of_run;
use crate::TrainError;
use crate::progress::Monitor;
use crate::report;
use crate::settings::{Given, Key, Settings};
use crate::train::records::Summary;
use crate::train::run::SharedModel;
use crate::train::run_dir::RunDir;
use anyhow::{Result, bail};
use std::path::Path;

/// Settings that may have another value when a run is resumed.
const RESUMABLE: [Key; 7] = [
    Key::epochs,
    Key::early_stop,
    Key::early_stop_min_delta,
    Key::early_stop_against,
    Key::device,
    Key::precision,
    Key::tensorboard,
];

/// Resolves settings: defaults of the recipe, then those of a file, then those that were `given`.
///
/// # Errors
/// No data, values out of range, and settings that would have no effect.
pub fn settings(file: Given, given: &Given, monitor: &dyn Monitor) -> Result<Settings> {
    let model_is_given = file.model.is_some() || given.model.is_some();
    let settings = Settings::combine(file, given);
    if settings.data.is_none() && !settings.demo {
        let text = "--data is missing; for example engine train --data DIR, or engine train --demo";
        bail!(TrainError::Setting(text.into()));
    }
    given.check(&settings)?;
    if let Some(name) = settings.model_name().filter(|_| !model_is_given) {
        say_default_model(name, monitor);
    }
    warn_of_adapter(settings.init_from.as_deref(), monitor)?;
    Ok(settings)
}

/// Takes the folder of a new run: `output`, or the usual one, where a run of the demo is replaced by the next.
///
/// # Errors
/// A folder that holds something else, or a run that is not to be replaced.
pub fn vacant(settings: &Settings, output: Option<&Path>, overwrite: bool) -> Result<RunDir> {
    if let Some(output) = output {
        return Ok(RunDir::vacant(output, overwrite)?);
    }
    let path = of_run(settings)?;
    let earlier = RunDir::existing(&path).and_then(|run| run.read_settings());
    // What is kept there of other photos goes only when asked for.
    Ok(RunDir::vacant(&path, overwrite || earlier.is_ok_and(|settings| settings.demo))?)
}

/// Opens a run to continue: the one in `output`, or the one that the data of `given` would be trained into. `given` may
/// change some of its settings.
///
/// # Errors
/// No such run, one that another process trains, and settings that cannot change.
pub fn resume(output: Option<&Path>, mut given: Given, monitor: &dyn Monitor) -> Result<(RunDir, Settings)> {
    let named = Settings::combine(Given::default(), &given);
    let path = match output {
        Some(output) => output.to_path_buf(),
        None if named.demo || named.data.is_some() => of_run(&named)?,
        None => {
            let text = "--output is missing; for example engine train --resume --output runs/flowers102";
            bail!(TrainError::Setting(text.into()));
        }
    };
    let dir = RunDir::existing(&path)?;
    // Its settings must not change any more.
    dir.lock(monitor)?;
    let mut settings = dir.read_settings()?;
    // What names the run may stay.
    if named.data == settings.data {
        given.data = None;
    }
    if given.keys().any(|key| key != Key::demo && !RESUMABLE.contains(&key)) {
        bail!(TrainError::Setting(
            "--resume: only --epochs, --early-stop and its like, --device, --precision and --tensorboard may be \
             given with it"
                .into()
        ));
    }
    if given.demo.is_some_and(|demo| demo != settings.demo) {
        bail!(TrainError::Setting("--resume: that run is no demo; leave out --demo".into()));
    }
    given.apply(&mut settings);
    settings.validate()?;
    Ok((dir, settings))
}

/// Trains a run, from the start or from where it was left, and writes its report.
///
/// # Errors
/// Data, model or device that cannot be used, and a run that was interrupted.
pub fn train(dir: &RunDir, mut settings: Settings, resume: bool, monitor: &dyn Monitor) -> Result<Summary> {
    let device = device::open_to_train(&settings.device, settings.precision, monitor)?;
    settings.precision = Some(device.precision());
    let material = material(&settings, &Judged::default(), monitor)?;
    describe(&material.cache, monitor);
    let Material { model, cache, enlarged } = material;
    let summary = on_device!(device, backend => {
        let (templates, towers) = (&settings.templates, settings.trained_towers());
        let mut shared = SharedModel::new(backend, model, &cache, enlarged.as_ref(), templates, towers, monitor)?;
        shared.train(&settings, dir, resume, monitor)
    })?;
    report::write_run(dir, &cache, monitor)?;
    Ok(summary)
}
