//! What settings must keep to: the ranges of numbers, when one has no effect, and which contradict each other.

use super::values::*;
use super::{Given, Key, SettingError, Settings, TABLE};
use crate::data::Dataset;
use crate::fetch::is_flowers102;
use crate::tune::Tower;
use std::ops::Bound::{self, Excluded, Included, Unbounded};
use std::ops::RangeBounds;

/// Where a number must lie, and what is said of one, in place of {}, that lies elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    from: Bound<f64>,
    to: Bound<f64>,
    pub problem: &'static str,
}

impl Range {
    pub fn contains(&self, number: f64) -> bool {
        (self.from, self.to).contains(&number)
    }
}

pub(crate) const ANY: Range = Range { from: Unbounded, to: Unbounded, problem: "" };
pub(crate) const AT_LEAST_0: Range =
    Range { from: Included(0.0), to: Excluded(f64::INFINITY), problem: "{} is not a number of at least 0" };
pub(crate) const ABOVE_0: Range =
    Range { from: Excluded(0.0), problem: "{} is not a number above 0", ..AT_LEAST_0 };
pub(crate) const ABOVE_0_OR_NONE: Range =
    Range { problem: "give a number above 0, or leave it out", ..ABOVE_0 };
pub(crate) const AT_LEAST_1: Range =
    Range { from: Included(1.0), problem: "0 trains nothing; give at least 1", ..AT_LEAST_0 };
pub(crate) const AT_LEAST_1_IMAGE: Range =
    Range { problem: "0 leaves no image to train on; give at least 1", ..AT_LEAST_1 };
pub(crate) const FROM_1_TO_1024: Range =
    Range { from: Included(1.0), to: Included(1024.0), problem: "{} is not between 1 and 1024" };
pub(crate) const INNER_SHARE: Range =
    Range { from: Excluded(0.0), to: Excluded(1.0), problem: "{} is not a share above 0 and below 1" };
pub(crate) const SHARE_OF_AN_IMAGE: Range = Range {
    from: Excluded(0.0),
    to: Included(1.0),
    problem: "{} is no share of an image; give above 0 to 1",
};

/// From 0 to below 1.
pub const fn share(problem: &'static str) -> Range {
    Range { from: Included(0.0), to: Excluded(1.0), problem }
}

/// Says, where `$unused` holds of the settings, why what hangs on it has no effect.
macro_rules! no_effect {
    ($($name:ident: |$s:ident| $unused:expr => $($reason:expr),+;)*) => {
        $(pub fn $name($s: &Settings) -> Option<String> {
            #[allow(unused_imports, reason = "some name no other flag")]
            use Key::*;
            $unused.then(|| format!($($reason),+))
        })*
    };
}

no_effect! {
    drawn_in_memory: |s| s.demo => "the demo's images are drawn in memory; leave it out";
    no_adapters: |s| !s.has_lora() =>
        "{method} {} trains no adapters; use {method} lora, or vpt with {with_lora}", name_of(method, s);
    no_prompts: |s| s.method != Method::Vpt =>
        "{method} {} trains no prompts; use {method} vpt", name_of(method, s);
    no_head: |s| s.classifier != ClassifierKind::Head => "{classifier} text has no head; leave it out";
    no_text: |s| s.text_weight <= 0.0 => "there is none; give {text_weight}";
    no_mixup: |s| !s.has_mixup() => "nothing is mixed; give {mixup}";
    no_triplet: |s| !s.has_triplet() => "there is no triplet loss; give {triplet}";
    no_crops: |s| s.augment == Augment::Off => "{augment} off takes no crops; leave it out";
    drawn_at_random: |s| s.sampler != Sampler::Once =>
        "{sampler} balanced draws the images at random; leave it out";
    no_ladder: |s| !s.climbs() => "{recipe} {} tries one classifier; use {recipe} auto", name_of(recipe, s);
    never_stops: |s| s.early_stop == Patience::Off => "{early_stop} off never stops early; leave it out";
    own_split: |s| has_own_split(s) =>
        "the data have a split of their own, which no seed changes; leave it out";
}

/// Where a head is brought or there is none, what a new one would start at has no effect.
pub(crate) fn head_is_given(s: &Settings) -> Option<String> {
    let brought = || s.init_from.as_deref().filter(|dir| dir.join("head.safetensors").is_file());
    if s.climbs() {
        return Some(format!(
            "{} auto starts it from the best of its first rungs; leave it out",
            Key::recipe
        ));
    }
    no_head(s).or_else(|| {
        let (flag, dir) = (Key::init_from, brought()?.display());
        Some(format!("{flag} brings the head, {dir}/head.safetensors; leave out one of the two"))
    })
}

fn name_of(key: Key, settings: &Settings) -> String {
    key.setting().written(settings).unwrap_or_default()
}

fn has_own_split(s: &Settings) -> bool {
    let Some(data) = s.data.as_deref().filter(|_| !s.demo) else { return false };
    // What cannot be opened is for the run to say.
    let drawn = |options| Dataset::open(data, options).map_or(true, |source| source.drawn.is_some());
    is_flowers102(data) || !s.dataset_options().map_or(true, drawn)
}

/// Describes the first contradiction between settings; none where there is none.
fn contradiction(s: &Settings) -> Option<String> {
    use Key::*;
    let (no_head, balanced) = (s.classifier == ClassifierKind::Text, s.sampler == Sampler::Balanced);
    macro_rules! first {
        ($($broken:expr => $text:literal;)*) => {
            $(if $broken { return Some(format!($text)); })*
        };
    }
    first! {
        s.climbs() && (s.method != Method::Lora || no_head) =>
            "{recipe} auto: its adapters are trained beside a head; leave out {method} and {classifier}, or choose another recipe";
        s.climbs() && s.init_from.is_some() =>
            "{init_from}: {recipe} auto starts from plain CLIP; use {recipe} lora to go on from {init_from}";
        s.lr_lora.known().is_none() && !s.climbs() =>
            "{lr_lora} search: {recipe} auto alone searches; give a number";
        s.has_lora() && s.targets.is_empty() =>
            "{targets}: name at least one layer, or choose {method} linear";
        s.has_lora() && s.towers.is_empty() =>
            "{towers}: name vision, text or both, or choose {method} linear";
        s.has_lora() && !all_different(&s.targets) => "{targets}: a layer is named twice; name each once";
        s.has_lora() && !all_different(&s.towers) => "{towers}: a tower is named twice; name each once";
        s.has_lora() && s.towers.contains(&Tower::Text) && s.text_weight == 0.0 =>
            "{towers}: adapters in the text tower learn from the text loss alone; raise {text_weight}";
        s.class_weights == ClassWeights::Balanced && balanced =>
            "{class_weights} with {sampler} balanced: each evens the classes out, both would turn them over; choose one";
        s.has_mixup() && s.has_triplet() =>
            "{triplet} with {mixup}: mixed images have no single class to form triplets by; choose one";
        s.batch_size == 1 && s.has_mixup() =>
            "{batch_size}: 1 leaves MixUp nothing to mix with; give at least 2";
        s.batch_size < 3 && s.has_triplet() =>
            "{batch_size}: a triplet is an image, one of its class and one of another; give at least 3";
        s.method == Method::Linear && s.has_triplet() =>
            "{triplet}: the loss acts on the features, which {method} linear leaves as they are; use lora or vpt";
        s.has_triplet() && s.shots == Some(1) =>
            "{shots}: a single image of each class leaves no pair for the triplet loss; give at least 2";
        s.with_lora && s.method != Method::Vpt =>
            "{with_lora}: trains adapters beside prompts; use it with {method} vpt, or {method} lora alone";
        s.augment != Augment::Off && s.dtype != CacheType::U8 =>
            "{augment}: crops are taken of pixels; use {dtype} u8";
        no_head && s.method == Method::Linear =>
            "{classifier} text: leaves {method} linear nothing to train; use lora or vpt";
        no_head && s.text_weight == 0.0 =>
            "{classifier} text: with {text_weight} 0 there is no loss; raise it";
        no_head && s.has_triplet() =>
            "{triplet}: takes its share of the loss from the head's, which {classifier} text leaves out";
        !are_templates(&s.templates) => "{templates}: every template needs {{}} where the class name goes";
        s.demo && (s.data.is_some() || s.model.is_some()) =>
            "{demo} brings its own data and model; leave out {data} and {model}";
        !s.demo && s.data.is_none() => "{data}: missing; name a folder of photos, or try {demo}";
    }
    None
}

fn all_different<T: Ord + Clone>(values: &[T]) -> bool {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).all(|pair| pair[0] != pair[1])
}

/// Whether there are some and each has a place for the class name.
fn are_templates(templates: &[String]) -> bool {
    !templates.is_empty() && templates.iter().all(|t| t.contains("{}"))
}

impl Settings {
    /// Refuses what cannot be trained.
    pub fn validate(&self) -> Result<(), SettingError> {
        let out_of_range = TABLE.iter().find_map(|setting| setting.out_of_range(self));
        out_of_range.or_else(|| contradiction(self)).map_or(Ok(()), |text| Err(SettingError(text)))
    }
}

impl Given {
    /// Refuses what a run of `settings` would not look at, and what it could not do.
    ///
    /// # Errors
    /// The first, naming the flag.
    pub fn check(&self, settings: &Settings) -> Result<(), SettingError> {
        let unused = self.keys().find_map(|key| Some((key, key.setting().no_effect(settings)?)));
        match unused {
            Some((key, reason)) => Err(SettingError(format!("{key}: {reason}"))),
            None => settings.validate(),
        }
    }
}
