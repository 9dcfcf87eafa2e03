//! Several runs in one folder, trained with one set of images: one after the other with one loaded model, on several
//! devices side by side.

use super::device::{self, Choice, Device, on_device};
use super::open::{Judged, Material, describe, material, model_of};
use crate::TrainError;
use crate::data::Cache;
use crate::progress::{Monitor, Silent};
use crate::report::{self, COMPARISON_FILES, RunData};
use crate::settings::{Augment, Recipe, Settings};
use crate::train::model::Model;
use crate::train::run::SharedModel;
use crate::train::run_dir::RunDir;
use crate::tune::Tower;
use anyhow::{Result, bail};
use std::io::ErrorKind;
use std::mem::discriminant;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

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
    /// Devices to train on at a time; where there are none it is that of the settings.
    devices: Vec<String>,
}

/// What a run says that is trained beside others: warnings with its device's name, the course only to those who want
/// to know every step.
struct Aside<'a> {
    name: &'a str,
    monitor: &'a dyn Monitor,
    /// Whether one of the others failed.
    failed: &'a AtomicBool,
}

impl Monitor for Aside<'_> {
    fn begin(&self, _task: &str, _total: u64) {}
    fn advance(&self, _units: u64) {}
    fn state(&self, _text: &str) {}
    fn finish(&self) {}
    fn line(&self, text: &str) {
        self.debug(text);
    }
    fn warn(&self, text: &str) {
        self.monitor.warn(&format!("{}: {text}", self.name));
    }
    fn debug(&self, text: &str) {
        self.monitor.debug(&format!("{}: {text}", self.name));
    }
    fn record(&self, line: &str) {
        self.monitor.record(line);
    }
    fn stopped(&self) -> bool {
        self.failed.load(Ordering::SeqCst) || self.monitor.stopped()
    }
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
        Ok(RunSet { path: path.to_path_buf(), layout, runs, outdated, devices: Vec::new() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Trains them on several devices at a time, where there are any in the list, and not on that of the settings.
    ///
    /// # Errors
    /// Devices of different kinds, whose results would differ, and a GPU that is named twice.
    pub fn on(self, devices: &[String]) -> Result<Self> {
        let refuse = |problem: String| Err(TrainError::Setting(format!("--devices: {problem}")).into());
        let choices = devices.iter().map(|name| Choice::parse(name)).collect::<Result<Vec<_>>>()?;
        for (index, (name, choice)) in devices.iter().zip(&choices).enumerate() {
            if matches!(choice, Choice::Auto) {
                return refuse("auto is the first GPU or the CPU; name each device".into());
            }
            if discriminant(choice) != discriminant(&choices[0]) {
                let problem = "need not give the same results; name devices of one kind";
                return refuse(format!("{} and {name} {problem}", devices[0]));
            }
            let gpu = |choice: &Choice| if let Choice::Cuda(gpu) = choice { Some(*gpu) } else { None };
            if gpu(choice).is_some() && choices[..index].iter().any(|other| gpu(other) == gpu(choice)) {
                return refuse(format!("{name} is named twice; a GPU trains one run at a time"));
            }
        }
        Ok(RunSet { devices: devices.to_vec(), ..self })
    }

    /// Trains all runs, each with a report of its own, and reads what they left. Also returns the images.
    pub fn train(self, monitor: &dyn Monitor) -> Result<(Vec<RunData>, Cache)> {
        let Some((_, first)) = self.runs.first() else { bail!("there is no run to train") };
        let name = self.devices.first().unwrap_or(&first.device);
        let device = device::open_to_train(name, first.precision, monitor)?;
        let Material { model, cache, enlarged } =
            material(&self.images_for_all(first), &Judged::default(), monitor)?;
        describe(&cache, monitor);
        self.prepare(monitor)?;
        let images = (&cache, enlarged.as_ref());
        if self.devices.len() < 2 {
            self.train_on((name, device), model, images, &AtomicUsize::new(0), monitor, monitor)?;
        } else {
            drop((device, model));
            self.train_side_by_side(first, images, monitor)?;
        }
        Ok((self.load()?, cache))
    }

    /// Trains the runs that no other device has taken, which `next` counts; what each says goes to `monitor`, and how
    /// far they are to `whole`.
    fn train_on(
        &self,
        (name, device): (&str, Device),
        model: Model,
        (cache, enlarged): (&Cache, Option<&Cache>),
        next: &AtomicUsize,
        monitor: &dyn Monitor,
        whole: &dyn Monitor,
    ) -> Result<()> {
        let precision = device.precision();
        let towers: Vec<Tower> =
            self.runs.iter().flat_map(|(_, settings)| settings.trained_towers().to_vec()).collect();
        let templates = self.runs.first().map_or(&[][..], |(_, first)| &first.templates);
        let beside = if self.devices.len() > 1 { format!(" on {name}") } else { String::new() };
        on_device!(device, backend => {
            let mut shared = SharedModel::new(backend, model, cache, enlarged, templates, &towers, monitor)?;
            loop {
                let index = next.fetch_add(1, Ordering::SeqCst);
                let Some((run, settings)) = self.runs.get(index) else { return Ok(()) };
                whole.line(&format!("training {run}, {} of {}{beside}", index + 1, self.runs.len()));
                let dir = RunDir::at(&self.path.join(run));
                let settings = Settings { device: name.into(), precision: Some(precision), ..settings.clone() };
                let summary = shared.train(&settings, &dir, false, monitor)?;
                report::write_run(&dir, cache, if index == 0 { monitor } else { &Silent })?;
                // Stopped, a ladder is left with what it has, which is not to be compared with whole runs.
                if summary.ladder.is_some() && monitor.stopped() {
                    bail!(TrainError::Interrupted { epoch: summary.epochs, path: dir.path().to_path_buf() });
                }
            }
        })
    }

    /// Trains on each device in a thread of its own. When one fails, the others stop behind their step.
    fn train_side_by_side(
        &self,
        first: &Settings,
        images: (&Cache, Option<&Cache>),
        monitor: &dyn Monitor,
    ) -> Result<()> {
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let on = |name: &String| {
            let aside = Aside { name, monitor, failed: &failed };
            let device = device::open_to_train(name, first.precision, &aside)?;
            let model = model_of(first, &aside)?;
            self.train_on((name, device), model, images, &next, &aside, monitor)
        };
        let (on, failed) = (&on, &failed);
        let ended: Vec<(bool, Result<()>)> = thread::scope(|scope| {
            let start = |name| {
                let thread = scope.spawn(move || {
                    let result = on(name);
                    (result.is_err() && !failed.swap(true, Ordering::SeqCst), result)
                });
                move || thread.join().unwrap_or_else(|panic| resume_unwind(panic))
            };
            let started: Vec<_> = self.devices.iter().map(start).collect();
            started.into_iter().map(|end| end()).collect()
        });
        // What made the others stop says more than that they did.
        ended.into_iter().find_map(|(first, result)| first.then_some(result)).unwrap_or(Ok(()))
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

    /// Takes the folder, and clears it.
    fn prepare(&self, monitor: &dyn Monitor) -> Result<()> {
        let whole = RunDir::at(&self.path);
        // All at once, before anything is removed.
        std::iter::once(&whole).chain(&self.outdated).try_for_each(|run| run.lock(monitor))?;
        self.clear(monitor)
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
            RunSet { path, layout, runs: Vec::new(), outdated: Vec::new(), devices: Vec::new() }
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
