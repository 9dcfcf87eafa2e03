//! The table of settings. An entry is a field of [`Settings`] and of [`Given`], a key of config.toml, a flag and its
//! help: nothing about a setting stands anywhere else but where it is used.

use super::recipe::{Recipe, described_templates};
use super::rules::{self, *};
use super::values::*;
use super::{MAX_ACCUMULATE, MAX_BATCH};
use crate::clip::text::TEMPLATES;
use crate::data::VAL_SHARE;
use crate::data::decode::Orientation;
use crate::fetch::DEFAULT_MODEL;
use crate::objective::MixOn;
use crate::optim::{ScheduleKind, StopAgainst};
use crate::train::keep::KeepBy;
use crate::tune::{HeadScale, HeadScaleRule, PromptMode, PromptSharing, Target, Tower};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const DATA: &str = "Data and model";
const TRAINED: &str = "What is trained";
const LOSS: &str = "Loss";
const OPTIMISATION: &str = "Optimisation";
const STOPPING: &str = "Stopping and keeping";
const OUTPUT: &str = "Output and device";

/// How a flag takes its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It takes none and says true.
    Switch,
    /// true or false.
    Truth,
    /// A number, or a word in its place. It may be negative, to be refused by its range.
    Number,
    /// One of some words.
    Word,
    /// Any text.
    Text,
    /// A file or folder, which is made absolute.
    Path,
    /// A folder, or the name of something that is fetched.
    Place,
    /// Several values, separated by commas.
    List,
    /// Several texts, each with a flag of its own.
    Texts,
}

/// An entry of the table.
#[derive(Debug)]
pub struct Setting {
    /// Its place in the table.
    pub key: Key,
    /// Its field.
    pub name: &'static str,
    /// Its flag, with the hyphens in front.
    pub flag: &'static str,
    /// Under which heading the help has it.
    pub heading: &'static str,
    /// Whether the short help has it too.
    pub brief: bool,
    /// How its flag takes a value.
    pub kind: Kind,
    /// What the help calls the value.
    pub value_name: &'static str,
    doc: &'static str,
    unset: Option<&'static str>,
    default_words: Option<fn() -> String>,
    default_note: Option<&'static str>,
    no_effect: fn(&Settings) -> Option<String>,
    range: Range,
    most: usize,
    /// Whether the range holds only where it has an effect.
    where_used: bool,
    set: fn(&mut Given, &OsStr) -> Result<(), String>,
    pub(super) is_given: fn(&Given) -> bool,
    written: fn(&Settings) -> Option<String>,
    number: fn(&Settings) -> Option<f64>,
}

impl Setting {
    /// Another flag than the field's name.
    const fn called(self, flag: &'static str) -> Self {
        Setting { flag, ..self }
    }

    /// The help's words for leaving it out.
    const fn unset(self, words: &'static str) -> Self {
        Setting { unset: Some(words), ..self }
    }

    /// Words of the help for the default, in place of the values that the recipes have.
    const fn default_is(self, words: fn() -> String) -> Self {
        Setting { default_words: Some(words), ..self }
    }

    /// What the help says behind the default.
    const fn note(self, note: &'static str) -> Self {
        Setting { default_note: Some(note), ..self }
    }

    /// Why the setting would not be looked at; none where it is.
    const fn unless(self, no_effect: fn(&Settings) -> Option<String>) -> Self {
        Setting { no_effect, ..self }
    }

    /// Where it must lie, whether it has an effect or not.
    const fn within(self, range: Range) -> Self {
        Setting { range, ..self }
    }

    /// Where it must lie if it has an effect.
    const fn within_where_used(self, range: Range) -> Self {
        Setting { range, where_used: true, ..self }
    }

    const fn up_to(self, most: usize) -> Self {
        Setting { most, ..self }
    }

    /// What it is for and, by the recipes, what it is where it is left out.
    pub fn help(&self) -> String {
        match self.default_words() {
            Some(words) => self.help_with_default(&words),
            None => self.text().into(),
        }
    }

    /// What it is for, with other words for what it is where it is left out.
    pub fn help_with_default(&self, words: &str) -> String {
        format!("{} [default: {words}]", self.text())
    }

    /// What it is for.
    pub fn text(&self) -> &'static str {
        self.doc.trim().trim_end_matches('.')
    }

    fn default_words(&self) -> Option<String> {
        if let Some(words) = self.default_words {
            return Some(words());
        }
        let base = match self.kind {
            Kind::Switch => None,
            _ => self.unset.map(String::from).or_else(|| self.written(&Settings::default())),
        };
        let mut others: Vec<(String, Vec<&str>)> = Vec::new();
        for recipe in Recipe::ALL {
            let Some(value) = self.written(&Settings::of(recipe)) else { continue };
            match others.iter_mut().find(|(other, _)| *other == value) {
                _ if Some(&value) == base.as_ref() || self.kind == Kind::Switch => {}
                Some((_, names)) => names.push(recipe.name()),
                None => others.push((value, vec![recipe.name()])),
            }
        }
        let others = others.iter().map(|(value, names)| format!("{value} in {}", names.join(" and ")));
        let words: Vec<String> =
            base.into_iter().chain(others).chain(self.default_note.map(String::from)).collect();
        (!words.is_empty()).then(|| words.join("; "))
    }

    /// Its value as a flag and config.toml spell it; none where it is left out.
    pub fn written(&self, settings: &Settings) -> Option<String> {
        (self.written)(settings)
    }

    /// Takes a value of the flag, or one more for a list.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn set(&self, given: &mut Given, value: &OsStr) -> Result<(), String> {
        (self.set)(given, value)
    }

    /// Why a run of these settings would not look at it; none where it does.
    pub fn no_effect(&self, settings: &Settings) -> Option<String> {
        (self.no_effect)(settings)
    }

    /// What is wrong with a number that is out of range.
    pub(super) fn out_of_range(&self, settings: &Settings) -> Option<String> {
        let number = (self.number)(settings)?;
        if self.where_used && self.no_effect(settings).is_some() {
            return None;
        }
        let value = || self.written(settings).unwrap_or_else(|| number.to_string());
        let problem = match self.range.contains(number) {
            false => self.range.problem.replace("{}", &value()),
            true if number > self.most as f64 => format!("{} is more than {}", value(), self.most),
            true => return None,
        };
        Some(format!("{}: {problem}", self.flag))
    }
}

impl Key {
    /// Its entry.
    pub const fn setting(self) -> &'static Setting {
        &TABLE[self as usize]
    }
}

/// The flag.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.setting().flag)
    }
}

/// "--early-stop" for "early_stop".
const fn flag<const N: usize>(name: &str) -> [u8; N] {
    let (name, mut flag, mut i) = (name.as_bytes(), [b'-'; N], 0);
    while i < name.len() {
        if name[i] != b'_' {
            flag[i + 2] = name[i];
        }
        i += 1;
    }
    flag
}

fn parsed<T: FromStr<Err: fmt::Display>>(value: &OsStr) -> Result<T, String> {
    text(value)?.parse().map_err(|e: T::Err| e.to_string())
}

fn text(value: &OsStr) -> Result<&str, String> {
    value.to_str().ok_or_else(|| "is not UTF-8".into())
}

/// As serde writes it into config.toml, a list with commas; none for what is left out.
fn written(value: &impl Serialize) -> Option<String> {
    Some(match toml::Value::try_from(value).ok()? {
        toml::Value::String(text) => text,
        toml::Value::Array(values) => {
            values.iter().filter_map(toml::Value::as_str).collect::<Vec<_>>().join(",")
        }
        // Without the ".0" of a whole number.
        toml::Value::Float(value) => value.to_string(),
        other => other.to_string(),
    })
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// An entry: the help; heading, whether it is in the "short" help or in the "long" one alone, kind and name of the
/// value; the field, with `?:` where it may be left out, otherwise with the default; and by the methods of [`Setting`] what else
/// there is to say of it. The recipes' own values are in [`super::recipe`].
macro_rules! settings {
    (@set List $given:ident.$name:ident, $value:ident) => {
        parsed($value).map(|value| $given.$name.get_or_insert_default().push(value))
    };
    (@set Texts $($rest:tt)*) => { settings!(@set List $($rest)*) };
    (@set Word $given:ident.$name:ident, $value:ident) => {
        parse_word(text($value)?).map(|value| $given.$name = Some(value))
    };
    (@set Place $given:ident.$name:ident, $value:ident) => {{ $given.$name = Some($value.into()); Ok(()) }};
    (@set Path $($rest:tt)*) => { settings!(@set Place $($rest)*) };
    (@set $kind:ident $given:ident.$name:ident, $value:ident) => {
        parsed($value).map(|value| $given.$name = Some(value))
    };
    (@number Number $settings:ident.$name:ident) => { $settings.$name.number() };
    (@number $kind:ident $settings:ident.$name:ident) => {{ let _ = $settings; None }};
    (@absolute Path $settings:ident.$name:ident) => {
        if let Some(path) = &mut $settings.$name { *path = absolute(path); }
    };
    (@absolute $kind:ident $settings:ident.$name:ident) => {};
    (@short short) => { true };
    (@short long) => { false };
    ($(
        $(#[doc = $doc:literal])+
        $(#[serde($($serde:tt)+)])?
        [$heading:ident, $length:ident, $kind:ident $value_name:expr]
        $name:ident $(?: $inner:ty)? $(: $type:ty = $default:expr)?
            $(, $clause:ident($($argument:tt)*))*;
    )*) => {
        /// The settings of a training run, as config.toml holds them.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        pub struct Settings {$(
            $(#[doc = $doc])+
            $(#[serde($($serde)+)])?
            $( pub $name: $type, )?
            $( #[serde(skip_serializing_if = "Option::is_none")] pub $name: Option<$inner>, )?
        )*}

        /// Settings that a file or flags give; what is none there comes from the recipe.
        #[derive(Debug, Default, Clone, PartialEq, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        pub struct Given {$(
            $(#[doc = $doc])+
            $(#[serde($($serde)+)])?
            pub $name: $(Option<$type>)? $(Option<$inner>)?,
        )*}

        /// The settings by name; printed, it is the flag.
        #[expect(non_camel_case_types, reason = "named as the fields")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Key {$( $(#[doc = $doc])+ $name, )*}

        /// All settings, in the order of config.toml.
        pub const TABLE: &[Setting] = &[$(
            Setting {
                key: Key::$name,
                name: stringify!($name),
                flag: {
                    const FLAG: [u8; stringify!($name).len() + 2] = flag(stringify!($name));
                    match std::str::from_utf8(&FLAG) {
                        Ok(flag) => flag,
                        Err(_) => unreachable!(),
                    }
                },
                heading: $heading,
                brief: settings!(@short $length),
                kind: Kind::$kind,
                value_name: $value_name,
                doc: concat!($($doc),+),
                unset: None,
                default_words: None,
                default_note: None,
                no_effect: |_| None,
                range: ANY,
                most: usize::MAX,
                where_used: false,
                set: |given, value| settings!(@set $kind given.$name, value),
                is_given: |given| given.$name.is_some(),
                written: |settings| written(&settings.$name),
                number: |settings| settings!(@number $kind settings.$name),
            }
            $(.$clause($($argument)*))*,
        )*];

        impl Settings {
            /// What the recipes start from.
            pub(super) fn base() -> Self {
                Settings {$( $name: $($default)? $(None::<$inner>)?, )*}
            }

            /// Makes them mean the same from any directory.
            pub(super) fn make_paths_absolute(&mut self) {
                let settings = self;
                $( settings!(@absolute $kind settings.$name); )*
            }
        }

        impl Given {
            /// Writes what is given over `settings`.
            pub(super) fn write_over(self, settings: &mut Settings) {
                $( if let Some(value) = self.$name { settings.$name = value.into(); } )*
            }

            /// Leaves out what is the default of `from` where `to` has another.
            pub(super) fn forget_defaults(&mut self, from: &Settings, to: &Settings) {
                $( if from.$name != to.$name && self.$name.clone().map(Into::into).as_ref() == Some(&from.$name) {
                    self.$name = None;
                } )*
            }
        }
    };
}

settings! {
    /// The bundled tiny CLIP on generated flowers: no network, no files.
    [DATA, short, Switch ""]
    demo: bool = false;

    /// A folder with train/, val/ and test/, a folder of class folders, a Flowers-102 root, or the word
    /// flowers102, which is fetched.
    [DATA, short, Place "DIR|flowers102"]
    data?: PathBuf;

    /// A Hugging Face CLIP directory, or the id of a CLIP model on the hub, which is fetched.
    [DATA, short, Place "DIR|OWNER/NAME[@REVISION]"]
    model?: PathBuf, unset(DEFAULT_MODEL);

    /// Where preprocessed images are kept.
    [DATA, long, Path "DIR"]
    cache?: PathBuf, unset("the user's cache folder"), unless(rules::demo);

    /// Element type of the image cache; u8 is exact and the smallest.
    [DATA, long, Word "u8|f16|f32"]
    dtype: CacheType = CacheType::U8, unless(rules::demo);

    /// Start from the adapter (adapter/, or as PEFT saves it), head.safetensors and prompts.safetensors found
    /// here.
    [DATA, long, Path "DIR"]
    init_from?: PathBuf;

    /// Where the photos of a list lie.
    [DATA, long, Path "DIR"]
    images?: PathBuf, unset("beside it"), unless(rules::demo);

    /// Names of the classes: a JSON object by folder, a JSON list, or lines.
    [DATA, long, Path "FILE"]
    class_names?: PathBuf, unset("a cat_to_name.json beside the folders"), unless(rules::demo);

    /// Photos of one group stay in one split where splits are drawn: a table with the columns path and group, or a
    /// regular expression for paths.
    [DATA, long, Text "FILE|REGEX"]
    groups?: String, unless(rules::demo);

    /// Share of the photos that are drawn for validation where there is no such split.
    [DATA, long, Number "P"]
    val_share: f64 = VAL_SHARE, unless(rules::demo), within(INNER_SHARE);

    /// Leave out images that cannot be decoded instead of stopping at the first.
    [DATA, long, Switch ""]
    skip_bad_images: bool = false, unless(rules::demo);

    /// Refuse photos that are in two splits or classes, byte for byte, instead of warning.
    [DATA, long, Switch ""]
    refuse_duplicates: bool = false, unless(rules::demo);

    /// Turn photos upright as their EXIF data say, or take them as they are stored.
    // A file of before there was a choice leaves them as they are.
    #[serde(default)]
    [DATA, long, Word "exif|ignore"]
    orientation: Orientation = Orientation::Exif, unless(rules::demo);

    /// A named combination of settings.
    [TRAINED, short, Word Recipe::WORDS]
    recipe: Recipe = Recipe::Lora, default_is(|| Recipe::Lora.to_string());

    /// What is trained beside the head.
    [TRAINED, long, Word "lora|linear|vpt"]
    method: Method = Method::Lora, default_is(|| "the recipe's".into());

    /// What images are classified by: a linear head, which is trained, or the text features of the classes.
    [TRAINED, long, Word "head|text"]
    classifier: ClassifierKind = ClassifierKind::Head;

    /// Where the head starts: at 0, at random as torch.nn.Linear, or at plain CLIP's own classifier.
    [TRAINED, long, Word "zero|random|text"]
    head_init: HeadInit = HeadInit::Zero, unless(rules::head_is_given);

    /// The head is trained on features of this length, sqrt-width for the root of their width; 1 is
    /// torch.nn.Linear on CLIP's features.
    [TRAINED, long, Number "C|sqrt-width"]
    head_scale: HeadScale = HeadScale::By(HeadScaleRule::SqrtWidth), unless(rules::no_head), within(ABOVE_0);

    /// Weight of the text alignment in the loss.
    [LOSS, long, Number "W"]
    text_weight: f64 = 0.3, within(AT_LEAST_0);

    /// Whether the text alignment is left out where plain CLIP's class names are no better than chance on the
    /// validation split.
    // A file of before there was a choice always has it.
    #[serde(default)]
    [LOSS, long, Word "auto|always"]
    text_alignment: TextAlignment = TextAlignment::Auto, note("always with --text-weight"), unless(rules::no_text);

    /// Blend training images with others of their batch, by shares from Beta(A, A); 0 for none.
    [LOSS, long, Number "A"]
    mixup: f64 = 0.0, within(AT_LEAST_0);

    /// What is blended.
    [LOSS, long, Word "pixels|features"]
    mixup_on: MixOn = MixOn::Pixels, unless(rules::no_mixup);

    /// Share of the batch-hard triplet loss, which is taken from the head's; 0 for none.
    [LOSS, long, Number "L"]
    triplet: f64 = 0.0, within(share(
        "{} leaves nothing of the loss to the head, or is no share of it; give 0 to below 1"
    ));

    /// By how much images of other classes should be farther away than those of the same.
    [LOSS, long, Number "M"]
    margin: f64 = 1.0, unless(rules::no_triplet), within(AT_LEAST_0);

    /// Weight every class by n/(C·n_c) in the cross entropy that images are classified by, for classes of unequal
    /// size.
    [LOSS, long, Word "off|balanced"]
    class_weights: ClassWeights = ClassWeights::Off;

    /// Share of a label that goes to all classes alike, in the same cross entropy.
    [LOSS, long, Number "S"]
    label_smoothing: f64 = 0.0, within(share(
        "{} leaves nothing of a label, or is no share of it; give 0 to below 1"
    ));

    /// One set of prompts for all blocks, or one for each.
    [TRAINED, long, Word "shared|per-layer"]
    prompts: PromptSharing = PromptSharing::Shared, unless(rules::no_prompts);

    /// Whether a block's prompts take the place of those before, or are put beside them.
    [TRAINED, long, Word "replace|accumulate"]
    prompt_mode: PromptMode = PromptMode::Replace, unless(rules::no_prompts);

    /// Prompts of a block.
    [TRAINED, long, Number "N"]
    prompt_count: usize = 16, unless(rules::no_prompts), within_where_used(FROM_1_TO_1024);

    /// Train adapters beside the prompts.
    [TRAINED, long, Switch ""]
    with_lora: bool = false;

    /// Rank of the adapters.
    [TRAINED, long, Number "R"]
    rank: usize = 8, unless(rules::no_adapters), within_where_used(FROM_1_TO_1024);

    /// Adapters are scaled by alpha/rank.
    [TRAINED, long, Number "A"]
    alpha: f64 = 16.0, unless(rules::no_adapters), within_where_used(ABOVE_0);

    /// Scale adapters by alpha/√rank instead.
    [TRAINED, long, Switch ""]
    rslora: bool = false, unless(rules::no_adapters);

    /// Adapted layers of every block, of q_proj, k_proj, v_proj, out_proj, fc1 and fc2.
    [TRAINED, long, List "LAYER,…"]
    targets: Vec<Target> = Target::ATTENTION.to_vec(), unless(rules::no_adapters);

    /// Towers with adapters.
    [TRAINED, long, List "vision,text"]
    towers: Vec<Tower> = vec![Tower::Vision], unless(rules::no_adapters);

    /// Share of the adapters' inputs that training sets to zero.
    [TRAINED, long, Number "P"]
    dropout: f64 = 0.0, unless(rules::no_adapters), within_where_used(share(
        "{} leaves nothing, or is no share; give 0 to below 1"
    ));

    /// Passes over the training images.
    [OPTIMISATION, short, Number "N"]
    epochs: u32 = 40, note("by --steps-per-shot in clip-lora"), within(AT_LEAST_1);

    /// As many epochs as make N steps for each training image of a class, of which up to 16 count.
    [OPTIMISATION, long, Number "N"]
    steps_per_shot?: u32, within(AT_LEAST_1);

    /// Images per batch.
    [OPTIMISATION, short, Number "B"]
    batch_size: usize = 32, within(AT_LEAST_1), up_to(MAX_BATCH);

    /// Batches whose gradients make up one step.
    [OPTIMISATION, long, Number "N"]
    accumulate: usize = 1, within(AT_LEAST_1), up_to(MAX_ACCUMULATE);

    /// Scale the gradients of a step down to this length, all of them as one vector.
    [OPTIMISATION, long, Number "L"]
    clip_grad_norm?: f64, unset("off"), within(ABOVE_0_OR_NONE);

    /// Seed of everything random.
    [OPTIMISATION, short, Number "N"]
    seed: u64 = 42;

    /// Seed of the split of a folder of classes, and of the demo's flowers.
    [DATA, long, Number "N"]
    data_seed?: u64, unset("that of --seed"), unless(rules::own_split);

    /// Train on K images of each class, drawn by --seed, or on all of a class that has fewer.
    [DATA, short, Number "K"]
    shots?: usize, unset("all"), within(AT_LEAST_1_IMAGE);

    /// Random resized crops and horizontal flips of the training images.
    [DATA, short, Word "off|crop-flip"]
    augment: Augment = Augment::Off;

    /// Least share of an image's area that a crop takes.
    [DATA, long, Number "A"]
    crop_area: f64 = 0.5, unless(rules::no_crops), within_where_used(SHARE_OF_AN_IMAGE);

    /// See every training image once an epoch, or draw as many with replacement, each class as likely as any other.
    [DATA, long, Word "once|balanced"]
    sampler: Sampler = Sampler::Once;

    /// Shuffle the training images every epoch.
    [DATA, long, Truth "true|false"]
    shuffle: bool = true, unless(rules::drawn_at_random);

    /// Learning rate of the head.
    [OPTIMISATION, short, Number "LR"]
    lr_head: f64 = 1e-3, unless(rules::no_head), within(AT_LEAST_0);

    /// Weight decay of the head.
    [OPTIMISATION, long, Number "WD"]
    wd_head: f64 = 1e-4, unless(rules::no_head), within(AT_LEAST_0);

    /// Learning rate of the adapters.
    [OPTIMISATION, short, Number "LR"]
    lr_lora: f64 = 1e-4, unless(rules::no_adapters), within(AT_LEAST_0);

    /// Weight decay of the adapters.
    [OPTIMISATION, long, Number "WD"]
    wd_lora: f64 = 1e-2, unless(rules::no_adapters), within(AT_LEAST_0);

    /// Learning rate of the prompts.
    [OPTIMISATION, long, Number "LR"]
    lr_prompt: f64 = 5e-3, unless(rules::no_prompts), within(AT_LEAST_0);

    /// Weight decay of the prompts.
    [OPTIMISATION, long, Number "WD"]
    wd_prompt: f64 = 0.0, unless(rules::no_prompts), within(AT_LEAST_0);

    /// Course of the learning rates over --epochs.
    [OPTIMISATION, long, Word "constant|cosine"]
    schedule: ScheduleKind = ScheduleKind::Constant;

    /// Steps over which the learning rates climb to their values.
    [OPTIMISATION, long, Number "STEPS"]
    warmup: u64 = 0;

    /// Stop after N epochs in a row without a new lowest validation loss.
    [STOPPING, short, Number "N|off"]
    early_stop: Patience = Patience::Epochs(3);

    /// By how much an epoch's validation loss must undercut the lowest before it to count.
    [STOPPING, long, Number "D"]
    early_stop_min_delta: f64 = 0.0, unless(rules::never_stops), within(AT_LEAST_0);

    /// Compare with the best epoch so far or with the one before.
    [STOPPING, long, Word "best|previous"]
    early_stop_against: StopAgainst = StopAgainst::Best, unless(rules::never_stops);

    /// Which epoch is kept by its validation results: the lowest loss within one standard error of the best accuracy,
    /// the best accuracy, the best macro F1, or the lowest loss.
    [STOPPING, long, Word "one-se|accuracy|macro-f1|loss"]
    keep_by: KeepBy = KeepBy::OneSe;

    /// Number type of activations and frozen weights.
    [OUTPUT, long, Word "f32|f16|bf16"]
    precision?: Precision, unset("f16 on a GPU; the CPU has f32 only");

    /// Where to compute.
    [OUTPUT, short, Text "auto|cpu|cuda[:N]"]
    device: String = "auto".into();

    /// Write the metrics for TensorBoard too, into RUN/tensorboard.
    [OUTPUT, long, Switch ""]
    tensorboard: bool = false;

    /// Fit a logistic regression on plain CLIP's features too, to compare with.
    [OUTPUT, long, Truth "true|false"]
    baseline: bool = true;

    /// A prompt with {} for the class name; repeat the flag for several.
    #[serde(alias = "template")]
    [DATA, long, Texts "TEXT"]
    templates: Vec<String> = TEMPLATES.map(String::from).to_vec(), called("--template"), default_is(described_templates);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_has_the_defaults_of_every_recipe() {
        for (key, default) in [
            (Key::rank, "8; 2 in clip-lora"),
            (Key::text_weight, "0.3; 0 in mixup and triplet; 1 in clip-lora"),
            (Key::wd_head, "0.0001"),
            (Key::early_stop, "3; off in clip-lora"),
            (Key::epochs, "40; by --steps-per-shot in clip-lora"),
            (Key::steps_per_shot, "500 in clip-lora"),
            (Key::head_scale, "sqrt-width"),
            (Key::shuffle, "true"),
            (Key::shots, "all"),
            (Key::recipe, "lora"),
        ] {
            let help = key.setting().help();
            assert!(help.ends_with(&format!(" [default: {default}]")), "{help}");
        }
        assert!(
            Key::templates.setting().help().contains("in clip-lora \"a photo of a {}.\", for flowers \"")
        );
        for key in [Key::demo, Key::data, Key::with_lora, Key::init_from] {
            assert!(!key.setting().help().contains("default"), "{key}");
        }
    }

    #[test]
    fn the_help_names_the_words_that_are_taken() {
        let mut looked_at = 0;
        for setting in TABLE.iter().filter(|setting| setting.kind == Kind::Word) {
            let refusal = setting.set(&mut Given::default(), OsStr::new("?")).unwrap_err();
            let words: Vec<&str> = refusal.split('`').skip(3).step_by(2).collect();
            assert_eq!(words.join("|"), setting.value_name, "{refusal}");
            looked_at += 1;
        }
        assert!(looked_at > 10, "{looked_at}");
    }

    #[test]
    fn a_flag_is_called_as_its_key() {
        assert_eq!(Key::early_stop_min_delta.to_string(), "--early-stop-min-delta");
        let config = toml::Table::try_from(Settings::default()).unwrap();
        for (place, setting) in TABLE.iter().enumerate() {
            assert_eq!(setting.key as usize, place);
            let key = setting.flag.trim_start_matches('-');
            let is_written = config.contains_key(key) || setting.key == Key::templates;
            assert_eq!(is_written, setting.written(&Settings::default()).is_some(), "{key}");
        }
    }
}
