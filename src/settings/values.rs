//! What settings can be: their types, and how a flag and config.toml spell them.

use crate::tensor::DType;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::str::FromStr;

/// Reads a word as serde does, so that flags and TOML take the same ones.
///
/// # Errors
/// Which words there are.
pub fn parse_word<T: for<'a> Deserialize<'a>>(word: &str) -> Result<T, String> {
    use serde::de::IntoDeserializer;
    let deserializer: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
        word.into_deserializer();
    T::deserialize(deserializer).map_err(|e| e.to_string())
}

/// Part of the model that is trained beside the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// LoRA adapters in the layers `targets` of `towers`.
    Lora,
    /// Nothing.
    Linear,
    /// Prompts.
    Vpt,
}

/// Augmentation of training images.
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
    /// H and h as `torch.nn.Linear` does, see [`HeadScale`](crate::tune::HeadScale).
    Random,
    /// At plain CLIP: its logits, exp(logit_scale)·f·Tᵀ.
    Text,
}

/// Treatment of the text alignment where plain CLIP cannot read the class names.
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

/// Weights of the classes in the loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassWeights {
    /// Each image counts the same, and a class as much as it has images.
    #[default]
    Off,
    /// Classes count the same: an image of class c weighs n/(C·n_c), for n images, n_c of them of class c.
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

/// Criterion by which an epoch is kept, on the validation split.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeepBy {
    /// The lowest loss of those within one standard error of the best accuracy.
    #[default]
    OneSe,
    /// The best accuracy; of equal ones the lowest loss.
    Accuracy,
    /// The best macro F1, in which a class counts as much as any other; of equal ones the lowest loss.
    MacroF1,
    /// The lowest loss.
    Loss,
}

/// Classifier of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassifierKind {
    /// A linear head, which is trained.
    Head,
    /// The class features of the text tower; there is no head.
    Text,
}

/// Learning rate of the adapters.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AdapterRate {
    /// Itself.
    Of(f64),
    /// How it is found.
    By(RateRule),
}

/// How a learning rate is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RateRule {
    /// By training a little at each of some, in the recipe that climbs a ladder.
    Search,
}

impl AdapterRate {
    /// None where it is yet to be found.
    pub(crate) fn known(self) -> Option<f64> {
        match self {
            AdapterRate::Of(rate) => Some(rate),
            AdapterRate::By(RateRule::Search) => None,
        }
    }
}

impl FromStr for AdapterRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("search", _) => Ok(AdapterRate::By(RateRule::Search)),
            (_, Ok(rate)) => Ok(AdapterRate::Of(rate)),
            (_, Err(_)) => Err(format!("{text:?} is neither a number nor \"search\"")),
        }
    }
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

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("off", _) => Ok(Patience::Off),
            (_, Ok(0)) | (_, Err(_)) => Err(format!("{text:?} is neither a number of epochs nor \"off\"")),
            (_, Ok(epochs)) => Ok(Patience::Epochs(epochs)),
        }
    }
}

impl Serialize for Patience {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Patience::Off => serializer.serialize_str("off"),
            Patience::Epochs(epochs) => serializer.serialize_u32(*epochs),
        }
    }
}

impl<'de> Deserialize<'de> for Patience {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
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
