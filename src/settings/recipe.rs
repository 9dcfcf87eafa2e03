//! Recipes: what each has otherwise than the defaults of the table.

use super::Settings;
use super::values::*;
use crate::clip::text::{CLIP_LORA_TEMPLATES, FLOWER_TEMPLATES, TEMPLATES};
use crate::data::is_flowers102_root;
use crate::fetch::is_flowers102;
use crate::optim::ScheduleKind;
use crate::tune::{Target, Tower};
use serde::{Deserialize, Serialize};
use std::path::Path;

macro_rules! recipes {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident $word:literal { $($field:ident: $value:expr,)* }
    )*) => {
        /// A named combination of settings.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Recipe {$(
            $(#[doc = $doc])+
            #[serde(rename = $word)]
            $name,
        )*}

        impl Recipe {
            /// Every recipe once.
            pub const ALL: [Recipe; [$($word),*].len()] = [$(Recipe::$name),*];

            /// The words for all of them, with | between.
            pub(super) const WORDS: &str = {
                const EACH_AND_A_BAR: &str = concat!($($word, "|"),*);
                EACH_AND_A_BAR.split_at(EACH_AND_A_BAR.len() - 1).0
            };

            /// The word for it on the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Recipe::$name => $word,)* }
            }
        }

        impl Settings {
            /// The defaults of a recipe.
            pub fn of(recipe: Recipe) -> Self {
                let mut settings = Settings { recipe, ..Settings::base() };
                match recipe {
                    $(Recipe::$name => { $(settings.$field = $value;)* })*
                }
                settings
            }
        }
    };
}

recipes! {
    /// The head alone on frozen features.
    Linear "linear" {
        method: Method::Linear,
    }

    /// LoRA in the attention layers and a head, head loss + 0.3 × text alignment.
    Lora "lora" {}

    /// LoRA and a head on mixed images.
    Mixup "mixup" {
        text_weight: 0.0,
        mixup: 0.2,
    }

    /// LoRA and a head, head loss × 0.7 + batch-hard triplet loss × 0.3.
    Triplet "triplet" {
        text_weight: 0.0,
        triplet: 0.3,
    }

    /// Prompts in front of every block and a head.
    Vpt "vpt" {
        method: Method::Vpt,
        schedule: ScheduleKind::Cosine,
    }

    /// LoRA in both towers and no head: images are classified by their text logits. Made for few images of each class
    /// (Zanella and Ben Ayed 2024).
    ClipLora "clip-lora" {
        classifier: ClassifierKind::Text,
        text_weight: 1.0,
        rank: 2,
        alpha: 1.0,
        targets: vec![Target::Query, Target::Key, Target::Value],
        towers: Tower::ALL.to_vec(),
        dropout: 0.25,
        steps_per_shot: Some(500),
        augment: Augment::CropFlip,
        crop_area: 0.08,
        lr_lora: AdapterRate::Of(2e-4),
        schedule: ScheduleKind::Cosine,
        // The rate falls until the last epoch.
        early_stop: Patience::Off,
        templates: default_templates(Recipe::ClipLora, false),
    }

    /// A ladder of classifiers from plain CLIP to LoRA, of which validation keeps the best.
    Auto "auto" {
        epochs: 20,
        augment: Augment::CropFlip,
        lr_lora: AdapterRate::By(RateRule::Search),
        schedule: ScheduleKind::Cosine,
        warmup: 5,
        // The rate falls until the last epoch.
        early_stop: Patience::Off,
        // It is a rung.
        baseline: false,
    }
}

impl std::fmt::Display for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

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

/// They, as the help names them.
pub(super) fn described_templates() -> String {
    let quoted =
        |recipe, flowers| format!("{:?}", default_templates(recipe, flowers)).replace(['[', ']'], "");
    format!(
        "{}; for Flowers-102 and the demo {}; in {} {}, for flowers {}",
        quoted(Recipe::Lora, false),
        quoted(Recipe::Lora, true),
        Recipe::ClipLora,
        quoted(Recipe::ClipLora, false),
        quoted(Recipe::ClipLora, true),
    )
}

/// Whether data are Flowers-102, in its own layout or by its name.
pub fn are_flowers(data: &Path) -> bool {
    is_flowers102(data) || is_flowers102_root(data)
}
