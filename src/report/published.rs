//! What others report for the recipes, on Flowers-102 with CLIP ViT-B/32.

use super::RunData;
use crate::clip::config::ClipConfig;
use crate::data::flowers102;
use crate::settings::{Augment, Recipe, Settings};
use crate::train::records::VisionSizes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A result that was published elsewhere, as fractions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Published {
    /// The lowest and the highest that is reported.
    pub test_top1: [f64; 2],
    /// None where it is not reported.
    pub val_top1: Option<f64>,
}

/// Returns published results of the run's recipe, where the run keeps to that recipe and to the data that they are of.
pub fn published(run: &RunData) -> Option<Published> {
    if !is_published_data(run) || !is_the_recipe(&run.settings) || run.summary.text_left_out {
        return None;
    }
    let (test_top1, val_top1) = match run.settings.recipe {
        // The second with a tuned learning rate (LAION-AI/CLIP_benchmark, scaling_experiment_data2.json).
        Recipe::Linear => ([0.881, 0.930], None),
        Recipe::Lora => ([0.912, 0.9205], Some(0.9176)),
        Recipe::Mixup => ([0.9109, 0.9109], Some(0.9088)),
        Recipe::Triplet => ([0.9093, 0.9093], Some(0.9098)),
        Recipe::Vpt => ([0.8798, 0.9086], Some(0.9363)),
        _ => return None,
    };
    Some(Published { test_top1, val_top1 })
}

/// Returns published results of plain CLIP, where the data of `run` are those that they are of.
pub(crate) fn published_plain(run: &RunData) -> Option<Published> {
    is_published_data(run).then_some(Published { test_top1: [0.665; 2], val_top1: None })
}

/// Whether a run is tested on Flowers-102 with CLIP ViT-B/32, where results are published.
fn is_published_data(run: &RunData) -> bool {
    let base = VisionSizes::from(&ClipConfig::vit_b_32().vision);
    let evaluation = &run.evaluation;
    // Folders may be called by the names too, in their own order and with underscores.
    let names: BTreeSet<String> = evaluation.class_names.iter().map(|name| name.replace('_', " ")).collect();
    evaluation.split == "test"
        && run.summary.vision == Some(base)
        && names.len() == flowers102::CLASS_NAMES.len()
        && flowers102::CLASS_NAMES.iter().all(|name| names.contains(*name))
}

/// Whether the technique is still the one that the recipe names, whatever its rates and sizes.
fn is_the_recipe(settings: &Settings) -> bool {
    let recipe = Settings::of(settings.recipe);
    settings.method == recipe.method
        && settings.with_lora == recipe.with_lora
        && settings.mixup == recipe.mixup
        && (settings.mixup_on == recipe.mixup_on || !settings.has_mixup())
        && settings.triplet == recipe.triplet
        && settings.text_weight == recipe.text_weight
        && settings.head_init == recipe.head_init
        && settings.classifier == recipe.classifier
        && (settings.towers == recipe.towers || settings.lora().is_none())
        && settings.init_from.is_none()
        && settings.shots.is_none()
        && settings.augment == Augment::Off
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Comparison;
    use crate::report::test_run::run;

    fn published_of(run: &RunData) -> [Option<Published>; 2] {
        let comparison = Comparison::of(std::slice::from_ref(run)).unwrap();
        [0, 1].map(|i| comparison.rows[i].published.clone())
    }

    #[test]
    fn published_results_stand_beside_the_same_technique_on_the_same_data() {
        let lora = run("lora", Recipe::Lora, 1, 0.9);
        let [plain, own] = published_of(&lora);
        assert_eq!(plain, Some(Published { test_top1: [0.665, 0.665], val_top1: None }));
        assert_eq!(own, Some(Published { test_top1: [0.912, 0.9205], val_top1: Some(0.9176) }));
        for recipe in Recipe::ALL {
            let published = published_of(&run("run", recipe, 1, 0.9));
            let known = [Recipe::Linear, Recipe::Lora, Recipe::Mixup, Recipe::Triplet, Recipe::Vpt];
            assert_eq!(published[1].is_some(), known.contains(&recipe), "{recipe}");
        }
        // Folders in their own order, with underscores.
        let mut folders = lora.clone();
        folders.evaluation.class_names.sort_unstable();
        folders.evaluation.class_names.iter_mut().for_each(|name| *name = name.replace(' ', "_"));
        assert!(published_of(&folders).iter().all(Option::is_some));
        // Rates are no technique.
        let mut faster = lora.clone();
        (faster.settings.lr_lora, faster.settings.rank) = (crate::settings::AdapterRate::Of(1e-3), 16);
        assert_eq!(published_of(&faster)[1], own);
        for change in [
            |settings: &mut Settings| settings.mixup = 0.2,
            |settings: &mut Settings| settings.triplet = 0.3,
            |settings: &mut Settings| settings.method = crate::settings::Method::Linear,
            |settings: &mut Settings| settings.shots = Some(4),
            |settings: &mut Settings| settings.augment = Augment::CropFlip,
        ] {
            let mut other = lora.clone();
            change(&mut other.settings);
            assert_eq!(published_of(&other), [plain.clone(), None]);
        }
        let mut larger = lora.clone();
        larger.summary.vision = larger.summary.vision.map(|v| VisionSizes { patch_size: 16, ..v });
        let mut unknown = lora.clone();
        unknown.evaluation.class_names[3] = "daisy".into();
        let mut on_val = lora.clone();
        on_val.evaluation.split = "val".into();
        for other in [larger, unknown, on_val] {
            assert_eq!(published_of(&other), [None, None]);
        }
    }
}
