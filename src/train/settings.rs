//! Every setting of a run, resolved. This is what config.toml holds and what repeats the run.

use super::keep::KeepBy;
use super::learner::DropoutSpec;
use super::{Result, TrainError};
use crate::clip::text::{CLIP_LORA_TEMPLATES, FLOWER_TEMPLATES, TEMPLATES};
use crate::data::decode::Orientation;
use crate::data::{Augmentation, DataError, DatasetOptions, Groups, VAL_SHARE, is_flowers102_root};
use crate::fetch::{DEFAULT_MODEL, is_flowers102};
use crate::objective::{ClassCounts, MixOn, Objective};
use crate::optim::{EarlyStopSpec, Rate, Rates, ScheduleKind, StopAgainst};
use crate::tensor::DType;
use crate::tune::{HeadScale, HeadScaleRule, LoraSpec, PromptMode, PromptSharing, PromptSpec, Target, Tower};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A named combination of settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recipe {
    /// The head alone on frozen features.
    Linear,
    /// LoRA in the attention layers and a head, head loss + 0.3 × text alignment.
    Lora,
    /// LoRA and a head on mixed images.
    Mixup,
    /// LoRA and a head, head loss × 0.7 + batch-hard triplet loss × 0.3.
    Triplet,
    /// Prompts in front of every block and a head.
    Vpt,
    /// LoRA in both towers and no head: images are classified by their text logits.
    ClipLora,
}

impl Recipe {
    /// Every recipe once.
    pub const ALL: [Recipe; 6] =
        [Recipe::Linear, Recipe::Lora, Recipe::Mixup, Recipe::Triplet, Recipe::Vpt, Recipe::ClipLora];

    /// The word for it on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Recipe::Linear => "linear",
            Recipe::Lora => "lora",
            Recipe::Mixup => "mixup",
            Recipe::Triplet => "triplet",
            Recipe::Vpt => "vpt",
            Recipe::ClipLora => "clip-lora",
        }
    }
}

impl std::fmt::Display for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What is trained beside the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// LoRA adapters in the layers [`Settings::targets`] of [`Settings::towers`].
    Lora,
    /// Nothing.
    Linear,
    /// Prompts.
    Vpt,
}

/// What is done to training images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augment {
    /// They are the same in every epoch.
    Off,
    /// Random resized crop and horizontal flip.
    CropFlip,
}

/// Element type of activations and frozen weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Single precision, the only one that the CPU computes in.
    F32,
    /// Half precision, with loss scaling in training.
    F16,
    /// The range of f32 with fewer digits: needs no loss scaling.
    Bf16,
}

impl From<Precision> for DType {
    fn from(precision: Precision) -> DType {
        match precision {
            Precision::F32 => DType::F32,
            Precision::F16 => DType::F16,
            Precision::Bf16 => DType::BF16,
        }
    }
}

/// Element type of the image cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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

/// Where the head starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadInit {
    /// At 0: every class is equally likely.
    Zero,
    /// H and h as `torch.nn.Linear` does, see [`HeadScale`].
    Random,
    /// At plain CLIP: its logits, exp(logit_scale)·f·Tᵀ.
    Text,
}

/// What becomes of the text alignment where plain CLIP cannot read the class names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TextAlignment {
    /// It has no part in a run whose class names are no better than chance on the validation split, as it would
    /// hold the features to them.
    Auto,
    /// It always has the weight that was chosen.
    #[default]
    Always,
}

/// What the classes count in the loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassWeights {
    /// As much as they have images.
    #[default]
    Off,
    /// The same: n/(C·n_c) for n images, n_c of them of class c.
    Balanced,
}

/// Which training images an epoch sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampler {
    /// Each once.
    #[default]
    Once,
    /// As many as there are, drawn with replacement, each class as likely as any other.
    Balanced,
}

/// What images are classified by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassifierKind {
    /// A linear head, which is trained.
    Head,
    /// The class features of the text tower; there is no head.
    Text,
}

/// Epochs without improvement after which a run ends, or "off".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Every epoch is trained.
    Off,
    /// So many epochs, at least 1.
    Epochs(u32),
}

impl FromStr for Patience {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match (text, text.parse()) {
            ("off", _) => Ok(Patience::Off),
            (_, Ok(0)) | (_, Err(_)) => Err(format!("{text:?} is neither a number of epochs nor \"off\"")),
            (_, Ok(epochs)) => Ok(Patience::Epochs(epochs)),
        }
    }
}

impl Serialize for Patience {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Patience::Off => serializer.serialize_str("off"),
            Patience::Epochs(epochs) => serializer.serialize_u32(*epochs),
        }
    }
}

impl<'de> Deserialize<'de> for Patience {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u32),
            Text(String),
        }
        let text = match Either::deserialize(deserializer)? {
            Either::Number(epochs) => epochs.to_string(),
            Either::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The largest batch.
pub const MAX_BATCH: usize = 4096;

/// The most batches of a step: with batches of one image still more than most data sets have.
pub const MAX_ACCUMULATE: usize = 1 << 20;

/// Training images of a class that count for [`Settings::steps_per_shot`], however many there are: the most that
/// CLIP-LoRA was tried with.
pub const MAX_SHOTS: usize = 16;

/// The prompts where none are named: for species of flowers, or of anything.
pub fn default_templates(recipe: Recipe, flowers: bool) -> Vec<String> {
    let templates: &[&str] = match (recipe, flowers) {
        (Recipe::ClipLora, false) => &CLIP_LORA_TEMPLATES[..1],
        (Recipe::ClipLora, true) => &CLIP_LORA_TEMPLATES[1..],
        (_, false) => &TEMPLATES,
        (_, true) => &FLOWER_TEMPLATES,
    };
    templates.iter().map(|&template| template.into()).collect()
}

/// Whether data are Flowers-102, in its own layout or by its name.
pub fn are_flowers(data: &Path) -> bool {
    is_flowers102(data) || is_flowers102_root(data)
}

/// The settings of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// The bundled model and generated flowers instead of `data` and `model`.
    pub demo: bool,
    /// A folder with train/, val/ and test/, a folder of class folders, a Flowers-102 root, or the word
    /// flowers102; none with `demo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// A Hugging Face CLIP directory, or the id of a model on the hub, by default [`DEFAULT_MODEL`]; none with
    /// `demo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// Where preprocessed images are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// Element type of the cache.
    pub dtype: CacheType,
    /// Where the trained tensors start from: a directory with adapter/, head.safetensors or
    /// prompts.safetensors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
    /// Where the photos of a list lie, if not beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
    /// A file with the names of the classes: a JSON object by folder, a JSON list, or lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_names: Option<PathBuf>,
    /// What stays in one split when splits are drawn: a table of paths and groups, or a regular expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<String>,
    /// Share of the validation split where it is drawn, above 0 and below 1.
    #[serde(default = "usual_val_share")]
    pub val_share: f64,
    /// Leaves out images that cannot be decoded, instead of stopping at the first.
    pub skip_bad_images: bool,
    /// Refuses photos that are in two splits or classes, byte for byte, instead of warning.
    #[serde(default)]
    pub refuse_duplicates: bool,
    /// Whether photos are turned upright as their EXIF data say. Runs of before there was a choice left them as
    /// they were.
    #[serde(default)]
    pub orientation: Orientation,
    /// The combination that these settings started from. It names the run; what is done is up to the others.
    pub recipe: Recipe,
    /// What is trained beside the head.
    pub method: Method,
    /// What images are classified by, and thus whether there is a head.
    pub classifier: ClassifierKind,
    /// Where a head that is trained starts.
    pub head_init: HeadInit,
    /// Length of the features that the head is trained on.
    pub head_scale: HeadScale,
    /// Weight of the text logits' cross entropy in the loss, at least 0.
    pub text_weight: f64,
    /// Whether that weight may become 0.
    #[serde(default)]
    pub text_alignment: TextAlignment,
    /// α of MixUp's Beta distribution; 0 for none.
    pub mixup: f64,
    /// What MixUp blends; not looked at without it.
    pub mixup_on: MixOn,
    /// Weight λ of the triplet loss, of which the head's leaves 1 − λ; 0 for none.
    pub triplet: f64,
    /// Margin of the triplet loss, at least 0, see [`Objective::margin`]; not looked at without it.
    pub margin: f64,
    /// What the classes count in the cross entropy that images are classified by.
    pub class_weights: ClassWeights,
    /// S of label smoothing in that cross entropy: 1 − S of a label is its class, S all classes alike.
    pub label_smoothing: f64,
    /// Whether all blocks have the same prompts.
    pub prompts: PromptSharing,
    /// What becomes of a block's prompts behind it.
    pub prompt_mode: PromptMode,
    /// Prompts of a block.
    pub prompt_count: usize,
    /// Adapters beside the prompts.
    pub with_lora: bool,
    /// Rank r of the adapters, 1 to 1024.
    pub rank: usize,
    /// α of the adapters, whose outputs are scaled by α/r.
    pub alpha: f64,
    /// Scales adapters by α/√r instead of α/r.
    pub rslora: bool,
    /// The layers of a block that have adapters, each named once.
    pub targets: Vec<Target>,
    /// The towers that have adapters.
    pub towers: Vec<Tower>,
    /// Share of the adapters' inputs that training sets to zero.
    pub dropout: f64,
    /// Passes over the training images, at least 1; early stopping may end the run before.
    pub epochs: u32,
    /// Instead of a number of epochs, as many as make so many steps for each training image of a class, of which
    /// up to [`MAX_SHOTS`] count: [`Settings::settle_epochs`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_per_shot: Option<u32>,
    /// Images of a batch at the most, 1 to [`MAX_BATCH`].
    pub batch_size: usize,
    /// Batches whose gradients make up one step.
    pub accumulate: usize,
    /// Gradients are scaled down to this length as one vector; none where they stay as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_grad_norm: Option<f64>,
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Seed of what the images are: the split of a folder of classes, the demo's flowers. None for that of
    /// the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_seed: Option<u64>,
    /// Training images of each class, or all of a class that has fewer; none for all there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shots: Option<usize>,
    /// What is done to training images; crops need a cache of u8.
    pub augment: Augment,
    /// Least share of an image's area that a crop takes, above 0 and up to 1; not looked at without crops.
    pub crop_area: f64,
    /// Which training images an epoch sees.
    pub sampler: Sampler,
    /// Whether every epoch has an order of its own.
    pub shuffle: bool,
    /// Learning rate of the head before the schedule's factor; these rates and decays are all at least 0.
    pub lr_head: f64,
    /// Weight decay of the head, as AdamW has it: apart from the gradient.
    pub wd_head: f64,
    /// Learning rate of the adapters.
    pub lr_lora: f64,
    /// Weight decay of the adapters.
    pub wd_lora: f64,
    /// Learning rate of the prompts.
    pub lr_prompt: f64,
    /// Weight decay of the prompts.
    pub wd_prompt: f64,
    /// Course of the learning rates after the warm-up.
    pub schedule: ScheduleKind,
    /// Steps over which the learning rates climb to their values.
    pub warmup: u64,
    /// After how many epochs in a row without a new lowest validation loss the run ends.
    pub early_stop: Patience,
    /// By how much an epoch's validation loss must undercut the lowest before it to count, at least 0. A run that
    /// improves by less in every epoch ends.
    pub early_stop_min_delta: f64,
    /// Which epoch's validation loss must be undercut.
    pub early_stop_against: StopAgainst,
    /// Which epoch is kept.
    pub keep_by: KeepBy,
    /// None until the device is known: f16 on a GPU, f32 on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// "auto", "cpu", "cuda" or "cuda:N".
    pub device: String,
    /// Whether the metrics are written for TensorBoard too.
    pub tensorboard: bool,
    /// Whether a logistic regression on plain CLIP's features is fitted too, to compare with.
    pub baseline: bool,
    /// Text prompts of a class, at least one, each with {} where the class name goes.
    pub templates: Vec<String>,
}

fn usual_val_share() -> f64 {
    VAL_SHARE
}

/// A file may leave settings out.
impl Default for Settings {
    fn default() -> Self {
        Settings::of(Recipe::Lora)
    }
}

impl Settings {
    /// The defaults of a recipe.
    pub fn of(recipe: Recipe) -> Self {
        // CLIP-LoRA (Zanella and Ben Ayed 2024) is made for few images of each class.
        let few_shot = recipe == Recipe::ClipLora;
        Settings {
            demo: false,
            data: None,
            model: None,
            cache: None,
            dtype: CacheType::U8,
            init_from: None,
            images: None,
            class_names: None,
            groups: None,
            val_share: VAL_SHARE,
            skip_bad_images: false,
            refuse_duplicates: false,
            orientation: Orientation::Exif,
            recipe,
            method: match recipe {
                Recipe::Linear => Method::Linear,
                Recipe::Lora | Recipe::Mixup | Recipe::Triplet | Recipe::ClipLora => Method::Lora,
                Recipe::Vpt => Method::Vpt,
            },
            classifier: if few_shot { ClassifierKind::Text } else { ClassifierKind::Head },
            head_init: HeadInit::Zero,
            head_scale: HeadScale::By(HeadScaleRule::SqrtWidth),
            text_weight: match recipe {
                Recipe::Mixup | Recipe::Triplet => 0.0,
                Recipe::Linear | Recipe::Lora | Recipe::Vpt => 0.3,
                Recipe::ClipLora => 1.0,
            },
            text_alignment: TextAlignment::Auto,
            mixup: if recipe == Recipe::Mixup { 0.2 } else { 0.0 },
            mixup_on: MixOn::Pixels,
            triplet: if recipe == Recipe::Triplet { 0.3 } else { 0.0 },
            margin: 1.0,
            class_weights: ClassWeights::Off,
            label_smoothing: 0.0,
            prompts: PromptSharing::Shared,
            prompt_mode: PromptMode::Replace,
            prompt_count: 16,
            with_lora: false,
            rank: if few_shot { 2 } else { 8 },
            alpha: if few_shot { 1.0 } else { 16.0 },
            rslora: false,
            targets: match recipe {
                Recipe::ClipLora => vec![Target::Query, Target::Key, Target::Value],
                _ => Target::ATTENTION.to_vec(),
            },
            towers: if few_shot { Tower::ALL.to_vec() } else { vec![Tower::Vision] },
            dropout: if few_shot { 0.25 } else { 0.0 },
            epochs: 40,
            steps_per_shot: few_shot.then_some(500),
            batch_size: 32,
            accumulate: 1,
            clip_grad_norm: None,
            seed: 42,
            data_seed: None,
            shots: None,
            augment: if few_shot { Augment::CropFlip } else { Augment::Off },
            crop_area: if few_shot { 0.08 } else { 0.5 },
            sampler: Sampler::Once,
            shuffle: true,
            lr_head: 1e-3,
            wd_head: 1e-4,
            lr_lora: if few_shot { 2e-4 } else { 1e-4 },
            wd_lora: 1e-2,
            lr_prompt: 5e-3,
            wd_prompt: 0.0,
            schedule: if few_shot { ScheduleKind::Cosine } else { ScheduleKind::Constant },
            warmup: 0,
            // The rate falls until the last epoch.
            early_stop: if few_shot { Patience::Off } else { Patience::Epochs(3) },
            early_stop_min_delta: 0.0,
            early_stop_against: StopAgainst::Best,
            keep_by: KeepBy::OneSe,
            precision: None,
            device: "auto".into(),
            tensorboard: false,
            baseline: true,
            templates: default_templates(recipe, false),
        }
    }

    /// Whether the classes are species of flowers: those of the demo and of Flowers-102.
    pub fn is_of_flowers(&self) -> bool {
        self.demo || self.data.as_deref().is_some_and(are_flowers)
    }

    /// Sets the number of epochs that [`Settings::steps_per_shot`] makes of `images` training images in `classes`
    /// classes.
    pub fn settle_epochs(&mut self, images: usize, classes: usize) {
        let Some(steps) = self.steps_per_shot else { return };
        let shots = images.div_ceil(classes.max(1)).clamp(1, MAX_SHOTS);
        let of_epoch = images.div_ceil(self.batch_size.max(1)).div_ceil(self.accumulate.max(1)).max(1);
        self.epochs = (steps as usize * shots).div_ceil(of_epoch).clamp(1, u32::MAX as usize) as u32;
    }

    /// Which crops are drawn of training images, where any are.
    pub fn augmentation(&self) -> Option<Augmentation> {
        let area = Augmentation { scale: [self.crop_area, 1.0], ..Augmentation::default() };
        (self.augment == Augment::CropFlip).then_some(area)
    }

    /// Refuses what cannot be trained, naming the flag.
    pub fn validate(&self) -> Result<()> {
        let refuse = |text: String| Err(TrainError::Setting(text));
        for (flag, value) in [
            ("--epochs", self.epochs as usize),
            ("--batch-size", self.batch_size),
            ("--accumulate", self.accumulate),
        ] {
            if value == 0 {
                return refuse(format!("{flag}: 0 trains nothing; give at least 1"));
            }
        }
        if self.batch_size > MAX_BATCH {
            return refuse(format!("--batch-size: {} is more than {MAX_BATCH}", self.batch_size));
        }
        if self.accumulate > MAX_ACCUMULATE {
            return refuse(format!("--accumulate: {} is more than {MAX_ACCUMULATE}", self.accumulate));
        }
        for (flag, value) in [
            ("--lr-head", self.lr_head),
            ("--lr-lora", self.lr_lora),
            ("--wd-head", self.wd_head),
            ("--wd-lora", self.wd_lora),
            ("--lr-prompt", self.lr_prompt),
            ("--wd-prompt", self.wd_prompt),
            ("--mixup", self.mixup),
            ("--margin", self.margin),
            ("--text-weight", self.text_weight),
            ("--early-stop-min-delta", self.early_stop_min_delta),
        ] {
            if !value.is_finite() || value < 0.0 {
                return refuse(format!("{flag}: {value} is not a number of at least 0"));
            }
        }
        if !(self.val_share > 0.0 && self.val_share < 1.0) {
            return refuse(format!("--val-share: {} is not a share above 0 and below 1", self.val_share));
        }
        if let HeadScale::Of(scale) = self.head_scale
            && (!scale.is_finite() || scale <= 0.0)
        {
            return refuse(format!("--head-scale: {scale} is not a number above 0"));
        }
        if self.clip_grad_norm.is_some_and(|norm| !norm.is_finite() || norm <= 0.0) {
            return refuse("--clip-grad-norm: give a number above 0, or leave it out".into());
        }
        if self.has_lora() {
            self.validate_lora()?;
        }
        self.validate_technique()?;
        self.validate_classifier()?;
        check_templates(&self.templates)?;
        match (self.demo, &self.data, &self.model) {
            (true, None, None) | (false, Some(_), _) => Ok(()),
            (true, ..) => refuse("--demo brings its own data and model; leave out --data and --model".into()),
            (false, None, _) => refuse("--data: missing; name a folder of photos, or try --demo".into()),
        }
    }

    /// The name of the model; none with `demo`, which has its own.
    pub fn model_name(&self) -> Option<&Path> {
        let name = self.model.as_deref().unwrap_or(Path::new(DEFAULT_MODEL));
        (!self.demo).then_some(name)
    }

    /// Refuses adapters that cannot be made.
    fn validate_lora(&self) -> Result<()> {
        let refuse = |text: String| Err(TrainError::Setting(text));
        if self.rank == 0 || self.rank > 1024 {
            return refuse(format!("--rank: {} is not between 1 and 1024", self.rank));
        }
        if !self.alpha.is_finite() || self.alpha <= 0.0 {
            return refuse(format!("--alpha: {} is not a number above 0", self.alpha));
        }
        if self.targets.is_empty() {
            return refuse("--targets: name at least one layer, or choose --method linear".into());
        }
        if self.towers.is_empty() {
            return refuse("--towers: name vision, text or both, or choose --method linear".into());
        }
        if !all_different(&self.targets) {
            return refuse("--targets: a layer is named twice; name each once".into());
        }
        if !all_different(&self.towers) {
            return refuse("--towers: a tower is named twice; name each once".into());
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let dropout = self.dropout;
            return refuse(format!("--dropout: {dropout} leaves nothing, or is no share; give 0 to below 1"));
        }
        if self.towers.contains(&Tower::Text) && self.text_weight == 0.0 {
            return refuse(
                "--towers: adapters in the text tower learn from the text loss alone; raise --text-weight"
                    .into(),
            );
        }
        Ok(())
    }

    /// Refuses a classifier with which nothing would be learnt.
    fn validate_classifier(&self) -> Result<()> {
        let refuse = |text: &str| Err(TrainError::Setting(text.into()));
        if self.classifier == ClassifierKind::Head {
            return Ok(());
        }
        if self.method == Method::Linear {
            return refuse("--classifier text: leaves --method linear nothing to train; use lora or vpt");
        }
        if self.text_weight == 0.0 {
            return refuse("--classifier text: with --text-weight 0 there is no loss; raise it");
        }
        if self.has_triplet() {
            return refuse(
                "--triplet: takes its share of the loss from the head's, which --classifier text leaves out",
            );
        }
        Ok(())
    }

    /// Refuses techniques that contradict each other.
    fn validate_technique(&self) -> Result<()> {
        let refuse = |text: &str| Err(TrainError::Setting(text.into()));
        if !(0.0..1.0).contains(&self.triplet) {
            let text = format!(
                "--triplet: {} leaves nothing of the loss to the head, or is no share of it; give 0 to below 1",
                self.triplet
            );
            return Err(TrainError::Setting(text));
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            let text = format!(
                "--label-smoothing: {} leaves nothing of a label, or is no share of it; give 0 to below 1",
                self.label_smoothing
            );
            return Err(TrainError::Setting(text));
        }
        if self.class_weights == ClassWeights::Balanced && self.sampler == Sampler::Balanced {
            return refuse(
                "--class-weights with --sampler balanced: each evens the classes out, both would turn them over; choose one",
            );
        }
        if self.has_mixup() && self.has_triplet() {
            return refuse(
                "--triplet with --mixup: mixed images have no single class to form triplets by; choose one",
            );
        }
        if self.batch_size == 1 && self.has_mixup() {
            return refuse("--batch-size: 1 leaves MixUp nothing to mix with; give at least 2");
        }
        if self.batch_size < 3 && self.has_triplet() {
            return refuse(
                "--batch-size: a triplet is an image, one of its class and one of another; give at least 3",
            );
        }
        if self.method == Method::Linear && self.has_triplet() {
            return refuse(
                "--triplet: the loss acts on the features, which --method linear leaves as they are; use lora or vpt",
            );
        }
        if self.has_triplet() && self.shots == Some(1) {
            return refuse(
                "--shots: a single image of each class leaves no pair for the triplet loss; give at least 2",
            );
        }
        if self.with_lora && self.method != Method::Vpt {
            return refuse(
                "--with-lora: trains adapters beside prompts; use it with --method vpt, or --method lora alone",
            );
        }
        if self.method == Method::Vpt && !(1..=1024).contains(&self.prompt_count) {
            let text = format!("--prompt-count: {} is not between 1 and 1024", self.prompt_count);
            return Err(TrainError::Setting(text));
        }
        if self.shots == Some(0) {
            return refuse("--shots: 0 leaves no image to train on; give at least 1");
        }
        if self.augment != Augment::Off && !(self.crop_area > 0.0 && self.crop_area <= 1.0) {
            let text = format!("--crop-area: {} is no share of an image; give above 0 to 1", self.crop_area);
            return Err(TrainError::Setting(text));
        }
        if self.steps_per_shot == Some(0) {
            return refuse("--steps-per-shot: 0 trains nothing; give at least 1");
        }
        if self.augment != Augment::Off && self.dtype != CacheType::U8 {
            return refuse("--augment: crops are taken of pixels; use --dtype u8");
        }
        Ok(())
    }

    fn has_lora(&self) -> bool {
        self.method == Method::Lora || self.with_lora
    }

    /// Whether training images are mixed.
    pub fn has_mixup(&self) -> bool {
        self.mixup > 0.0
    }

    /// Whether the triplet loss has a share in the objective.
    pub fn has_triplet(&self) -> bool {
        self.triplet > 0.0
    }

    /// The adapters to train; none where there are to be none.
    pub fn lora(&self) -> Option<LoraSpec> {
        self.has_lora().then(|| LoraSpec {
            rank: self.rank,
            alpha: self.alpha,
            rslora: self.rslora,
            targets: self.targets.clone(),
            towers: self.towers.clone(),
            dropout: self.dropout,
        })
    }

    /// Dropout in front of the adapters, where there is any.
    pub(crate) fn dropout_spec(&self) -> Option<DropoutSpec> {
        let spec = DropoutSpec { probability: self.dropout, seed: self.seed };
        (self.has_lora() && self.dropout > 0.0).then_some(spec)
    }

    /// The towers that are trained.
    pub fn trained_towers(&self) -> &[Tower] {
        if self.has_lora() { &self.towers } else { &[] }
    }

    /// The prompts to train; none for the other methods.
    pub fn prompt_spec(&self) -> Option<PromptSpec> {
        let spec = PromptSpec { count: self.prompt_count, sharing: self.prompts, mode: self.prompt_mode };
        (self.method == Method::Vpt).then_some(spec)
    }

    /// Where batches are mixed.
    pub fn mix(&self) -> Option<MixOn> {
        self.has_mixup().then_some(self.mixup_on)
    }

    /// True where nothing in the vision tower is trained.
    pub(crate) fn vision_is_frozen(&self) -> bool {
        self.prompt_spec().is_none() && !self.trained_towers().contains(&Tower::Vision)
    }

    /// True where an image's features are the same in every step, so that they need computing only once.
    pub fn on_frozen_features(&self) -> bool {
        self.vision_is_frozen() && self.mix() != Some(MixOn::Pixels) && self.augment == Augment::Off
    }

    /// The seed of what the images are.
    pub fn image_seed(&self) -> u64 {
        self.data_seed.unwrap_or(self.seed)
    }

    /// How the data are read.
    ///
    /// # Errors
    /// Groups that cannot be used.
    pub fn source_options(&self) -> std::result::Result<DatasetOptions, DataError> {
        Ok(DatasetOptions {
            seed: self.image_seed(),
            val_share: self.val_share,
            groups: self.groups.as_deref().map(Groups::open).transpose()?,
            images: self.images.clone(),
            class_names: self.class_names.clone(),
            ..DatasetOptions::default()
        })
    }

    /// The flags that make the steps of what this run trains smaller.
    pub(crate) fn step_flags(&self) -> String {
        let mut flags = Vec::new();
        for (flag, trained) in [
            ("--lr-head", self.classifier == ClassifierKind::Head),
            ("--lr-lora", self.has_lora()),
            ("--lr-prompt", self.prompt_spec().is_some()),
            ("--clip-grad-norm", true),
        ] {
            if trained {
                flags.push(flag);
            }
        }
        flags.join(", ")
    }

    /// Whether the text alignment is there for the sake of the head alone, and may go.
    pub(crate) fn may_leave_out_text(&self) -> bool {
        self.text_alignment == TextAlignment::Auto
            && self.text_weight > 0.0
            && self.classifier == ClassifierKind::Head
            && !self.vision_is_frozen()
            && !self.trained_towers().contains(&Tower::Text)
    }

    /// What training minimises. Without a head the weight of its loss is 0.
    pub fn objective(&self) -> Objective {
        let head = if self.classifier == ClassifierKind::Head { 1.0 } else { 0.0 };
        let counts = ClassCounts {
            weighted: self.class_weights == ClassWeights::Balanced,
            smoothing: self.label_smoothing,
        };
        Objective::new(head, self.text_weight).with_triplet(self.triplet, self.margin).with_counts(counts)
    }

    /// Learning rates and weight decays of all groups, before the schedule's factor.
    pub(crate) fn rates(&self) -> Rates {
        Rates {
            head: Rate { learning_rate: self.lr_head, weight_decay: self.wd_head },
            lora: Rate { learning_rate: self.lr_lora, weight_decay: self.wd_lora },
            prompt: Rate { learning_rate: self.lr_prompt, weight_decay: self.wd_prompt },
        }
    }

    /// When the run stops early; none where it does not.
    pub(crate) fn early_stop_spec(&self) -> Option<EarlyStopSpec> {
        match self.early_stop {
            Patience::Off => None,
            Patience::Epochs(patience) => Some(EarlyStopSpec {
                patience,
                min_delta: self.early_stop_min_delta,
                against: self.early_stop_against,
            }),
        }
    }
}

fn all_different<T: Ord + Clone>(values: &[T]) -> bool {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).all(|pair| pair[0] != pair[1])
}

/// Refuses templates without a place for the class name.
pub fn check_templates(templates: &[String]) -> Result<()> {
    if templates.is_empty() || templates.iter().any(|t| !t.contains("{}")) {
        let text = "--template: every template needs {} where the class name goes";
        return Err(TrainError::Setting(text.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_make_steps_smaller_are_those_that_act() {
        let flags = |recipe| Settings::of(recipe).step_flags();
        assert_eq!(flags(Recipe::Linear), "--lr-head, --clip-grad-norm");
        assert_eq!(flags(Recipe::Lora), "--lr-head, --lr-lora, --clip-grad-norm");
        assert_eq!(flags(Recipe::Vpt), "--lr-head, --lr-prompt, --clip-grad-norm");
        assert_eq!(flags(Recipe::ClipLora), "--lr-lora, --clip-grad-norm");
    }

    #[test]
    fn runs_of_before_there_was_a_choice_left_photos_as_they_were() {
        assert_eq!(Settings::default().orientation, Orientation::Exif);
        let config = toml::to_string(&Settings::default()).unwrap();
        assert!(config.contains("orientation = \"exif\"\n"), "{config}");
        let old = config.replace("orientation = \"exif\"\n", "");
        assert_eq!(toml::from_str::<Settings>(&old).unwrap().orientation, Orientation::Ignore);
    }

    #[test]
    fn classes_are_evened_out_once_and_labels_keep_a_part() {
        let demo = || Settings { demo: true, ..Settings::of(Recipe::Lora) };
        let refused = |settings: Settings, part: &str| {
            let text = settings.validate().unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        };
        let weighted = Settings { class_weights: ClassWeights::Balanced, ..demo() };
        let drawn = Settings { sampler: Sampler::Balanced, ..demo() };
        weighted.validate().unwrap();
        drawn.validate().unwrap();
        refused(
            Settings { sampler: Sampler::Balanced, ..weighted.clone() },
            "--class-weights with --sampler",
        );
        for smoothing in [-0.1, 1.0, f64::NAN] {
            refused(Settings { label_smoothing: smoothing, ..demo() }, "--label-smoothing");
        }
        let objective = Settings { label_smoothing: 0.1, ..weighted }.objective();
        assert_eq!(objective.counts, ClassCounts { weighted: true, smoothing: 0.1 });
        assert_eq!(objective.evaluation().counts, ClassCounts::default());
        // A file from before there were any.
        let old: Settings = toml::from_str("demo = true").unwrap();
        assert_eq!((old.keep_by, old.sampler, old.class_weights), Default::default());
    }

    #[test]
    fn features_stand_for_images_where_the_vision_tower_is_frozen() {
        let text = || Settings {
            towers: vec![Tower::Text],
            augment: Augment::Off,
            ..Settings::of(Recipe::ClipLora)
        };
        assert!(text().on_frozen_features());
        assert!(Settings::of(Recipe::Linear).on_frozen_features());
        let crops = Settings { augment: Augment::CropFlip, ..text() };
        let mixed = Settings { mixup: 0.2, ..text() };
        let prompts = Settings { method: Method::Vpt, with_lora: true, ..text() };
        for settings in [Settings::of(Recipe::ClipLora), Settings::of(Recipe::Vpt), crops, mixed, prompts] {
            assert!(!settings.on_frozen_features(), "{settings:?}");
        }
    }
}
