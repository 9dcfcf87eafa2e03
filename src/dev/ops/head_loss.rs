//! Checks and benchmark of head_loss.

use super::mix_rows::{MixPair, mix};
use super::*;
use crate::backend::{Classifier, Control, Counting, HeadLossBackward, LossWeights, Mix, Stat, Targets};
use std::ops::Range;

pub struct Checks;

impl Operation for Checks {
    fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
        let both = LossWeights { head: 0.8, text: 0.3 };
        let case = |batch, classes, width| Case {
            batch,
            classes,
            width,
            weights: both,
            features: true,
            text_features: false,
            scaled: false,
            mixed: false,
            weighted: false,
            smoothing: 0.0,
            text_counts: false,
        };
        // One of everything; sizes that no tile divides, with rows of 16 bytes and without; more classes and
        // columns than a block takes, and more images than a warp has lanes.
        let mut cases = vec![case(1, 1, 1), case(5, 3, 7), case(9, 102, 64), case(6, 37, 141)];
        cases.extend([case(3, 300, 12), case(3, 9, 200), case(40, 5, 8)]);
        cases.push(Case { scaled: true, ..case(4, 17, 8) });
        cases.push(Case { features: false, ..case(4, 17, 8) });
        cases.push(Case { weights: LossWeights { head: 1.0, text: 0.0 }, ..case(4, 17, 8) });
        cases.push(Case { weighted: true, ..case(5, 37, 12) });
        cases.push(Case { smoothing: 0.1, text_counts: true, ..case(5, 37, 12) });
        cases.push(Case { weighted: true, smoothing: 0.3, text_counts: true, ..case(9, 70, 7) });
        if c.scope == Scope::Full {
            cases.extend([case(32, 102, 512), case(8, 1000, 768), case(256, 102, 512), case(2, 100_000, 16)]);
        }
        for case in cases {
            for case in [case, Case { mixed: true, ..case }, Case { text_features: true, ..case }] {
                c.case(case.name(), |c| head_loss(c, case))?;
            }
        }
        c.case("ties", ties)
    }

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        for (n, classes, width) in [(5, 3, 7), (8, 102, 64)] {
            let (mix, weights) = (mix(n)?, random([classes], 5)?);
            head_loss_gradients(b, [n, classes, width], None, Counting::PLAIN, rows)?;
            head_loss_gradients(b, [n, classes, width], Some(&mix), Counting::PLAIN, rows)?;
            let smoothed = Counting { smoothing: 0.2, of_text: true, ..Counting::PLAIN };
            head_loss_gradients(b, [n, classes, width], None, smoothed, rows)?;
            let weighted = Counting { weights: Some(&weights), smoothing: 0.1, of_text: false };
            head_loss_gradients(b, [n, classes, width], Some(&mix), weighted, rows)?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["head_loss"];

    fn bench<B: Backend>(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        b.head_loss(visit)
    }
}

/// The statistics behind the losses.
const COUNTS: Range<usize> = 2..Stat::COUNT;

/// Sizes and options of one comparison of the device with the definition.
#[derive(Clone, Copy)]
struct Case {
    batch: usize,
    classes: usize,
    width: usize,
    weights: LossWeights,
    /// Whether the gradient of the features is wanted, and whether there is a loss scale.
    features: bool,
    /// Whether the gradient of the text features is wanted.
    text_features: bool,
    scaled: bool,
    mixed: bool,
    /// Whether the classes are weighted; S of label smoothing; whether the text's count so too.
    weighted: bool,
    smoothing: f64,
    text_counts: bool,
}

impl Case {
    fn name(&self) -> String {
        let Case { batch, classes, width, .. } = self;
        let mut name = format!("{batch} of {classes} classes, width {width}");
        name += if self.mixed { ", mixed" } else { "" };
        name += if self.weighted { ", weighted" } else { "" };
        name += if self.smoothing > 0.0 { ", smoothed" } else { "" };
        name += if self.text_counts { " with the text" } else { "" };
        name += if self.scaled { ", scaled" } else { "" };
        name += match (self.features, self.text_features) {
            (true, false) => "",
            (false, false) => ", head alone",
            (true, true) => ", text trained",
            (false, true) => ", text trained, no df",
        };
        name += if self.weights.text == 0.0 { ", no text" } else { "" };
        name
    }
}

/// The trained and the constant weights, on both sides.
struct Weights<B: Backend> {
    weight: Pair<B>,
    bias: Pair<B>,
    text: Pair<B>,
    text_scale: f64,
}

impl<B: Backend> Weights<B> {
    fn device(&self) -> Classifier<'_, B> {
        let Weights { weight, bias, text, text_scale } = self;
        Classifier { weight: &weight.device, bias: &bias.device, text: &text.device, text_scale: *text_scale }
    }

    fn host(&self) -> Classifier<'_, Cpu<f64>> {
        let Weights { weight, bias, text, text_scale } = self;
        Classifier { weight: &weight.host, bias: &bias.host, text: &text.host, text_scale: *text_scale }
    }
}

/// Labels, and how they are mixed, on both sides.
struct TargetsPair<B: Backend> {
    labels: Pair<B>,
    mix: Option<MixPair<B>>,
    class_weights: Option<Pair<B>>,
    smoothing: f64,
    text_counts: bool,
}

impl<B: Backend> TargetsPair<B> {
    fn device(&self) -> Targets<'_, B> {
        let weights = self.class_weights.as_ref().map(|weights| &weights.device);
        let counting = Counting { weights, smoothing: self.smoothing, of_text: self.text_counts };
        Targets { labels: &self.labels.device, mix: self.mix.as_ref().map(|mix| &mix.device), counting }
    }

    fn host(&self) -> Targets<'_, Cpu<f64>> {
        let weights = self.class_weights.as_ref().map(|weights| &weights.host);
        let counting = Counting { weights, smoothing: self.smoothing, of_text: self.text_counts };
        Targets { labels: &self.labels.host, mix: self.mix.as_ref().map(|mix| &mix.host), counting }
    }
}

fn head_loss<B: Backend>(c: &mut Checker<'_, B>, case: Case) -> Result<()> {
    let Case { batch, classes, width, .. } = case;
    let parameter = c.device.parameter_dtype();
    let unit = 1.0 / (width as f64).sqrt();
    let weights = Weights {
        weight: c.random([classes, width], parameter, 1.0, 2)?,
        bias: c.random([classes], parameter, 1.0, 3)?,
        text: c.random([classes, width], parameter, unit, 4)?,
        // Text logits with a deviation of 3, as CLIP's are.
        text_scale: 3.0 / unit,
    };
    let f = c.random([batch, width], parameter, unit, 1)?;
    let truth: Vec<u32> = (0..batch).map(|i| (i * 7 % classes) as u32).collect();
    let mix = if case.mixed { Some(MixPair::new(c, batch)?) } else { None };
    let class_weights = match case.weighted {
        true => Some(c.random([classes], parameter, 1.0, 6)?),
        false => None,
    };
    let Case { smoothing, text_counts, .. } = case;
    let targets = TargetsPair {
        labels: c.same(Tensor::from_slice([batch], &truth)?)?,
        mix,
        class_weights,
        smoothing,
        text_counts,
    };
    let mut head = c.output([batch, classes], parameter)?;
    let mut text = c.output([batch, classes], parameter)?;
    let mut stats = c.pair(&Tensor::zeros([Stat::COUNT], DType::F64), parameter)?;
    both!(c.head_loss(&f, weights(), targets(), &mut head, &mut text, &mut stats));
    let at = case.name();
    c.compare_within("head_loss head", &at, &head, bound(parameter))?;
    c.compare_within("head_loss text", &at, &text, bound(parameter))?;
    // With one class both losses are 0: the counts alone tell.
    if classes > 1 {
        c.compare_part("head_loss losses", &at, &stats, 0..2, bound(parameter))?;
    }
    // Whole numbers are exact, sums of shares are rounded.
    c.compare_part("head_loss counts", &at, &stats, COUNTS, if case.mixed { bound(parameter) } else { 0.0 })?;
    if classes > 1 {
        backward(c, case, &weights, &f, &targets, head, text)?;
    }
    Ok(())
}

fn backward<B: Backend>(
    c: &mut Checker<'_, B>,
    case: Case,
    weights: &Weights<B>,
    f: &Pair<B>,
    targets: &TargetsPair<B>,
    head: Pair<B>,
    text: Pair<B>,
) -> Result<()> {
    let Case { batch, classes, width, .. } = case;
    let parameter = c.device.parameter_dtype();
    // From the same logits on both sides.
    let (mut head, mut text) = (c.pair(&head.host, parameter)?, c.pair(&text.host, parameter)?);
    let mut dw = c.output([classes, width], parameter)?;
    let mut db = c.output([classes], parameter)?;
    let mut df = c.output([batch, width], parameter)?;
    let mut dt = c.output([classes, width], parameter)?;
    let control = c.pair(&Tensor::from_slice([Control::COUNT], &[7.0, 1024.0, 5.0])?, parameter)?;
    both!(c.head_loss_backward(HeadLossBackward {
        f: &f,
        classifier: weights(),
        targets: targets(),
        weights: case.weights,
        control: case.scaled => &control,
        head: &mut head,
        text: &mut text,
        d_weight: &mut dw,
        d_bias: &mut db,
        df: case.features => &mut df,
        d_text: case.text_features => &mut dt,
    }));
    let at = case.name();
    c.compare_within("head_loss d_head", &at, &head, bound(parameter))?;
    // Without a use for their gradients the text logits stay what they were.
    c.compare_within("head_loss d_text", &at, &text, bound(parameter))?;
    c.compare_within("head_loss dH", &at, &dw, bound(parameter))?;
    c.compare_within("head_loss dh", &at, &db, bound(parameter))?;
    if case.text_features {
        c.compare_within("head_loss dT", &at, &dt, bound(parameter))?;
    }
    if case.features {
        // Once the label's term is in the sum, each of very many small ones rounds a number of its size:
        // 6e-6 of the largest value at 100 000 classes.
        let many = if classes > 10_000 { 3.0 } else { 1.0 };
        c.compare_within("head_loss df", &at, &df, many * bound(parameter))?;
    }
    Ok(())
}

/// Where all logits are equal, the first class is the answer.
fn ties<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
    let (parameter, batch, classes, width) = (c.device.parameter_dtype(), 6, 70, 4);
    let vector = |n: usize| c.pair(&Tensor::zeros([n], DType::F64), parameter);
    let matrix = || c.pair(&Tensor::zeros([classes, width], DType::F64), parameter);
    let weights = Weights { weight: matrix()?, bias: vector(classes)?, text: matrix()?, text_scale: 1.0 };
    let f = c.random([batch, width], parameter, 1.0, 1)?;
    let labels = c.same(Tensor::from_slice([batch], &[0u32, 1, 2, 0, 32, 64])?)?;
    let mut head = c.output([batch, classes], parameter)?;
    let mut text = c.output([batch, classes], parameter)?;
    let mut stats = vector(Stat::COUNT)?;
    let targets = TargetsPair { labels, mix: None, class_weights: None, smoothing: 0.0, text_counts: false };
    both!(c.head_loss(&f, weights(), targets(), &mut head, &mut text, &mut stats));
    c.compare_part("head_loss counts", "equal logits", &stats, COUNTS, 0.0)
}

fn head_loss_gradients(
    b: &F64,
    [n, classes, width]: [usize; 3],
    mix: Option<&Mix<F64>>,
    counting: Counting<'_, F64>,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let (f, weight, bias, text) = (
        random([n, width], 1)?,
        random([classes, width], 2)?,
        random([classes], 3)?,
        random([classes, width], 4)?,
    );
    let labels: Vec<u32> = (0..n).map(|i| (i * 7 % classes) as u32).collect();
    let labels = Tensor::from_slice([n], &labels)?;
    let targets = Targets { labels: &labels, mix, counting };
    let (text_scale, weights) = (1.7, LossWeights { head: 0.8, text: 0.3 });
    let logits = || (zeros([n, classes]), zeros([n, classes]));
    let loss = |f: &Tensor, weight: &Tensor, bias: &Tensor, text: &Tensor| -> Result<f64> {
        let ((mut head, mut text_logits), mut stats) = (logits(), zeros([Stat::COUNT]));
        let classifier = Classifier::<F64> { weight, bias, text, text_scale };
        b.head_loss(f, classifier, targets, &mut head, &mut text_logits, &mut stats)?;
        let stats = values(&stats)?;
        Ok(0.8 * stats[Stat::LossHead as usize] + 0.3 * stats[Stat::LossText as usize])
    };
    let classifier = Classifier::<F64> { weight: &weight, bias: &bias, text: &text, text_scale };
    let ((mut head, mut text_logits), mut stats) = (logits(), zeros([Stat::COUNT]));
    b.head_loss(&f, classifier, targets, &mut head, &mut text_logits, &mut stats)?;
    let (mut dw, mut db, mut df) = (zeros(weight.shape()), zeros(bias.shape()), zeros(f.shape()));
    let mut dt = zeros(text.shape());
    b.head_loss_backward(HeadLossBackward {
        f: &f,
        classifier,
        targets,
        weights,
        control: None,
        head: &mut head,
        text: &mut text_logits,
        d_weight: &mut dw,
        d_bias: &mut db,
        df: Some(&mut df),
        d_text: Some(&mut dt),
    })?;
    let how = if mix.is_some() { ", mixed" } else { "" };
    let counts = match (counting.weights, counting.smoothing) {
        (Some(_), _) => ", weighted",
        (None, 0.0) => "",
        (None, _) => ", smoothed",
    };
    let at = format!("{n} of {classes} classes, width {width}{how}{counts}");
    row(rows, "head_loss df", at.clone(), &f, &df, |f| loss(f, &weight, &bias, &text))?;
    row(rows, "head_loss dH", at.clone(), &weight, &dw, |weight| loss(&f, weight, &bias, &text))?;
    row(rows, "head_loss dh", at.clone(), &bias, &db, |bias| loss(&f, &weight, bias, &text))?;
    row(rows, "head_loss dT", at, &text, &dt, |text| loss(&f, &weight, &bias, text))
}

impl<B: Backend> Bench<'_, B> {
    fn head_loss(&self, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (n, e, classes) = (self.sizes.batch, self.sizes.features, self.sizes.classes);
        let deviation = 1.0 / (e as f64).sqrt();
        let (weight, bias, text) = (
            self.parameter([classes, e], deviation)?,
            self.parameter([classes], deviation)?,
            self.parameter([classes, e], deviation)?,
        );
        let classifier = Classifier { weight: &weight, bias: &bias, text: &text, text_scale: 14.3 };
        let f = self.parameter([n, e], deviation)?;
        let labels: Vec<u32> = (0..n).map(|i| (i * 37 % classes) as u32).collect();
        let labels = self.backend.upload(Tensor::from_slice([n], &labels)?.view(), DType::U32)?;
        let (mut head, mut text_logits) =
            (self.parameter([n, classes], 0.0)?, self.parameter([n, classes], 0.0)?);
        let mut stats = self.parameter([Stat::COUNT], 0.0)?;
        let at = format!("{n} of {classes} classes, width {e}");
        let mix = self.mix()?;
        let plain = Targets::of(&labels);
        let mixed = Targets { mix: Some(&mix), ..plain };
        for (name, targets) in [("head_loss", plain), ("head_loss, mixed", mixed)] {
            let run = Box::new(|| {
                let (head, text) = (&mut head, &mut text_logits);
                self.backend.head_loss(&f, classifier, targets, head, text, &mut stats)
            });
            visit(Ready { name, at: at.clone(), run })?;
        }
        let (mut dw, mut db, mut df, mut dt) = (
            self.parameter([classes, e], 0.0)?,
            self.parameter([classes], 0.0)?,
            self.parameter([n, e], 0.0)?,
            self.parameter([classes, e], 0.0)?,
        );
        for (name, targets, text_trained) in [
            ("head_loss_backward", plain, false),
            ("head_loss_backward, mixed", mixed, false),
            ("head_loss_backward, text trained", plain, true),
        ] {
            let run = Box::new(|| {
                self.backend.head_loss_backward(HeadLossBackward {
                    f: &f,
                    classifier,
                    targets,
                    weights: LossWeights { head: 1.0, text: 0.3 },
                    control: None,
                    head: &mut head,
                    text: &mut text_logits,
                    d_weight: &mut dw,
                    d_bias: &mut db,
                    df: Some(&mut df),
                    d_text: text_trained.then_some(&mut dt),
                })
            });
            visit(Ready { name, at: at.clone(), run })?;
        }
        Ok(())
    }
}
