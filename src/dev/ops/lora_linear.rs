//! Checks and benchmark of lora_linear.

use super::dropout::draw;
use super::*;
use crate::backend::{Dropout, Linear, Lora, LoraFold, LoraGradients, LoraLinear, LoraLinearBackward};

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        for case in cases(c.scope) {
            let (layer, at) = (Layer::new(c, case)?, case.at());
            c.case(at.clone(), |c| c.lora_linear_case(case, &layer, None))?;
            let draw = c.draw()?;
            let mask = both!(Dropout { draw: &draw, site: 5, probability: 0.25 });
            c.case(format!("dropout, {at}"), |c| c.lora_linear_case(case, &layer, Some(mask)))?;
        }
        Ok(())
    }

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        // 512 inputs in f64 make rows of 4 KiB, which the CPU pads.
        for (n, inputs, outputs, rank) in [(7, 5, 11, 3), (50, 64, 48, 8), (1, 33, 17, 1), (3, 512, 6, 2)] {
            for probability in [None, Some(0.25)] {
                lora_linear_gradients(b, [n, inputs, outputs, rank], probability, rows)?;
            }
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["lora_linear"];

    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (d, m) = (b.sizes.width, b.sizes.mlp);
        b.lora(visit)?;
        b.lora_linear(d, m, 1, visit)?;
        b.lora_linear(m, d, 1, visit)?;
        b.lora_dropout(3, visit)?;
        b.lora_unfused(3, visit)?;
        b.lora_unfused(1, visit)
    }
}

/// A layer of `segments` times `out` outputs, with adapters of rank `rank` on the segments `parts`.
#[derive(Clone, Copy)]
pub(super) struct Case {
    pub rows: usize,
    pub inputs: usize,
    out: usize,
    segments: usize,
    parts: &'static [usize],
    rank: usize,
    bias: bool,
}

impl Case {
    const fn new(rows: usize, inputs: usize, out: usize, segments: usize, rank: usize) -> Self {
        let parts: &[usize] = match segments {
            1 => &[0],
            2 => &[0, 1],
            _ => &[0, 1, 2],
        };
        Case { rows, inputs, out, segments, parts, rank, bias: true }
    }

    const fn on(self, parts: &'static [usize]) -> Self {
        Case { parts, ..self }
    }

    const fn without_bias(self) -> Self {
        Case { bias: false, ..self }
    }

    pub fn outputs(&self) -> usize {
        self.segments * self.out
    }

    pub fn at(&self) -> String {
        let Case { rows, inputs, out, segments, parts, rank, bias } = self;
        let bias = if *bias { "" } else { ", no bias" };
        format!("{rows}x{inputs} to {segments}x{out}, r {rank} on {parts:?}{bias}")
    }
}

const QUICK: &[Case] = &[
    // Odd sizes; a rank beyond 16 with them.
    Case::new(7, 5, 11, 3, 3).on(&[0, 2]),
    Case::new(33, 35, 17, 2, 40).without_bias(),
    // Multiples of 8 that are no multiples of any tile, parts not in the order of their segments.
    Case::new(1, 8, 8, 1, 1),
    Case::new(77, 96, 72, 3, 8).on(&[1, 0, 2]),
    Case::new(70, 72, 136, 2, 5).on(&[1]).without_bias(),
    // As much of du as the fused form has room for, and a rank that it does not take.
    Case::new(45, 64, 64, 3, 16),
    Case::new(40, 104, 72, 2, 40),
    // Several tiles, of the larger kind too, and more terms than the stages of the pipeline hold.
    Case::new(130, 160, 72, 3, 8).on(&[0, 2]),
    Case::new(130, 160, 136, 1, 16),
    // More columns than the warps of a start kernel take in one turn; a slab longer than the pipeline.
    Case::new(170, 520, 8, 1, 8),
    Case::new(20, 8, 328, 1, 4).without_bias(),
    // An MLP's two layers, in packs and without, the first of them wider than the fused form's tiles.
    Case::new(50, 96, 384, 1, 8),
    Case::new(50, 384, 96, 1, 8),
    Case::new(9, 12, 45, 1, 2),
    Case::new(9, 45, 12, 1, 2),
    // Three parts of rank 2: six columns of u, in no whole pack.
    Case::new(35, 64, 72, 3, 2),
    // The widths of large models, and those of their MLPs, into and out of few columns.
    Case::new(20, 1280, 16, 3, 8),
    Case::new(20, 1408, 24, 1, 8),
    Case::new(20, 1664, 16, 2, 8),
    Case::new(9, 5120, 16, 1, 8),
    Case::new(9, 6144, 8, 1, 8),
    Case::new(9, 8192, 16, 1, 8),
    Case::new(9, 16, 8192, 1, 8),
];

const FULL: &[Case] = &[
    Case::new(1600, 768, 768, 3, 8),
    Case::new(1600, 768, 768, 3, 16).on(&[0, 2]),
    Case::new(1600, 768, 768, 1, 8),
    Case::new(32, 768, 768, 2, 8),
    Case::new(32, 768, 768, 1, 8),
    Case::new(1600, 768, 3072, 1, 8),
    Case::new(1600, 3072, 768, 1, 8),
    Case::new(2 * 257, 1024, 1024, 3, 8),
    Case::new(4 * 77, 512, 512, 3, 4),
    Case::new(3 * 242, 768, 768, 3, 64),
    Case::new(1600, 768, 768, 3, 2),
    Case::new(1600, 768, 3072, 1, 2),
    Case::new(1600, 3072, 768, 1, 2),
    Case::new(257, 1024, 4096, 1, 8),
    Case::new(257, 4096, 1024, 1, 8),
    Case::new(257, 1280, 1280, 3, 8),
    Case::new(257, 1280, 5120, 1, 8),
    Case::new(257, 5120, 1280, 1, 8),
    Case::new(257, 1408, 1408, 3, 8),
    Case::new(257, 1408, 6144, 1, 8),
    Case::new(257, 6144, 1408, 1, 8),
    Case::new(257, 1664, 1664, 3, 8),
    Case::new(257, 1664, 8192, 1, 8),
    Case::new(257, 8192, 1664, 1, 8),
    // The text tower of 102 classes.
    Case::new(102 * 77, 512, 512, 3, 2),
    Case::new(102 * 77, 512, 2048, 1, 8),
    Case::new(102 * 77, 2048, 512, 1, 8),
];

/// The cases of all checks of layers.
pub(super) fn cases(scope: Scope) -> Vec<Case> {
    let full = if scope == Scope::Full { FULL } else { &[] };
    [QUICK, full].concat()
}

/// Layers to be taken together, and their names: each of [`cases`] alone, all of different sizes, and those of them that
/// consist of whole packs, for the tensor cores.
pub(super) fn alone_and_together(scope: Scope) -> Vec<(String, Vec<Case>)> {
    let alone = cases(scope).into_iter().map(|case| (case.at(), vec![case]));
    let in_packs = |case: &&Case| case.inputs.is_multiple_of(8) && case.out.is_multiple_of(8);
    let together = [QUICK.to_vec(), QUICK.iter().filter(in_packs).copied().collect()];
    alone.chain(together.map(|cases| (format!("{} layers", cases.len()), cases))).collect()
}

/// A layer and its adapter on both devices.
pub(super) struct Layer<B: Backend> {
    pub frozen: Both<Linear<B>, Linear<Cpu<f64>>>,
    pub a: Pair<B>,
    pub b: Pair<B>,
    columns: Vec<usize>,
}

impl<B: Backend> Layer<B> {
    /// With values such that x·Wᵀ and the update are of similar size.
    pub fn new(c: &Checker<'_, B>, case: Case) -> Result<Self> {
        let Case { inputs, out, rank, parts, .. } = case;
        let (real, near_one) = (c.real(), 1.0 / (inputs as f64).sqrt());
        let weight = c.random([case.outputs(), inputs], real, near_one, 1)?;
        let bias = c.random([case.outputs()], real, 0.5, 2)?;
        let a = c.random([parts.len() * rank, inputs], DType::F32, near_one, 3)?;
        let b = c.random([parts.len(), out, rank], DType::F32, 0.5 / (rank as f64).sqrt(), 4)?;
        let weight = c.weight(&weight)?;
        let bias = Both { device: case.bias.then_some(bias.device), host: case.bias.then_some(bias.host) };
        let columns = parts.iter().map(|p| p * out).collect();
        Ok(Layer { frozen: both!(Linear { weight: *weight, bias: *bias }), a, b, columns })
    }

    pub fn lora(&self) -> Both<Lora<'_, B>, Lora<'_, Cpu<f64>>> {
        let Layer { a, b, columns, .. } = self;
        both!(Lora { a: &a, b: &b, columns, scale: 2.0 })
    }
}

impl<B: Backend> Checker<'_, B> {
    /// Where `mask` is given, the adapters see what it leaves of the input.
    fn lora_linear_case(
        &mut self,
        case: Case,
        layer: &Layer<B>,
        mask: Option<Both<Dropout<'_, B>, Dropout<'_, Cpu<f64>>>>,
    ) -> Result<()> {
        let (frozen, lora) = (&layer.frozen, layer.lora());
        let real = self.real();
        let at = case.at() + if mask.is_some() { ", dropout" } else { "" };
        let (rows, width) = (case.rows, case.parts.len() * case.rank);
        let x = self.random([rows, case.inputs], real, 1.0, 5)?;
        let residual = self.random([rows, case.outputs()], real, 1.0, 6)?;
        let seen = match mask {
            Some(mask) => {
                let mut seen = x.host.clone();
                self.cpu.dropout(&x.host, mask.host, &mut seen)?;
                Some(self.pair(&seen, real)?)
            }
            None => None,
        };
        let dropout = Both { device: mask.map(|mask| mask.device), host: mask.map(|mask| mask.host) };
        let mut u = self.output([rows, width], real)?;
        let mut y = self.output([rows, case.outputs()], real)?;
        for residual in [None, Some(&residual)] {
            both!(self.lora_linear(LoraLinear {
                x: &x,
                seen: ?seen,
                layer: &frozen,
                lora: *lora,
                residual: ?residual,
                u: &mut u,
                y: &mut y,
            }));
            self.compare("lora_linear u", &at, &u)?;
            self.compare("lora_linear y", &at, &y)?;
        }

        let dy = self.random([rows, case.outputs()], real, 1.0, 7)?;
        let mut dx = self.output([rows, case.inputs], real)?;
        for wanted in [false, true] {
            let mut du = self.output([rows, width], real)?;
            let (mut da, mut db) = (
                self.output([width, case.inputs], DType::F32)?,
                self.output(layer.b.host.shape(), DType::F32)?,
            );
            let dropped = seen.as_ref().unwrap_or(&x);
            both!(self.lora_linear_backward(LoraLinearBackward {
                dy: &dy,
                x: &dropped,
                dropout: *dropout,
                u: &u,
                layer: &frozen,
                lora: *lora,
                du: &mut du,
                da: &mut da,
                db: &mut db,
                dx: wanted => &mut dx,
            }));
            self.compare("lora_linear du", &at, &du)?;
            self.compare("lora_linear dA", &at, &da)?;
            self.compare("lora_linear dB", &at, &db)?;
        }
        self.compare("lora_linear dx", &at, &dx)
    }
}

fn lora_linear_gradients(
    b: &F64,
    [n, inputs, outputs, rank]: [usize; 4],
    probability: Option<f64>,
    rows: &mut Vec<Row>,
) -> Result<()> {
    // Three layers in one product, of which the first and the last carry an adapter.
    let (columns, scale, width) = ([0, 2 * outputs], 2.0, 2 * rank);
    let weight = b.weight(random([3 * outputs, inputs], 1)?.view())?;
    let layer = Linear::<F64> { weight, bias: Some(random([3 * outputs], 2)?) };
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
        let (dropped, layer, residual) = (seen(x)?, &layer, Some(&residual));
        let seen = mask.map(|_| &dropped);
        b.lora_linear(LoraLinear { x, seen, layer, lora, residual, u, y: &mut y })?;
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
    b.lora_linear_backward(LoraLinearBackward {
        dy: &w,
        x: &dropped,
        dropout: mask,
        u: &u,
        layer: &layer,
        lora,
        du: &mut du,
        da: &mut da,
        db: &mut db,
        dx: Some(&mut dx),
    })?;
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
    let folded = Linear::<F64> { weight: folded, bias: layer.bias.clone() };
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

impl<B: Backend> Bench<'_, B> {
    /// Queries, keys and values, and what is behind attention.
    pub(super) fn lora(&self, visit: &mut Visit<'_>) -> backend::Result<()> {
        let d = self.sizes.width;
        self.lora_linear(d, d, 3, visit)?;
        self.lora_linear(d, d, 1, visit)
    }

    /// `parts` layers from `inputs` to `out` in one product, each with an adapter.
    pub(super) fn lora_linear(
        &self,
        inputs: usize,
        out: usize,
        parts: usize,
        visit: &mut Visit<'_>,
    ) -> backend::Result<()> {
        self.both_passes([inputs, out, parts], None, ["lora_linear", "lora_linear_backward"], visit)
    }

    /// `parts` layers whose adapters see what dropout leaves, which is drawn here too.
    fn lora_dropout(&self, parts: usize, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (d, draw) = (self.sizes.width, self.draw()?);
        let mask = Dropout { draw: &draw, site: 1, probability: 0.25 };
        let names = ["lora_linear, dropout", "lora_linear_backward, dropout"];
        self.both_passes([d, d, parts], Some(mask), names, visit)
    }

    fn both_passes(
        &self,
        [inputs, out, parts]: [usize; 3],
        dropout: Option<Dropout<'_, B>>,
        [forward, backward]: [&'static str; 2],
        visit: &mut Visit<'_>,
    ) -> backend::Result<()> {
        let (rows, r) = (self.sizes.rows(), self.sizes.rank);
        let (width, outputs) = (parts * r, parts * out);
        let layer = &self.layer(inputs, outputs)?;
        let columns: Vec<usize> = (0..parts).map(|i| i * out).collect();
        let a = self.parameter([width, inputs], 1.0 / (inputs as f64).sqrt())?;
        let b = self.parameter([parts, out, r], 0.02)?;
        let lora = Lora { a: &a, b: &b, columns: &columns, scale: 2.0 };
        let (x, mut y, mut u) =
            (self.random([rows, inputs])?, self.empty([rows, outputs])?, self.empty([rows, width])?);
        let mut seen = dropout.map(|_| self.empty([rows, inputs])).transpose()?;
        let at = format!("{rows}x{inputs} to {parts}x{out}, r {r}");
        let run = Box::new(|| {
            if let (Some(dropout), Some(seen)) = (dropout, &mut seen) {
                self.backend.dropout(&x, dropout, seen)?;
            }
            let (x, seen, residual, u, y) = (&x, seen.as_ref(), None, &mut u, &mut y);
            self.backend.lora_linear(LoraLinear { x, seen, layer, lora, residual, u, y })
        });
        visit(Ready { name: forward, at: at.clone(), run })?;
        let (dy, mut dx, mut du) =
            (self.random([rows, outputs])?, self.empty([rows, inputs])?, self.empty([rows, width])?);
        let (mut da, mut db) = (self.parameter([width, inputs], 0.0)?, self.parameter([parts, out, r], 0.0)?);
        let run = Box::new(|| {
            self.backend.lora_linear_backward(LoraLinearBackward {
                dy: &dy,
                x: seen.as_ref().unwrap_or(&x),
                dropout,
                u: &u,
                layer,
                lora,
                du: &mut du,
                da: &mut da,
                db: &mut db,
                dx: Some(&mut dx),
            })
        });
        visit(Ready { name: backward, at, run })
    }

    /// The forward pass as three products, which is how a framework does it.
    fn lora_unfused(&self, parts: usize, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (rows, d, width) = (self.sizes.rows(), self.sizes.width, parts * self.sizes.rank);
        let layer = self.layer(d, parts * d)?;
        let down = Linear::<B> { bias: None, ..self.layer(d, width)? };
        let up = Linear::<B> { bias: None, ..self.layer(width, parts * d)? };
        let (x, mut u) = (self.random([rows, d])?, self.empty([rows, width])?);
        let (mut y, mut sum) = (self.empty([rows, parts * d])?, self.empty([rows, parts * d])?);
        let at = format!("{rows}x{d} to {parts}x{d}, r {}", self.sizes.rank);
        let run = Box::new(|| {
            self.backend.linear(&x, &layer, None, &mut y)?;
            self.backend.linear(&x, &down, None, &mut u)?;
            self.backend.linear(&u, &up, Some(&y), &mut sum)
        });
        visit(Ready { name: "lora_linear, unfused", at, run })
    }
}
