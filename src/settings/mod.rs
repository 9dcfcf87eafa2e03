//! Every setting of a run. Resolved, they are what config.toml holds and what repeats the run.
//!
//! The settings are a table (`table`) over their types (`values`); `recipe` has what each recipe has otherwise, `given`
//! puts a file and flags over it, `rules` says what they must keep to.

pub mod flag;
mod given;
mod recipe;
mod rules;
mod table;
mod values;

pub use recipe::{Recipe, are_flowers, default_templates};
pub use table::{Given, Key, Kind, Setting, Settings, TABLE};
pub use values::{
    AdapterRate, Augment, CacheType, ClassWeights, ClassifierKind, HeadInit, KeepBy, Method, Patience,
    Precision, RateRule, Sampler, TextAlignment, parse_word,
};

use crate::data::Augmentation;
use crate::data::{DataError, DatasetOptions, Groups, Split};
use crate::fetch::DEFAULT_MODEL;
use crate::objective::{ClassCounts, MixOn, Objective};
use crate::optim::{EarlyStopSpec, Rate, Rates};
use crate::tune::{DropoutSpec, LoraSpec, PromptSpec, Tower};
use std::path::Path;

/// A setting out of range, or two that contradict each other: the flag, what is wrong, what to do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingError(pub String);

/// The largest batch.
pub const MAX_BATCH: usize = 4096;

/// The most batches of a step: with batches of one image still more than most data sets have.
const MAX_ACCUMULATE: usize = 1 << 20;

/// Training images of a class that count for [`Settings::steps_per_shot`], however many there are: the most that
/// CLIP-LoRA was tried with.
const MAX_SHOTS: usize = 16;

/// Validations of a run whose epochs [`Settings::steps_per_shot`] sets.
const MOST_VALIDATIONS: u32 = 50;

/// A file may leave settings out.
impl Default for Settings {
    fn default() -> Self {
        Settings::of(Recipe::Lora)
    }
}

impl Settings {
    /// Whether the classes are species of flowers: those of the demo and of Flowers-102.
    pub(crate) fn is_of_flowers(&self) -> bool {
        self.demo || self.data.as_deref().is_some_and(are_flowers)
    }

    /// Sets the number of epochs that [`Settings::steps_per_shot`] makes of `images` training images in `classes`
    /// classes, and after how many of them to validate: an epoch of few images is shorter than a validation.
    pub fn settle_epochs(&mut self, images: usize, classes: usize) {
        let Some(steps) = self.steps_per_shot else { return };
        let shots = images.div_ceil(classes.max(1)).clamp(1, MAX_SHOTS);
        let of_epoch = images.div_ceil(self.batch_size.max(1)).div_ceil(self.accumulate.max(1)).max(1);
        self.epochs = (steps as usize * shots).div_ceil(of_epoch).clamp(1, u32::MAX as usize) as u32;
        self.validate_every.get_or_insert(self.epochs.div_ceil(MOST_VALIDATIONS));
    }

    /// Epochs between validations.
    pub(crate) fn validate_every(&self) -> u32 {
        self.validate_every.unwrap_or(1)
    }

    /// Images of a batch at the most: those of the largest split, or of what is trained on together in the end, where
    /// that is less.
    pub(crate) fn largest_batch(&self, count: impl Fn(Split) -> usize) -> usize {
        let [train, val, test] = Split::ALL.map(count);
        let together = if self.final_fit { train + val } else { 0 };
        self.batch_size.min(train.max(val).max(test).max(together))
    }

    /// Which crops are drawn of training images, where any are.
    pub(crate) fn augmentation(&self) -> Option<Augmentation> {
        let area = Augmentation { scale: [self.crop_area, 1.0], ..Augmentation::default() };
        (self.augment == Augment::CropFlip).then_some(area)
    }

    /// The name of the model; none with `demo`, which has its own.
    pub fn model_name(&self) -> Option<&Path> {
        let name = self.model.as_deref().unwrap_or(Path::new(DEFAULT_MODEL));
        (!self.demo).then_some(name)
    }

    pub(crate) fn has_lora(&self) -> bool {
        self.method == Method::Lora || self.with_lora
    }

    /// Whether the run climbs a ladder of classifiers.
    pub fn climbs(&self) -> bool {
        self.recipe == Recipe::Auto
    }

    pub(crate) fn has_mixup(&self) -> bool {
        self.mixup > 0.0
    }

    pub(crate) fn has_triplet(&self) -> bool {
        self.triplet > 0.0
    }

    pub(crate) fn lora(&self) -> Option<LoraSpec> {
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

    pub(crate) fn prompt_spec(&self) -> Option<PromptSpec> {
        let spec = PromptSpec { count: self.prompt_count, sharing: self.prompts, mode: self.prompt_mode };
        (self.method == Method::Vpt).then_some(spec)
    }

    pub(crate) fn mix(&self) -> Option<MixOn> {
        self.has_mixup().then_some(self.mixup_on)
    }

    /// True where nothing in the vision tower is trained.
    pub(crate) fn vision_is_frozen(&self) -> bool {
        self.prompt_spec().is_none() && !self.trained_towers().contains(&Tower::Vision)
    }

    /// True where an image's features are the same in every step, so that they need computing only once.
    pub(crate) fn on_frozen_features(&self) -> bool {
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
    pub fn dataset_options(&self) -> Result<DatasetOptions, DataError> {
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
        let flags = [Key::lr_head, Key::lr_lora, Key::lr_prompt, Key::clip_grad_norm];
        let acting = flags.iter().filter(|flag| flag.setting().no_effect(self).is_none());
        acting.map(Key::to_string).collect::<Vec<_>>().join(", ")
    }

    /// Whether the text alignment is there for the sake of the head alone, and may go.
    pub(crate) fn may_leave_out_text(&self) -> bool {
        self.text_alignment == TextAlignment::Auto
            && self.text_weight > 0.0
            && self.classifier == ClassifierKind::Head
            && !self.vision_is_frozen()
            && !self.trained_towers().contains(&Tower::Text)
    }

    /// Objective of training. Without a head the weight of its loss is 0.
    pub(crate) fn objective(&self) -> Objective {
        let head = if self.classifier == ClassifierKind::Head { 1.0 } else { 0.0 };
        let counts = ClassCounts {
            weighted: self.class_weights == ClassWeights::Balanced,
            smoothing: self.label_smoothing,
        };
        Objective::new(head, self.text_weight).with_triplet(self.triplet, self.margin).with_counts(counts)
    }

    /// Learning rates and weight decays of all groups, before the schedule's factor. That of the adapters is 0 where it is
    /// yet to be found.
    pub(crate) fn rates(&self) -> Rates {
        Rates {
            head: Rate { learning_rate: self.lr_head, weight_decay: self.wd_head },
            lora: Rate { learning_rate: self.lr_lora.known().unwrap_or(0.0), weight_decay: self.wd_lora },
            prompt: Rate { learning_rate: self.lr_prompt, weight_decay: self.wd_prompt },
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::decode::Orientation;

    #[test]
    fn flags_that_make_steps_smaller_are_those_that_act() {
        let flags = |recipe| Settings::of(recipe).step_flags();
        assert_eq!(flags(Recipe::Linear), "--lr-head, --clip-grad-norm");
        assert_eq!(flags(Recipe::Lora), "--lr-head, --lr-lora, --clip-grad-norm");
        assert_eq!(flags(Recipe::Vpt), "--lr-head, --lr-prompt, --clip-grad-norm");
        assert_eq!(flags(Recipe::ClipLora), "--lr-lora, --clip-grad-norm");
    }

    #[test]
    fn many_short_epochs_are_validated_some_fifty_times() {
        let settled = |images, validate_every| {
            let mut settings = Settings { validate_every, ..Settings::of(Recipe::ClipLora) };
            settings.settle_epochs(images, 12);
            (settings.epochs, settings.validate_every())
        };
        // Four images of each class make two steps; of sixteen and more, which count as 16, 8000 steps are made.
        assert_eq!(settled(12, None), (500, 10));
        assert_eq!(settled(48, None), (1000, 20));
        assert_eq!(settled(16 * 12, None), (1334, 27));
        assert_eq!(settled(12 * 9000, None), (3, 1));
        assert_eq!(settled(12, Some(1)), (500, 1));
        assert_eq!(Settings::of(Recipe::Lora).validate_every(), 1);
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
