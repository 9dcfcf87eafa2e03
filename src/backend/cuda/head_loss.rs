//! Head and text logits, their cross entropies, and the gradients of both.

use super::mix::Mixed;
use super::*;

const THREADS: usize = 256;

/// Images and classes that a block of the forward pass takes.
const IMAGES: usize = 4;
const CLASSES: usize = 16;

/// Threads and rows of a block that turns logits into their gradients.
const GRADIENT_THREADS: usize = 128;
const GRADIENT_ROWS: usize = 4;

/// Rows that a block of the backward products makes, and its columns for each element of a pack.
const SUMS: usize = 4;
const LANES: usize = 32;

/// Elements that a lane moves at a time where the width divides.
const FOUR: usize = 4;

/// Labels, where they are mixed partners and λ, and what the classes count: [`Targets`] as the kernels read them.
fn add_targets(
    args: Args,
    targets: Targets<'_, Cuda>,
    op: &'static str,
    batch: usize,
    classes: usize,
) -> Result<Args> {
    let Counting { weights, smoothing, of_text } = targets.counting;
    if let Some(weights) = weights {
        expect_shape(op, "class weights", [classes], weights.shape())?;
    }
    expect_shape(op, "labels", [batch], targets.labels.shape())?;
    let mixed = targets.mix.map(|mix| Mixed::of(op, mix, batch)).transpose()?;
    Ok(args
        .address(targets.labels.typed(DType::U32)?)
        .optional(mixed.map(|mixed| mixed.partner))
        .optional(mixed.map(|mixed| mixed.lambda))
        .optional(weights.map(|weights| weights.typed(DType::F32)).transpose()?)
        .float(smoothing as f32)
        .int(usize::from(of_text))
        .moving(weights.map_or(0, |weights| weights.bytes()))
        .moving(targets.labels.bytes() + mixed.map_or(0, |_| Mixed::bytes(batch))))
}

/// Batch, classes and width, after all shapes but those of the targets were compared.
fn extents(
    op: &'static str,
    f: &CudaTensor,
    c: Classifier<'_, Cuda>,
    head: &CudaTensor,
    text: &CudaTensor,
) -> Result<(usize, usize, usize)> {
    let (batch, width) = f.matrix();
    let classes = c.bias.shape().elements();
    expect_shape(op, "f", [batch, width], f.shape())?;
    expect_shape(op, "bias", [classes], c.bias.shape())?;
    expect_shape(op, "weight", [classes, width], c.weight.shape())?;
    expect_shape(op, "text", [classes, width], c.text.shape())?;
    expect_shape(op, "head logits", [batch, classes], head.shape())?;
    expect_shape(op, "text logits", [batch, classes], text.shape())?;
    if batch == 0 || classes == 0 || width == 0 {
        let problem = format!("a batch of {batch}, {classes} classes, {width} features: none may be 0");
        return Err(BackendError::Invalid { op, problem });
    }
    Ok((batch, classes, width))
}

pub fn head_loss(
    cuda: &Cuda,
    f: &CudaTensor,
    classifier: Classifier<'_, Cuda>,
    targets: Targets<'_, Cuda>,
    head: &mut CudaTensor,
    text: &mut CudaTensor,
    stats: &mut CudaTensor,
) -> Result<()> {
    const OP: &str = "head_loss";
    let (batch, classes, width) = extents(OP, f, classifier, head, text)?;
    expect_shape(OP, "stats", [Stat::COUNT], stats.shape())?;
    let groups = batch.div_ceil(IMAGES);
    let args = Args::new()
        .address(f.typed(DType::F32)?)
        .address(classifier.weight.typed(DType::F32)?)
        .address(classifier.bias.typed(DType::F32)?)
        .address(classifier.text.typed(DType::F32)?)
        .float(classifier.text_scale as f32);
    let args = add_targets(args, targets, OP, batch, classes)?
        .address(head.typed(DType::F32)?)
        .address(text.typed(DType::F32)?)
        .address(cuda.scratch(4 * batch * size_of::<f32>())?)
        .address(cuda.counters(OP, 2 * groups + 1)?)
        .address(stats.typed(DType::F32)?)
        .int(batch)
        .int(classes)
        .int(width)
        .moving(f.bytes() + classifier.weight.bytes() + classifier.bias.bytes() + classifier.text.bytes())
        // The outcomes of each image, and four sums of them.
        .moving(head.bytes() + text.bytes() + 4 * (batch + 1) * size_of::<f32>())
        .multiplying(4 * batch * classes * width, false);
    let name = if width.is_multiple_of(FOUR) { "head_loss_fours" } else { "head_loss_ones" };
    cuda.launch("head_loss", name, [classes.div_ceil(CLASSES), groups, 2], THREADS, 0, args)
}

#[allow(clippy::too_many_arguments)]
pub fn head_loss_backward(
    cuda: &Cuda,
    f: &CudaTensor,
    classifier: Classifier<'_, Cuda>,
    targets: Targets<'_, Cuda>,
    weights: LossWeights,
    control: Option<&CudaTensor>,
    head: &mut CudaTensor,
    text: &mut CudaTensor,
    d_weight: &mut CudaTensor,
    d_bias: &mut CudaTensor,
    df: Option<&mut CudaTensor>,
    d_text: Option<&mut CudaTensor>,
) -> Result<()> {
    const OP: &str = "head_loss_backward";
    let (batch, classes, width) = extents(OP, f, classifier, head, text)?;
    expect_shape(OP, "d_weight", [classes, width], d_weight.shape())?;
    expect_shape(OP, "d_bias", [classes], d_bias.shape())?;
    if let Some(df) = &df {
        expect_shape(OP, "df", f.shape(), df.shape())?;
    }
    if let Some(d_text) = &d_text {
        expect_shape(OP, "d_text", [classes, width], d_text.shape())?;
    }
    let with_text = d_text.is_some() || (df.is_some() && weights.text != 0.0);
    logits_backward(cuda, targets, weights, control, with_text, head, text)?;

    let class_tiles = classes.div_ceil(SUMS);
    let image_tiles = if df.is_some() { batch.div_ceil(SUMS) } else { 0 };
    let text_tiles = if d_text.is_some() { class_tiles } else { 0 };
    // df takes the weights of the head, and those of the text where it has a part of it.
    let weights_read = if df.is_some() { 1 + usize::from(with_text) } else { 0 };
    let matrices = 1 + weights_read + usize::from(d_text.is_some());
    let logits_read = head.bytes() * (1 + usize::from(with_text));
    let moved = f.bytes() + matrices * classifier.weight.bytes() + logits_read;
    let moved = moved + d_bias.bytes() + df.as_ref().map_or(0, |df| df.bytes());
    let d_logits = if with_text { Some(text.typed(DType::F32)?) } else { None };
    let args = Args::new()
        .address(f.typed(DType::F32)?)
        .address(classifier.weight.typed(DType::F32)?)
        .address(classifier.text.typed(DType::F32)?)
        .float(classifier.text_scale as f32)
        .address(head.typed(DType::F32)?)
        .optional(d_logits)
        .address(d_weight.typed(DType::F32)?)
        .address(d_bias.typed(DType::F32)?)
        .optional(df.map(|df| df.typed(DType::F32)).transpose()?)
        .optional(d_text.map(|d_text| d_text.typed(DType::F32)).transpose()?)
        .int(class_tiles)
        .int(image_tiles)
        .int(batch)
        .int(classes)
        .int(width)
        .moving(moved)
        .multiplying(2 * matrices * batch * classes * width, false);
    let (name, columns) = match width.is_multiple_of(FOUR) {
        true => ("head_loss_backward_products_fours", LANES * FOUR),
        false => ("head_loss_backward_products_ones", LANES),
    };
    let grid = [class_tiles + image_tiles + text_tiles, width.div_ceil(columns), 1];
    cuda.launch("head_loss", name, grid, THREADS, 0, args)
}

/// The logits become their gradients; those of the text only where they are wanted.
fn logits_backward(
    cuda: &Cuda,
    targets: Targets<'_, Cuda>,
    weights: LossWeights,
    control: Option<&CudaTensor>,
    with_text: bool,
    head: &mut CudaTensor,
    text: &mut CudaTensor,
) -> Result<()> {
    const OP: &str = "head_loss_backward";
    let (batch, classes) = head.matrix();
    let loss_scale = match control {
        Some(control) => {
            expect_shape(OP, "control", [Control::COUNT], control.shape())?;
            let scale = Control::LossScale as usize * size_of::<f32>();
            Some(control.typed(DType::F32)?.offset(scale))
        }
        None => None,
    };
    let args = Args::new().address(head.typed(DType::F32)?).address(text.typed(DType::F32)?);
    let args = add_targets(args, targets, OP, batch, classes)?
        .float((weights.head / batch as f64) as f32)
        .float((weights.text / batch as f64) as f32)
        .optional(loss_scale)
        .int(batch)
        .int(classes)
        .moving(2 * head.bytes() * (1 + usize::from(with_text)));
    let grid = [batch.div_ceil(GRADIENT_ROWS), 1 + usize::from(with_text), 1];
    cuda.launch("head_loss", "head_loss_backward_logits", grid, GRADIENT_THREADS, 0, args)
}
