//! Head and text logits, their cross entropies, and the gradients of both.

use super::adamw::loss_scale;
use super::mix_rows::Mixed;
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
fn add_targets(args: Args, targets: Targets<'_, Cuda>) -> Result<Args> {
    let Counting { weights, smoothing, of_text } = targets.counting;
    let mixed = targets.mix.map(Mixed::of).transpose()?;
    Ok(args
        .address(targets.labels.typed(DType::U32)?)
        .optional(mixed.map(|mixed| mixed.partner))
        .optional(mixed.map(|mixed| mixed.lambda))
        .optional(weights.map(|weights| weights.typed(DType::F32)).transpose()?)
        .float(smoothing as f32)
        .int(usize::from(of_text))
        .moving(weights.map_or(0, |weights| weights.bytes()))
        .moving(
            targets.labels.bytes() + mixed.map_or(0, |_| Mixed::bytes(targets.labels.shape().elements())),
        ))
}

impl HeadLossOp for Cuda {
    fn head_loss_checked(
        device: Checked<'_, Self>,
        f: &CudaTensor,
        classifier: Classifier<'_, Cuda>,
        targets: Targets<'_, Cuda>,
        head: &mut CudaTensor,
        text: &mut CudaTensor,
        stats: &mut CudaTensor,
    ) -> Result<()> {
        let ((batch, width), (_, classes)) = (f.shape().matrix(), head.shape().matrix());
        let groups = batch.div_ceil(IMAGES);
        let args = Args::new()
            .address(f.typed(DType::F32)?)
            .address(classifier.weight.typed(DType::F32)?)
            .address(classifier.bias.typed(DType::F32)?)
            .address(classifier.text.typed(DType::F32)?)
            .float(classifier.text_scale as f32);
        let args = add_targets(args, targets)?
            .address(head.typed(DType::F32)?)
            .address(text.typed(DType::F32)?)
            .address(device.scratch(4 * batch * size_of::<f32>())?)
            .address(device.counters("head_loss", 2 * groups + 1)?)
            .address(stats.typed(DType::F32)?)
            .int(batch)
            .int(classes)
            .int(width)
            .moving(f.bytes() + classifier.weight.bytes() + classifier.bias.bytes() + classifier.text.bytes())
            // The outcomes of each image, and four sums of them.
            .moving(head.bytes() + text.bytes() + 4 * (batch + 1) * size_of::<f32>())
            .multiplying(4 * batch * classes * width, false);
        let name = if width.is_multiple_of(FOUR) { "head_loss_fours" } else { "head_loss_ones" };
        device.launch("head_loss", name, [classes.div_ceil(CLASSES), groups, 2], THREADS, 0, args)
    }

    fn head_loss_backward_checked(
        device: Checked<'_, Self>,
        args: HeadLossBackward<'_, Cuda>,
        HeadExtents { batch, classes, width }: HeadExtents,
    ) -> Result<()> {
        let HeadLossBackward { f, classifier, targets, weights, control, head, text, .. } = args;
        let HeadLossBackward { d_weight, d_bias, df, d_text, .. } = args;
        let with_text = d_text.is_some() || (df.is_some() && weights.text != 0.0);
        logits_backward(&device, targets, weights, control, with_text, head, text)?;

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
        device.launch("head_loss", name, grid, THREADS, 0, args)
    }
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
    let (batch, classes) = head.matrix();
    let args = Args::new().address(head.typed(DType::F32)?).address(text.typed(DType::F32)?);
    let args = add_targets(args, targets)?
        .float((weights.head / batch as f64) as f32)
        .float((weights.text / batch as f64) as f32)
        .optional(loss_scale(control)?)
        .int(batch)
        .int(classes)
        .moving(2 * head.bytes() * (1 + usize::from(with_text)));
    let grid = [batch.div_ceil(GRADIENT_ROWS), 1 + usize::from(with_text), 1];
    cuda.launch("head_loss", "head_loss_backward_logits", grid, GRADIENT_THREADS, 0, args)
}
