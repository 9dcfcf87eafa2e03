//! `engine train`

use super::bars::Bars;
use super::common::{Judged, parse_serde};
use super::device::{self, on_device};
use super::run_set::{Earlier, Layout, RunSet};
use super::table::Results;
use super::{common, dry_run, output, seeds, table};
use anyhow::{Context, Result, bail};
use clip_engine::TrainError;
use clip_engine::data::Dataset;
use clip_engine::data::decode::Orientation;
use clip_engine::fetch::{is_flowers102, settled_data, settled_model};
use clip_engine::objective::MixOn;
use clip_engine::optim::{ScheduleKind, StopAgainst};
use clip_engine::progress::Monitor;
use clip_engine::report;
use clip_engine::train::keep::KeepBy;
use clip_engine::train::run::{Summary, Temperature};
use clip_engine::train::run_dir::RunDir;
use clip_engine::train::session::Session;
use clip_engine::train::settings::{
    Augment, CacheType, ClassWeights, ClassifierKind, HeadInit, Method, Patience, Precision, Recipe, Sampler,
    Settings, TextAlignment, are_flowers, default_templates,
};
use clip_engine::tune::{HeadScale, PromptMode, PromptSharing, Target, Tower};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Headings of the help.
const DATA: &str = "Data and model";
const TRAINED: &str = "What is trained";
const LOSS: &str = "Loss";
const OPTIMISATION: &str = "Optimisation";
const STOPPING: &str = "Stopping and keeping";
const OUTPUT: &str = "Output and device";

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// Where the run is written [default: runs/NAME by the name of the data, runs/demo with --demo; a demo run
    /// there is replaced].
    #[arg(long, help_heading = OUTPUT, value_name = "RUN")]
    output: Option<PathBuf>,
    /// Settings from a TOML file, such as the config.toml of another run; flags override it.
    #[arg(long, help_heading = TRAINED, hide_short_help = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Continue the run in RUN; only --epochs, --early-stop and its like, --device, --precision and --tensorboard
    /// may differ from its config.toml.
    #[arg(long, help_heading = OUTPUT, conflicts_with_all = ["config", "overwrite"])]
    resume: bool,
    /// Replace the run in RUN, or with --seeds the runs.
    #[arg(long, help_heading = OUTPUT)]
    overwrite: bool,
    /// Train N times, with seeds from --seed on, into RUN/seed-S each; all see the images that the first one
    /// sees [--output by default: runs/NAME-seeds].
    #[arg(long, help_heading = OPTIMISATION, hide_short_help = true, value_name = "N", conflicts_with = "resume", value_parser = clap::value_parser!(u32).range(1..))]
    seeds: Option<u32>,
    /// Say what the run would do: its configuration, its images, what it trains, and the memory and the work
    /// of a step. Fetches data and model if they are not there yet, and writes nothing else.
    #[arg(long, help_heading = OUTPUT, conflicts_with_all = ["resume", "seeds"])]
    dry_run: bool,
}

/// Every setting, as a flag and as a key of the TOML file.
#[derive(clap::Args, Debug, Default, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// The bundled tiny CLIP on generated flowers: no network, no files.
    #[arg(long, help_heading = DATA, num_args = 0, default_missing_value = "true")]
    demo: Option<bool>,
    /// A folder with train/, val/ and test/, a folder of class folders, a Flowers-102 root, or the word
    /// flowers102, which is fetched.
    #[arg(long, help_heading = DATA, value_name = "DIR|flowers102")]
    data: Option<PathBuf>,
    /// A Hugging Face CLIP directory, or the id of a CLIP model on the hub, which is fetched
    /// [default: openai/clip-vit-base-patch32].
    #[arg(long, help_heading = DATA, value_name = "DIR|OWNER/NAME[@REVISION]")]
    model: Option<PathBuf>,
    /// Where preprocessed images are kept [default: the user's cache folder].
    #[arg(long, help_heading = DATA, hide_short_help = true, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Element type of the image cache [default: u8, which is exact and the smallest].
    #[arg(long, help_heading = DATA, hide_short_help = true, value_parser = parse_serde::<CacheType>, value_name = "u8|f16|f32")]
    dtype: Option<CacheType>,
    /// Start from the adapter (adapter/, or as PEFT saves it), head.safetensors and prompts.safetensors found
    /// here.
    #[arg(long, help_heading = DATA, hide_short_help = true, value_name = "DIR")]
    init_from: Option<PathBuf>,
    /// Leave out images that cannot be decoded instead of stopping at the first.
    #[arg(long, help_heading = DATA, hide_short_help = true, num_args = 0, default_missing_value = "true")]
    skip_bad_images: Option<bool>,
    /// Where the photos of a list lie [default: beside it].
    #[arg(long, help_heading = DATA, hide_short_help = true, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Names of the classes: a JSON object by folder, a JSON list, or lines [default: a cat_to_name.json beside the
    /// folders].
    #[arg(long, help_heading = DATA, hide_short_help = true, value_name = "FILE")]
    class_names: Option<PathBuf>,
    /// Photos of one group stay in one split where splits are drawn: a table with the columns path and group, or a
    /// regular expression for paths.
    #[arg(long, help_heading = DATA, hide_short_help = true, value_name = "FILE|REGEX")]
    groups: Option<String>,
    /// Share of the photos that are drawn for validation where there is no such split [default: 0.15].
    #[arg(long, help_heading = DATA, hide_short_help = true, value_name = "P")]
    val_share: Option<f64>,
    /// Refuse photos that are in two splits or classes, byte for byte, instead of warning.
    #[arg(long, help_heading = DATA, hide_short_help = true, num_args = 0, default_missing_value = "true")]
    refuse_duplicates: Option<bool>,
    /// Turn photos upright as their EXIF data say, or take them as they are stored [default: exif].
    #[arg(long, help_heading = DATA, hide_short_help = true, value_parser = parse_serde::<Orientation>, value_name = "exif|ignore")]
    orientation: Option<Orientation>,
    /// A named combination of settings [default: lora].
    #[arg(long, help_heading = TRAINED, value_parser = parse_serde::<Recipe>, value_name = "lora|linear|vpt|mixup|triplet|clip-lora")]
    recipe: Option<Recipe>,
    /// What is trained beside the head [default: the recipe's].
    #[arg(long, help_heading = TRAINED, hide_short_help = true, value_parser = parse_serde::<Method>, value_name = "lora|linear|vpt")]
    method: Option<Method>,
    /// What images are classified by: a linear head, which is trained, or the text features of the classes
    /// [default: head; text in clip-lora].
    #[arg(long, help_heading = TRAINED, hide_short_help = true, value_parser = parse_serde::<ClassifierKind>, value_name = "head|text")]
    classifier: Option<ClassifierKind>,
    /// Where the head starts: at 0, at random as torch.nn.Linear, or at plain CLIP's own classifier
    /// [default: zero].
    #[arg(long, help_heading = TRAINED, hide_short_help = true, value_parser = parse_serde::<HeadInit>, value_name = "zero|random|text")]
    head_init: Option<HeadInit>,
    /// The head is trained on features of this length, sqrt-width for the root of their width; 1 is
    /// torch.nn.Linear on CLIP's features [default: sqrt-width].
    #[arg(long, help_heading = TRAINED, hide_short_help = true, value_parser = parse_head_scale, value_name = "C|sqrt-width")]
    head_scale: Option<HeadScale>,
    /// Weight of the text alignment in the loss [default: 0.3; 0 in mixup and triplet; 1 in clip-lora].
    #[arg(long, help_heading = LOSS, hide_short_help = true, value_name = "W")]
    text_weight: Option<f64>,
    /// Whether the text alignment is left out where plain CLIP's class names are no better than chance on the
    /// validation split [default: auto; always with --text-weight].
    #[arg(long, help_heading = LOSS, hide_short_help = true, value_parser = parse_serde::<TextAlignment>, value_name = "auto|always")]
    text_alignment: Option<TextAlignment>,
    /// Blend training images with others of their batch, by shares from Beta(A, A); 0 for none
    /// [default: 0; 0.2 in mixup].
    #[arg(long, help_heading = LOSS, hide_short_help = true, value_name = "A")]
    mixup: Option<f64>,
    /// What is blended [default: pixels].
    #[arg(long, help_heading = LOSS, hide_short_help = true, value_parser = parse_serde::<MixOn>, value_name = "pixels|features")]
    mixup_on: Option<MixOn>,
    /// Share of the batch-hard triplet loss, which is taken from the head's; 0 for none
    /// [default: 0; 0.3 in triplet].
    #[arg(long, help_heading = LOSS, hide_short_help = true, value_name = "L")]
    triplet: Option<f64>,
    /// By how much images of other classes should be farther away than those of the same [default: 1].
    #[arg(long, help_heading = LOSS, hide_short_help = true, value_name = "M")]
    margin: Option<f64>,
    /// Weight every class by n/(C·n_c) in the cross entropy that images are classified by, for classes of unequal
    /// size [default: off].
    #[arg(long, help_heading = LOSS, hide_short_help = true, value_parser = parse_serde::<ClassWeights>, value_name = "off|balanced")]
    class_weights: Option<ClassWeights>,
    /// Share of a label that goes to all classes alike, in the same cross entropy [default: 0].
    #[arg(long, help_heading = LOSS, hide_short_help = true, value_name = "S")]
    label_smoothing: Option<f64>,
    /// One set of prompts for all blocks, or one for each [default: shared].
    #[arg(long, help_heading = TRAINED, hide_short_help = true, value_parser = parse_serde::<PromptSharing>, value_name = "shared|per-layer")]
    prompts: Option<PromptSharing>,
    /// Whether a block's prompts take the place of those before, or are put beside them [default: replace].
    #[arg(long, help_heading = TRAINED, hide_short_help = true, value_parser = parse_serde::<PromptMode>, value_name = "replace|accumulate")]
    prompt_mode: Option<PromptMode>,
    /// Prompts of a block [default: 16].
    #[arg(long, help_heading = TRAINED, hide_short_help = true, value_name = "N")]
    prompt_count: Option<usize>,
    /// Train adapters beside the prompts.
    #[arg(long, help_heading = TRAINED, hide_short_help = true, num_args = 0, default_missing_value = "true")]
    with_lora: Option<bool>,
    /// Rank of the adapters [default: 8; 2 in clip-lora].
    #[arg(long, help_heading = TRAINED, hide_short_help = true, value_name = "R")]
    rank: Option<usize>,
    /// Adapters are scaled by alpha/rank [default: 16; 1 in clip-lora].
    #[arg(long, help_heading = TRAINED, hide_short_help = true, value_name = "A")]
    alpha: Option<f64>,
    /// Scale adapters by alpha/√rank instead.
    #[arg(long, help_heading = TRAINED, hide_short_help = true, num_args = 0, default_missing_value = "true")]
    rslora: Option<bool>,
    /// Adapted layers of every block, of q_proj, k_proj, v_proj, out_proj, fc1 and fc2 [default: the first
    /// four; q_proj,k_proj,v_proj in clip-lora].
    #[arg(long, help_heading = TRAINED, hide_short_help = true, value_delimiter = ',', value_name = "LAYER,…")]
    targets: Option<Vec<Target>>,
    /// Towers with adapters [default: vision; vision,text in clip-lora].
    #[arg(long, help_heading = TRAINED, hide_short_help = true, value_delimiter = ',', value_name = "vision,text")]
    towers: Option<Vec<Tower>>,
    /// Share of the adapters' inputs that training sets to zero [default: 0; 0.25 in clip-lora].
    #[arg(long, help_heading = TRAINED, hide_short_help = true, value_name = "P")]
    dropout: Option<f64>,
    /// Passes over the training images [default: 40; by --steps-per-shot in clip-lora].
    #[arg(long, help_heading = OPTIMISATION, value_name = "N")]
    epochs: Option<u32>,
    /// As many epochs as make N steps for each training image of a class, of which up to 16 count
    /// [default: 500 in clip-lora].
    #[arg(long, help_heading = OPTIMISATION, hide_short_help = true, value_name = "N", conflicts_with = "epochs")]
    steps_per_shot: Option<u32>,
    /// Images per batch [default: 32].
    #[arg(long, help_heading = OPTIMISATION, value_name = "B")]
    batch_size: Option<usize>,
    /// Batches whose gradients make up one step [default: 1].
    #[arg(long, help_heading = OPTIMISATION, hide_short_help = true, value_name = "N")]
    accumulate: Option<usize>,
    /// Scale the gradients of a step down to this length, all of them as one vector [default: off].
    #[arg(long, help_heading = OPTIMISATION, hide_short_help = true, value_name = "L")]
    clip_grad_norm: Option<f64>,
    /// Seed of everything random [default: 42].
    #[arg(long, help_heading = OPTIMISATION, value_name = "N")]
    seed: Option<u64>,
    /// Seed of the split of a folder of classes, and of the demo's flowers [default: that of --seed].
    #[arg(long, help_heading = DATA, hide_short_help = true, value_name = "N")]
    data_seed: Option<u64>,
    /// Train on K images of each class, drawn by --seed, or on all of a class that has fewer [default: all].
    #[arg(long, help_heading = DATA, value_name = "K")]
    shots: Option<usize>,
    /// Random resized crops and horizontal flips of the training images [default: off; crop-flip in clip-lora].
    #[arg(long, help_heading = DATA, value_parser = parse_serde::<Augment>, value_name = "off|crop-flip")]
    augment: Option<Augment>,
    /// Least share of an image's area that a crop takes [default: 0.5; 0.08 in clip-lora].
    #[arg(long, help_heading = DATA, hide_short_help = true, value_name = "A")]
    crop_area: Option<f64>,
    /// See every training image once an epoch, or draw as many with replacement, each class as likely as any other
    /// [default: once].
    #[arg(long, help_heading = DATA, hide_short_help = true, value_parser = parse_serde::<Sampler>, value_name = "once|balanced")]
    sampler: Option<Sampler>,
    /// Shuffle the training images every epoch [default: true].
    #[arg(long, help_heading = DATA, hide_short_help = true, value_name = "true|false")]
    shuffle: Option<bool>,
    /// Learning rate of the head [default: 0.001].
    #[arg(long, help_heading = OPTIMISATION, value_name = "LR")]
    lr_head: Option<f64>,
    /// Weight decay of the head [default: 0.0001].
    #[arg(long, help_heading = OPTIMISATION, hide_short_help = true, value_name = "WD")]
    wd_head: Option<f64>,
    /// Learning rate of the adapters [default: 0.0001; 0.0002 in clip-lora].
    #[arg(long, help_heading = OPTIMISATION, value_name = "LR")]
    lr_lora: Option<f64>,
    /// Weight decay of the adapters [default: 0.01].
    #[arg(long, help_heading = OPTIMISATION, hide_short_help = true, value_name = "WD")]
    wd_lora: Option<f64>,
    /// Learning rate of the prompts [default: 0.005].
    #[arg(long, help_heading = OPTIMISATION, hide_short_help = true, value_name = "LR")]
    lr_prompt: Option<f64>,
    /// Weight decay of the prompts [default: 0].
    #[arg(long, help_heading = OPTIMISATION, hide_short_help = true, value_name = "WD")]
    wd_prompt: Option<f64>,
    /// Course of the learning rates over --epochs [default: constant; cosine in clip-lora].
    #[arg(long, help_heading = OPTIMISATION, hide_short_help = true, value_parser = parse_serde::<ScheduleKind>, value_name = "constant|cosine")]
    schedule: Option<ScheduleKind>,
    /// Steps over which the learning rates climb to their values [default: 0].
    #[arg(long, help_heading = OPTIMISATION, hide_short_help = true, value_name = "STEPS")]
    warmup: Option<u64>,
    /// Stop after N epochs in a row without a new lowest validation loss [default: 3; off in clip-lora].
    #[arg(long, help_heading = STOPPING, value_name = "N|off")]
    early_stop: Option<Patience>,
    /// By how much an epoch's validation loss must undercut the lowest before it to count [default: 0].
    #[arg(long, help_heading = STOPPING, hide_short_help = true, value_name = "D")]
    early_stop_min_delta: Option<f64>,
    /// Compare with the best epoch so far or with the one before [default: best].
    #[arg(long, help_heading = STOPPING, hide_short_help = true, value_parser = parse_serde::<StopAgainst>, value_name = "best|previous")]
    early_stop_against: Option<StopAgainst>,
    /// Which epoch is kept by its validation results: the lowest loss within one standard error of the best accuracy,
    /// the best accuracy, the best macro F1, or the lowest loss [default: one-se].
    #[arg(long, help_heading = STOPPING, hide_short_help = true, value_parser = parse_serde::<KeepBy>, value_name = "one-se|accuracy|macro-f1|loss")]
    keep_by: Option<KeepBy>,
    /// Number type of activations and frozen weights [default: f16 on a GPU; the CPU has f32 only].
    #[arg(long, help_heading = OUTPUT, hide_short_help = true, value_parser = parse_serde::<Precision>, value_name = "f32|f16|bf16")]
    precision: Option<Precision>,
    /// Where to compute [default: auto].
    #[arg(long, help_heading = OUTPUT, value_name = "auto|cpu|cuda[:N]")]
    device: Option<String>,
    /// Write the metrics for TensorBoard too, into RUN/tensorboard.
    #[arg(long, help_heading = OUTPUT, hide_short_help = true, num_args = 0, default_missing_value = "true")]
    tensorboard: Option<bool>,
    /// Fit a logistic regression on plain CLIP's features too, to compare with [default: true].
    #[arg(long, help_heading = OUTPUT, hide_short_help = true, value_name = "true|false")]
    baseline: Option<bool>,
    /// A prompt with {} for the class name; repeat the flag for several [default: "a photo of a {}.", "a close-up
    /// photo of a {}.", "a cropped photo of a {}.", "a bright photo of a {}."; for Flowers-102 and the demo "A photo of {}.",
    /// "A photo of flower {}.", "Botanic picture of {}", "A example picture of type {}"; in clip-lora the first alone,
    /// for flowers "a photo of a {}, a type of flower."].
    #[arg(long = "template", help_heading = DATA, hide_short_help = true, value_name = "TEXT")]
    #[serde(alias = "template")]
    templates: Option<Vec<String>>,
}

fn parse_head_scale(text: &str) -> std::result::Result<HeadScale, String> {
    match text.parse() {
        Ok(scale) => Ok(HeadScale::Of(scale)),
        Err(_) => parse_serde(text).map_err(|_| format!("{text:?} is neither a number nor \"sqrt-width\"")),
    }
}

/// Hands every setting that has a default to the macro `$each`.
macro_rules! with_settings {
    ($each:ident) => {
        $each!(
            dtype,
            classifier,
            head_init,
            head_scale,
            demo,
            skip_bad_images,
            refuse_duplicates,
            val_share,
            orientation,
            recipe,
            method,
            text_weight,
            text_alignment,
            mixup,
            mixup_on,
            triplet,
            margin,
            class_weights,
            label_smoothing,
            prompts,
            prompt_mode,
            prompt_count,
            with_lora,
            augment,
            crop_area,
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
            sampler,
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
            keep_by,
            device,
            tensorboard,
            baseline,
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
        if self.steps_per_shot.is_some() && self.steps_per_shot == from.steps_per_shot {
            (self.steps_per_shot, self.epochs) = (None, None);
        }
        if to.steps_per_shot.is_some() && self.epochs == Some(from.epochs) {
            self.epochs = None;
        }
        macro_rules! forget {
            ($($field:ident),*) => {
                $(if from.$field != to.$field && self.$field.as_ref() == Some(&from.$field) {
                    self.$field = None;
                })*
            };
        }
        with_settings!(forget);
    }

    /// Whether there is nothing to train on.
    pub(super) fn names_no_data(&self) -> bool {
        self.data.is_none() && self.demo != Some(true)
    }

    pub(super) fn names_model(&self) -> bool {
        self.model.is_some()
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
        let no_text = "there is none; give --text-weight".to_string();
        let no_mixup = "nothing is mixed; give --mixup".to_string();
        let drawn = "--sampler balanced draws the images at random; leave it out".to_string();
        let no_crops = "--augment off takes no crops; leave it out".to_string();
        let no_triplet = "there is no triplet loss; give --triplet".to_string();
        let stops = settings.early_stop != Patience::Off;
        let no_stop = "--early-stop off never stops early; leave it out".to_string();
        let files = !settings.demo;
        let split = match &settings.data {
            Some(data) if self.data_seed.is_some() && !settings.demo => {
                // What cannot be opened is for the run to say.
                let drawn =
                    |options| Dataset::open(data, options).map_or(true, |source| source.drawn.is_some());
                !is_flowers102(data) && settings.source_options().map_or(true, drawn)
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
            ("--head-scale", self.head_scale.is_some(), head, &no_head),
            ("--text-alignment", self.text_alignment.is_some(), settings.text_weight > 0.0, &no_text),
            ("--lr-head", self.lr_head.is_some(), head, &no_head),
            ("--wd-head", self.wd_head.is_some(), head, &no_head),
            ("--lr-lora", self.lr_lora.is_some(), lora, &no_lora),
            ("--wd-lora", self.wd_lora.is_some(), lora, &no_lora),
            ("--prompts", self.prompts.is_some(), vpt, &no_prompts),
            ("--prompt-mode", self.prompt_mode.is_some(), vpt, &no_prompts),
            ("--prompt-count", self.prompt_count.is_some(), vpt, &no_prompts),
            ("--crop-area", self.crop_area.is_some(), settings.augment != Augment::Off, &no_crops),
            ("--lr-prompt", self.lr_prompt.is_some(), vpt, &no_prompts),
            ("--wd-prompt", self.wd_prompt.is_some(), vpt, &no_prompts),
            ("--mixup-on", self.mixup_on.is_some(), settings.has_mixup(), &no_mixup),
            ("--shuffle", self.shuffle.is_some(), settings.sampler == Sampler::Once, &drawn),
            ("--margin", self.margin.is_some(), settings.has_triplet(), &no_triplet),
            ("--early-stop-min-delta", self.early_stop_min_delta.is_some(), stops, &no_stop),
            ("--early-stop-against", self.early_stop_against.is_some(), stops, &no_stop),
            ("--data-seed", self.data_seed.is_some(), split, &own_split),
            ("--cache", self.cache.is_some(), files, &no_files),
            ("--dtype", self.dtype.is_some(), files, &no_files),
            ("--skip-bad-images", self.skip_bad_images.is_some(), files, &no_files),
            ("--images", self.images.is_some(), files, &no_files),
            ("--class-names", self.class_names.is_some(), files, &no_files),
            ("--groups", self.groups.is_some(), files, &no_files),
            ("--val-share", self.val_share.is_some(), files, &no_files),
            ("--refuse-duplicates", self.refuse_duplicates.is_some(), files, &no_files),
            ("--orientation", self.orientation.is_some(), files, &no_files),
        ];
        let unused = flags.into_iter().filter(|(_, given, used, _)| *given && !used);
        unused.map(|(flag, _, _, reason)| (flag, reason.clone())).collect()
    }

    /// Refuses flags that the run of these settings would not look at, and what it could not do.
    fn check(&self, settings: &Settings) -> Result<()> {
        if let Some((flag, reason)) = self.unused(settings).first() {
            bail!(TrainError::Setting(format!("{flag}: {reason}")));
        }
        Ok(settings.validate()?)
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
    fn apply(mut self, settings: &mut Settings) {
        if self.text_weight.is_some() {
            self.text_alignment.get_or_insert(TextAlignment::Always);
        }
        macro_rules! set {
            ($($field:ident),*) => { $(if let Some(value) = self.$field { settings.$field = value; })* };
        }
        macro_rules! set_optional {
            ($($field:ident),*) => { $(if self.$field.is_some() { settings.$field = self.$field; })* };
        }
        if self.epochs.is_some() {
            // Whichever of the two was named last.
            settings.steps_per_shot = None;
        }
        set_optional!(
            steps_per_shot,
            data,
            model,
            cache,
            images,
            class_names,
            groups,
            init_from,
            precision,
            data_seed,
            shots,
            clip_grad_norm
        );
        with_settings!(set);
    }
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

/// Recipe defaults, then the file, then the flags.
fn combine(mut file: Options, flags: &Options) -> Settings {
    let (before, written) = (file.recipe, file.templates.clone());
    let of_flowers = (file.data.is_some() || file.demo.is_some())
        .then(|| file.demo == Some(true) || file.data.as_deref().is_some_and(are_flowers));
    if let (Some(from), Some(to)) = (file.recipe, flags.recipe)
        && from != to
    {
        file.forget_recipe(from, to);
    }
    let recipe = flags.recipe.or(file.recipe).unwrap_or(Recipe::Lora);
    let mut settings = Settings::of(recipe);
    file.apply(&mut settings);
    flags.clone().apply(&mut settings);
    // config.toml holds the prompts as if they had been chosen.
    let flowers = settings.is_of_flowers();
    let usual = default_templates(before.unwrap_or(recipe), of_flowers.unwrap_or(flowers));
    if flags.templates.is_none() && written.is_none_or(|templates| templates == usual) {
        settings.templates = default_templates(recipe, flowers);
    }
    // config.toml must mean the same from any directory.
    settings.data = settings.data.as_deref().map(settled_data);
    settings.model = settings.model_name().or(settings.model.as_deref()).map(settled_model);
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let Settings { cache, init_from, images, class_names, .. } = &mut settings;
    for path in [cache, init_from, images, class_names].into_iter().flatten() {
        *path = absolute(path);
    }
    settings.groups = settings.groups.map(|groups| {
        let file = Path::new(&groups).is_file().then(|| absolute(Path::new(&groups)));
        file.and_then(|file| file.into_os_string().into_string().ok()).unwrap_or(groups)
    });
    settings
}

pub fn run(args: Args) -> Result<()> {
    let monitor = Bars::new();
    let (dir, mut settings) = if args.resume {
        resume(&args, &monitor)?
    } else {
        let file = args.config.as_deref().map(Options::read).transpose()?.unwrap_or_default();
        let model_is_given = file.model.is_some() || args.options.model.is_some();
        let settings = combine(file, &args.options);
        if settings.data.is_none() && !settings.demo {
            let text = "--data is missing; for example engine train --data DIR, or engine train --demo";
            bail!(TrainError::Setting(text.into()));
        }
        args.options.check(&settings)?;
        if let Some(name) = settings.model_name().filter(|_| !model_is_given) {
            common::say_default_model(name, &monitor);
        }
        common::warn_of_adapter(settings.init_from.as_deref(), &monitor)?;
        if let Some(count) = args.seeds {
            let (path, earlier) = match (&args.output, args.overwrite) {
                (Some(output), false) => (output.clone(), Earlier::Keep),
                (Some(output), true) => (output.clone(), Earlier::Replace),
                (None, false) => (output::of_seeds(&settings)?, Earlier::ReplaceDemo),
                (None, true) => (output::of_seeds(&settings)?, Earlier::Replace),
            };
            let runs = seeds::runs_of(&settings, count, None)?;
            let set = RunSet::vacant(&path, Layout::Seeds, runs, earlier)?;
            monitor.line(&format!("runs: {}", path.display()));
            return seeds::train(set, &monitor);
        }
        let dir = match &args.output {
            Some(output) => RunDir::vacant(output, args.overwrite)?,
            None if args.dry_run => return dry_run::run(settings, &monitor),
            None => {
                let path = output::of_run(&settings)?;
                let earlier = RunDir::existing(&path).and_then(|run| run.read_settings());
                // What is kept there of other photos goes only when asked for.
                RunDir::vacant(&path, args.overwrite || earlier.is_ok_and(|settings| settings.demo))?
            }
        };
        if args.dry_run {
            return dry_run::run(settings, &monitor);
        }
        monitor.line(&format!("run: {}", dir.path().display()));
        (dir, settings)
    };
    let device = device::open_to_train(&settings.device, settings.precision, &monitor)?;
    settings.precision = Some(device.precision());
    let material = common::material(&settings, &Judged::default(), &monitor)?;
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
    let named = combine(Options::default(), &args.options);
    let path = match &args.output {
        Some(output) => output.clone(),
        None if named.demo || named.data.is_some() => output::of_run(&named)?,
        None => {
            let text = "--output is missing; for example engine train --resume --output runs/flowers102";
            bail!(TrainError::Setting(text.into()));
        }
    };
    let dir = RunDir::existing(&path)?;
    // Its settings must not change any more.
    dir.lock(monitor)?;
    let mut settings = dir.read_settings()?;
    let allowed = Options {
        epochs: args.options.epochs,
        device: args.options.device.clone(),
        precision: args.options.precision,
        demo: args.options.demo,
        tensorboard: args.options.tensorboard,
        early_stop: args.options.early_stop,
        early_stop_min_delta: args.options.early_stop_min_delta,
        early_stop_against: args.options.early_stop_against,
        // What names the run may stay.
        data: args.options.data.clone().filter(|_| named.data == settings.data),
        ..Options::default()
    };
    if args.options != allowed {
        bail!(TrainError::Setting(
            "--resume: only --epochs, --early-stop and its like, --device, --precision and --tensorboard may be \
             given with it"
                .into()
        ));
    }
    if args.options.demo.is_some_and(|demo| demo != settings.demo) {
        bail!(TrainError::Setting("--resume: that run is no demo; leave out --demo".into()));
    }
    Options { data: None, ..allowed }.apply(&mut settings);
    settings.validate()?;
    Ok((dir, settings))
}

fn print(summary: &Summary, dir: &RunDir) -> Result<()> {
    let z = &summary.zero_shot;
    let (result, split) = match &summary.test {
        Some(test) => (test, "test"),
        None => (&summary.val, "val"),
    };
    let mut columns = vec![Results::plain_clip(&z.split, z.images, z.top1, z.top5, None)];
    columns.extend(summary.baseline.as_ref().map(Results::baseline));
    columns.push(Results::fine_tuned(split, result));
    common::say(table::results(&columns, summary.classes))?;
    let val = &summary.val;
    if summary.test.is_some() {
        let top1 = table::accuracy(val.top1, val.images);
        common::say(format!("fine-tuned, val: top-1 {top1}, loss {:.4}", val.loss))?;
    }
    if let Some(Temperature { value, before, .. }) = &summary.temperature {
        common::say(format!(
            "temperature {value:.3}; without it NLL {:.3}, ECE {}",
            before.nll,
            table::percent(before.ece)
        ))?;
    }
    common::say(format!(
        "epoch {} of {} kept{}; {} trained parameters",
        summary.best_epoch,
        summary.epochs,
        if summary.stopped_early { " (stopped early)" } else { "" },
        summary.trained_parameters,
    ))?;
    common::say(format!(
        "{:.1} s, {:.0} images/s in training; {}",
        summary.seconds, summary.images_per_s, summary.device
    ))?;
    common::say(format!("run: {}; report: {}", dir.path().display(), dir.report().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(file: Options, flags: Options) -> Result<Settings> {
        let settings = combine(file, &flags);
        flags.check(&settings)?;
        Ok(settings)
    }

    /// The settings as config.toml holds them.
    fn file(settings: &Settings) -> Options {
        toml::from_str(&toml::to_string(settings).unwrap()).unwrap()
    }

    fn recipe(recipe: Recipe) -> Options {
        Options { recipe: Some(recipe), ..Options::default() }
    }

    /// A recipe on the demo, whose classes are flowers.
    fn on_flowers(recipe: Recipe) -> Settings {
        Settings { demo: true, templates: default_templates(recipe, true), ..Settings::of(recipe) }
    }

    #[test]
    fn another_recipe_than_the_file_has_brings_all_its_defaults() {
        for from in Recipe::ALL {
            for to in Recipe::ALL {
                let of = |recipe| Settings { epochs: 7, steps_per_shot: None, ..on_flowers(recipe) };
                let found = resolve(file(&of(from)), recipe(to)).unwrap();
                assert_eq!(found, of(to), "from {from} to {to}");
            }
        }
    }

    #[test]
    fn values_that_the_user_chose_stay_when_the_recipe_changes() {
        let chosen = Settings {
            rank: 4,
            early_stop: Patience::Epochs(5),
            lr_lora: 3e-4,
            text_weight: 0.5,
            ..on_flowers(Recipe::Lora)
        };
        let expected = Settings {
            rank: 4,
            early_stop: Patience::Epochs(5),
            lr_lora: 3e-4,
            text_weight: 0.5,
            ..on_flowers(Recipe::ClipLora)
        };
        assert_eq!(resolve(file(&chosen), recipe(Recipe::ClipLora)).unwrap(), expected);
        // Flags are chosen too, also where they are the old recipe's default.
        let flags = Options { rank: Some(8), ..recipe(Recipe::ClipLora) };
        assert_eq!(resolve(file(&chosen), flags).unwrap(), Settings { rank: 8, ..expected });
        // What a technique consists of does not outlive it.
        let mixed = Settings { mixup: 0.4, ..on_flowers(Recipe::Mixup) };
        let triplet = on_flowers(Recipe::Triplet);
        assert_eq!(resolve(file(&mixed), recipe(Recipe::Triplet)).unwrap(), triplet);
        // A file without a recipe holds what somebody wrote into it.
        let written: Options = toml::from_str("demo = true\nrank = 8\ntext-weight = 0.3").unwrap();
        let found = resolve(written, recipe(Recipe::ClipLora)).unwrap();
        let text_alignment = TextAlignment::Always;
        let expected = Settings { rank: 8, text_weight: 0.3, text_alignment, ..on_flowers(Recipe::ClipLora) };
        assert_eq!(found, expected);
        // A number of epochs takes the place of steps for each shot, and comes back as neither had been given.
        let settled = Settings { epochs: 350, ..on_flowers(Recipe::ClipLora) };
        assert_eq!(resolve(file(&settled), recipe(Recipe::Lora)).unwrap(), on_flowers(Recipe::Lora));
        let flags = Options { epochs: Some(9), ..Options::default() };
        let found = resolve(file(&settled), flags).unwrap();
        assert_eq!((found.epochs, found.steps_per_shot), (9, None));
    }

    #[test]
    fn prompts_are_of_flowers_where_the_classes_are() {
        let of = |options: Options| resolve(Options::default(), options).unwrap().templates;
        let data = |recipe, data: &str| Options {
            data: Some(data.into()),
            recipe: Some(recipe),
            ..Options::default()
        };
        assert_eq!(of(data(Recipe::Lora, "flowers102")), default_templates(Recipe::Lora, true));
        assert_eq!(of(data(Recipe::ClipLora, "flowers102")), ["a photo of a {}, a type of flower."]);
        assert_eq!(of(data(Recipe::ClipLora, "photos")), ["a photo of a {}."]);
        let neutral = of(data(Recipe::Lora, "photos"));
        assert!(neutral.iter().all(|prompt| !prompt.contains("flower") && !prompt.contains("otan")));
        let own = Options { templates: Some(vec!["a {}".into()]), ..data(Recipe::Lora, "flowers102") };
        assert_eq!(of(own.clone()), ["a {}"]);
        // From a file they stay too, unless they are what its recipe would have had.
        assert_eq!(resolve(own, recipe(Recipe::ClipLora)).unwrap().templates, ["a {}"]);
        let flowers = file(&on_flowers(Recipe::Lora));
        assert_eq!(resolve(flowers.clone(), own_flag("b {}")).unwrap().templates, ["b {}"]);
        // On other data they are what these would have had, unless somebody chose them.
        let there = Options { demo: Some(false), ..data(Recipe::Lora, "photos") };
        assert_eq!(resolve(flowers, there).unwrap().templates, neutral);
        let chosen = Options {
            templates: Some(default_templates(Recipe::Lora, true)),
            ..data(Recipe::Lora, "photos")
        };
        assert_eq!(
            resolve(chosen, Options::default()).unwrap().templates,
            default_templates(Recipe::Lora, true)
        );
    }

    fn own_flag(template: &str) -> Options {
        Options { templates: Some(vec![template.into()]), ..Options::default() }
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

    /// The help names what each recipe takes where a flag is left out.
    #[test]
    fn the_help_has_the_defaults_of_every_recipe() {
        use clap::Args as _;
        let command = Options::augment_args(clap::Command::new("engine"));
        let word = |value: &toml::Value| match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Array(values) => {
                values.iter().map(|v| v.as_str().unwrap()).collect::<Vec<_>>().join(",")
            }
            toml::Value::Float(value) => format!("{value}"),
            other => other.to_string(),
        };
        let defaults = |recipe| toml::Table::try_from(Settings::of(recipe)).unwrap();
        let lora = defaults(Recipe::Lora);
        let mut looked_at = 0;
        for (key, value) in &lora {
            // Switches are off, and these have words of their own.
            if value.is_bool() && key != "shuffle"
                || ["method", "templates", "recipe", "targets"].contains(&key.as_str())
            {
                continue;
            }
            let mut others: Vec<(String, Vec<&str>)> = Vec::new();
            for recipe in Recipe::ALL {
                let other = word(&defaults(recipe)[key]);
                match others.iter_mut().find(|(value, _)| *value == other) {
                    _ if other == word(value) => {}
                    Some((_, names)) => names.push(recipe.name()),
                    None => others.push((other, vec![recipe.name()])),
                }
            }
            let others = others.iter().map(|(value, names)| format!("; {value} in {}", names.join(" and ")));
            let expected = format!("[default: {}{}", word(value), others.collect::<String>());
            let arg = command.get_arguments().find(|arg| arg.get_long() == Some(key)).unwrap();
            let help = arg.get_help().unwrap().to_string();
            assert!(help.contains(&expected), "--{key}: {expected} in {help}");
            looked_at += 1;
        }
        assert!(looked_at > 25, "{looked_at}");
        let model = command.get_arguments().find(|arg| arg.get_long() == Some("model")).unwrap();
        assert!(model.get_help().unwrap().to_string().contains(clip_engine::fetch::DEFAULT_MODEL));
    }
}
