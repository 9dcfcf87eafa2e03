//! Checks and benchmark of attention.

use super::*;
use crate::backend::{AttentionBackward, AttentionGradient, AttentionInput, AttentionShape};
use crate::dev::check::{Row, relative_error, worse};
use std::ops::Range;

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        let full = if c.scope == Scope::Full { full() } else { Vec::new() };
        for &size in QUICK.iter().chain(&full) {
            c.case(size.describe(), |c| match size.queries {
                None => c.attention_packed(size),
                Some(queries) => c.attention_split(size, queries),
            })?;
        }
        Ok(())
    }

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        for (batch, tokens, heads, head) in [(2, 5, 3, 7), (1, 50, 2, 64), (1, 77, 1, 32)] {
            for causal in [false, true] {
                attention_packed_gradients(b, [batch, tokens, heads, head], causal, rows)?;
            }
            attention_split_gradients(b, [batch, tokens, heads, head], rows)?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["attention"];

    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        [b.sizes.tokens, 197, 257].into_iter().try_for_each(|tokens| b.attention(tokens, visit))?;
        b.attention_one_row(visit)
    }
}

/// Sizes of a check.
#[derive(Clone, Copy)]
struct Size {
    batch: usize,
    /// Where they are apart from the keys.
    queries: Option<usize>,
    keys: usize,
    heads: usize,
    head: usize,
    causal: bool,
    /// Scale of the numbers in the queries; the others are around 1.
    scale: f64,
    /// Added to queries and taken from keys: all scores are far below zero.
    shift: f64,
}

impl Size {
    /// `tokens` that see each other.
    const fn of(batch: usize, tokens: usize, heads: usize, head: usize) -> Size {
        Size { batch, queries: None, keys: tokens, heads, head, causal: false, scale: 1.0, shift: 0.0 }
    }

    const fn causal(self) -> Size {
        Size { causal: true, ..self }
    }

    const fn queries(self, queries: usize) -> Size {
        Size { queries: Some(queries), ..self }
    }

    const fn scaled(self, scale: f64) -> Size {
        Size { scale, ..self }
    }

    const fn shifted(self, shift: f64) -> Size {
        Size { shift, ..self }
    }

    fn width(&self) -> usize {
        self.heads * self.head
    }

    fn shape(&self) -> AttentionShape {
        AttentionShape { heads: self.heads, causal: self.causal }
    }

    /// Rounded in f32, scores are off by some 1e-7 of their size, and an exponential passes the error on as
    /// a relative one. What was added to queries and keys cancels in the gradients because the rows of dS
    /// sum to zero, which they do as exactly as o is rounded.
    fn bound(&self, dtype: DType) -> f64 {
        let scores = self.scale + self.shift * self.shift * (self.head as f64).sqrt();
        (bound(dtype) * (1.0 + self.shift)).max(1e-6 * scores)
    }

    fn describe(&self) -> String {
        let &Size { batch, keys, heads, head, causal, scale, shift, .. } = self;
        let queries = self.queries.unwrap_or(keys);
        let of = if queries == keys { String::new() } else { format!(" of {keys}") };
        let mask = if causal { ", causal" } else { "" };
        let large = if scale == 1.0 { String::new() } else { format!(", q·{scale}") };
        let low = if shift == 0.0 { String::new() } else { format!(", q + {shift}, k - {shift}") };
        format!("{batch}x{queries}{of}, {heads} heads of {head}{mask}{large}{low}")
    }
}

/// Every width that a kernel is built for, and widths between them; one tile, several, and their edges.
const QUICK: &[Size] = &[
    Size::of(2, 1, 3, 4),
    Size::of(2, 5, 2, 7),
    Size::of(1, 17, 2, 7).causal(),
    Size::of(1, 65, 1, 4),
    Size::of(1, 37, 1, 33).causal(),
    Size::of(1, 5, 2, 70),
    Size::of(1, 35, 1, 150).causal(),
    Size::of(2, 17, 2, 8),
    Size::of(1, 1, 2, 32),
    Size::of(1, 64, 1, 32),
    Size::of(1, 130, 1, 32).scaled(64.0),
    Size::of(1, 130, 1, 32).causal(),
    Size::of(2, 50, 2, 64),
    Size::of(2, 7, 1, 64),
    Size::of(1, 50, 2, 64).causal(),
    Size::of(1, 63, 1, 64),
    Size::of(1, 64, 1, 64).causal(),
    Size::of(1, 65, 1, 64),
    Size::of(1, 77, 1, 64).causal(),
    Size::of(1, 50, 1, 64).scaled(8.0),
    Size::of(1, 64, 1, 64).scaled(64.0),
    Size::of(1, 5, 1, 64).shifted(4.0),
    Size::of(1, 17, 2, 80),
    Size::of(1, 70, 1, 80),
    Size::of(1, 17, 1, 88),
    Size::of(1, 70, 1, 88),
    Size::of(1, 33, 1, 96),
    Size::of(1, 70, 1, 96).causal(),
    Size::of(1, 50, 1, 104),
    Size::of(1, 67, 1, 104),
    Size::of(1, 17, 2, 128).causal(),
    Size::of(1, 66, 1, 128),
    Size::of(3, 1, 2, 5).queries(1),
    Size::of(2, 37, 2, 64).queries(1),
    Size::of(1, 70, 1, 40).queries(1),
    Size::of(1, 50, 1, 128).queries(1),
    Size::of(1, 9, 1, 256).queries(1),
    Size::of(2, 5, 1, 64).queries(1).shifted(4.0),
    Size::of(1, 40, 1, 7).queries(19),
    // A single query for keys of more than one tile, at every width from that of most models on.
    Size::of(2, 70, 1, 64).queries(1),
    Size::of(1, 70, 2, 80).queries(1),
    Size::of(1, 70, 1, 88).queries(1),
    Size::of(1, 130, 1, 96).queries(1),
    Size::of(1, 70, 1, 104).queries(1),
    Size::of(1, 66, 1, 128).queries(1),
    Size::of(1, 64, 1, 64).queries(3),
    Size::of(1, 1, 1, 64).queries(3),
    Size::of(1, 5, 2, 64).queries(50),
    Size::of(1, 17, 2, 32).queries(70),
    Size::of(1, 100, 1, 64).queries(3),
];

/// Sizes of real models.
fn full() -> Vec<Size> {
    let mut sizes = Vec::new();
    for (tokens, heads, head) in [
        (50, 12, 64),
        (66, 12, 64),
        (77, 8, 64),
        (197, 12, 64),
        (242, 12, 64),
        (257, 16, 64),
        (577, 16, 64),
        (257, 16, 80),
        (257, 16, 88),
        (257, 16, 104),
    ] {
        let [two, four] = [2, 4].map(|batch| Size::of(batch, tokens, heads, head));
        sizes.extend([four, two.causal(), four.queries(1), two.queries(33)]);
    }
    for (tokens, heads, head) in [(257, 11, 96), (197, 7, 104), (257, 5, 33)] {
        let size = Size::of(2, tokens, heads, head);
        sizes.extend([size, size.causal()]);
    }
    for scale in [8.0, 64.0] {
        let size = Size::of(2, 197, 4, 64).scaled(scale);
        sizes.extend([size, size.causal()]);
    }
    sizes
}

impl<B: Backend> Checker<'_, B> {
    fn attention_packed(&mut self, size: Size) -> Result<()> {
        let (d, real, shape) = (size.width(), self.real(), size.shape());
        let (rows, wide) = ([size.batch, size.keys, d], [size.batch, size.keys, 3 * d]);
        let qkv = self.random_parts(wide, [(size.scale, size.shift), (1.0, -size.shift), (1.0, 0.0)], 1)?;
        let d_o = self.random(rows, real, 1.0, 2)?;
        let (mut o, mut dqkv) = (self.output(rows, real)?, self.output(wide, real)?);
        let (mut saved, mut scratch) = (self.attention_saved(size)?, self.attention_saved(size)?);

        let (device, host) = (AttentionInput::Packed(&qkv.device), AttentionInput::Packed(&qkv.host));
        let input = Both { device, host };
        let (device, host) =
            (AttentionGradient::Packed(&mut dqkv.device), AttentionGradient::Packed(&mut dqkv.host));
        let gradient = Both { device, host };
        both!(self.attention(*input, shape, &mut saved, &mut o));
        both!(self.attention_backward(AttentionBackward {
            d_o: &d_o,
            o: &o,
            input: *input,
            shape,
            saved: &saved,
            scratch: &mut scratch,
            gradient: *gradient,
        }));
        self.compare_within("attention o", &size.describe(), &o, size.bound(real))?;
        self.compare_columns("attention dq", size, &dqkv, 0..d)?;
        self.compare_columns("attention dk", size, &dqkv, d..2 * d)?;
        self.compare_columns("attention dv", size, &dqkv, 2 * d..3 * d)
    }

    fn attention_split(&mut self, size: Size, queries: usize) -> Result<()> {
        let (d, real, shape) = (size.width(), self.real(), size.shape());
        let (rows, wide) = ([size.batch, queries, d], [size.batch, size.keys, 2 * d]);
        let q = self.random_parts(rows, [(size.scale, size.shift)], 1)?;
        let kv = self.random_parts(wide, [(1.0, -size.shift), (1.0, 0.0)], 2)?;
        let d_o = self.random(rows, real, 1.0, 3)?;
        let (mut o, mut dq, mut dkv) =
            (self.output(rows, real)?, self.output(rows, real)?, self.output(wide, real)?);
        let (mut saved, mut scratch) = (self.attention_saved(size)?, self.attention_saved(size)?);

        let device = AttentionInput::Split { q: &q.device, kv: &kv.device };
        let input = Both { device, host: AttentionInput::Split { q: &q.host, kv: &kv.host } };
        let device = AttentionGradient::Split { dq: &mut dq.device, dkv: &mut dkv.device };
        let host = AttentionGradient::Split { dq: &mut dq.host, dkv: &mut dkv.host };
        let gradient = Both { device, host };
        both!(self.attention(*input, shape, &mut saved, &mut o));
        both!(self.attention_backward(AttentionBackward {
            d_o: &d_o,
            o: &o,
            input: *input,
            shape,
            saved: &saved,
            scratch: &mut scratch,
            gradient: *gradient,
        }));
        self.compare_within("attention split o", &size.describe(), &o, size.bound(real))?;
        self.compare_columns("attention split dq", size, &dq, 0..d)?;
        self.compare_columns("attention split dk", size, &dkv, 0..d)?;
        self.compare_columns("attention split dv", size, &dkv, d..2 * d)
    }

    /// Numbers of which those in each part of a row's columns are turned into `scale·v + shift`.
    fn random_parts<const N: usize>(
        &self,
        shape: [usize; 3],
        parts: [(f64, f64); N],
        seed: u64,
    ) -> Result<Pair<B>> {
        let mut values = self.random(shape, DType::F64, 1.0, seed)?.host;
        let columns = (shape[2] / N).max(1);
        for (index, part) in values.typed_mut::<f64>()?.chunks_exact_mut(columns).enumerate() {
            let (scale, shift) = parts[index % N];
            part.iter_mut().for_each(|v| *v = scale * *v + shift);
        }
        self.pair(&values, self.real())
    }

    /// Memory for what attention keeps: the two backends keep different things, in different shapes.
    fn attention_saved(&self, size: Size) -> Result<Pair<B>> {
        let Size { batch, heads, keys, .. } = size;
        let queries = size.queries.unwrap_or(keys);
        let device = self.device.attention_saved(batch, heads, queries, keys);
        let device = self.device.empty(device, self.device.parameter_dtype())?;
        let host = self.cpu.zeros(self.cpu.attention_saved(batch, heads, queries, keys), DType::F64)?;
        Ok(Both { device, host })
    }

    /// Adds a row for some columns of a result, so that a small gradient is not measured against a large one.
    fn compare_columns(
        &mut self,
        name: &str,
        size: Size,
        pair: &Pair<B>,
        columns: Range<usize>,
    ) -> Result<()> {
        let width = pair.host.shape().columns();
        let part = |values: &[f64]| -> Vec<f64> {
            values.chunks_exact(width).flat_map(|row| &row[columns.clone()]).copied().collect()
        };
        let (found, expected) = (part(&self.found(pair)?), part(pair.host.typed::<f64>()?));
        // The softmax over one key is constant: dq and dk are zero but for rounding, which is then measured
        // against the numbers that cancel, about 1.
        let error = if size.keys == 1 && expected.iter().all(|v| v.abs() < 1e-12) {
            found.iter().fold(0.0, |worst, v| worse(worst, v.abs()))
        } else {
            relative_error(&found, &expected)
        };
        let (at, bound) = (size.describe(), size.bound(self.real()));
        self.row(Row::new(name, at, error, bound));
        Ok(())
    }
}

fn attention_packed_gradients(b: &F64, size: [usize; 4], causal: bool, rows: &mut Vec<Row>) -> Result<()> {
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
    let mut dqkv = zeros(qkv.shape());
    b.attention_backward(AttentionBackward {
        d_o: &w,
        o: &o,
        input: AttentionInput::Packed(&qkv),
        shape,
        saved: &saved,
        scratch: &mut zeros(saved_shape),
        gradient: AttentionGradient::Packed(&mut dqkv),
    })?;
    let name = if causal { "attention causal dqkv" } else { "attention dqkv" };
    let at = format!("{batch}x{tokens}, {heads} heads of {head}");
    row(rows, name, at, &qkv, &dqkv, |qkv| dot(&forward(qkv, &mut zeros(saved_shape))?, &w))
}

fn attention_split_gradients(b: &F64, size: [usize; 4], rows: &mut Vec<Row>) -> Result<()> {
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
    let (mut dq, mut dkv) = (zeros(q.shape()), zeros(kv.shape()));
    b.attention_backward(AttentionBackward {
        d_o: &w,
        o: &o,
        input: AttentionInput::Split { q: &q, kv: &kv },
        shape,
        saved: &saved,
        scratch: &mut zeros(saved_shape),
        gradient: AttentionGradient::Split { dq: &mut dq, dkv: &mut dkv },
    })?;
    let at = format!("{batch}x1 of {tokens}, {heads} heads of {head}");
    row(rows, "attention one row dq", at.clone(), &q, &dq, |q| loss(q, &kv, &mut zeros(saved_shape)))?;
    row(rows, "attention one row dkv", at, &kv, &dkv, |kv| loss(&q, kv, &mut zeros(saved_shape)))
}

impl<B: Backend> Bench<'_, B> {
    fn attention(&self, tokens: usize, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (batch, heads, d) = (self.sizes.batch, self.sizes.heads, self.sizes.width);
        let shape = AttentionShape { heads, causal: false };
        let saved = self.backend.attention_saved(batch, heads, tokens, tokens);
        let parameter = self.backend.parameter_dtype();
        let (mut saved, mut scratch) =
            (self.backend.empty(saved, parameter)?, self.backend.empty(saved, parameter)?);
        let (qkv, mut dqkv) = (self.random([batch, tokens, 3 * d])?, self.empty([batch, tokens, 3 * d])?);
        let (mut o, d_o) = (self.empty([batch, tokens, d])?, self.random([batch, tokens, d])?);
        let at = format!("{batch}x{tokens}, {heads} heads of {}", d / heads);
        let run =
            Box::new(|| self.backend.attention(AttentionInput::Packed(&qkv), shape, &mut saved, &mut o));
        visit(Ready { name: "attention", at: at.clone(), run })?;
        let run = Box::new(|| {
            self.backend.attention_backward(AttentionBackward {
                d_o: &d_o,
                o: &o,
                input: AttentionInput::Packed(&qkv),
                shape,
                saved: &saved,
                scratch: &mut scratch,
                gradient: AttentionGradient::Packed(&mut dqkv),
            })
        });
        visit(Ready { name: "attention_backward", at, run })
    }

    /// The last block's: one query for each image.
    fn attention_one_row(&self, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (batch, tokens, heads, d) =
            (self.sizes.batch, self.sizes.tokens, self.sizes.heads, self.sizes.width);
        let shape = AttentionShape { heads, causal: false };
        let saved = self.backend.attention_saved(batch, heads, 1, tokens);
        let mut saved = self.backend.empty(saved, self.backend.parameter_dtype())?;
        let (q, kv) = (self.random([batch, 1, d])?, self.random([batch, tokens, 2 * d])?);
        let mut o = self.empty([batch, 1, d])?;
        let at = format!("{batch}x1 of {tokens}, {heads} heads of {}", d / heads);
        let run = Box::new(|| {
            self.backend.attention(AttentionInput::Split { q: &q, kv: &kv }, shape, &mut saved, &mut o)
        });
        visit(Ready { name: "attention", at, run })
    }
}
