//! `engine train`

use super::bars::Bars;
use super::common::parse_serde;
use super::device::{self, on_device};
use super::run_set::{Earlier, Layout, RunSet};
use super::{common, dry_run, seeds, table};
use anyhow::{Context, Result, bail};
use clip_engine::TrainError;
use clip_engine::data::source::has_own_split;
use clip_engine::fetch::{is_flowers102, settled_data, settled_model};
use clip_engine::objective::MixOn;
use clip_engine::optim::{ScheduleKind, StopAgainst};
use clip_engine::progress::Monitor;
use clip_engine::report;
use clip_engine::train::run::Summary;
use clip_engine::train::run_dir::RunDir;
use clip_engine::train::session::Session;
use clip_engine::train::settings::{
    Augment, CacheType, ClassifierKind, HeadInit, Method, Patience, Precision, Recipe, Settings,
};
use clip_engine::tune::{PromptMode, PromptSharing, Target, Tower};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Where the demo's run goes unless --output says otherwise.
const DEMO_OUTPUT: &str = "runs/demo";

/// The same for several seeds.
const DEMO_SEEDS_OUTPUT: &str = "runs/demo-seeds";

#[derive(clap::Args)]
pub struct Args {
    /// Where the run is written [default with --demo: runs/demo, replacing a demo run before].
    #[arg(long, value_name = "RUN", required_unless_present_any = ["demo", "dry_run"])]
    output: Option<PathBuf>,
    /// Settings from a TOML file, such as the config.toml of another run; flags override it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Continue the run in RUN; only --epochs, --device, --precision and --tensorboard may differ from its
    /// config.toml.
    #[arg(long, conflicts_with_all = ["config", "overwrite"])]
    resume: bool,
    /// Replace the run in RUN, or with --seeds the runs.
    #[arg(long)]
    overwrite: bool,
    /// Train N times, with seeds from --seed on, into RUN/seed-S each; all see the images that the first one
    /// sees [default with --demo: runs/demo-seeds].
    #[arg(long, value_name = "N", conflicts_with = "resume", value_parser = clap::value_parser!(u32).range(1..))]
    seeds: Option<u32>,
    /// Say what the run would do: its configuration, its images, what it trains, and the memory and the work
    /// of a step. Fetches data and model if they are not there yet, and writes nothing else.
    #[arg(long, conflicts_with_all = ["resume", "seeds"])]
    dry_run: bool,
    #[command(flatten)]
    options: Options,
}

/// Every setting, as a flag and as a key of the TOML file.
#[derive(clap::Args, Debug, Default, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// The bundled tiny CLIP on generated flowers: no network, no files.
    #[arg(long, num_args = 0, default_missing_value = "true")]
    demo: Option<bool>,
    /// A folder with train/, val/ and test/, a folder of class folders, a Flowers-102 root, or the word
    /// flowers102, which is fetched.
    #[arg(long, value_name = "DIR|flowers102")]
    data: Option<PathBuf>,
    /// A Hugging Face CLIP directory, or the id of a CLIP model on the hub, which is fetched.
    #[arg(long, value_name = "DIR|OWNER/NAME[@REVISION]")]
    model: Option<PathBuf>,
    /// Where preprocessed images are kept [default: the user's cache folder].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Element type of the image cache [default: u8, which is exact and the smallest].
    #[arg(long, value_parser = parse_serde::<CacheType>, value_name = "u8|f16|f32")]
    dtype: Option<CacheType>,
    /// Start from the adapter (adapter/, or as PEFT saves it), head.safetensors and prompts.safetensors found
    /// here.
    #[arg(long, value_name = "DIR")]
    init_from: Option<PathBuf>,
    /// Leave out images that cannot be decoded instead of stopping at the first.
    #[arg(long, num_args = 0, default_missing_value = "true")]
    skip_bad_images: Option<bool>,
    /// A named combination of settings [default: lora].
    #[arg(long, value_parser = parse_serde::<Recipe>, value_name = "lora|linear|vpt|mixup|triplet|clip-lora")]
    recipe: Option<Recipe>,
    /// What is trained beside the head [default: the recipe's].
    #[arg(long, value_parser = parse_serde::<Method>, value_name = "lora|linear|vpt")]
    method: Option<Method>,
    /// What images are classified by: a linear head, which is trained, or the text features of the classes
    /// [default: head; text in the recipe clip-lora].
    #[arg(long, value_parser = parse_serde::<ClassifierKind>, value_name = "head|text")]
    classifier: Option<ClassifierKind>,
    /// Where the head starts: at random, or at the class features of the text tower [default: random].
    #[arg(long, value_parser = parse_serde::<HeadInit>, value_name = "random|text")]
    head_init: Option<HeadInit>,
    /// Weight of the text alignment in the loss [default: 0.3; 0 in the recipes mixup and triplet].
    #[arg(long, value_name = "W")]
    text_weight: Option<f64>,
    /// Blend training images with others of their batch, by shares from Beta(A, A); 0 for none
    /// [default: 0.2 in the recipe mixup].
    #[arg(long, value_name = "A")]
    mixup: Option<f64>,
    /// What is blended [default: pixels].
    #[arg(long, value_parser = parse_serde::<MixOn>, value_name = "pixels|features")]
    mixup_on: Option<MixOn>,
    /// Share of the batch-hard triplet loss, which is taken from the head's; 0 for none [default: 0.3 in the
    /// recipe triplet].
    #[arg(long, value_name = "L")]
    triplet: Option<f64>,
    /// By how much images of other classes should be farther away than those of the same [default: 1].
    #[arg(long, value_name = "M")]
    margin: Option<f64>,
    /// One set of prompts for all blocks, or one for each [default: shared].
    #[arg(long, value_parser = parse_serde::<PromptSharing>, value_name = "shared|per-layer")]
    prompts: Option<PromptSharing>,
    /// Whether a block's prompts take the place of those before, or are put beside them [default: replace].
    #[arg(long, value_parser = parse_serde::<PromptMode>, value_name = "replace|accumulate")]
    prompt_mode: Option<PromptMode>,
    /// Prompts of a block [default: 16].
    #[arg(long, value_name = "N")]
    prompt_count: Option<usize>,
    /// Train adapters beside the prompts.
    #[arg(long, num_args = 0, default_missing_value = "true")]
    with_lora: Option<bool>,
    /// Rank of the adapters [default: 8].
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// Adapters are scaled by alpha/rank [default: 16].
    #[arg(long, value_name = "A")]
    alpha: Option<f64>,
    /// Scale adapters by alpha/√rank instead.
    #[arg(long, num_args = 0, default_missing_value = "true")]
    rslora: Option<bool>,
    /// Adapted layers of every block, of q_proj, k_proj, v_proj, out_proj, fc1 and fc2 [default: the first
    /// four; q_proj,k_proj,v_proj in the recipe clip-lora].
    #[arg(long, value_delimiter = ',', value_name = "LAYER,…")]
    targets: Option<Vec<Target>>,
    /// Towers with adapters [default: vision; vision,text in the recipe clip-lora].
    #[arg(long, value_delimiter = ',', value_name = "vision,text")]
    towers: Option<Vec<Tower>>,
    /// Share of the adapters' inputs that training sets to zero [default: 0; 0.25 in the recipe clip-lora].
    #[arg(long, value_name = "P")]
    dropout: Option<f64>,
    /// Passes over the training images [default: 40; 160 in the recipe clip-lora].
    #[arg(long, value_name = "N")]
    epochs: Option<u32>,
    /// Images per batch [default: 32].
    #[arg(long, value_name = "B")]
    batch_size: Option<usize>,
    /// Batches whose gradients make up one step [default: 1].
    #[arg(long, value_name = "N")]
    accumulate: Option<usize>,
    /// Scale the gradients of a step down to this length, all of them as one vector [default: off].
    #[arg(long, value_name = "L")]
    clip_grad_norm: Option<f64>,
    /// Seed of everything random [default: 42].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Seed of the split of a folder of classes, and of the demo's flowers [default: that of --seed].
    #[arg(long, value_name = "N")]
    data_seed: Option<u64>,
    /// Train on K images of each class, drawn by --seed [default: all].
    #[arg(long, value_name = "K")]
    shots: Option<usize>,
    /// Random resized crops and horizontal flips of the training images [default: off].
    #[arg(long, value_parser = parse_serde::<Augment>, value_name = "off|crop-flip")]
    augment: Option<Augment>,
    /// Shuffle the training images every epoch [default: true].
    #[arg(long, value_name = "true|false")]
    shuffle: Option<bool>,
    /// Learning rate of the head [default: 0.001].
    #[arg(long, value_name = "LR")]
    lr_head: Option<f64>,
    /// Weight decay of the head [default: 0.0001].
    #[arg(long, value_name = "WD")]
    wd_head: Option<f64>,
    /// Learning rate of the adapters [default: 0.0001].
    #[arg(long, value_name = "LR")]
    lr_lora: Option<f64>,
    /// Weight decay of the adapters [default: 0.01].
    #[arg(long, value_name = "WD")]
    wd_lora: Option<f64>,
    /// Learning rate of the prompts [default: 0.005].
    #[arg(long, value_name = "LR")]
    lr_prompt: Option<f64>,
    /// Weight decay of the prompts [default: 0].
    #[arg(long, value_name = "WD")]
    wd_prompt: Option<f64>,
    /// Course of the learning rates over --epochs [default: constant].
    #[arg(long, value_parser = parse_serde::<ScheduleKind>, value_name = "constant|cosine")]
    schedule: Option<ScheduleKind>,
    /// Steps over which the learning rates climb to their values [default: 0].
    #[arg(long, value_name = "STEPS")]
    warmup: Option<u64>,
    /// Stop after N epochs in a row without improvement of the validation loss [default: 3].
    #[arg(long, value_name = "N|off")]
    early_stop: Option<Patience>,
    /// By how much the validation loss must fall to count [default: 0.02].
    #[arg(long, value_name = "D")]
    early_stop_min_delta: Option<f64>,
    /// Compare with the best epoch so far or with the one before [default: best].
    #[arg(long, value_parser = parse_serde::<StopAgainst>, value_name = "best|previous")]
    early_stop_against: Option<StopAgainst>,
    /// Number type of activations and frozen weights [default: f16 on a GPU; the CPU has f32 only].
    #[arg(long, value_parser = parse_serde::<Precision>, value_name = "f32|f16|bf16")]
    precision: Option<Precision>,
    /// Where to compute [default: auto].
    #[arg(long, value_name = "auto|cpu|cuda[:N]")]
    device: Option<String>,
    /// Write the metrics for TensorBoard too, into RUN/tensorboard.
    #[arg(long, num_args = 0, default_missing_value = "true")]
    tensorboard: Option<bool>,
    /// A prompt with {} for the class name; repeat the flag for several [default: four of them].
    #[arg(long = "template", value_name = "TEXT")]
    #[serde(alias = "template")]
    templates: Option<Vec<String>>,
}

/// Hands every setting that has a default to the macro `$each`.
macro_rules! with_settings {
    ($each:ident) => {
        $each!(
            dtype,
            classifier,
            head_init,
            demo,
            skip_bad_images,
            recipe,
            method,
            text_weight,
            mixup,
            mixup_on,
            triplet,
            margin,
            prompts,
            prompt_mode,
            prompt_count,
            with_lora,
            augment,
            rank,
            alpha,
            rslora,
            targets,
            towers,
            dropout,
            epochs,
            batch_size,
            accumulate,
            seed,
            shuffle,
            lr_head,
            wd_head,
            lr_lora,
            wd_lora,
            lr_prompt,
            wd_prompt,
            schedule,
            warmup,
            early_stop,
            early_stop_min_delta,
            early_stop_against,
            device,
            tensorboard,
            templates
        )
    };
}

impl Options {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("--config: check the path; {} cannot be read", path.display()))?;
        toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            let problem = e.message();
            anyhow::anyhow!("{} line {line}: {problem}; the keys are the flags without --", path.display())
        })
    }

    /// Leaves out what makes up the recipe `from` and, where the recipe `to` has another default, what was left
    /// at the default of `from`: config.toml holds both as if they had been chosen.
    fn forget_recipe(&mut self, from: Recipe, to: Recipe) {
        (self.method, self.with_lora, self.classifier) = (None, None, None);
        (self.mixup, self.triplet) = (None, None);
        let (from, to) = (Settings::of(from), Settings::of(to));
        macro_rules! forget {
            ($($field:ident),*) => {
                $(if from.$field != to.$field && self.$field.as_ref() == Some(&from.$field) {
                    self.$field = None;
                })*
            };
        }
        with_settings!(forget);
    }

    /// Flags that a run would not look at, each with the reason.
    fn unused(&self, settings: &Settings) -> Vec<(&'static str, String)> {
        let lora = settings.lora().is_some();
        let vpt = settings.method == Method::Vpt;
        let head = settings.classifier == ClassifierKind::Head;
        let no_head = "--classifier text has no head; leave it out".to_string();
        let method = common::serde_name(&settings.method);
        let no_lora =
            format!("--method {method} trains no adapters; use --method lora, or vpt with --with-lora");
        let no_prompts = format!("--method {method} trains no prompts; use --method vpt");
        let no_mixup = "nothing is mixed; give --mixup".to_string();
        let no_triplet = "there is no triplet loss; give --triplet".to_string();
        let stops = settings.early_stop != Patience::Off;
        let no_stop = "--early-stop off never stops early; leave it out".to_string();
        let files = !settings.demo;
        let split = match &settings.data {
            Some(data) if self.data_seed.is_some() && !settings.demo => {
                !is_flowers102(data) && !has_own_split(data)
            }
            _ => true,
        };
        let own_split = "the data have a split of their own, which no seed changes; leave it out".to_string();
        let brought = settings.init_from.as_deref().filter(|dir| dir.join("head.safetensors").is_file());
        let other_head = match brought {
            Some(dir) if head => {
                let dir = dir.display();
                format!("--init-from brings the head, {dir}/head.safetensors; leave out one of the two")
            }
            _ => no_head.clone(),
        };
        let no_files = "the demo's images are drawn in memory; leave it out".to_string();
        let flags = [
            ("--rank", self.rank.is_some(), lora, &no_lora),
            ("--alpha", self.alpha.is_some(), lora, &no_lora),
            ("--rslora", self.rslora.is_some(), lora, &no_lora),
            ("--targets", self.targets.is_some(), lora, &no_lora),
            ("--towers", self.towers.is_some(), lora, &no_lora),
            ("--dropout", self.dropout.is_some(), lora, &no_lora),
            ("--head-init", self.head_init.is_some(), head && brought.is_none(), &other_head),
            ("--lr-head", self.lr_head.is_some(), head, &no_head),
            ("--wd-head", self.wd_head.is_some(), head, &no_head),
            ("--lr-lora", self.lr_lora.is_some(), lora, &no_lora),
            ("--wd-lora", self.wd_lora.is_some(), lora, &no_lora),
            ("--prompts", self.prompts.is_some(), vpt, &no_prompts),
            ("--prompt-mode", self.prompt_mode.is_some(), vpt, &no_prompts),
            ("--prompt-count", self.prompt_count.is_some(), vpt, &no_prompts),
            ("--lr-prompt", self.lr_prompt.is_some(), vpt, &no_prompts),
            ("--wd-prompt", self.wd_prompt.is_some(), vpt, &no_prompts),
            ("--mixup-on", self.mixup_on.is_some(), settings.has_mixup(), &no_mixup),
            ("--margin", self.margin.is_some(), settings.has_triplet(), &no_triplet),
            ("--early-stop-min-delta", self.early_stop_min_delta.is_some(), stops, &no_stop),
            ("--early-stop-against", self.early_stop_against.is_some(), stops, &no_stop),
            ("--data-seed", self.data_seed.is_some(), split, &own_split),
            ("--cache", self.cache.is_some(), files, &no_files),
            ("--dtype", self.dtype.is_some(), files, &no_files),
            ("--skip-bad-images", self.skip_bad_images.is_some(), files, &no_files),
        ];
        let unused = flags.into_iter().filter(|(_, given, used, _)| *given && !used);
        unused.map(|(flag, _, _, reason)| (flag, reason.clone())).collect()
    }

    /// Refuses flags that the run would not look at.
    fn check_use(&self, settings: &Settings) -> Result<()> {
        match self.unused(settings).first() {
            Some((flag, reason)) => bail!(TrainError::Setting(format!("{flag}: {reason}"))),
            None => Ok(()),
        }
    }

    /// Refuses flags that none of several runs would look at.
    fn check_use_by_any(&self, runs: &[Settings]) -> Result<()> {
        let unused: Vec<_> = runs.iter().map(|settings| self.unused(settings)).collect();
        let Some((first, others)) = unused.split_first() else { return Ok(()) };
        let by_none = |(flag, _): &&(&str, String)| {
            others.iter().all(|unused| unused.iter().any(|(other, _)| other == flag))
        };
        match first.iter().find(by_none) {
            Some((flag, _)) => {
                let text = format!("{flag}: none of the recipes has a use for it; leave it out");
                bail!(TrainError::Setting(text))
            }
            None => Ok(()),
        }
    }

    /// Writes every setting that is given here over `settings`.
    fn apply(self, settings: &mut Settings) {
        macro_rules! set {
            ($($field:ident),*) => { $(if let Some(value) = self.$field { settings.$field = value; })* };
        }
        macro_rules! set_optional {
            ($($field:ident),*) => { $(if self.$field.is_some() { settings.$field = self.$field; })* };
        }
        set_optional!(data, model, cache, init_from, precision, data_seed, shots, clip_grad_norm);
        with_settings!(set);
    }
}

/// Recipe defaults, then the file, then the flags.
pub(super) fn resolve(file: Options, flags: Options) -> Result<Settings> {
    let settings = combine(file, &flags);
    flags.check_use(&settings)?;
    settings.validate()?;
    Ok(settings)
}

/// The settings of several recipes with the same flags, each of which must be of use to one of them.
pub(super) fn resolve_each(flags: &Options, recipes: &[Recipe]) -> Result<Vec<Settings>> {
    let refuse = |text: &str| Err(TrainError::Setting(text.into()).into());
    if flags.recipe.is_some() {
        return refuse("--recipe: --recipes names the recipes of a comparison; leave it out");
    }
    if flags.method.is_some() || flags.with_lora.is_some() {
        return refuse(
            "--method, --with-lora: a recipe has its own; leave them out, or train that run apart",
        );
    }
    if flags.init_from.is_some() {
        return refuse("--init-from: recipes are compared from the same start, plain CLIP; leave it out");
    }
    // What makes a recipe goes to that recipe alone.
    let of = |&recipe| {
        let mixup = flags.mixup.filter(|_| recipe == Recipe::Mixup);
        let triplet = flags.triplet.filter(|_| recipe == Recipe::Triplet);
        combine(Options::default(), &Options { recipe: Some(recipe), mixup, triplet, ..flags.clone() })
    };
    for (flag, given, recipe) in [
        ("--mixup", flags.mixup.is_some(), Recipe::Mixup),
        ("--triplet", flags.triplet.is_some(), Recipe::Triplet),
    ] {
        if given && !recipes.contains(&recipe) {
            let text = format!("{flag}: belongs to the recipe {recipe}, which --recipes does not name");
            return Err(TrainError::Setting(text).into());
        }
    }
    let runs: Vec<Settings> = recipes.iter().map(of).collect();
    flags.check_use_by_any(&runs)?;
    for run in &runs {
        run.validate().map_err(|error| match error {
            TrainError::Setting(text) => TrainError::Setting(format!("recipe {}: {text}", run.recipe)),
            error => error,
        })?;
    }
    Ok(runs)
}

fn combine(mut file: Options, flags: &Options) -> Settings {
    if let (Some(from), Some(to)) = (file.recipe, flags.recipe)
        && from != to
    {
        file.forget_recipe(from, to);
    }
    let recipe = flags.recipe.or(file.recipe).unwrap_or(Recipe::Lora);
    let mut settings = Settings::of(recipe);
    file.apply(&mut settings);
    flags.clone().apply(&mut settings);
    // config.toml must mean the same from any directory.
    settings.data = settings.data.as_deref().map(settled_data);
    settings.model = settings.model.as_deref().map(settled_model);
    for path in [&mut settings.cache, &mut settings.init_from].into_iter().flatten() {
        *path = std::path::absolute(&*path).unwrap_or_else(|_| path.clone());
    }
    settings
}

pub fn run(args: Args) -> Result<()> {
    let monitor = Bars::new();
    let (dir, mut settings) = if args.resume {
        resume(&args, &monitor)?
    } else {
        let file = args.config.as_deref().map(Options::read).transpose()?.unwrap_or_default();
        let settings = resolve(file, args.options)?;
        common::warn_of_adapter(settings.init_from.as_deref(), &monitor)?;
        if let Some(count) = args.seeds {
            let earlier = if args.overwrite { Earlier::Replace } else { Earlier::Keep };
            let (path, earlier) = match &args.output {
                Some(output) => (output.as_path(), earlier),
                None => (Path::new(DEMO_SEEDS_OUTPUT), Earlier::ReplaceDemo),
            };
            let runs = seeds::runs_of(&settings, count, None)?;
            return seeds::train(RunSet::vacant(path, Layout::Seeds, runs, earlier)?, &monitor);
        }
        let dir = match &args.output {
            Some(output) => RunDir::vacant(output, args.overwrite)?,
            None if args.dry_run => return dry_run::run(settings, &monitor),
            None => {
                let path = Path::new(DEMO_OUTPUT);
                let earlier = RunDir::existing(path).and_then(|run| run.read_settings());
                // What is kept there of other photos goes only when asked for.
                RunDir::vacant(path, args.overwrite || earlier.is_ok_and(|settings| settings.demo))?
            }
        };
        if args.dry_run {
            return dry_run::run(settings, &monitor);
        }
        (dir, settings)
    };
    let device = device::open_to_train(&settings.device, settings.precision, &monitor)?;
    settings.precision = Some(device.precision());
    let material = common::material(&settings, &monitor)?;
    material.describe(&monitor);
    let common::Material { model, cache, enlarged } = material;
    let resume = args.resume;
    let summary = on_device!(device, backend => {
        let templates = &settings.templates;
        let towers = settings.trained_towers();
        let mut session = Session::new(backend, model, &cache, enlarged.as_ref(), templates, towers, &monitor)?;
        session.train(&settings, &dir, resume, &monitor)
    })?;
    report::write_run(&dir, &cache, &monitor)?;
    print(&summary, &dir)
}

/// The run directory and settings of a run to continue.
fn resume(args: &Args, monitor: &dyn Monitor) -> Result<(RunDir, Settings)> {
    let dir = RunDir::existing(args.output.as_deref().unwrap_or(Path::new(DEMO_OUTPUT)))?;
    // Its settings must not change any more.
    dir.lock(monitor)?;
    let mut settings = dir.read_settings()?;
    let allowed = Options {
        epochs: args.options.epochs,
        device: args.options.device.clone(),
        precision: args.options.precision,
        demo: args.options.demo,
        tensorboard: args.options.tensorboard,
        ..Options::default()
    };
    if args.options != allowed {
        bail!(TrainError::Setting(
            "--resume: only --epochs, --device, --precision and --tensorboard may be given with it".into()
        ));
    }
    if args.options.demo.is_some_and(|demo| demo != settings.demo) {
        bail!(TrainError::Setting("--resume: that run is no demo; leave out --demo".into()));
    }
    allowed.apply(&mut settings);
    settings.validate()?;
    Ok((dir, settings))
}

fn print(summary: &Summary, dir: &RunDir) -> Result<()> {
    let mut table = table::table(&["", "images", "top-1", "top-5", "macro F1", "text top-1", "loss"]);
    let z = &summary.zero_shot;
    table.add_row([
        format!("zero-shot, {}", z.split),
        z.images.to_string(),
        table::percent(z.top1),
        table::percent(z.top5),
        "".into(),
        table::percent(z.top1),
        "".into(),
    ]);
    let rows = [("val", Some(&summary.val)), ("test", summary.test.as_ref())];
    for (name, m) in rows.into_iter().filter_map(|(name, m)| m.map(|m| (name, m))) {
        table.add_row([
            format!("fine-tuned, {name}"),
            m.images.to_string(),
            table::percent(m.top1),
            table::percent(m.top5),
            table::percent(m.macro_f1),
            table::percent(m.text_top1),
            format!("{:.4}", m.loss),
        ]);
    }
    common::say(table)?;
    common::say(format!(
        "epoch {} of {} kept{}; {} trained parameters; {:.1} s, {:.0} images/s in training; {}",
        summary.best_epoch,
        summary.epochs,
        if summary.stopped_early { " (stopped early)" } else { "" },
        summary.trained_parameters,
        summary.seconds,
        summary.images_per_s,
        summary.device,
    ))?;
    common::say(format!("run: {}; report: {}", dir.path().display(), dir.report().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The settings as config.toml holds them.
    fn file(settings: &Settings) -> Options {
        toml::from_str(&toml::to_string(settings).unwrap()).unwrap()
    }

    fn recipe(recipe: Recipe) -> Options {
        Options { recipe: Some(recipe), ..Options::default() }
    }

    #[test]
    fn another_recipe_than_the_file_has_brings_all_its_defaults() {
        for from in Recipe::ALL {
            for to in Recipe::ALL {
                let of = |recipe| Settings { demo: true, epochs: 7, ..Settings::of(recipe) };
                let found = resolve(file(&of(from)), recipe(to)).unwrap();
                assert_eq!(found, of(to), "from {from} to {to}");
            }
        }
    }

    #[test]
    fn values_that_the_user_chose_stay_when_the_recipe_changes() {
        let chosen = Settings {
            demo: true,
            rank: 4,
            early_stop: Patience::Epochs(5),
            lr_lora: 3e-4,
            text_weight: 0.5,
            ..Settings::of(Recipe::Lora)
        };
        let expected = Settings {
            demo: true,
            rank: 4,
            early_stop: Patience::Epochs(5),
            lr_lora: 3e-4,
            text_weight: 0.5,
            ..Settings::of(Recipe::ClipLora)
        };
        assert_eq!(resolve(file(&chosen), recipe(Recipe::ClipLora)).unwrap(), expected);
        // Flags are chosen too, also where they are the old recipe's default.
        let flags = Options { rank: Some(8), ..recipe(Recipe::ClipLora) };
        assert_eq!(resolve(file(&chosen), flags).unwrap(), Settings { rank: 8, ..expected });
        // What a technique consists of does not outlive it.
        let mixed = Settings { demo: true, mixup: 0.4, ..Settings::of(Recipe::Mixup) };
        let triplet = Settings { demo: true, ..Settings::of(Recipe::Triplet) };
        assert_eq!(resolve(file(&mixed), recipe(Recipe::Triplet)).unwrap(), triplet);
        // A file without a recipe holds what somebody wrote into it.
        let written: Options = toml::from_str("demo = true\nrank = 8\ntext-weight = 0.3").unwrap();
        let found = resolve(written, recipe(Recipe::ClipLora)).unwrap();
        let expected = Settings { demo: true, rank: 8, text_weight: 0.3, ..Settings::of(Recipe::ClipLora) };
        assert_eq!(found, expected);
    }

    #[test]
    fn names_that_are_no_folders_stay_as_they_are() {
        let options = |data: &str, model: &str| Options {
            data: Some(data.into()),
            model: Some(model.into()),
            ..Options::default()
        };
        let here = std::env::current_dir().unwrap();
        let names = |settings: Settings| (settings.data.unwrap(), settings.model.unwrap());
        let fetched = options("flowers102", "openai/clip@main");
        let expected = ("flowers102".into(), "openai/clip@main".into());
        assert_eq!(names(resolve(fetched.clone(), Options::default()).unwrap()), expected);
        assert_eq!(names(resolve(Options::default(), fetched).unwrap()), expected);
        let folders = resolve(Options::default(), options("photos", "assets/demo-clip")).unwrap();
        assert_eq!(names(folders), (here.join("photos"), here.join("assets/demo-clip")));
    }
}
