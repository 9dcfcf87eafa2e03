//! The embedded default: a tiny pre-trained CLIP and generated flowers, both inside the binary.

use super::base_model::BaseModel;
use super::model::Model;
use super::{Result, TrainError};
use crate::data::demo::{IMAGE_SIZE, demo_class_names, demo_dataset, demo_splits_at};
use crate::data::{Cache, Preprocess, Split, larger_side};
use rayon::prelude::*;

/// The files of assets/demo-clip.
const FILES: [(&str, &[u8]); 4] = [
    ("config.json", include_bytes!("../../assets/demo-clip/config.json")),
    ("model.safetensors", include_bytes!("../../assets/demo-clip/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../assets/demo-clip/tokenizer.json")),
    ("preprocessor_config.json", include_bytes!("../../assets/demo-clip/preprocessor_config.json")),
];

/// Opens the bundled model, from a temporary directory that goes away with it.
pub fn model() -> Result<Model> {
    let temporary = std::env::temp_dir();
    let io = |e| TrainError::io(&temporary, "write the bundled model")(e);
    let dir = tempfile::tempdir().map_err(io)?;
    for (name, bytes) in FILES {
        std::fs::write(dir.path().join(name), bytes).map_err(io)?;
    }
    let mut model = Model::open(dir.path())?;
    model.base = BaseModel::Named("clip-engine/demo-clip".into());
    model.keep(dir);
    Ok(model)
}

/// Draws the demo's flowers.
pub fn cache(seed: u64) -> Result<Cache> {
    let images: Vec<_> = demo_dataset(seed).collect();
    Ok(Cache::from_images(demo_class_names(), &Preprocess::clip(IMAGE_SIZE), images)?)
}

/// Draws the flowers of some splits in the size that crops are taken of.
pub fn enlarged_cache(seed: u64, splits: &[Split]) -> Result<Cache> {
    let side = larger_side(IMAGE_SIZE);
    let images: Vec<_> = demo_splits_at(seed, splits, side).collect();
    Ok(Cache::from_images(demo_class_names(), &Preprocess::clip(side), images)?)
}
