//! The table of settings. An entry is a field of [`Settings`] and of [`Given`], a key of config.toml, a flag and its
//! help: nothing about a setting stands anywhere else but where it is used.

use super::recipe::{Recipe, described_templates};
use super::rules::*;
use super::values::*;
use super::{MAX_ACCUMULATE, MAX_BATCH};
use crate::clip::text::TEMPLATES;
use crate::data::VAL_SHARE;
use crate::data::decode::Orientation;
use crate::fetch::DEFAULT_MODEL;
use crate::objective::MixOn;
use crate::optim::{ScheduleKind, StopAgainst};
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
    pub short: bool,
    /// How its flag takes a value.
    pub kind: Kind,
    /// Placeholder of the value in the help.
    pub value_name: &'static str,
    doc: &'static str,
    more: More,
    set: fn(&mut Given, &OsStr) -> Result<(), String>,
    pub(super) is_given: fn(&Given) -> bool,
    written: fn(&Settings) -> Option<String>,
}

/// Properties that only some settings have.
#[derive(Debug)]
struct More {
    /// Another flag than the key.
    flag: Option<&'static str>,
    /// The help's word for leaving it out.
    unset: Option<&'static str>,
    /// The help's words for the default, in place of the values that the recipes have.
    default: Option<fn() -> String>,
    /// Words of the help behind the default.
    note: Option<&'static str>,
    /// Why it would not be looked at; none where it is.
    no_effect: fn(&Settings) -> Option<String>,
    range: Range,
    /// Whether the range holds only where the setting has an effect.
    range_if_used: bool,
    /// Above which it is too large.
    most: Option<usize>,
}

const PLAIN: More = More {
    flag: None,
    unset: None,
    default: None,
    note: None,
    no_effect: |_| None,
    range: ANY,
    range_if_used: false,
    most: None,
};

impl Setting {
    /// Text of the help, with the default: that of each recipe, where they differ.
    pub fn help(&self) -> String {
        match self.default_words() {
            Some(words) => self.help_with_default(&words),
            None => self.text().into(),
        }
    }

    /// Text of the help, with other words for the default.
    pub fn help_with_default(&self, words: &str) -> String {
        format!("{} [default: {words}]", self.text())
    }

    /// Text of the help without the default.
    pub fn text(&self) -> &'static str {
        self.doc.trim().trim_end_matches('.')
    }

    fn default_words(&self) -> Option<String> {
        if let Some(words) = self.more.default {
            return Some(words());
        }
        let base = match self.kind {
            Kind::Switch => None,
            _ => self.more.unset.map(String::from).or_else(|| self.written(&Settings::default())),
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
            base.into_iter().chain(others).chain(self.more.note.map(String::from)).collect();
        (!words.is_empty()).then(|| words.join("; "))
    }

    /// Its value as a flag and config.toml spell it; none where it is left out.
    pub fn written(&self, settings: &Settings) -> Option<String> {
        (self.written)(settings)
    }

    /// Takes a value of the flag, or one more for a list.
    ///
    /// # Errors
    /// A value that the flag does not take; what is wrong with it, in words.
    pub fn set(&self, given: &mut Given, value: &OsStr) -> Result<(), String> {
        (self.set)(given, value)
    }

    /// Why a run of these settings would not look at it; none where it does.
    pub fn no_effect(&self, settings: &Settings) -> Option<String> {
        (self.more.no_effect)(settings)
    }

    /// Says what is wrong with a number that is out of range; none where nothing is.
    pub(super) fn out_of_range(&self, settings: &Settings) -> Option<String> {
        let More { range, range_if_used, most, .. } = self.more;
        let value = self.written(settings)?;
        // Of those that may be a word in place of a number.
        let number = value.parse().ok()?;
        if range_if_used && self.no_effect(settings).is_some() {
            return None;
        }
        let problem = match most {
            _ if !range.contains(number) => range.problem.replace("{}", &value),
            Some(most) if number > most as f64 => format!("{value} is more than {most}"),
            _ => return None,
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
    Some(match toml::Value::try_from(value) {
        Ok(toml::Value::String(text)) => text,
        Ok(toml::Value::Array(values)) => {
            values.iter().filter_map(toml::Value::as_str).collect::<Vec<_>>().join(",")
        }
        // Without the ".0" of a whole number.
        Ok(toml::Value::Float(value)) => value.to_string(),
        Ok(other) => other.to_string(),
        // TOML has no larger integers.
        Err(_) => serde_json::to_value(value).ok()?.as_u64()?.to_string(),
    })
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// An entry is the help; its heading, whether it is in the short help or in the long one alone, kind and name of the
/// value; the field, with `?:` where it may be left out, otherwise with its default; and of [`More`] what applies. What
/// the recipes have otherwise is in [`super::recipe`].
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
    (@absolute Path $settings:ident.$name:ident) => {
        if let Some(path) = &mut $settings.$name { *path = absolute(path); }
    };
    (@absolute $kind:ident $settings:ident.$name:ident) => {};
    (@is_short short) => { true };
    (@is_short long) => { false };
    ($(
        $(#[doc = $doc:literal])+
        $(#[serde($($serde:tt)+)])?
        [$heading:ident, $length:ident, $kind:ident $value_name:expr]
        $name:ident $(?: $inner:ty)? $(: $type:ty = $default:expr)?
            $(, $more:ident: $what:expr)*;
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
            {
                const FLAG: [u8; stringify!($name).len() + 2] = flag(stringify!($name));
                const MORE: More = More { $($more: $what,)* ..PLAIN };
                Setting {
                    key: Key::$name,
                    name: stringify!($name),
                    flag: match (MORE.flag, std::str::from_utf8(&FLAG)) {
                        (Some(flag), _) | (None, Ok(flag)) => flag,
                        (None, Err(_)) => unreachable!(),
                    },
                    heading: $heading,
                    short: settings!(@is_short $length),
                    kind: Kind::$kind,
                    value_name: $value_name,
                    doc: concat!($($doc),+),
                    more: MORE,
                    set: |given, value| settings!(@set $kind given.$name, value),
                    is_given: |given| given.$name.is_some(),
                    written: |settings| written(&settings.$name),
                }
            },
        )*];

        impl Settings {
            /// Settings that the recipes start from.
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
    [DATA, short, Switch ""] demo: bool = false;
    /// A folder with train/, val/ and test/, a folder of class folders, a Flowers-102 root, or the word
    /// flowers102, which is fetched.
    [DATA, short, Place "DIR|flowers102"] data?: PathBuf;
    /// A Hugging Face CLIP directory, or the id of a CLIP model on the hub, which is fetched.
    [DATA, short, Place "DIR|OWNER/NAME[@REVISION]"] model?: PathBuf, unset: Some(DEFAULT_MODEL);
    /// Where preprocessed images are kept.
    [DATA, long, Path "DIR"] cache?: PathBuf, unset: Some("the user's cache folder"), no_effect: drawn_in_memory;
    /// Element type of the image cache; u8 is exact and the smallest.
    [DATA, long, Word "u8|f16|f32"] dtype: CacheType = CacheType::U8, no_effect: drawn_in_memory;
    /// Start from the adapter (adapter/, or as PEFT saves it), head.safetensors and prompts.safetensors found
    /// here.
    [DATA, long, Path "DIR"] init_from?: PathBuf;
    /// Where the photos of a list lie.
    [DATA, long, Path "DIR"] images?: PathBuf, unset: Some("beside it"), no_effect: drawn_in_memory;
    /// Names of the classes: a JSON object by folder, a JSON list, or lines.
    [DATA, long, Path "FILE"]
        class_names?: PathBuf, unset: Some("a cat_to_name.json beside the folders"), no_effect: drawn_in_memory;
    /// Photos of one group stay in one split where splits are drawn: a table with the columns path and group, or a
    /// regular expression for paths.
    [DATA, long, Text "FILE|REGEX"] groups?: String, no_effect: drawn_in_memory;
    /// Share of the photos that are drawn for validation where there is no such split.
    [DATA, long, Number "P"] val_share: f64 = VAL_SHARE, no_effect: drawn_in_memory, range: INNER_SHARE;
    /// Leave out images that cannot be decoded instead of stopping at the first.
    [DATA, long, Switch ""] skip_bad_images: bool = false, no_effect: drawn_in_memory;
    /// Refuse photos that are in two splits or classes, byte for byte, instead of warning.
    [DATA, long, Switch ""] refuse_duplicates: bool = false, no_effect: drawn_in_memory;
    /// Turn photos upright as their EXIF data say, or take them as they are stored.
    // A file of before there was a choice leaves them as they are.
    #[serde(default)]
    [DATA, long, Word "exif|ignore"] orientation: Orientation = Orientation::Exif, no_effect: drawn_in_memory;
    /// A named combination of settings.
    [TRAINED, short, Word Recipe::WORDS]
        recipe: Recipe = Recipe::Lora, default: Some(|| Recipe::Lora.to_string());
    /// What is trained beside the head.
    [TRAINED, long, Word "lora|linear|vpt"]
        method: Method = Method::Lora, default: Some(|| "the recipe's".into());
    /// What images are classified by: a linear head, which is trained, or the text features of the classes.
    [TRAINED, long, Word "head|text"] classifier: ClassifierKind = ClassifierKind::Head;
    /// Where the head starts: at 0, at random as torch.nn.Linear, or at plain CLIP's own classifier.
    [TRAINED, long, Word "zero|random|text"] head_init: HeadInit = HeadInit::Zero, no_effect: head_is_given;
    /// The head is trained on features of this length, sqrt-width for the root of their width; 1 is
    /// torch.nn.Linear on CLIP's features.
    [TRAINED, long, Number "C|sqrt-width"]
        head_scale: HeadScale = HeadScale::By(HeadScaleRule::SqrtWidth), no_effect: no_head, range: ABOVE_0;
    /// Weight of the text alignment in the loss.
    [LOSS, long, Number "W"] text_weight: f64 = 0.3, range: AT_LEAST_0;
    /// Whether the text alignment is left out where plain CLIP's class names are no better than chance on the
    /// validation split.
    // A file of before there was a choice always has it.
    #[serde(default)]
    [LOSS, long, Word "auto|always"]
        text_alignment: TextAlignment = TextAlignment::Auto, note: Some("always with --text-weight"), no_effect: no_text;
    /// Blend training images with others of their batch, by shares from Beta(A, A); 0 for none.
    [LOSS, long, Number "A"] mixup: f64 = 0.0, range: AT_LEAST_0;
    /// What is blended.
    [LOSS, long, Word "pixels|features"] mixup_on: MixOn = MixOn::Pixels, no_effect: no_mixup;
    /// Share of the batch-hard triplet loss, which is taken from the head's; 0 for none.
    [LOSS, long, Number "L"] triplet: f64 = 0.0,
        range: share("{} leaves nothing of the loss to the head, or is no share of it; give 0 to below 1");
    /// By how much images of other classes should be farther away than those of the same.
    [LOSS, long, Number "M"] margin: f64 = 1.0, no_effect: no_triplet, range: AT_LEAST_0;
    /// Weight every class by n/(C·n_c) in the cross entropy that images are classified by, for classes of unequal
    /// size.
    [LOSS, long, Word "off|balanced"] class_weights: ClassWeights = ClassWeights::Off;
    /// Share of a label that goes to all classes alike, in the same cross entropy.
    [LOSS, long, Number "S"] label_smoothing: f64 = 0.0,
        range: share("{} leaves nothing of a label, or is no share of it; give 0 to below 1");
    /// One set of prompts for all blocks, or one for each.
    [TRAINED, long, Word "shared|per-layer"]
        prompts: PromptSharing = PromptSharing::Shared, no_effect: no_prompts;
    /// Whether a block's prompts take the place of those before, or are put beside them.
    [TRAINED, long, Word "replace|accumulate"]
        prompt_mode: PromptMode = PromptMode::Replace, no_effect: no_prompts;
    /// Prompts of a block.
    [TRAINED, long, Number "N"]
        prompt_count: usize = 16, no_effect: no_prompts, range: FROM_1_TO_1024, range_if_used: true;
    /// Train adapters beside the prompts.
    [TRAINED, long, Switch ""] with_lora: bool = false;
    /// Rank of the adapters.
    [TRAINED, long, Number "R"]
        rank: usize = 8, no_effect: no_adapters, range: FROM_1_TO_1024, range_if_used: true;
    /// Adapters are scaled by alpha/rank.
    [TRAINED, long, Number "A"] alpha: f64 = 16.0, no_effect: no_adapters, range: ABOVE_0, range_if_used: true;
    /// Scale adapters by alpha/√rank instead.
    [TRAINED, long, Switch ""] rslora: bool = false, no_effect: no_adapters;
    /// Adapted layers of every block, of q_proj, k_proj, v_proj, out_proj, fc1 and fc2.
    [TRAINED, long, List "LAYER,…"] targets: Vec<Target> = Target::ATTENTION.to_vec(), no_effect: no_adapters;
    /// Towers with adapters.
    [TRAINED, long, List "vision,text"] towers: Vec<Tower> = vec![Tower::Vision], no_effect: no_adapters;
    /// Share of the adapters' inputs that training sets to zero.
    [TRAINED, long, Number "P"] dropout: f64 = 0.0, no_effect: no_adapters,
        range: share("{} leaves nothing, or is no share; give 0 to below 1"), range_if_used: true;
    /// Passes over the training images.
    [OPTIMISATION, short, Number "N"]
        epochs: u32 = 40, note: Some("by --steps-per-shot in clip-lora"), range: AT_LEAST_1;
    /// As many epochs as make N steps for each training image of a class, of which up to 16 count.
    [OPTIMISATION, long, Number "N"] steps_per_shot?: u32, range: AT_LEAST_1;
    /// Epochs between validations, after each of which the run's state is saved.
    [OPTIMISATION, long, Number "N"]
        validate_every?: u32, unset: Some("1, with --steps-per-shot what makes up to 50 validations"), range: AT_LEAST_1;
    /// Images per batch.
    [OPTIMISATION, short, Number "B"] batch_size: usize = 32, range: AT_LEAST_1, most: Some(MAX_BATCH);
    /// Batches whose gradients make up one step.
    [OPTIMISATION, long, Number "N"] accumulate: usize = 1, range: AT_LEAST_1, most: Some(MAX_ACCUMULATE);
    /// Scale the gradients of a step down to this length, all of them as one vector.
    [OPTIMISATION, long, Number "L"] clip_grad_norm?: f64, unset: Some("off"), range: ABOVE_0_OR_NONE;
    /// Seed of everything random.
    [OPTIMISATION, short, Number "N"] seed: u64 = 42;
    /// Seed of the split of a folder of classes, and of the demo's flowers.
    [DATA, long, Number "N"] data_seed?: u64, unset: Some("that of --seed"), no_effect: own_split;
    /// Train on K images of each class, drawn by --seed, or on all of a class that has fewer.
    [DATA, short, Number "K"] shots?: usize, unset: Some("all"), range: AT_LEAST_1_IMAGE;
    /// Random resized crops and horizontal flips of the training images.
    [DATA, short, Word "off|crop-flip"] augment: Augment = Augment::Off;
    /// Least share of an image's area that a crop takes.
    [DATA, long, Number "A"]
        crop_area: f64 = 0.5, no_effect: no_crops, range: SHARE_OF_AN_IMAGE, range_if_used: true;
    /// See every training image once an epoch, or draw as many with replacement, each class as likely as any other.
    [DATA, long, Word "once|balanced"] sampler: Sampler = Sampler::Once;
    /// Shuffle the training images every epoch.
    [DATA, long, Truth "true|false"] shuffle: bool = true, no_effect: drawn_at_random;
    /// Learning rate of the head.
    [OPTIMISATION, short, Number "LR"] lr_head: f64 = 1e-3, no_effect: no_head, range: AT_LEAST_0;
    /// Weight decay of the head.
    [OPTIMISATION, long, Number "WD"] wd_head: f64 = 1e-4, no_effect: no_head, range: AT_LEAST_0;
    /// Learning rate of the adapters; search finds it by training a little at each of some.
    [OPTIMISATION, short, Number "LR|search"] lr_lora: AdapterRate = AdapterRate::Of(1e-4), no_effect: no_adapters, range: AT_LEAST_0;
    /// Weight decay of the adapters.
    [OPTIMISATION, long, Number "WD"] wd_lora: f64 = 1e-2, no_effect: no_adapters, range: AT_LEAST_0;
    /// Learning rate of the prompts.
    [OPTIMISATION, long, Number "LR"] lr_prompt: f64 = 5e-3, no_effect: no_prompts, range: AT_LEAST_0;
    /// Weight decay of the prompts.
    [OPTIMISATION, long, Number "WD"] wd_prompt: f64 = 0.0, no_effect: no_prompts, range: AT_LEAST_0;
    /// Course of the learning rates over --epochs.
    [OPTIMISATION, long, Word "constant|cosine"] schedule: ScheduleKind = ScheduleKind::Constant;
    /// Steps over which the learning rates climb to their values.
    [OPTIMISATION, long, Number "STEPS"] warmup: u64 = 0;
    /// Stop after N validations in a row without a new lowest loss.
    [STOPPING, short, Number "N|off"] early_stop: Patience = Patience::Epochs(3);
    /// By how much a validation loss must undercut the lowest before it to count.
    [STOPPING, long, Number "D"] early_stop_min_delta: f64 = 0.0, no_effect: never_stops, range: AT_LEAST_0;
    /// Compare with the best epoch so far or with the one before.
    [STOPPING, long, Word "best|previous"]
        early_stop_against: StopAgainst = StopAgainst::Best, no_effect: never_stops;
    /// Which epoch is kept by its validation results: the lowest loss within one standard error of the best accuracy,
    /// the best accuracy, the best macro F1, or the lowest loss.
    [STOPPING, long, Word "one-se|accuracy|macro-f1|loss"] keep_by: KeepBy = KeepBy::OneSe;
    /// Fit the kept classifier once more to training and validation images together; the test split is looked at once,
    /// after that.
    [STOPPING, long, Switch ""] final_fit: bool = false, no_effect: no_ladder;
    /// Minutes that training adapters may take: with fewer than they need they are trained shorter, or left out.
    [STOPPING, long, Number "M"]
        minutes?: f64, unset: Some("as long as they need"), no_effect: no_ladder, range: ABOVE_0_OR_NONE;
    /// Number type of activations and frozen weights.
    [OUTPUT, long, Word "f32|f16|bf16"] precision?: Precision, unset: Some("f16 on a GPU, f32 on the CPU; that has bf16 too where its processor does");
    /// Where to compute.
    [OUTPUT, short, Text "auto|cpu|cuda[:N]"] device: String = "auto".into();
    /// Write the metrics for TensorBoard too, into RUN/tensorboard.
    [OUTPUT, long, Switch ""] tensorboard: bool = false;
    /// Fit a logistic regression on plain CLIP's features too, to compare with.
    [OUTPUT, long, Truth "true|false"] baseline: bool = true;
    /// A prompt with {} for the class name; repeat the flag for several.
    #[serde(alias = "template")]
    [DATA, long, Texts "TEXT"]
        templates: Vec<String> = TEMPLATES.map(String::from).to_vec(), flag: Some("--template"), default: Some(described_templates);
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
            (Key::early_stop, "3; off in clip-lora and auto"),
            (Key::epochs, "40; 20 in auto; by --steps-per-shot in clip-lora"),
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
