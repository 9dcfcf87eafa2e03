//! What several subcommands share: devices, data and models by their arguments.

use anyhow::{Result, bail};
use clap::ValueEnum;
use clip_engine::backend::cpu::Cpu;
use clip_engine::data::{Cache, CacheOptions, Preprocess, Source};
use clip_engine::progress::Monitor;
use clip_engine::tensor::DType;
use clip_engine::train::demo;
use clip_engine::train::model::Model;
use clip_engine::train::settings::{Precision, Settings};
use std::path::{Path, PathBuf};

/// The element type of a cache.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CacheType {
    /// Pixels as they are: exact, and the smallest.
    U8,
    /// Normalised, half precision.
    F16,
    /// Normalised, single precision.
    F32,
}

impl From<CacheType> for DType {
    fn from(t: CacheType) -> DType {
        match t {
            CacheType::U8 => DType::U8,
            CacheType::F16 => DType::F16,
            CacheType::F32 => DType::F32,
        }
    }
}

/// The backend for `--device` and `--precision`; says on standard error which device it is.
pub fn device(name: &str, precision: Precision) -> Result<Cpu<f32>> {
    match name.split(':').next() {
        Some("auto" | "cpu") => {}
        Some("cuda") => bail!("--device {name}: this version computes on the CPU only; use --device cpu"),
        _ => bail!("--device {name}: not a device; use auto or cpu"),
    }
    if precision != Precision::F32 {
        bail!("--precision: the CPU computes in f32 only; use --precision f32");
    }
    Ok(Cpu::new())
}

/// The folder for caches when none is named: the user's cache folder.
pub fn cache_dir(chosen: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = chosen {
        return Ok(dir.to_path_buf());
    }
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    match base {
        Some(base) => Ok(base.join("clip-engine")),
        None => bail!("--cache: neither XDG_CACHE_HOME nor HOME is set; name a folder for the cache"),
    }
}

/// Opens the cache of `data`, building it where needed, and says on standard error what it is.
pub fn open_cache(
    data: &Path,
    seed: u64,
    preprocess: &Preprocess,
    dtype: DType,
    dir: Option<&Path>,
    skip_bad_images: bool,
    monitor: &dyn Monitor,
) -> Result<Cache> {
    let source = Source::open(data, seed)?;
    let options = CacheOptions { skip_bad_images, threads: 0 };
    let dir = cache_dir(dir)?;
    let cache = Cache::open_or_build(&source, preprocess, dtype, &dir, &options, monitor)?;
    if let Some(path) = cache.path() {
        let verb = if cache.reused() { "using" } else { "wrote" };
        monitor.line(&format!("{verb} the cache {}", path.display()));
    }
    if !cache.skipped().is_empty() {
        monitor.line(&format!("{} images could not be decoded and are left out", cache.skipped().len()));
    }
    Ok(cache)
}

/// Model and images that the settings of a run name.
pub fn model_and_cache(settings: &Settings, monitor: &dyn Monitor) -> Result<(Model, Cache)> {
    if settings.demo {
        return Ok((demo::model()?, demo::cache(settings.seed)?));
    }
    let (Some(model), Some(data)) = (&settings.model, &settings.data) else {
        bail!("--model and --data are needed, or --demo");
    };
    let model = Model::open(model)?;
    let cache = open_cache(
        data,
        settings.seed,
        &model.preprocess,
        DType::U8,
        settings.cache.as_deref(),
        settings.skip_bad_images,
        monitor,
    )?;
    Ok((model, cache))
}
