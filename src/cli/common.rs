//! What several subcommands share: devices, data and models by their arguments.

use anyhow::{Result, bail};
use clip_engine::data::{Cache, CacheOptions, Preprocess, Source};
use clip_engine::progress::Monitor;
use clip_engine::tensor::DType;
use clip_engine::train::demo;
use clip_engine::train::files::write_atomic;
use clip_engine::train::model::Model;
use clip_engine::train::settings::Settings;
use serde::Deserialize;
use serde_json::Value;
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Reads a word as serde does, so that flags and TOML take the same ones.
pub fn parse_serde<T: for<'a> Deserialize<'a>>(word: &str) -> std::result::Result<T, String> {
    use serde::de::IntoDeserializer;
    let deserializer: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
        word.into_deserializer();
    T::deserialize(deserializer).map_err(|e| e.to_string())
}

/// Prints to standard output. A reader that has gone away is no error.
pub fn say(text: impl Display) -> Result<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => bail!("standard output: {e}"),
        _ => Ok(()),
    }
}

/// Writes a report as JSON for the flag `--json`.
pub fn write_json(path: &Path, report: &Value) -> Result<()> {
    Ok(write_atomic(path, format!("{report:#}\n").as_bytes())?)
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
        settings.dtype.into(),
        settings.cache.as_deref(),
        settings.skip_bad_images,
        monitor,
    )?;
    Ok((model, cache))
}

/// The commit of the working directory, where it is a git checkout.
pub fn commit() -> Value {
    let git = |args: &[&str]| {
        let output = std::process::Command::new("git").args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]).filter(|_| Path::new("Cargo.toml").exists())
    else {
        return Value::Null;
    };
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| !s.is_empty());
    serde_json::json!(if dirty { commit + "+changes" } else { commit })
}
