//! What a logistic regression makes of plain CLIP's features: what a trained run has to be better than.

use crate::objective::Objective;
use crate::stats::counting::Counting;
use crate::stats::logistic::{choose, grid};
use crate::stats::photos::{HeldOut, Photos};
use crate::tensor::{DType, Shape, Tensor};
use crate::train::Result;
use crate::train::metrics::Accumulator;
use crate::train::records::Baseline;
use std::time::Instant;

/// Photos times width times classes up to which a fit takes a minute at the most on two cores.
const LARGEST: usize = 1_000_000_000;

/// Features \[N, E\] of images and their labels \[N\].
#[derive(Clone, Copy)]
pub(crate) struct Labelled<'a> {
    pub features: &'a Tensor,
    pub labels: &'a [u32],
}

/// Fits `train`'s images `chosen`, with the penalty chosen by `val`, and tests on `result`, which is the split of
/// that name; none where there are too many images for it.
pub fn fit(
    train: Labelled<'_>,
    chosen: &[usize],
    val: Labelled<'_>,
    (split, result): (&str, Labelled<'_>),
    classes: usize,
    seed: u64,
) -> Result<Option<Baseline>> {
    let started = Instant::now();
    let width = train.features.shape().columns();
    if chosen.len().saturating_mul(width).saturating_mul(classes) > LARGEST {
        return Ok(None);
    }
    let all = numbers(train.features)?;
    let features: Vec<f64> = chosen.iter().flat_map(|&i| &all[i * width..(i + 1) * width]).copied().collect();
    let labels: Vec<u32> = chosen.iter().map(|&i| train.labels[i]).collect();
    let train = Photos::new(&features, &labels);
    let of_val = numbers(val.features)?;
    let val = Photos::new(&of_val, val.labels);
    let photos = HeldOut::new(train, val, width, classes, seed)?;
    let choice = choose(&photos, 0.0, Counting::Photos, &grid())?;
    let seconds = started.elapsed().as_secs_f64();
    let logits = choice.model.head.logits(&numbers(result.features)?, None);
    let logits = Tensor::from_slice(Shape::from([result.labels.len(), classes]), &logits)?;
    let mut sums = Accumulator::new(classes, Objective::new(1.0, 0.0));
    sums.add(&logits, &logits, result.labels)?;
    let metrics = sums.finish();
    Ok(Some(Baseline {
        split: split.into(),
        images: metrics.images,
        top1: metrics.top1,
        macro_f1: metrics.macro_f1,
        nll: metrics.nll,
        ece: metrics.ece,
        seconds,
        c: choice.model.c,
    }))
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.view().to_tensor(DType::F64)?.typed::<f64>()?.to_vec())
}
