//! Head and text logits, their cross entropies, and the gradients of both.

use super::*;

/// The classifier on normalised features: `weight` \[C, E\], `bias` \[C\] are trained; `text` \[C, E\] is
/// constant unless the text tower is trained, and `text_scale` = exp(logit_scale) always.
pub struct Classifier<'a, B: Memory> {
    /// H, in the parameter dtype.
    pub weight: &'a B::Tensor,
    /// h, in the parameter dtype.
    pub bias: &'a B::Tensor,
    /// T, the class features of the text tower, in the parameter dtype.
    pub text: &'a B::Tensor,
    /// Factor on f·Tᵀ that gives the text logits: exp(logit_scale).
    pub text_scale: f64,
}

/// Targets of a batch's cross entropies: the labels, and how they count.
pub struct Targets<'a, B: Memory> {
    /// Class of each image, u32 \[B\].
    pub labels: &'a B::Tensor,
    /// Where images are mixed, so are their classes: λᵢ of label i and 1 − λᵢ of its partner's.
    pub mix: Option<&'a Mix<B>>,
    /// Class weights and label smoothing.
    pub counting: Counting<'a, B>,
}

impl<'a, B: Memory> Targets<'a, B> {
    /// Labels alone.
    pub fn of(labels: &'a B::Tensor) -> Self {
        Targets { labels, mix: None, counting: Counting::PLAIN }
    }
}

/// How cross entropies count the classes: that of an image is −Σ `weights`\[c\]·t\[c\]·log softmax(z)\[c\], where
/// t is 1 − `smoothing` times the shares of its classes, and `smoothing`/C for every class.
pub struct Counting<'a, B: Memory> {
    /// \[C\], in the parameter dtype; none for 1 each.
    pub weights: Option<&'a B::Tensor>,
    /// S, at least 0 and below 1.
    pub smoothing: f64,
    /// Whether the cross entropy of the text logits counts them so too, and not the head's alone.
    pub of_text: bool,
}

impl<B: Memory> Counting<'_, B> {
    /// Every class alike, and labels as they are.
    pub const PLAIN: Self = Counting { weights: None, smoothing: 0.0, of_text: false };
}

/// Positions in the vector of numbers that a step leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stat {
    /// Mean cross entropy of the head.
    LossHead = 0,
    /// Mean cross entropy of the text logits.
    LossText = 1,
    /// Images that the head classifies rightly; a mixed image counts λ where it is given the one class, and
    /// 1 − λ where the other.
    Correct = 2,
    /// [`Stat::Correct`] of the text logits.
    TextCorrect = 3,
    /// Sum of squares of all gradients; not finite where one of them is not.
    GradientSquared = 4,
    /// The loss scale that this step's gradients were computed with; 1 without loss scaling.
    LossScale = 5,
    /// 1 where loss scaling found a gradient that is not finite and left the trained tensors alone.
    Skipped = 6,
    /// Mean triplet loss; 0 where none is computed.
    LossTriplet = 7,
    /// Share of the batch's images whose triplet loss is above 0.
    TripletsActive = 8,
    /// Mean distance of the farthest positive, over the images that have one and a negative; 0 where none has.
    DistancePositive = 9,
    /// Mean distance of the nearest negative, over the same images.
    DistanceNegative = 10,
}

impl Stat {
    /// Length of the vector.
    pub const COUNT: usize = 11;
}

/// Weights of the two cross entropies in the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossWeights {
    /// Weight of the cross entropy of the head's logits.
    pub head: f64,
    /// Weight of the cross entropy of the text logits.
    pub text: f64,
}

/// Sizes of the classifier and of a batch.
#[derive(Debug, Clone, Copy)]
pub struct HeadExtents {
    /// B.
    pub batch: usize,
    /// C.
    pub classes: usize,
    /// E.
    pub width: usize,
}

impl HeadExtents {
    /// Compares all shapes.
    fn of<B: Memory>(
        op: &'static str,
        f: &B::Tensor,
        c: Classifier<'_, B>,
        targets: Targets<'_, B>,
        logits: [&B::Tensor; 2],
    ) -> Result<Self> {
        let ((batch, width), classes) = (f.shape().matrix(), c.bias.shape().elements());
        expect_shape(op, "f", [batch, width], f.shape())?;
        expect_shape(op, "bias", [classes], c.bias.shape())?;
        expect_shape(op, "weight", [classes, width], c.weight.shape())?;
        expect_shape(op, "text", [classes, width], c.text.shape())?;
        expect_shape(op, "head logits", [batch, classes], logits[0].shape())?;
        expect_shape(op, "text logits", [batch, classes], logits[1].shape())?;
        if batch == 0 || classes == 0 || width == 0 {
            let problem = format!("a batch of {batch}, {classes} classes, {width} features: none may be 0");
            return Err(BackendError::Invalid { op, problem });
        }
        expect_shape(op, "labels", [batch], targets.labels.shape())?;
        targets.mix.map_or(Ok(()), |mix| mix.expect(op, batch))?;
        if let Some(weights) = targets.counting.weights {
            expect_shape(op, "class weights", [classes], weights.shape())?;
        }
        Ok(HeadExtents { batch, classes, width })
    }
}

/// Arguments of [`HeadLossOp::head_loss_backward`].
pub struct HeadLossBackward<'a, B: Memory> {
    /// Normalised features \[B, E\].
    pub f: &'a B::Tensor,
    /// The head, and the class features.
    pub classifier: Classifier<'a, B>,
    /// What the images are.
    pub targets: Targets<'a, B>,
    /// Of the two cross entropies.
    pub weights: LossWeights,
    /// Where the loss scale is.
    pub control: Option<&'a B::Tensor>,
    /// Logits of the head \[B, C\], and then their gradients.
    pub head: &'a mut B::Tensor,
    /// Those of the text.
    pub text: &'a mut B::Tensor,
    /// Gradient of H.
    pub d_weight: &'a mut B::Tensor,
    /// Gradient of h.
    pub d_bias: &'a mut B::Tensor,
    /// Gradient of the features.
    pub df: Option<&'a mut B::Tensor>,
    /// Gradient of the class features.
    pub d_text: Option<&'a mut B::Tensor>,
}

/// The losses of the classifier.
pub trait HeadLossOp: Memory {
    /// head = f·Hᵀ + h, text = text_scale·f·Tᵀ, both \[B, C\]; the losses and counts of [`Stat`] over the
    /// batch go to `stats`. All in the parameter dtype. With mixed targets a cross entropy is
    /// λᵢ·CE(label i) + (1 − λᵢ)·CE(its partner's); see [`Counting`] for what else it may be.
    fn head_loss(
        &self,
        f: &Self::Tensor,
        classifier: Classifier<'_, Self>,
        targets: Targets<'_, Self>,
        head: &mut Self::Tensor,
        text: &mut Self::Tensor,
        stats: &mut Self::Tensor,
    ) -> Result<()> {
        const OP: &str = "head_loss";
        HeadExtents::of::<Self>(OP, f, classifier, targets, [head, text])?;
        expect_shape(OP, "stats", [Stat::COUNT], stats.shape())?;
        Self::head_loss_checked(Checked(self), f, classifier, targets, head, text, stats)
    }

    /// Gradient of `weights.head`·CE(head) + `weights.text`·CE(text), means over the batch. The logits are
    /// overwritten with their gradients; dH = d_headᵀ·f, dh = Σ d_head, and where it is wanted
    /// df = d_head·H + text_scale·d_text·T and dT = text_scale·d_textᵀ·f. All of it times the loss scale where
    /// there is one: the element [`Control::LossScale`] of `control`.
    fn head_loss_backward(&self, args: HeadLossBackward<'_, Self>) -> Result<()> {
        const OP: &str = "head_loss_backward";
        let HeadLossBackward { f, classifier, targets, .. } = args;
        let e = HeadExtents::of::<Self>(OP, f, classifier, targets, [args.head, args.text])?;
        expect_control::<Self>(OP, args.control)?;
        expect_shape(OP, "d_weight", classifier.weight.shape(), args.d_weight.shape())?;
        expect_shape(OP, "d_bias", classifier.bias.shape(), args.d_bias.shape())?;
        if let Some(df) = &args.df {
            expect_shape(OP, "df", f.shape(), df.shape())?;
        }
        if let Some(d_text) = &args.d_text {
            expect_shape(OP, "d_text", classifier.text.shape(), d_text.shape())?;
        }
        Self::head_loss_backward_checked(Checked(self), args, e)
    }

    /// [`Self::head_loss`] of what was checked.
    fn head_loss_checked(
        device: Checked<'_, Self>,
        f: &Self::Tensor,
        classifier: Classifier<'_, Self>,
        targets: Targets<'_, Self>,
        head: &mut Self::Tensor,
        text: &mut Self::Tensor,
        stats: &mut Self::Tensor,
    ) -> Result<()>;

    /// [`Self::head_loss_backward`] of what was checked.
    fn head_loss_backward_checked(
        device: Checked<'_, Self>,
        args: HeadLossBackward<'_, Self>,
        e: HeadExtents,
    ) -> Result<()>;
}
