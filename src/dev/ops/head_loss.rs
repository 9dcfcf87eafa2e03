//! Checks and benchmark of head_loss.

use super::mix_rows::mix;
use super::*;
use crate::backend::{Classifier, Control, Counting, HeadLossBackward, LossWeights, Mix, Stat, Targets};
use std::ops::Range;

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
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
                c.case(case.name(), |c| c.head_loss_case(case))?;
            }
        }
        c.case("ties", Checker::head_loss_ties)
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

    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (n, e, classes) = (b.sizes.batch, b.sizes.features, b.sizes.classes);
        let deviation = 1.0 / (e as f64).sqrt();
        let (weight, bias, text) = (
            b.parameter([classes, e], deviation)?,
            b.parameter([classes], deviation)?,
            b.parameter([classes, e], deviation)?,
        );
        let classifier = Classifier { weight: &weight, bias: &bias, text: &text, text_scale: 14.3 };
        let f = b.parameter([n, e], deviation)?;
        let labels: Vec<u32> = (0..n).map(|i| (i * 37 % classes) as u32).collect();
        let labels = b.backend.upload(Tensor::from_slice([n], &labels)?.view(), DType::U32)?;
        let (mut head, mut text_logits) = (b.parameter([n, classes], 0.0)?, b.parameter([n, classes], 0.0)?);
        let mut stats = b.parameter([Stat::COUNT], 0.0)?;
        let at = format!("{n} of {classes} classes, width {e}");
        let mix = b.mix()?;
        let plain = Targets::of(&labels);
        let mixed = Targets { mix: Some(&mix), ..plain };
        for (name, targets) in [("head_loss", plain), ("head_loss, mixed", mixed)] {
            let run = Box::new(|| {
                let (head, text) = (&mut head, &mut text_logits);
                b.backend.head_loss(&f, classifier, targets, head, text, &mut stats)
            });
            visit(Ready { name, at: at.clone(), run })?;
        }
        let (mut dw, mut db, mut df, mut dt) = (
            b.parameter([classes, e], 0.0)?,
            b.parameter([classes], 0.0)?,
            b.parameter([n, e], 0.0)?,
            b.parameter([classes, e], 0.0)?,
        );
        for (name, targets, text_trained) in [
            ("head_loss_backward", plain, false),
            ("head_loss_backward, mixed", mixed, false),
            ("head_loss_backward, text trained", plain, true),
        ] {
            let run = Box::new(|| {
                b.backend.head_loss_backward(HeadLossBackward {
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

impl<B: Backend> Checker<'_, B> {
    fn head_loss_case(&mut self, case: Case) -> Result<()> {
        let Case { batch, classes, width, .. } = case;
        let parameter = self.device.parameter_dtype();
        let unit = 1.0 / (width as f64).sqrt();
        let weight = self.random([classes, width], parameter, 1.0, 2)?;
        let bias = self.random([classes], parameter, 1.0, 3)?;
        let text = self.random([classes, width], parameter, unit, 4)?;
        // Text logits with a deviation of 3, as CLIP's are.
        let text_scale = 3.0 / unit;
        let classifier = both!(Classifier { weight: &weight, bias: &bias, text: &text, text_scale });
        let f = self.random([batch, width], parameter, unit, 1)?;
        let truth: Vec<u32> = (0..batch).map(|i| (i * 7 % classes) as u32).collect();
        let mix = if case.mixed { Some(self.mix(batch)?) } else { None };
        let class_weights = match case.weighted {
            true => Some(self.random([classes], parameter, 1.0, 6)?),
            false => None,
        };
        let Case { smoothing, text_counts: of_text, .. } = case;
        let counting = both!(Counting { weights: ?class_weights, smoothing, of_text });
        let labels = self.same(Tensor::from_slice([batch], &truth)?)?;
        let targets = both!(Targets { labels: &labels, mix: ?mix, counting: *counting });
        let mut head = self.output([batch, classes], parameter)?;
        let mut text = self.output([batch, classes], parameter)?;
        let mut stats = self.pair(&Tensor::zeros([Stat::COUNT], DType::F64), parameter)?;
        both!(self.head_loss(&f, *classifier, *targets, &mut head, &mut text, &mut stats));
        let at = case.name();
        self.compare_within("head_loss head", &at, &head, bound(parameter))?;
        self.compare_within("head_loss text", &at, &text, bound(parameter))?;
        // With one class both losses are 0: the counts alone tell.
        if classes > 1 {
            self.compare_part("head_loss losses", &at, &stats, 0..2, bound(parameter))?;
        }
        // Whole numbers are exact, sums of shares are rounded.
        self.compare_part(
            "head_loss counts",
            &at,
            &stats,
            COUNTS,
            if case.mixed { bound(parameter) } else { 0.0 },
        )?;
        if classes > 1 {
            self.head_loss_backward_case(case, &f, classifier, targets, head, text)?;
        }
        Ok(())
    }

    fn head_loss_backward_case(
        &mut self,
        case: Case,
        f: &Pair<B>,
        classifier: Both<Classifier<'_, B>, Classifier<'_, Cpu<f64>>>,
        targets: Both<Targets<'_, B>, Targets<'_, Cpu<f64>>>,
        head: Pair<B>,
        text: Pair<B>,
    ) -> Result<()> {
        let Case { batch, classes, width, .. } = case;
        let parameter = self.device.parameter_dtype();
        // From the same logits on both sides.
        let (mut head, mut text) = (self.pair(&head.host, parameter)?, self.pair(&text.host, parameter)?);
        let mut dw = self.output([classes, width], parameter)?;
        let mut db = self.output([classes], parameter)?;
        let mut df = self.output([batch, width], parameter)?;
        let mut dt = self.output([classes, width], parameter)?;
        let control = self.pair(&Tensor::from_slice([Control::COUNT], &[7.0, 1024.0, 5.0])?, parameter)?;
        both!(self.head_loss_backward(HeadLossBackward {
            f: &f,
            classifier: *classifier,
            targets: *targets,
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
        self.compare_within("head_loss d_head", &at, &head, bound(parameter))?;
        // Without a use for their gradients the text logits stay what they were.
        self.compare_within("head_loss d_text", &at, &text, bound(parameter))?;
        self.compare_within("head_loss dH", &at, &dw, bound(parameter))?;
        self.compare_within("head_loss dh", &at, &db, bound(parameter))?;
        if case.text_features {
            self.compare_within("head_loss dT", &at, &dt, bound(parameter))?;
        }
        if case.features {
            // Once the label's term is in the sum, each of very many small ones rounds a number of its size:
            // 6e-6 of the largest value at 100 000 classes.
            let many = if classes > 10_000 { 3.0 } else { 1.0 };
            self.compare_within("head_loss df", &at, &df, many * bound(parameter))?;
        }
        Ok(())
    }

    /// Where all logits are equal, the first class is the answer.
    fn head_loss_ties(&mut self) -> Result<()> {
        let (parameter, batch, classes, width) = (self.device.parameter_dtype(), 6, 70, 4);
        let vector = |n: usize| self.pair(&Tensor::zeros([n], DType::F64), parameter);
        let matrix = || self.pair(&Tensor::zeros([classes, width], DType::F64), parameter);
        let (weight, bias, text) = (matrix()?, vector(classes)?, matrix()?);
        let classifier = both!(Classifier { weight: &weight, bias: &bias, text: &text, text_scale: 1.0 });
        let f = self.random([batch, width], parameter, 1.0, 1)?;
        let labels = self.same(Tensor::from_slice([batch], &[0u32, 1, 2, 0, 32, 64])?)?;
        let mut head = self.output([batch, classes], parameter)?;
        let mut text = self.output([batch, classes], parameter)?;
        let mut stats = vector(Stat::COUNT)?;
        let targets = Both { device: Targets::of(&labels.device), host: Targets::of(&labels.host) };
        both!(self.head_loss(&f, *classifier, *targets, &mut head, &mut text, &mut stats));
        self.compare_part("head_loss counts", "equal logits", &stats, COUNTS, 0.0)
    }
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
