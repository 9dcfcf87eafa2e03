//! The ladder of `--recipe auto`: classifiers from plain CLIP on, each judged on validation, of which the best is kept.
//!
//! First heads on plain CLIP's features, which cost seconds (`heads`); then adapters, trained from the best of them
//! (`lora`); then what lies between the two, the choice, and the fit to all photos (`top`).

mod heads;
mod lora;
mod top;

pub(super) use lora::Ended;
pub(super) use top::Summit;

use crate::settings::{Augment, ClassWeights, Sampler, Settings};
use crate::stats::counting::Counting;
use crate::stats::heads::How;
use crate::stats::judged::Judged;
use crate::tensor::Tensor;
use crate::train::records::{Rung, RungScores};
use serde::{Deserialize, Serialize};

/// How far the ladder was climbed, and what the next rungs need of those before. What resuming needs of it stands in
/// the state of the run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Climb {
    /// The heads so far; those of adapters are added when they are tested.
    pub rungs: Vec<Rung>,
    /// How each came about.
    hows: Vec<How>,
    /// The best of them, from which adapters are trained.
    best: usize,
    /// Images that it was judged by: those of the validation split and, where these are few, training images held out.
    held_out: usize,
    /// Whether adapters are trained on crops: unless held-out images say beyond noise that these hurt.
    pub crops: bool,
    /// Short trainings by which the learning rate of the adapters is found.
    looks: Vec<Look>,
    /// Learning rate of the adapters, once it is known.
    rate: Option<f64>,
    /// Epochs of training adapters, once they are settled; 0 where it is not worth it.
    pub epochs: Option<u32>,
    /// Seconds that it took to find the rate.
    look_seconds: f64,
    /// Seconds of an image's plain features, by which the rest is forecast.
    seconds_of_image: f64,
    /// Values of the heads: weights \[R·C, E\] and biases \[R, C\], f32.
    #[serde(skip)]
    pub tensors: Option<[Tensor; 2]>,
}

/// Work of a climb besides the epochs of adapters, in images that pass the tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::train) struct Passes {
    /// Over the training images, for plain features: the images themselves and crops of them.
    pub views: usize,
    /// Epochs of training to find the learning rate.
    pub look_epochs: u32,
    /// Over the validation split: for plain features, behind each look, and for what lies between head and adapters.
    pub of_val: usize,
}

impl Passes {
    /// Counts the passes of a run of these settings.
    pub fn of(settings: &Settings) -> Self {
        let looks = if settings.lr_lora.known().is_some() { 0 } else { lora::RATES.len() };
        Passes {
            views: 1 + if settings.augment == Augment::Off { 0 } else { heads::CROPS },
            look_epochs: looks as u32 * lora::LOOK_EPOCHS.min(settings.epochs),
            of_val: 1 + looks + top::BLENDS.len() + 1,
        }
    }
}

impl Climb {
    /// Wall-clock time of the rungs so far.
    pub fn seconds(&self) -> f64 {
        self.rungs.iter().map(|rung| rung.seconds).sum()
    }
}

impl Settings {
    /// Trains on photos as they are where crops do not help; whether that is another setting.
    pub(super) fn leave_out_crops(&mut self, climb: Option<&Climb>) -> bool {
        let is_other = self.augment != Augment::Off && climb.is_some_and(|climb| !climb.crops);
        if is_other {
            self.augment = Augment::Off;
        }
        is_other
    }
}

/// A short training at one learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Look {
    rate: f64,
    /// NLL of the validation split after the training, infinite where the training came to no number.
    #[serde(with = "bits")]
    nll: f64,
}

/// Numbers that JSON does not have.
mod bits {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(value.to_bits())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(f64::from_bits(u64::deserialize(deserializer)?))
    }
}

/// As the run's table has it, photo by photo.
fn scores(judged: Judged<'_>) -> RungScores {
    let of_photos = Judged { counting: Counting::Photos, ..judged };
    RungScores { images: judged.labels.len(), top1: of_photos.top1(), nll: of_photos.nll() }
}

/// Returns by which frequencies of the classes the rungs are judged: as photos come, or all alike.
fn counting(settings: &Settings) -> Counting {
    match (settings.class_weights, settings.sampler) {
        (ClassWeights::Off, Sampler::Once) => Counting::Photos,
        _ => Counting::Classes,
    }
}
