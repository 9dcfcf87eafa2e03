//! Every setting of a run, resolved. This is what config.toml holds and what repeats the run.

use super::{Result, TrainError};
use crate::clip::text::TEMPLATES;
use crate::objective::Objective;
use crate::optim::{EarlyStopSpec, Rate, Rates, ScheduleKind, StopAgainst};
use crate::tensor::DType;
use crate::tune::{LoraSpec, Target};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::path::PathBuf;
use std::str::FromStr;

/// A named combination of settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recipe {
    /// LoRA in the attention layers and a head, head loss + 0.3 × text alignment.
    Lora,
    /// The head alone on frozen features.
    Linear,
}

/// What is trained beside the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    Lora,
    /// Nothing.
    Linear,
}

/// Element type of activations and frozen weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    F32,
    F16,
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
    /// As `torch.nn.Linear` does.
    Random,
    /// Weight: the class features of the text tower; bias 0.
    Text,
}

/// Epochs without improvement after which a run ends, or "off".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    Off,
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

/// The settings of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// The bundled model and generated flowers instead of `data` and `model`.
    pub demo: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// Where preprocessed images are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// Element type of the cache.
    pub dtype: CacheType,
    /// Where the trained tensors start from: a directory with adapter/ or head.safetensors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
    pub skip_bad_images: bool,
    pub recipe: Recipe,
    pub method: Method,
    pub head_init: HeadInit,
    pub text_weight: f64,
    pub rank: usize,
    pub alpha: f64,
    pub targets: Vec<Target>,
    pub epochs: u32,
    pub batch_size: usize,
    pub seed: u64,
    pub shuffle: bool,
    pub lr_head: f64,
    pub wd_head: f64,
    pub lr_lora: f64,
    pub wd_lora: f64,
    pub schedule: ScheduleKind,
    /// Steps over which the learning rates climb to their values.
    pub warmup: u64,
    pub early_stop: Patience,
    pub early_stop_min_delta: f64,
    pub early_stop_against: StopAgainst,
    /// None until the device is known: f16 on a GPU, f32 on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    pub device: String,
    pub templates: Vec<String>,
}

impl Settings {
    /// The defaults of a recipe.
    pub fn of(recipe: Recipe) -> Self {
        Settings {
            demo: false,
            data: None,
            model: None,
            cache: None,
            dtype: CacheType::U8,
            init_from: None,
            skip_bad_images: false,
            recipe,
            method: match recipe {
                Recipe::Lora => Method::Lora,
                Recipe::Linear => Method::Linear,
            },
            head_init: HeadInit::Random,
            text_weight: 0.3,
            rank: 8,
            alpha: 16.0,
            targets: Target::ALL.to_vec(),
            epochs: 40,
            batch_size: 32,
            seed: 42,
            shuffle: true,
            lr_head: 1e-3,
            wd_head: 1e-4,
            lr_lora: 1e-4,
            wd_lora: 1e-2,
            schedule: ScheduleKind::Constant,
            warmup: 0,
            early_stop: Patience::Epochs(3),
            early_stop_min_delta: 0.02,
            early_stop_against: StopAgainst::Best,
            precision: None,
            device: "auto".into(),
            templates: TEMPLATES.map(String::from).to_vec(),
        }
    }

    /// Refuses what cannot be trained, naming the flag.
    pub fn validate(&self) -> Result<()> {
        let refuse = |text: String| Err(TrainError::Setting(text));
        for (flag, value) in [("--epochs", self.epochs as usize), ("--batch-size", self.batch_size)] {
            if value == 0 {
                return refuse(format!("{flag}: 0 trains nothing; give at least 1"));
            }
        }
        if self.batch_size > MAX_BATCH {
            return refuse(format!("--batch-size: {} is more than {MAX_BATCH}", self.batch_size));
        }
        for (flag, value) in [
            ("--lr-head", self.lr_head),
            ("--lr-lora", self.lr_lora),
            ("--wd-head", self.wd_head),
            ("--wd-lora", self.wd_lora),
            ("--text-weight", self.text_weight),
            ("--early-stop-min-delta", self.early_stop_min_delta),
        ] {
            if !value.is_finite() || value < 0.0 {
                return refuse(format!("{flag}: {value} is not a number of at least 0"));
            }
        }
        if self.method == Method::Lora {
            if self.rank == 0 || self.rank > 1024 {
                return refuse(format!("--rank: {} is not between 1 and 1024", self.rank));
            }
            if !self.alpha.is_finite() {
                return refuse(format!("--alpha: {} is not a number", self.alpha));
            }
            if self.targets.is_empty() {
                return refuse("--targets: name at least one layer, or choose --method linear".into());
            }
            let mut seen = self.targets.clone();
            seen.sort_unstable();
            seen.dedup();
            if seen.len() != self.targets.len() {
                return refuse("--targets: a layer is named twice; name each once".into());
            }
        }
        check_templates(&self.templates)?;
        match (self.demo, &self.data, &self.model) {
            (true, None, None) | (false, Some(_), Some(_)) => Ok(()),
            (true, ..) => refuse("--demo brings its own data and model; leave out --data and --model".into()),
            (false, None, _) => refuse("--data: missing; name a folder of photos, or try --demo".into()),
            (false, _, None) => refuse("--model: missing; name a Hugging Face CLIP directory".into()),
        }
    }

    pub fn lora(&self) -> Option<LoraSpec> {
        (self.method == Method::Lora).then(|| LoraSpec {
            rank: self.rank,
            alpha: self.alpha,
            targets: self.targets.clone(),
        })
    }

    pub fn objective(&self) -> Objective {
        Objective { head: 1.0, text: self.text_weight }
    }

    pub fn rates(&self) -> Rates {
        Rates {
            head: Rate { learning_rate: self.lr_head, weight_decay: self.wd_head },
            lora: Rate { learning_rate: self.lr_lora, weight_decay: self.wd_lora },
        }
    }

    pub fn early_stop_spec(&self) -> Option<EarlyStopSpec> {
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

/// Refuses templates without a place for the class name.
pub fn check_templates(templates: &[String]) -> Result<()> {
    if templates.is_empty() || templates.iter().any(|t| !t.contains("{}")) {
        let text = "--template: every template needs {} where the class name goes";
        return Err(TrainError::Setting(text.into()));
    }
    Ok(())
}
