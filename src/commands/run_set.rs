//! Several runs in one folder, trained one after the other with one loaded model and one set of images.

use super::device::{self, on_device};
use super::open::{Judged, Material, material};
use crate::TrainError;
use crate::backend::Backend;
use crate::data::Cache;
use crate::progress::{Monitor, Silent};
use crate::report::{self, COMPARISON_FILES, RunData};
use crate::settings::{Augment, Recipe, Settings};
use crate::train::run::SharedModel;
use crate::train::run_dir::RunDir;
use crate::tune::Tower;
use anyhow::{Result, bail};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// How runs lie in their folder, and what lies beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `RECIPE/`, or `RECIPE/seed-N/` each.
    Comparison,
    /// `seed-N/`.
    Seeds,
}

impl Layout {
    /// The flag that names the folder.
    fn flag(self) -> &'static str {
        match self {
            Layout::Comparison => "--out",
            Layout::Seeds => "--output",
        }
    }

    /// Files that are written about the runs together.
    fn results(self) -> &'static [&'static str] {
        match self {
            Layout::Comparison => &COMPARISON_FILES,
            Layout::Seeds => &["seeds.json"],
        }
    }

    /// Whether a run of this name could be one of these.
    fn names(self, run: &str) -> bool {
        let recipe = |part: &str| Recipe::ALL.iter().any(|recipe| recipe.name() == part);
        let seed =
            |part: &str| part.strip_prefix("seed-").is_some_and(|number| number.parse::<u64>().is_ok());
        match (self, run.split_once('/')) {
            (Layout::Comparison, None) => recipe(run),
            (Layout::Comparison, Some((folder, run))) => recipe(folder) && seed(run),
            (Layout::Seeds, None) => seed(run),
            (Layout::Seeds, Some(_)) => false,
        }
    }
}

/// Treatment of the runs of an earlier command in the same folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earlier {
    Keep,
    /// Runs of the demo may go, others may not.
    ReplaceDemo,
    Replace,
}

impl Earlier {
    /// Treatment that `--overwrite` asks for, in a folder that was chosen or in the usual one.
    pub fn of(overwrite: bool, chosen: Option<&Path>) -> Self {
        match (overwrite, chosen) {
            (true, _) => Earlier::Replace,
            (false, None) => Earlier::ReplaceDemo,
            (false, Some(_)) => Earlier::Keep,
        }
    }
}

/// Runs to come.
pub struct RunSet {
    path: PathBuf,
    layout: Layout,
    /// Names, which are paths below `path`, and settings.
    runs: Vec<(String, Settings)>,
    /// Runs of an earlier command.
    outdated: Vec<RunDir>,
}

impl RunSet {
    /// The folder of runs that were not trained yet. Nothing is written or removed before the training.
    ///
    /// # Errors
    /// A folder that holds what may not be replaced.
    pub fn vacant(
        path: &Path,
        layout: Layout,
        runs: Vec<(String, Settings)>,
        earlier: Earlier,
    ) -> Result<Self> {
        let outdated = earlier_runs(path, layout, earlier)?;
        Ok(RunSet { path: path.to_path_buf(), layout, runs, outdated })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Trains all runs, each with a report of its own, and reads what they left. Also returns the images.
    pub fn train(mut self, monitor: &dyn Monitor) -> Result<(Vec<RunData>, Cache)> {
        let Some((_, first)) = self.runs.first() else { bail!("there is no run to train") };
        let device = device::open_to_train(&first.device, first.precision, monitor)?;
        let material = material(&self.images_for_all(first), &Judged::default(), monitor)?;
        material.describe(monitor);
        let (templates, precision) = (first.templates.clone(), device.precision());
        self.runs.iter_mut().for_each(|(_, settings)| settings.precision = Some(precision));
        let towers: Vec<Tower> =
            self.runs.iter().flat_map(|(_, settings)| settings.trained_towers().to_vec()).collect();
        let Material { model, cache, enlarged } = material;
        on_device!(device, backend => {
            let enlarged = enlarged.as_ref();
            let mut shared = SharedModel::new(backend, model, &cache, enlarged, &templates, &towers, monitor)?;
            self.train_each(&mut shared, monitor)
        })?;
        Ok((self.load()?, cache))
    }

    /// Settings of the `first` run, with those images that any of them needs.
    fn images_for_all(&self, first: &Settings) -> Settings {
        let all = || self.runs.iter().map(|(_, settings)| settings);
        let augment = all().map(|settings| settings.augment).find(|augment| *augment != Augment::Off);
        Settings {
            augment: augment.unwrap_or(Augment::Off),
            final_fit: all().any(|settings| settings.final_fit),
            ..first.clone()
        }
    }

    fn train_each<B: Backend>(&self, shared: &mut SharedModel<'_, B>, monitor: &dyn Monitor) -> Result<()> {
        let whole = RunDir::at(&self.path);
        // All at once, before anything is removed.
        std::iter::once(&whole).chain(&self.outdated).try_for_each(|run| run.lock(monitor))?;
        self.clear(monitor)?;
        for (i, (name, settings)) in self.runs.iter().enumerate() {
            monitor.line(&format!("training {name}, {} of {}", i + 1, self.runs.len()));
            let dir = RunDir::at(&self.path.join(name));
            let summary = shared.train(settings, &dir, false, monitor)?;
            report::write_run(&dir, shared.cache(), if i == 0 { monitor } else { &Silent })?;
            // Stopped, a ladder is left with what it has, which is not to be compared with whole runs.
            if summary.ladder.is_some() && monitor.stopped() {
                bail!(TrainError::Interrupted { epoch: summary.epochs, path: dir.path().to_path_buf() });
            }
        }
        Ok(())
    }

    /// Removes what an earlier command left, so that nothing of it is taken for one of these runs.
    fn clear(&self, monitor: &dyn Monitor) -> Result<()> {
        let leave_folder_of = |path: &Path| {
            if let Some(folder) = path.parent().filter(|&folder| folder != self.path) {
                // Other results or seeds, or something of the user's, may still be in there.
                let _ = std::fs::remove_dir(folder);
            }
        };
        for name in self.layout.results() {
            let file = self.path.join(name);
            match std::fs::remove_file(&file) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    return Err(TrainError::io(&file, "remove the file")(e).into());
                }
                _ => {}
            }
            leave_folder_of(&file);
        }
        for run in &self.outdated {
            run.remove(monitor)?;
            leave_folder_of(run.path());
        }
        Ok(())
    }

    fn load(&self) -> Result<Vec<RunData>> {
        let load = |name: &String| -> Result<RunData> {
            let run = RunData::load(&RunDir::existing(&self.path.join(name))?)?;
            Ok(RunData { name: name.clone(), ..run })
        };
        self.runs.iter().map(|(name, _)| load(name)).collect()
    }
}

/// The runs in `path` that are to be replaced.
fn earlier_runs(path: &Path, layout: Layout, earlier: Earlier) -> Result<Vec<RunDir>> {
    let occupied = match std::fs::read_dir(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => false,
        Err(e) => return Err(TrainError::io(path, "list the folder")(e).into()),
        Ok(mut entries) => entries.next().is_some(),
    };
    if !occupied {
        return Ok(Vec::new());
    }
    let refuse = |problem: String| Err(TrainError::file(path, problem).into());
    let (found, flag) = (runs_below(path)?, layout.flag());
    let replace = match earlier {
        Earlier::Keep => false,
        Earlier::Replace => true,
        Earlier::ReplaceDemo => found.iter().all(|(_, run)| run.read_settings().is_ok_and(|s| s.demo)),
    };
    if !replace {
        return refuse(format!(
            "not empty; replace the runs in it with --overwrite, or choose another {flag}"
        ));
    }
    if found.is_empty() {
        return refuse(format!("holds something that is no run; choose another {flag}"));
    }
    if let Some((name, _)) = found.iter().find(|(name, _)| !layout.names(name)) {
        let held = if name.is_empty() { "is a run itself".into() } else { format!("holds the run {name}") };
        return refuse(format!(
            "{held}, which is none that this command would replace; choose another {flag}"
        ));
    }
    Ok(found.into_iter().map(|(_, run)| run).collect())
}

/// The run that `path` is, and those in it and in the folders in it, by their names in `path`.
fn runs_below(path: &Path) -> Result<Vec<(String, RunDir)>> {
    let mut found = Vec::new();
    for entry in walkdir::WalkDir::new(path).max_depth(2).sort_by_file_name() {
        let entry = entry.map_err(|e| TrainError::io(path, "list the folder")(e.into()))?;
        if let Ok(run) = RunDir::existing(entry.path()) {
            let name = entry.path().strip_prefix(path).unwrap_or(entry.path());
            let parts: Vec<_> = name.components().map(|part| part.as_os_str().to_string_lossy()).collect();
            found.push((parts.join("/"), run));
        }
    }
    Ok(found)
}

/// The runs of `base` with `count` seeds from its own on, in folders seed-N of `folder`. All see the images
/// that the first sees.
pub fn runs_of(base: &Settings, count: u32, folder: Option<&str>) -> Result<Vec<(String, Settings)>> {
    let last = base.seed.checked_add(u64::from(count.saturating_sub(1)));
    // TOML has no larger integers.
    let Some(last) = last.filter(|&last| i64::try_from(last).is_ok()) else {
        let text = format!("--seeds: {count} seeds from {} on are too large; give a lower --seed", base.seed);
        return Err(TrainError::Setting(text).into());
    };
    let run = |seed| {
        let name = match folder {
            Some(folder) => format!("{folder}/seed-{seed}"),
            None => format!("seed-{seed}"),
        };
        (name, Settings { seed, data_seed: Some(base.image_seed()), ..base.clone() })
    };
    Ok((base.seed..=last).map(run).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_an_earlier_comparison_stays() {
        let dir = tempfile::tempdir().unwrap();
        let plots = dir.path().join("plots");
        std::fs::create_dir(&plots).unwrap();
        let mine = [dir.path().join("notes.txt"), plots.join("notes.txt")];
        for file in COMPARISON_FILES.iter().map(|name| dir.path().join(name)).chain(mine.clone()) {
            std::fs::write(file, "").unwrap();
        }
        let set = |layout| {
            let path = dir.path().to_path_buf();
            RunSet { path, layout, runs: Vec::new(), outdated: Vec::new() }
        };
        // Several seeds of one recipe leave none of these files.
        set(Layout::Seeds).clear(&Silent).unwrap();
        assert!(COMPARISON_FILES.iter().all(|name| dir.path().join(name).is_file()));
        set(Layout::Comparison).clear(&Silent).unwrap();
        let files = walkdir::WalkDir::new(dir.path()).into_iter().map(|entry| entry.unwrap().into_path());
        let mut left: Vec<PathBuf> = files.filter(|path| path.is_file()).collect();
        left.sort();
        assert_eq!(left, mine);
        std::fs::remove_file(&mine[1]).unwrap();
        set(Layout::Comparison).clear(&Silent).unwrap();
        assert!(!plots.exists() && mine[0].is_file());
    }

    #[test]
    fn a_layout_knows_the_names_of_its_runs() {
        for (name, comparison, seeds) in [
            ("lora", true, false),
            ("vpt/seed-7", true, false),
            ("seed-7", false, true),
            ("demo", false, false),
            ("lora/first", false, false),
            ("seed-x", false, false),
            ("mine/seed-7", false, false),
            ("", false, false),
        ] {
            assert_eq!(Layout::Comparison.names(name), comparison, "{name}");
            assert_eq!(Layout::Seeds.names(name), seeds, "{name}");
        }
    }
}
