//! Finite differences of every operation that has a backward form, in f64 on the CPU.
//!
//! Each check defines a number L = Σ out·w with fixed random w, asks the operation's backward form for
//! the gradient of L, and compares it with central differences of the forward form. The sizes are those
//! of real models and deliberately odd ones.

use super::difference::{against, normal};
use super::{Result, Row, relative_error};
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::backend::{
    Activation, AddTo, AttentionGradient, AttentionInput, AttentionShape, Classifier, Counting, Dropout,
    LayerNorm, Linear, Lora, LoraFold, LoraGradients, LossWeights, Mix, PatchEmbedding, Stat, Targets,
};
use crate::tensor::{DType, Shape, Tensor};

type B = Cpu<f64>;

pub const BOUND: f64 = 1e-6;

/// Checks every operation; one row for each gradient.
pub fn check() -> Result<Vec<Row>> {
    let b = B::new();
    let mut rows = Vec::new();
    for shape in [[2, 3, 7], [2, 50, 768], [1, 1, 33]] {
        layer_norm(&b, shape, &mut rows)?;
    }
    // 512 inputs in f64 make rows of 4 KiB, which the CPU pads.
    for (n, inputs, outputs, rank) in [(7, 5, 11, 3), (50, 64, 48, 8), (1, 33, 17, 1), (3, 512, 6, 2)] {
        for probability in [None, Some(0.25)] {
            lora_linear(&b, [n, inputs, outputs, rank], probability, &mut rows)?;
        }
    }
    dropout(&b, &mut rows)?;
    for (batch, tokens, heads, head) in [(2, 5, 3, 7), (1, 50, 2, 64), (1, 77, 1, 32)] {
        for causal in [false, true] {
            attention_packed(&b, [batch, tokens, heads, head], causal, &mut rows)?;
        }
        attention_split(&b, [batch, tokens, heads, head], &mut rows)?;
    }
    for kind in [Activation::QuickGelu, Activation::Gelu] {
        activation(&b, kind, &mut rows)?;
    }
    take_rows(&b, &mut rows)?;
    for [batch, kept, count, width] in [[3, 4, 2, 7], [2, 1, 3, 33]] {
        insert_prompts(&b, [batch, kept, count, width], &mut rows)?;
        replace_prompts(&b, [batch, kept, count, width], &mut rows)?;
    }
    for (classes, prompts, width) in [(3, 1, 7), (5, 4, 33)] {
        class_features(&b, classes, prompts, width, &mut rows)?;
    }
    for (n, width) in [(3, 7), (4, 512)] {
        l2_norm(&b, n, width, &mut rows)?;
    }
    mix_rows(&b, &mut rows)?;
    for (n, classes, width) in [(5, 3, 7), (8, 102, 64)] {
        let (mix, weights) = (mix(n)?, random([classes], 5)?);
        head_loss(&b, [n, classes, width], None, Counting::PLAIN, &mut rows)?;
        head_loss(&b, [n, classes, width], Some(&mix), Counting::PLAIN, &mut rows)?;
        let smoothed = Counting { smoothing: 0.2, of_text: true, ..Counting::PLAIN };
        head_loss(&b, [n, classes, width], None, smoothed, &mut rows)?;
        let weighted = Counting { weights: Some(&weights), smoothing: 0.1, of_text: false };
        head_loss(&b, [n, classes, width], Some(&mix), weighted, &mut rows)?;
    }
    for (n, classes, width, margin) in [(9, 3, 7, 1.0), (32, 5, 64, 1.0), (12, 4, 9, -2.0)] {
        triplet(&b, [n, classes, width], margin, &mut rows)?;
    }
    for (side, patch) in [(12, 4), (17, 5)] {
        patch_embed(&b, side, patch, &mut rows)?;
    }
    Ok(rows)
}

fn tensor(shape: impl Into<Shape>, values: &[f64]) -> Result<Tensor> {
    Ok(Tensor::from_slice(shape, values)?)
}

fn random(shape: impl Into<Shape>, seed: u64) -> Result<Tensor> {
    let shape = shape.into();
    tensor(shape, &normal(shape.elements(), seed))
}

fn zeros(shape: impl Into<Shape>) -> Tensor {
    Tensor::zeros(shape, DType::F64)
}

fn values(tensor: &Tensor) -> Result<&[f64]> {
    Ok(tensor.typed::<f64>()?)
}

fn dot(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok(values(a)?.iter().zip(values(b)?).map(|(a, b)| a * b).sum())
}

fn added(after: &Tensor, before: &Tensor) -> Result<Tensor> {
    let added: Vec<f64> = values(after)?.iter().zip(values(before)?).map(|(a, b)| a - b).collect();
    tensor(after.shape(), &added)
}

/// Adds a row: `gradient` against differences of `loss` with the tensor `x` varied.
fn row(
    rows: &mut Vec<Row>,
    name: &str,
    at: String,
    x: &Tensor,
    gradient: &Tensor,
    mut loss: impl FnMut(&Tensor) -> Result<f64>,
) -> Result<()> {
    let error = against(values(x)?, values(gradient)?, 99, |moved| loss(&tensor(x.shape(), moved)?))?;
    rows.push(Row::new(name, at, error, BOUND));
    Ok(())
}

fn layer_norm(b: &B, shape: [usize; 3], rows: &mut Vec<Row>) -> Result<()> {
    let d = shape[2];
    let norm = LayerNorm::<B> { weight: random([d], 1)?, bias: random([d], 2)?, eps: 1e-5 };
    let (x, w) = (random(shape, 3)?, random(shape, 4)?);
    let (mut y, mut stats) = (zeros(shape), zeros([shape[0], shape[1], 2]));
    b.layer_norm(&x, &norm, &mut y, &mut stats)?;
    // The backward form adds: what was there before must still be in the sum.
    let mut dx = random(shape, 5)?;
    let before = dx.clone();
    b.layer_norm_backward(&w, &x, &norm, &stats, AddTo::Output, &mut dx)?;
    row(rows, "layer_norm dx", format!("{shape:?}"), &x, &added(&dx, &before)?, |x| {
        let (mut y, mut stats) = (zeros(shape), zeros([shape[0], shape[1], 2]));
        b.layer_norm(x, &norm, &mut y, &mut stats)?;
        dot(&y, &w)
    })
}

fn lora_linear(
    b: &B,
    [n, inputs, outputs, rank]: [usize; 4],
    probability: Option<f64>,
    rows: &mut Vec<Row>,
) -> Result<()> {
    // Three layers in one product, of which the first and the last carry an adapter.
    let (columns, scale, width) = ([0, 2 * outputs], 2.0, 2 * rank);
    let weight = b.weight(random([3 * outputs, inputs], 1)?.view())?;
    let layer = Linear::<B> { weight, bias: Some(random([3 * outputs], 2)?) };
    let (a, bb) = (random([width, inputs], 3)?, random([2, outputs, rank], 4)?);
    let (x, residual, w) =
        (random([n, inputs], 5)?, random([n, 3 * outputs], 6)?, random([n, 3 * outputs], 7)?);
    let draw = draw()?;
    let mask = probability.map(|probability| Dropout { draw: &draw, site: 9, probability });
    // What the adapters see.
    let seen = |x: &Tensor| -> Result<Tensor> {
        let mut seen = x.clone();
        mask.map_or(Ok(()), |mask| b.dropout(x, mask, &mut seen))?;
        Ok(seen)
    };
    let forward = |x: &Tensor, a: &Tensor, bb: &Tensor, u: &mut Tensor| -> Result<Tensor> {
        let mut y = zeros([n, 3 * outputs]);
        let lora = Lora { a, b: bb, columns: &columns, scale };
        let dropped = seen(x)?;
        b.lora_linear(x, mask.map(|_| &dropped), &layer, lora, Some(&residual), u, &mut y)?;
        Ok(y)
    };
    let loss = |x: &Tensor, a: &Tensor, bb: &Tensor| -> Result<f64> {
        dot(&forward(x, a, bb, &mut zeros([n, width]))?, &w)
    };
    let mut u = zeros([n, width]);
    let y = forward(&x, &a, &bb, &mut u)?;
    let lora = Lora { a: &a, b: &bb, columns: &columns, scale };
    let (mut du, mut da, mut db, mut dx) =
        (zeros([n, width]), zeros(a.shape()), zeros(bb.shape()), zeros(x.shape()));
    let dropped = seen(&x)?;
    b.lora_linear_backward(&w, &dropped, mask, &u, &layer, lora, &mut du, &mut da, &mut db, Some(&mut dx))?;
    let how = if mask.is_some() { ", dropout" } else { "" };
    let at = format!("{n}x{inputs} to 3x{outputs}, r {rank}{how}");
    row(rows, "lora_linear dx", at.clone(), &x, &dx, |x| loss(x, &a, &bb))?;
    row(rows, "lora_linear dA", at.clone(), &a, &da, |a| loss(&x, a, &bb))?;
    row(rows, "lora_linear dB", at.clone(), &bb, &db, |bb| loss(&x, &a, bb))?;
    if mask.is_some() {
        return Ok(());
    }

    let mut folded = b.weight(zeros(b.weight_shape(&layer.weight)).view())?;
    b.lora_fold(&mut [LoraFold { weight: &layer.weight, lora, folded: &mut folded }])?;
    let folded = Linear::<B> { weight: folded, bias: layer.bias.clone() };
    let mut same = zeros(y.shape());
    b.linear(&x, &folded, Some(&residual), &mut same)?;
    let error = relative_error(values(&same)?, values(&y)?);
    rows.push(Row::new("lora_fold y", at.clone(), error, 1e-13));

    let (mut da2, mut db2) = (zeros(a.shape()), zeros(bb.shape()));
    b.lora_gradients(&mut [LoraGradients { x: &x, dy: &w, lora, da: &mut da2, db: &mut db2 }])?;
    for (name, found, expected) in [("dA", &da2, &da), ("dB", &db2, &db)] {
        let error = relative_error(values(found)?, values(expected)?);
        rows.push(Row::new(format!("lora_gradients {name}"), at.clone(), error, 1e-13));
    }

    let mut dx = zeros(x.shape());
    b.linear_backward(&w, &folded, &mut dx)?;
    row(rows, "linear dx", at, &x, &dx, |x| {
        let mut y = zeros([n, 3 * outputs]);
        b.linear(x, &folded, None, &mut y)?;
        dot(&y, &w)
    })
}

/// A seed and the number of a batch.
fn draw() -> Result<Tensor> {
    Ok(Tensor::from_slice([4], &[7u32, 8, 9, 0])?)
}

/// The gradient of what dropout leaves is dropout of the gradient.
fn dropout(b: &B, rows: &mut Vec<Row>) -> Result<()> {
    let (x, w, draw) = (random([3, 5, 7], 1)?, random([3, 5, 7], 2)?, draw()?);
    let mask = Dropout { draw: &draw, site: 3, probability: 0.4 };
    let mut dx = zeros(x.shape());
    b.dropout(&w, mask, &mut dx)?;
    row(rows, "dropout dx", "3x5x7".into(), &x, &dx, |x| {
        let mut y = zeros(x.shape());
        b.dropout(x, mask, &mut y)?;
        dot(&y, &w)
    })
}

fn class_features(b: &B, classes: usize, prompts: usize, width: usize, rows: &mut Vec<Row>) -> Result<()> {
    let (f, w) = (random([classes * prompts, width], 1)?, random([classes, width], 2)?);
    let forward = |f: &Tensor| -> Result<(Tensor, Tensor)> {
        let (mut t, mut norms) = (zeros([classes, width]), zeros([classes]));
        b.class_features(f, &mut t, &mut norms)?;
        Ok((t, norms))
    };
    let ((t, norms), mut df) = (forward(&f)?, zeros(f.shape()));
    b.class_features_backward(&w, &t, &norms, &mut df)?;
    let at = format!("{classes} classes of {prompts}, width {width}");
    row(rows, "class_features df", at, &f, &df, |f| dot(&forward(f)?.0, &w))
}

fn attention_packed(b: &B, size: [usize; 4], causal: bool, rows: &mut Vec<Row>) -> Result<()> {
    let [batch, tokens, heads, head] = size;
    let (d, shape) = (heads * head, AttentionShape { heads, causal });
    let (qkv, w) = (random([batch, tokens, 3 * d], 1)?, random([batch, tokens, d], 2)?);
    let saved_shape = b.attention_saved(batch, heads, tokens, tokens);
    let forward = |qkv: &Tensor, saved: &mut Tensor| -> Result<Tensor> {
        let mut o = zeros([batch, tokens, d]);
        b.attention(AttentionInput::Packed(qkv), shape, saved, &mut o)?;
        Ok(o)
    };
    let mut saved = zeros(saved_shape);
    let o = forward(&qkv, &mut saved)?;
    let (mut scratch, mut dqkv) = (zeros(saved_shape), zeros(qkv.shape()));
    let gradient = AttentionGradient::Packed(&mut dqkv);
    b.attention_backward(&w, &o, AttentionInput::Packed(&qkv), &saved, shape, &mut scratch, gradient)?;
    let name = if causal { "attention causal dqkv" } else { "attention dqkv" };
    let at = format!("{batch}x{tokens}, {heads} heads of {head}");
    row(rows, name, at, &qkv, &dqkv, |qkv| dot(&forward(qkv, &mut zeros(saved_shape))?, &w))
}

fn attention_split(b: &B, size: [usize; 4], rows: &mut Vec<Row>) -> Result<()> {
    let [batch, tokens, heads, head] = size;
    let (d, shape) = (heads * head, AttentionShape { heads, causal: false });
    let (q, kv, w) =
        (random([batch, 1, d], 1)?, random([batch, tokens, 2 * d], 2)?, random([batch, 1, d], 3)?);
    let saved_shape = b.attention_saved(batch, heads, 1, tokens);
    let forward = |q: &Tensor, kv: &Tensor, saved: &mut Tensor| -> Result<Tensor> {
        let mut o = zeros([batch, 1, d]);
        b.attention(AttentionInput::Split { q, kv }, shape, saved, &mut o)?;
        Ok(o)
    };
    let loss = |q: &Tensor, kv: &Tensor, saved: &mut Tensor| dot(&forward(q, kv, saved)?, &w);
    let mut saved = zeros(saved_shape);
    let o = forward(&q, &kv, &mut saved)?;
    let (mut scratch, mut dq, mut dkv) = (zeros(saved_shape), zeros(q.shape()), zeros(kv.shape()));
    let gradient = AttentionGradient::Split { dq: &mut dq, dkv: &mut dkv };
    let input = AttentionInput::Split { q: &q, kv: &kv };
    b.attention_backward(&w, &o, input, &saved, shape, &mut scratch, gradient)?;
    let at = format!("{batch}x1 of {tokens}, {heads} heads of {head}");
    row(rows, "attention one row dq", at.clone(), &q, &dq, |q| loss(q, &kv, &mut zeros(saved_shape)))?;
    row(rows, "attention one row dkv", at, &kv, &dkv, |kv| loss(&q, kv, &mut zeros(saved_shape)))
}

fn activation(b: &B, kind: Activation, rows: &mut Vec<Row>) -> Result<()> {
    let (z, w) = (random([3, 37], 1)?, random([3, 37], 2)?);
    let mut d = w.clone();
    b.activation_backward(kind, &z, &mut d)?;
    row(rows, "activation dz", format!("{kind:?}"), &z, &d, |z| {
        let mut g = zeros(z.shape());
        b.activation(kind, z, &mut g)?;
        dot(&g, &w)
    })
}

fn take_rows(b: &B, rows: &mut Vec<Row>) -> Result<()> {
    let (x, w) = (random([3, 5, 7], 1)?, random([3, 1, 7], 2)?);
    let chosen = Tensor::from_slice([3], &[0u32, 4, 2])?;
    let mut dx = zeros(x.shape());
    b.take_rows_backward(&w, &chosen, &mut dx)?;
    row(rows, "take_rows dx", "3x5x7".into(), &x, &dx, |x| {
        let mut y = zeros([3, 1, 7]);
        b.take_rows(x, &chosen, &mut y)?;
        dot(&y, &w)
    })
}

fn insert_prompts(b: &B, [batch, kept, count, width]: [usize; 4], rows: &mut Vec<Row>) -> Result<()> {
    let (layer, shape) = (1, [batch, kept + count, width]);
    let (x, prompts) = (random([batch, kept, width], 1)?, random([2, count, width], 2)?);
    let (w, before) = (random(shape, 3)?, random(prompts.shape(), 4)?);
    let loss = |x: &Tensor, prompts: &Tensor| -> Result<f64> {
        let mut y = zeros(shape);
        b.insert_prompts(x, prompts, layer, &mut y)?;
        dot(&y, &w)
    };
    let (mut d_prompts, mut dx) = (before.clone(), zeros(x.shape()));
    b.insert_prompts_backward(&w, layer, &mut d_prompts, Some(&mut dx))?;
    let (at, d_prompts) = (format!("{batch}x{kept}x{width} and {count}"), added(&d_prompts, &before)?);
    row(rows, "insert_prompts dx", at.clone(), &x, &dx, |x| loss(x, &prompts))?;
    row(rows, "insert_prompts d_prompts", at, &prompts, &d_prompts, |prompts| loss(&x, prompts))
}

fn replace_prompts(b: &B, [batch, kept, count, width]: [usize; 4], rows: &mut Vec<Row>) -> Result<()> {
    let (layer, shape) = (1, [batch, kept + count, width]);
    let (x, prompts) = (random(shape, 1)?, random([2, count, width], 2)?);
    let (w, before) = (random(shape, 3)?, random(prompts.shape(), 4)?);
    let loss = |x: &Tensor, prompts: &Tensor| -> Result<f64> {
        let mut x = x.clone();
        b.replace_prompts(prompts, layer, &mut x)?;
        dot(&x, &w)
    };
    let (mut d_prompts, mut dx) = (before.clone(), w.clone());
    b.replace_prompts_backward(&mut dx, layer, &mut d_prompts)?;
    let (at, d_prompts) = (format!("{batch}x{kept}x{width} and {count}"), added(&d_prompts, &before)?);
    row(rows, "replace_prompts dx", at.clone(), &x, &dx, |x| loss(x, &prompts))?;
    row(rows, "replace_prompts d_prompts", at, &prompts, &d_prompts, |prompts| loss(&x, prompts))
}

fn l2_norm(b: &B, n: usize, width: usize, rows: &mut Vec<Row>) -> Result<()> {
    let (x, w) = (random([n, width], 1)?, random([n, width], 2)?);
    let (mut f, mut norms, mut dx) = (zeros(x.shape()), zeros([n]), zeros(x.shape()));
    b.l2_norm(&x, &mut f, &mut norms)?;
    b.l2_norm_backward(&w, &f, &norms, &mut dx)?;
    row(rows, "l2_norm dx", format!("{n}x{width}"), &x, &dx, |x| {
        let (mut f, mut norms) = (zeros(x.shape()), zeros([n]));
        b.l2_norm(x, &mut f, &mut norms)?;
        dot(&f, &w)
    })
}

/// A batch in which each has the next as its partner.
fn mix(n: usize) -> Result<Mix<B>> {
    let partner: Vec<u32> = (0..n).map(|i| ((i + 1) % n) as u32).collect();
    let inverse: Vec<u32> = (0..n).map(|i| ((i + n - 1) % n) as u32).collect();
    let lambda: Vec<f64> = (0..n).map(|i| (i * 3 % n) as f64 / (n - 1) as f64).collect();
    Ok(Mix {
        partner: Tensor::from_slice([n], &partner)?,
        inverse: Tensor::from_slice([n], &inverse)?,
        lambda: tensor([n], &lambda)?,
    })
}

fn mix_rows(b: &B, rows: &mut Vec<Row>) -> Result<()> {
    let (x, w, mix) = (random([4, 7], 1)?, random([4, 7], 2)?, mix(4)?);
    let mut dx = zeros(x.shape());
    b.mix_rows_backward(&w, &mix, &mut dx)?;
    row(rows, "mix_rows dx", "4x7".into(), &x, &dx, |x| {
        let mut y = zeros(x.shape());
        b.mix_rows(x, &mix, &mut y)?;
        dot(&y, &w)
    })
}

fn head_loss(
    b: &B,
    [n, classes, width]: [usize; 3],
    mix: Option<&Mix<B>>,
    counting: Counting<'_, B>,
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
        let classifier = Classifier::<B> { weight, bias, text, text_scale };
        b.head_loss(f, classifier, targets, &mut head, &mut text_logits, &mut stats)?;
        let stats = values(&stats)?;
        Ok(0.8 * stats[Stat::LossHead as usize] + 0.3 * stats[Stat::LossText as usize])
    };
    let classifier = Classifier::<B> { weight: &weight, bias: &bias, text: &text, text_scale };
    let ((mut head, mut text_logits), mut stats) = (logits(), zeros([Stat::COUNT]));
    b.head_loss(&f, classifier, targets, &mut head, &mut text_logits, &mut stats)?;
    let (mut dw, mut db, mut df) = (zeros(weight.shape()), zeros(bias.shape()), zeros(f.shape()));
    let mut dt = zeros(text.shape());
    b.head_loss_backward(
        &f,
        classifier,
        targets,
        weights,
        None,
        &mut head,
        &mut text_logits,
        &mut dw,
        &mut db,
        Some(&mut df),
        Some(&mut dt),
    )?;
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

fn triplet(b: &B, [n, classes, width]: [usize; 3], margin: f64, rows: &mut Vec<Row>) -> Result<()> {
    let (f, before) = (random([n, width], 1)?, random([n, width], 2)?);
    let labels: Vec<u32> = (0..n).map(|i| (i * 7 % classes) as u32).collect();
    let labels = Tensor::from_slice([n], &labels)?;
    let forward = |f: &Tensor, pairs: &mut Tensor, distances: &mut Tensor| -> Result<f64> {
        let mut stats = zeros([Stat::COUNT]);
        b.triplet(f, &labels, margin, pairs, distances, &mut stats)?;
        Ok(values(&stats)?[Stat::LossTriplet as usize])
    };
    let outputs = || (Tensor::zeros([n, 2], DType::U32), zeros([n, 2]));
    let (mut pairs, mut distances) = outputs();
    forward(&f, &mut pairs, &mut distances)?;
    let mut df = before.clone();
    b.triplet_backward(&f, &pairs, &distances, 0.3, None, &mut df)?;
    let at = format!("{n} of {classes} classes, width {width}, margin {margin}");
    row(rows, "triplet df", at, &f, &added(&df, &before)?, |f| {
        let (mut pairs, mut distances) = outputs();
        Ok(0.3 * forward(f, &mut pairs, &mut distances)?)
    })
}

/// The embedding has no gradient; its product form is compared with the sums of a convolution.
fn patch_embed(b: &B, side: usize, patch: usize, rows: &mut Vec<Row>) -> Result<()> {
    let (batch, d, across) = (2, 6, side / patch);
    let tokens = across * across + 1;
    let weight = random([d, 3 * patch * patch], 1)?;
    let embedding = PatchEmbedding::<B> {
        projection: Linear { weight: b.weight(weight.view())?, bias: None },
        class: random([d], 2)?,
        position: random([tokens, d], 3)?,
        norm: LayerNorm { weight: random([d], 5)?, bias: random([d], 6)?, eps: 1e-5 },
        patch,
        mean: [0.0; 3],
        std: [1.0; 3],
    };
    let pixels = random([batch, 3, side, side], 4)?;
    let mut x = zeros([batch, tokens, d]);
    let (mut patches, mut products) =
        (zeros([batch, tokens - 1, 3 * patch * patch]), zeros([batch, tokens - 1, d]));
    b.patch_embed(&pixels, None, &embedding, &mut patches, &mut products, &mut x)?;
    let (p, w) = (values(&pixels)?, values(&weight)?);
    let mut direct = Vec::with_capacity(batch * tokens * d);
    for index in 0..batch * tokens * d {
        let (image, token, out) = (index / (tokens * d), index / d % tokens, index % d);
        let mut sum = values(&embedding.position)?[token * d + out];
        if token == 0 {
            sum += values(&embedding.class)?[out];
        } else {
            let (top, left) = ((token - 1) / across * patch, (token - 1) % across * patch);
            for tap in 0..3 * patch * patch {
                let (c, y, x) = (tap / (patch * patch), tap / patch % patch, tap % patch);
                let pixel = p[((image * 3 + c) * side + top + y) * side + left + x];
                sum += pixel * w[out * 3 * patch * patch + tap];
            }
        }
        direct.push(sum);
    }
    let sums = tensor([batch, tokens, d], &direct)?;
    let (mut direct, mut stats) = (zeros([batch, tokens, d]), zeros([batch, tokens, 2]));
    b.layer_norm(&sums, &embedding.norm, &mut direct, &mut stats)?;
    let error = relative_error(values(&x)?, values(&direct)?);
    let at = format!("{side} px in patches of {patch}");
    rows.push(Row::new("patch_embed x", at, error, 1e-13));
    Ok(())
}
