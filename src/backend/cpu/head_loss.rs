//! Head and text logits, their cross entropies, and the gradients of both.

use super::adamw::loss_scale;
use super::gemm::{Matrix, MatrixMut, Threads, Write, gemm};
use super::mix_rows::Mixed;
use super::number::OnHost;
use super::real::{Real, max_of};
use super::*;

/// The classes of a batch, checked.
struct Classes<'a, T> {
    labels: &'a [u32],
    mixed: Option<Mixed<'a, T>>,
}

impl<'a, T: Real> Classes<'a, T> {
    fn new<B: OnHost>(op: &'static str, targets: Targets<'a, B>, classes: usize) -> Result<Self> {
        let mixed = targets.mix.map(|mix| Mixed::new(op, mix)).transpose()?;
        let labels = targets.labels.typed::<u32>()?;
        match labels.iter().find(|&&label| label as usize >= classes) {
            Some(label) => {
                Err(BackendError::Invalid { op, problem: format!("label {label} among {classes} classes") })
            }
            None => Ok(Classes { labels, mixed }),
        }
    }

    /// The classes of an image and how much of it each gets; they add up to 1.
    fn of(&self, image: usize) -> impl Iterator<Item = (usize, T)> {
        let own = self.labels[image] as usize;
        let shares = match &self.mixed {
            Some(mixed) => {
                let (partner, first, second) = mixed.of(image);
                [Some((own, first)), Some((self.labels[partner] as usize, second))]
            }
            None => [Some((own, T::ONE)), None],
        };
        shares.into_iter().flatten()
    }
}

/// Class weights and label smoothing of a [`Counting`], after its shapes were checked.
#[derive(Clone, Copy)]
struct Counts<'a, T> {
    weights: Option<&'a [T]>,
    /// S and S/C.
    smoothing: T,
    even: T,
}

impl<'a, T: Real> Counts<'a, T> {
    /// The counts of the head's cross entropy, then those of the text's.
    fn both<B: OnHost>(counting: Counting<'a, B>, classes: usize) -> Result<[Self; 2]> {
        let head = Counts {
            weights: counting.weights.map(|weights| weights.typed::<T>()).transpose()?,
            smoothing: T::from_f64(counting.smoothing),
            even: T::from_f64(counting.smoothing / classes as f64),
        };
        let plain = Counts { weights: None, smoothing: T::ZERO, even: T::ZERO };
        Ok([head, if counting.of_text { head } else { plain }])
    }

    fn of(&self, class: usize) -> T {
        self.weights.map_or(T::ONE, |weights| weights[class])
    }
}

impl<T: Real> HeadLossOp for Cpu<T> {
    fn head_loss_checked(
        _device: Checked<'_, Self>,
        f: &Tensor,
        classifier: Classifier<'_, Self>,
        targets: Targets<'_, Self>,
        head: &mut Tensor,
        text: &mut Tensor,
        stats: &mut Tensor,
    ) -> Result<()> {
        let ((batch, width), (_, classes)) = (f.shape().matrix(), head.shape().matrix());
        let features = Matrix::new(f.typed::<T>()?, batch, width);
        let bias = classifier.bias.typed::<T>()?;
        let head = head.typed_mut::<T>()?;
        head.chunks_exact_mut(classes).for_each(|row| row.copy_from_slice(bias));
        let weight = Matrix::new(classifier.weight.typed::<T>()?, classes, width).transposed();
        gemm(MatrixMut::new(head, batch, classes), Write::Add, T::ONE, features, weight, Threads::All);
        let text = text.typed_mut::<T>()?;
        let text_weight = Matrix::new(classifier.text.typed::<T>()?, classes, width).transposed();
        let scale = T::from_f64(classifier.text_scale);
        gemm(
            MatrixMut::new(text, batch, classes),
            Write::Replace,
            scale,
            features,
            text_weight,
            Threads::All,
        );

        let truth = Classes::<T>::new("head_loss", targets, classes)?;
        let [of_head, of_text] = Counts::<T>::both(targets.counting, classes)?;
        let stats = stats.typed_mut::<T>()?;
        (stats[Stat::LossHead as usize], stats[Stat::Correct as usize]) =
            cross_entropy(head, classes, &truth, of_head);
        (stats[Stat::LossText as usize], stats[Stat::TextCorrect as usize]) =
            cross_entropy(text, classes, &truth, of_text);
        Ok(())
    }

    fn head_loss_backward_checked(
        _device: Checked<'_, Self>,
        args: HeadLossBackward<'_, Self>,
        HeadExtents { batch, classes, width }: HeadExtents,
    ) -> Result<()> {
        let HeadLossBackward { f, classifier, targets, weights, control, head, text, .. } = args;
        let HeadLossBackward { d_weight, d_bias, df, d_text, .. } = args;
        let truth = Classes::<T>::new("head_loss_backward", targets, classes)?;
        let [of_head, of_text] = Counts::<T>::both(targets.counting, classes)?;
        let loss_scale = loss_scale::<T>(control)?;
        let head = head.typed_mut::<T>()?;
        cross_entropy_backward(head, classes, &truth, of_head, loss_scale * weights.head / batch as f64);
        let d_head = Matrix::new(head, batch, classes);
        let features = Matrix::new(f.typed::<T>()?, batch, width);
        let d_weight = MatrixMut::new(d_weight.typed_mut::<T>()?, classes, width);
        gemm(d_weight, Write::Replace, T::ONE, d_head.transposed(), features, Threads::All);
        let d_bias = d_bias.typed_mut::<T>()?;
        d_bias.fill(T::ZERO);
        for row in head.chunks_exact(classes) {
            d_bias.iter_mut().zip(row).for_each(|(sum, &d)| *sum += d);
        }
        let text = text.typed_mut::<T>()?;
        if d_text.is_some() || (df.is_some() && weights.text != 0.0) {
            cross_entropy_backward(text, classes, &truth, of_text, loss_scale * weights.text / batch as f64);
        }
        let d_logits = Matrix::new(text, batch, classes);
        let scale = T::from_f64(classifier.text_scale);
        if let Some(df) = df {
            let df = df.typed_mut::<T>()?;
            let weight = Matrix::new(classifier.weight.typed::<T>()?, classes, width);
            gemm(MatrixMut::new(df, batch, width), Write::Replace, T::ONE, d_head, weight, Threads::All);
            if weights.text != 0.0 {
                let text = Matrix::new(classifier.text.typed::<T>()?, classes, width);
                gemm(MatrixMut::new(df, batch, width), Write::Add, scale, d_logits, text, Threads::All);
            }
        }
        if let Some(d_text) = d_text {
            let to = MatrixMut::new(d_text.typed_mut::<T>()?, classes, width);
            gemm(to, Write::Replace, scale, d_logits.transposed(), features, Threads::All);
        }
        Ok(())
    }
}

/// Mean of −log softmax(z)[y] over the rows, and how many rows have their largest logit (the first of
/// equals) at y; a row of two classes counts each by its share.
fn cross_entropy<T: Real>(
    logits: &[T],
    classes: usize,
    truth: &Classes<'_, T>,
    counts: Counts<'_, T>,
) -> (T, T) {
    let (mut loss, mut correct) = (T::ZERO, T::ZERO);
    for (image, row) in logits.chunks_exact(classes).enumerate() {
        let max = max_of(row);
        let sum: f64 = row.iter().map(|&z| (z - max).to_f64().exp()).sum();
        let first = row.iter().position(|&z| z == max);
        let entropy = |class: usize| T::from_f64(sum.ln() + (max - row[class]).to_f64());
        if counts.smoothing != T::ZERO {
            for class in 0..classes {
                loss += counts.even * counts.of(class) * entropy(class);
            }
        }
        for (label, share) in truth.of(image) {
            loss += (T::ONE - counts.smoothing) * share * counts.of(label) * entropy(label);
            if first == Some(label) {
                correct += share;
            }
        }
    }
    (loss / T::from_f64(truth.labels.len().max(1) as f64), correct)
}

/// z becomes scale·(softmax(z)·Σ t − t), row by row, where t are the shares of its classes as they are counted.
fn cross_entropy_backward<T: Real>(
    logits: &mut [T],
    classes: usize,
    truth: &Classes<'_, T>,
    counts: Counts<'_, T>,
    scale: f64,
) {
    let (scale, kept) = (T::from_f64(scale), T::ONE - counts.smoothing);
    let of_all = (0..classes).fold(T::ZERO, |sum, class| sum + counts.of(class)) * counts.even;
    for (image, row) in logits.chunks_exact_mut(classes).enumerate() {
        let max = max_of(row);
        let mut sum = T::ZERO;
        for z in row.iter_mut() {
            *z = (*z - max).exp();
            sum += *z;
        }
        // Without weights it is 1.
        let total = match counts.weights {
            Some(_) => truth.of(image).fold(of_all, |sum, (y, share)| sum + kept * share * counts.of(y)),
            None => T::ONE,
        };
        let factor = scale * total / sum;
        for (class, z) in row.iter_mut().enumerate() {
            *z = *z * factor - scale * counts.even * counts.of(class);
        }
        for (label, share) in truth.of(image) {
            row[label] = row[label] - scale * kept * share * counts.of(label);
        }
    }
}
