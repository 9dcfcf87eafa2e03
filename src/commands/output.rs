//! Where runs go unless `--output` or `--out` says otherwise: below runs/, by the name of their data.

use crate::TrainError;
use crate::settings::Settings;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// The folder of all runs that were given none.
const RUNS: &str = "runs";

/// runs/demo, or runs/NAME for data called NAME.
pub fn of_run(settings: &Settings) -> Result<PathBuf> {
    Ok(Path::new(RUNS).join(name_of_data(settings, "--output")?))
}

/// runs/demo-seeds, or runs/NAME-seeds for data called NAME.
pub fn of_seeds(settings: &Settings) -> Result<PathBuf> {
    Ok(Path::new(RUNS).join(name_of_data(settings, "--output")? + "-seeds"))
}

/// runs/compare for the demo, and runs/NAME-compare.
pub fn of_comparison(settings: &Settings) -> Result<PathBuf> {
    if settings.demo {
        return Ok(Path::new(RUNS).join("compare"));
    }
    Ok(Path::new(RUNS).join(name_of_data(settings, "--out")? + "-compare"))
}

/// The last part of the data's path. `flag` is what names the folder in its place.
fn name_of_data(settings: &Settings, flag: &str) -> Result<String> {
    if settings.demo {
        return Ok("demo".into());
    }
    let data = settings.data.as_deref().unwrap_or(Path::new(""));
    let name = match data.file_name() {
        Some(name) => Some(name.to_os_string()),
        // "photos/..", where there is such a folder.
        None => data.canonicalize().ok().and_then(|data| Some(data.file_name()?.to_os_string())),
    };
    match name {
        Some(name) => Ok(name.to_string_lossy().into_owned()),
        None => {
            let text = format!("{flag}: {} has no name to call the run by; name a folder", data.display());
            bail!(TrainError::Setting(text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_called_as_its_data_are() {
        let of = |data: &str| Settings { data: Some(data.into()), ..Settings::default() };
        for (data, run) in [
            ("flowers102", "runs/flowers102"),
            ("/pictures/my photos", "runs/my photos"),
            ("/pictures/photos/", "runs/photos"),
        ] {
            assert_eq!(of_run(&of(data)).unwrap(), Path::new(run), "{data}");
            assert_eq!(of_seeds(&of(data)).unwrap(), Path::new(&format!("{run}-seeds")), "{data}");
            assert_eq!(of_comparison(&of(data)).unwrap(), Path::new(&format!("{run}-compare")), "{data}");
        }
        let demo = Settings { demo: true, ..Settings::default() };
        let found = [of_run(&demo), of_seeds(&demo), of_comparison(&demo)].map(Result::unwrap);
        assert_eq!(found, ["runs/demo", "runs/demo-seeds", "runs/compare"].map(PathBuf::from));
        let here = tempfile::tempdir().unwrap();
        let folder = here.path().join("photos/inner");
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(of_run(&of(&folder.join("..").display().to_string())).unwrap(), Path::new("runs/photos"));
        assert!(of_run(&of("/")).unwrap_err().to_string().starts_with("--output: "));
    }
}
