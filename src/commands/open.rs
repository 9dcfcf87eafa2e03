//! Data and models by their names.

use crate::data::{Cache, CacheOptions, Dataset, Note, Preprocess, Purpose, Split, larger_side};
use crate::fetch::flowers102::Flowers102;
use crate::fetch::{DEFAULT_MODEL, FLOWERS102, Hub, HubId, ModelPlace, is_flowers102, settled_model};
use crate::files::cache_folder;
use crate::progress::Monitor;
use crate::settings::{Augment, Settings};
use crate::tensor::DType;
use crate::train::adapter::doubts_about;
use crate::train::base_model::BaseModel;
use crate::train::demo;
use crate::train::model::Model;
use crate::train::other_models;
use crate::train::run_dir::RunDir;
use crate::train::saved_run::other_weights;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// The revision of a model that is meant where none is named.
const MAIN: &str = "main";

/// The folder for caches when none is named: the user's cache folder.
pub fn cache_dir(chosen: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = chosen {
        return Ok(dir.to_path_buf());
    }
    cache_folder().context("--cache: neither XDG_CACHE_HOME nor HOME is set; name a folder for the cache")
}

/// The folder of the model that a flag names.
pub fn named_model_dir(name: &Path, monitor: &dyn Monitor) -> Result<PathBuf> {
    model_dir(&settled_model(name), monitor)
}

/// The folder of the model that settings name, which is fetched where it is a hub id.
fn model_dir(name: &Path, monitor: &dyn Monitor) -> Result<PathBuf> {
    let last = name.file_name().unwrap_or_default();
    let names = [name.as_os_str(), last].into_iter().filter(|_| !name.exists());
    if let Some(text) = names.filter_map(|name| other_models::of_name(&name.to_string_lossy())).next() {
        bail!("--model: {text}");
    }
    match ModelPlace::of(name) {
        ModelPlace::Folder(dir) => Ok(dir),
        ModelPlace::Hub(id) => Ok(Hub::from_env()?.snapshot(&id, monitor)?),
    }
}

/// Opens the model that a flag names, or the default, which is said.
pub fn open_model_or_default(name: Option<&Path>, monitor: &dyn Monitor) -> Result<Model> {
    match name {
        Some(name) => open_model(name, monitor),
        None => {
            say_default_model(Path::new(DEFAULT_MODEL), monitor);
            open_model(Path::new(DEFAULT_MODEL), monitor)
        }
    }
}

/// Says that this model was taken, as none was named.
pub fn say_default_model(name: &Path, monitor: &dyn Monitor) {
    monitor.line(&format!("model: {}, the default; --model names another", name.display()));
}

/// Opens the model that a flag names.
pub fn open_model(name: &Path, monitor: &dyn Monitor) -> Result<Model> {
    open_settled_model(&settled_model(name), monitor)
}

/// Opens the model that settings name.
pub fn open_settled_model(name: &Path, monitor: &dyn Monitor) -> Result<Model> {
    let mut model = Model::open(&model_dir(name, monitor)?)?;
    if let ModelPlace::Hub(id) = ModelPlace::of(name) {
        // By this name others can load it: a folder of the cache means something on this machine only.
        model.base = base_on_hub(&id);
    }
    if !Preprocess::is_given(model.dir()) {
        monitor.warn(&format!(
            "{}: neither processor_config.json nor preprocessor_config.json says how images are prepared; they \
             are as for OpenAI's CLIP",
            model.dir().display()
        ));
    }
    Ok(model)
}

fn base_on_hub(id: &HubId) -> BaseModel {
    let revision = Some(id.revision()).filter(|&revision| revision != MAIN).map(String::from);
    BaseModel::Hub { repository: id.repository.clone(), revision }
}

/// Names the model as an export does: as `chosen` says, by its hub id if the run was trained on one, whatever folder it
/// is read from now, or as it was opened.
pub fn exported_base(settings: &Settings, chosen: Option<&str>, model: &Model) -> BaseModel {
    let on_hub = |name: &Path| match ModelPlace::of(name) {
        ModelPlace::Hub(id) => Some(base_on_hub(&id)),
        ModelPlace::Folder(_) => None,
    };
    match (chosen, settings.model_name()) {
        (Some(name), _) => {
            on_hub(&settled_model(Path::new(name))).unwrap_or_else(|| BaseModel::Named(name.into()))
        }
        (None, Some(name)) => on_hub(name).unwrap_or_else(|| model.base.clone()),
        (None, None) => model.base.clone(),
    }
}

/// The folder of the data that settings name, which are fetched into the caches' folder where it is none.
pub fn data_dir(name: &Path, cache: Option<&Path>, monitor: &dyn Monitor) -> Result<PathBuf> {
    if !is_flowers102(name) {
        return Ok(name.to_path_buf());
    }
    let root = cache_dir(cache)?.join(FLOWERS102);
    Flowers102::published().fetch(&root, monitor)?;
    Ok(root)
}

/// Which images are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitChoice {
    /// Those of a split.
    Of(Split),
    /// All of them.
    All,
}

impl std::str::FromStr for SplitChoice {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "all" => Ok(SplitChoice::All),
            word => word
                .parse()
                .map(SplitChoice::Of)
                .map_err(|_| format!("{word:?} is no split; use train, val, test or all")),
        }
    }
}

impl SplitChoice {
    /// "train", "val", "test" or "all".
    pub fn name(self) -> &'static str {
        match self {
            SplitChoice::Of(split) => split.name(),
            SplitChoice::All => "all",
        }
    }

    /// The split of a cache in which they are.
    pub fn of_cache(self) -> Split {
        match self {
            SplitChoice::Of(split) => split,
            SplitChoice::All => Split::Test,
        }
    }

    /// Says where most of the photos are not looked at.
    pub fn explain(self, cache: &Cache, monitor: &dyn Monitor) {
        let (chosen, all) = (cache.split(self.of_cache()).len(), cache.len());
        if chosen < all {
            monitor.line(&format!(
                "{} of {all} images, the {} split; --split all takes all",
                chosen,
                self.name()
            ));
        }
    }
}

/// Purpose for which photos are opened beside training.
#[derive(Debug, Clone, Default)]
pub struct Judged {
    /// The classes of the run that judges them; none where they are the run's own.
    pub classes: Option<Vec<String>>,
    /// Whether they need not be fit to train on.
    pub any: bool,
    /// Whether all of them make up the test split.
    pub all: bool,
}

/// Opens the data of settings, and says what there is to say of them.
pub fn open_dataset(settings: &Settings, judged: &Judged, monitor: &dyn Monitor) -> Result<Dataset> {
    let Some(data) = &settings.data else { bail!("--data is needed, or --demo") };
    let mut options = settings.dataset_options()?;
    options.classes = judged.classes.clone();
    if judged.any {
        options.purpose = Purpose::Evaluate;
    }
    let source = Dataset::open(&data_dir(data, settings.cache.as_deref(), monitor)?, options)?;
    for Note { text, warns } in &source.notes {
        if *warns { monitor.warn(text) } else { monitor.line(text) }
    }
    Ok(if judged.all { source.all_as_test() } else { source })
}

/// Opens the cache of settings' data, building it where needed, and says on standard error what it is.
pub fn open_cache(
    settings: &Settings,
    judged: &Judged,
    preprocess: &Preprocess,
    monitor: &dyn Monitor,
) -> Result<Cache> {
    let source = open_dataset(settings, judged, monitor)?;
    let preprocess = &preprocess.with_orientation(settings.orientation);
    cache_of(&source, preprocess, settings.dtype.into(), settings, false, monitor)
}

/// Opens the cache of a dataset that is open, building it where needed; `said` where another cache of it was opened
/// before.
fn cache_of(
    source: &Dataset,
    preprocess: &Preprocess,
    dtype: DType,
    settings: &Settings,
    said: bool,
    monitor: &dyn Monitor,
) -> Result<Cache> {
    let Settings { skip_bad_images, refuse_duplicates, .. } = *settings;
    let options = CacheOptions { skip_bad_images, refuse_duplicates, said, threads: 0 };
    let dir = cache_dir(settings.cache.as_deref())?;
    let cache = Cache::open_or_build(source, preprocess, dtype, &dir, &options, monitor)?;
    if let Some(path) = cache.path() {
        let verb = if cache.reused() { "using" } else { "wrote" };
        monitor.line(&format!("{verb} the cache {}", path.display()));
    }
    Ok(cache)
}

/// The model of a run, or the one that `chosen` names in its place. Photos are turned as in the run.
pub fn model_of_run(
    dir: &RunDir,
    settings: &Settings,
    chosen: Option<&Path>,
    monitor: &dyn Monitor,
) -> Result<Model> {
    let mut model = match (chosen, settings.model_name()) {
        (Some(name), _) => open_model(name, monitor)?,
        (None, Some(name)) => open_settled_model(name, monitor)?,
        (None, None) => demo::model()?,
    };
    model.preprocess = model.preprocess.with_orientation(settings.orientation);
    warn_of_run(dir, &model, monitor)?;
    Ok(model)
}

/// Warns where the run in `dir` has not come to its end, so that what is there is not what it would keep, and where
/// it was trained on other weights than the model's.
pub fn warn_of_run(dir: &RunDir, model: &Model, monitor: &dyn Monitor) -> Result<()> {
    if !dir.summary().is_file() {
        let run = dir.path().display();
        monitor.warn(&format!(
            "{run}: this run has not finished; engine train --resume --output {run} goes on with it"
        ));
    }
    if let Some(warning) = other_weights(dir, model)? {
        monitor.warn(&warning);
    }
    Ok(())
}

/// Warns of what is doubtful about the adapter in the folder that --init-from names.
pub fn warn_of_adapter(init_from: Option<&Path>, monitor: &dyn Monitor) -> Result<()> {
    if let Some(doubts) = init_from.map(doubts_about).transpose()?.flatten() {
        monitor.warn(&doubts);
    }
    Ok(())
}

/// Model and images that the settings of a run name.
pub struct Material {
    /// The model, open.
    pub model: Model,
    /// All images, as the model sees them.
    pub cache: Cache,
    /// The images that are trained on in a larger size, where the run augments them.
    pub enlarged: Option<Cache>,
}

/// Says how many classes and images there are.
pub fn describe(images: &Cache, monitor: &dyn Monitor) {
    let counts = Split::ALL.map(|split| format!("{} {split}", images.split(split).len()));
    let classes = images.class_names().len();
    monitor.line(&format!("{classes} classes, images: {}", counts.join(", ")));
}

/// Opens the model of a run.
pub fn model_of(settings: &Settings, monitor: &dyn Monitor) -> Result<Model> {
    if settings.demo {
        return Ok(demo::model()?);
    }
    let Some(model) = settings.model_name() else { bail!("--model is needed, or --demo") };
    let mut model = open_settled_model(model, monitor)?;
    model.preprocess = model.preprocess.with_orientation(settings.orientation);
    Ok(model)
}

/// Opens model and images of a run.
pub fn material(settings: &Settings, judged: &Judged, monitor: &dyn Monitor) -> Result<Material> {
    let (seed, augmented) = (settings.image_seed(), settings.augment != Augment::Off);
    let crops_of: &[Split] = if settings.final_fit { &[Split::Train, Split::Val] } else { &[Split::Train] };
    if settings.demo {
        let (model, cache) = (model_of(settings, monitor)?, demo::cache(seed)?);
        let enlarged = if augmented { Some(demo::enlarged_cache(seed, crops_of)?) } else { None };
        return Ok(Material { model, cache, enlarged });
    }
    if settings.data.is_none() {
        bail!("--data is needed, or --demo");
    }
    let model = model_of(settings, monitor)?;
    let source = open_dataset(settings, judged, monitor)?;
    let cache = cache_of(&source, &model.preprocess, settings.dtype.into(), settings, false, monitor)?;
    let enlarged = if augmented {
        let side = larger_side(model.preprocess.image_size());
        let preprocess = model.preprocess.enlarged(side)?;
        Some(cache_of(&source.only(crops_of), &preprocess, DType::U8, settings, true, monitor)?)
    } else {
        None
    };
    Ok(Material { model, cache, enlarged })
}
