//! Which images a page shows, and the images themselves, small.

use crate::data::SplitView;
use crate::train::metrics::{Evaluation, ImageResult};
use crate::train::{Result, TrainError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::RgbImage;
use image::imageops::{FilterType, resize};
use libjpeg_turbo_rs::{PixelFormat, Subsampling, compress_optimized};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Pixels of a thumbnail's side; a smaller image stays as it is.
const SIDE: u32 = 64;
const QUALITY: u8 = 82;
/// Images of a cell of the confusion matrix: of mistakes, and of what is right.
const OF_MISTAKES: usize = 12;
const OF_RIGHT: usize = 6;
/// Images of a page. At some 3 kB each they stay well under 10 MB.
const OF_PAGE: usize = 2400;

/// The images that a page names, each once; the page's other parts refer to them by their place here.
#[derive(Debug, Default)]
pub(crate) struct Album {
    /// Indices into the split, in the order of their places.
    chosen: Vec<usize>,
    places: BTreeMap<usize, usize>,
}

/// One image of an [`Album`].
#[derive(Debug, Serialize)]
pub(crate) struct Picture {
    /// Without what all paths of the split begin with.
    path: String,
    label: u32,
    predicted: u32,
    confidence: f32,
    text_predicted: u32,
    /// A data: URI.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
}

impl Album {
    /// The place of the image `index` of the split.
    pub fn place(&mut self, index: usize) -> usize {
        *self.places.entry(index).or_insert_with(|| {
            self.chosen.push(index);
            self.chosen.len() - 1
        })
    }

    /// The images in the order of their places.
    pub fn pictures(
        &self,
        evaluation: &Evaluation,
        root: &str,
        images: Option<&SplitView<'_>>,
    ) -> Result<Vec<Picture>> {
        let picture = |&index: &usize| {
            let ImageResult { path, label, predicted, confidence, text_predicted } =
                evaluation.images[index].clone();
            let path = path.strip_prefix(root).unwrap_or(&path).to_owned();
            let source = images.map(|images| data_uri(images, index)).transpose()?;
            Ok(Picture { path, label, predicted, confidence, text_predicted, source })
        };
        self.chosen.par_iter().map(picture).collect()
    }
}

/// Refuses a split that is not the one of the evaluation.
pub(crate) fn check_images(evaluation: &Evaluation, images: &SplitView<'_>, path: &Path) -> Result<()> {
    let labels = evaluation.images.iter().map(|image| &image.label);
    if labels.eq(images.labels()) {
        return Ok(());
    }
    let (n, split) = (evaluation.images.len(), &evaluation.split);
    let problem = format!(
        "the run was evaluated on {n} images of {split}, and these {} are others; name the run's own --data",
        images.len()
    );
    Err(TrainError::file(path, problem))
}

/// The folder that all paths share, with its last separator; empty where there is none.
pub(crate) fn common_folder(images: &[ImageResult]) -> &str {
    let Some((first, others)) = images.split_first() else { return "" };
    let mut folder = match first.path.rfind(['/', '\\']) {
        Some(end) => &first.path[..=end],
        None => "",
    };
    for image in others {
        while !image.path.starts_with(folder) {
            let parent = folder[..folder.len() - 1].rfind(['/', '\\']);
            folder = parent.map_or("", |end| &folder[..=end]);
        }
    }
    folder
}

/// Indices of the images of each cell of the confusion matrix, the most confident first: as many as a cell
/// may show, fewer where the page would grow too large.
pub(crate) fn of_cells(images: &[ImageResult]) -> BTreeMap<(u32, u32), Vec<usize>> {
    let mut cells: BTreeMap<(u32, u32), Vec<usize>> = BTreeMap::new();
    for index in by_confidence(images, |_| true) {
        let ImageResult { label, predicted, .. } = images[index];
        cells.entry((label, predicted)).or_default().push(index);
    }
    let shown = |limit: usize| -> usize {
        cells.iter().map(|(cell, all)| all.len().min(limit_of(*cell, limit))).sum()
    };
    let limit = (1..=OF_MISTAKES).rev().find(|&limit| shown(limit) <= OF_PAGE).unwrap_or(1);
    for (cell, all) in &mut cells {
        all.truncate(limit_of(*cell, limit));
    }
    cells
}

fn limit_of((label, predicted): (u32, u32), limit: usize) -> usize {
    if label == predicted { limit.min(OF_RIGHT) } else { limit }
}

/// Indices of the images that `wanted` takes, the most confident first.
pub(crate) fn by_confidence(images: &[ImageResult], wanted: impl Fn(&ImageResult) -> bool) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..images.len()).filter(|&i| wanted(&images[i])).collect();
    indices.sort_by(|&a, &b| images[b].confidence.total_cmp(&images[a].confidence));
    indices
}

fn data_uri(images: &SplitView<'_>, index: usize) -> Result<String> {
    let pixels = images.rgb(index)?;
    let side = (pixels.len() / 3).isqrt() as u32;
    let small = match RgbImage::from_raw(side, side, pixels) {
        Some(image) if side > SIDE => resize(&image, SIDE, SIDE, FilterType::CatmullRom),
        Some(image) => image,
        None => return Err(wrong(images, index, "is not square".into())),
    };
    let side = small.width() as usize;
    let jpeg = compress_optimized(&small, side, side, PixelFormat::Rgb, QUALITY, Subsampling::S420)
        .map_err(|e| wrong(images, index, format!("cannot be stored as JPEG ({e})")))?;
    Ok(format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg)))
}

fn wrong(images: &SplitView<'_>, index: usize, problem: String) -> TrainError {
    TrainError::file(&images.path(index).unwrap_or_default(), problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(path: &str, label: u32, predicted: u32, confidence: f32) -> ImageResult {
        ImageResult { path: path.into(), label, predicted, confidence, text_predicted: 0 }
    }

    #[test]
    fn paths_share_whole_folders_only() {
        let paths = |paths: &[&str]| -> Vec<ImageResult> {
            paths.iter().map(|path| image(path, 0, 0, 1.0)).collect()
        };
        assert_eq!(common_folder(&paths(&["/a/bc/1.jpg", "/a/bd/2.jpg"])), "/a/");
        assert_eq!(common_folder(&paths(&["test/rose/1.jpg", "test/rose/2.jpg"])), "test/rose/");
        assert_eq!(common_folder(&paths(&["rose/1.jpg", "lily/2.jpg"])), "");
        assert_eq!(common_folder(&paths(&["1.jpg"])), "");
        assert_eq!(common_folder(&[]), "");
    }

    #[test]
    fn a_cell_shows_its_most_confident_images() {
        let images: Vec<_> = (0..40).map(|i| image("", 0, i % 2, (i * 7 % 40) as f32 / 40.0)).collect();
        let cells = of_cells(&images);
        assert_eq!((cells[&(0, 0)].len(), cells[&(0, 1)].len()), (OF_RIGHT, OF_MISTAKES));
        let confidences: Vec<f32> = cells[&(0, 1)].iter().map(|&i| images[i].confidence).collect();
        let mut sorted: Vec<f32> = images.iter().filter(|i| i.predicted == 1).map(|i| i.confidence).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        assert_eq!(confidences, sorted[..OF_MISTAKES]);
    }

    #[test]
    fn a_page_of_a_bad_classifier_stays_small() {
        let images: Vec<_> = (0..6000u32).map(|i| image("", i % 20, i / 20 % 20, 0.5)).collect();
        let shown: usize = of_cells(&images).values().map(Vec::len).sum();
        assert!((1000..=OF_PAGE).contains(&shown), "{shown}");
    }
}
