//! Checks of linear, lora_linear, lora_fold and lora_gradients.

use super::dropout::DropoutPair;
use super::{Both, Checker, Pair, Result, Scope};
use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::backend::{Backend, Linear, Lora, LoraFold, LoraGradients};
use crate::tensor::DType;

/// A layer of `segments` times `out` outputs, with adapters of rank `rank` on the segments `parts`.
#[derive(Clone, Copy)]
struct Case {
    rows: usize,
    inputs: usize,
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

    fn outputs(&self) -> usize {
        self.segments * self.out
    }

    fn at(&self) -> String {
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

pub(super) fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
    let full = if c.scope == Scope::Full { FULL } else { &[] };
    for &case in QUICK.iter().chain(full) {
        let (layer, at) = (Layer::new(c, case)?, case.at());
        c.case(format!("linear, {at}"), |c| linear(c, case, &layer))?;
        c.case(at.clone(), |c| lora_linear(c, case, &layer, None))?;
        let dropout = DropoutPair::new(c, 0.25)?;
        c.case(format!("dropout, {at}"), |c| lora_linear(c, case, &layer, Some(&dropout)))?;
        c.case(format!("folded, {at}"), |c| lora_fold(c, &[case]))?;
        c.case(format!("gradients, {at}"), |c| lora_gradients(c, &[case]))?;
    }
    // Layers of different sizes together: all of them, and those that consist of whole packs, for the tensor cores.
    let in_packs = |case: &&Case| case.inputs.is_multiple_of(8) && case.out.is_multiple_of(8);
    for together in [QUICK.to_vec(), QUICK.iter().filter(in_packs).copied().collect()] {
        c.case(format!("folded, {} layers", together.len()), |c| lora_fold(c, &together))?;
        c.case(format!("gradients, {} layers", together.len()), |c| lora_gradients(c, &together))?;
    }
    Ok(())
}

/// A layer and its adapter on both devices.
struct Layer<B: Backend> {
    frozen: Both<Linear<B>, Linear<Cpu<f64>>>,
    a: Pair<B>,
    b: Pair<B>,
    columns: Vec<usize>,
}

impl<B: Backend> Layer<B> {
    /// With values such that x·Wᵀ and the update are of similar size.
    fn new(c: &Checker<'_, B>, case: Case) -> Result<Self> {
        let Case { inputs, out, rank, parts, .. } = case;
        let (real, near_one) = (c.real(), 1.0 / (inputs as f64).sqrt());
        let weight = c.random([case.outputs(), inputs], real, near_one, 1)?;
        let bias = c.random([case.outputs()], real, 0.5, 2)?;
        let a = c.random([parts.len() * rank, inputs], DType::F32, near_one, 3)?;
        let b = c.random([parts.len(), out, rank], DType::F32, 0.5 / (rank as f64).sqrt(), 4)?;
        let weight = c.weight(&weight)?;
        let device = Linear { weight: weight.device, bias: case.bias.then_some(bias.device) };
        let host = Linear { weight: weight.host, bias: case.bias.then_some(bias.host) };
        let columns = parts.iter().map(|p| p * out).collect();
        Ok(Layer { frozen: Both { device, host }, a, b, columns })
    }

    fn lora(&self) -> Both<Lora<'_, B>, Lora<'_, Cpu<f64>>> {
        let (columns, scale) = (&self.columns[..], 2.0);
        Both {
            device: Lora { a: &self.a.device, b: &self.b.device, columns, scale },
            host: Lora { a: &self.a.host, b: &self.b.host, columns, scale },
        }
    }
}

fn linear<B: Backend>(c: &mut Checker<'_, B>, case: Case, layer: &Layer<B>) -> Result<()> {
    let layer = &layer.frozen;
    let (real, at) = (c.real(), case.at());
    let x = c.random([case.rows, case.inputs], real, 1.0, 5)?;
    let residual = Some(c.random([case.rows, case.outputs()], real, 1.0, 6)?);
    let mut y = c.output([case.rows, case.outputs()], real)?;
    both!(c.linear(&x, &layer, ?residual, &mut y));
    c.compare("linear y", &at, &y)?;

    let dy = c.random([case.rows, case.outputs()], real, 1.0, 7)?;
    let mut dx = c.output([case.rows, case.inputs], real)?;
    both!(c.linear_backward(&dy, &layer, &mut dx));
    c.compare("linear dx", &at, &dx)
}

/// Where `mask` is given, the adapters see what it leaves of the input.
fn lora_linear<B: Backend>(
    c: &mut Checker<'_, B>,
    case: Case,
    layer: &Layer<B>,
    mask: Option<&DropoutPair<B>>,
) -> Result<()> {
    const SITE: u32 = 5;
    let (frozen, lora) = (&layer.frozen, layer.lora());
    let real = c.real();
    let at = case.at() + if mask.is_some() { ", dropout" } else { "" };
    let (rows, width) = (case.rows, case.parts.len() * case.rank);
    let x = c.random([rows, case.inputs], real, 1.0, 5)?;
    let residual = c.random([rows, case.outputs()], real, 1.0, 6)?;
    let dropped = |mask: &DropoutPair<B>| -> Result<Pair<B>> {
        let mut seen = x.host.clone();
        c.cpu.dropout(&x.host, mask.host(SITE), &mut seen)?;
        c.pair(&seen, real)
    };
    let seen = mask.map(dropped).transpose()?;
    let mut u = c.output([rows, width], real)?;
    let mut y = c.output([rows, case.outputs()], real)?;
    for residual in [None, Some(&residual)] {
        both!(c.lora_linear(&x, ?seen, &frozen, *lora, ?residual, &mut u, &mut y));
        c.compare("lora_linear u", &at, &u)?;
        c.compare("lora_linear y", &at, &y)?;
    }

    let dy = c.random([rows, case.outputs()], real, 1.0, 7)?;
    let mut dx = c.output([rows, case.inputs], real)?;
    for wanted in [false, true] {
        let mut du = c.output([rows, width], real)?;
        let (mut da, mut db) =
            (c.output([width, case.inputs], DType::F32)?, c.output(layer.b.host.shape(), DType::F32)?);
        let dropped = seen.as_ref().unwrap_or(&x);
        both!(c.lora_linear_backward(
            &dy,
            &dropped,
            ?mask(SITE),
            &u,
            &frozen,
            *lora,
            &mut du,
            &mut da,
            &mut db,
            wanted => &mut dx
        ));
        c.compare("lora_linear du", &at, &du)?;
        c.compare("lora_linear dA", &at, &da)?;
        c.compare("lora_linear dB", &at, &db)?;
    }
    c.compare("lora_linear dx", &at, &dx)
}

fn lora_fold<B: Backend>(c: &mut Checker<'_, B>, cases: &[Case]) -> Result<()> {
    let layers = cases.iter().map(|&case| Layer::new(c, case)).collect::<Result<Vec<_>>>()?;
    let room = cases.iter().map(|case| {
        let room = c.output([case.outputs(), case.inputs], c.real())?;
        c.weight(&room)
    });
    let mut folded = room.collect::<Result<Vec<_>>>()?;
    let (mut device, mut host) = (Vec::new(), Vec::new());
    for (layer, Both { device: on_device, host: on_host }) in layers.iter().zip(&mut folded) {
        let (frozen, lora) = (&layer.frozen, layer.lora());
        device.push(LoraFold { weight: &frozen.device.weight, lora: lora.device, folded: on_device });
        host.push(LoraFold { weight: &frozen.host.weight, lora: lora.host, folded: on_host });
    }
    c.device.lora_fold(&mut device)?;
    c.cpu.lora_fold(&mut host)?;
    for (case, folded) in cases.iter().zip(&folded) {
        let folded = Both {
            device: c.device.upload(c.device.weight_values(&folded.device)?.view(), c.real())?,
            host: c.cpu.weight_values(&folded.host)?,
        };
        c.compare("lora_fold", &case.at(), &folded)?;
    }
    Ok(())
}

fn lora_gradients<B: Backend>(c: &mut Checker<'_, B>, cases: &[Case]) -> Result<()> {
    let layers = cases.iter().map(|&case| Layer::new(c, case)).collect::<Result<Vec<_>>>()?;
    let (mut x, mut dy, mut da, mut db) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (case, layer) in cases.iter().zip(&layers) {
        x.push(c.random([case.rows, case.inputs], c.real(), 1.0, 5)?);
        dy.push(c.random([case.rows, case.outputs()], c.real(), 1.0, 7)?);
        da.push(c.output(layer.a.host.shape(), DType::F32)?);
        db.push(c.output(layer.b.host.shape(), DType::F32)?);
    }
    let (mut device, mut host) = (Vec::new(), Vec::new());
    let gradients = da.iter_mut().zip(&mut db);
    for (((layer, x), dy), (da, db)) in layers.iter().zip(&x).zip(&dy).zip(gradients) {
        let lora = layer.lora();
        let (da, da_host) = (&mut da.device, &mut da.host);
        let (db, db_host) = (&mut db.device, &mut db.host);
        device.push(LoraGradients { x: &x.device, dy: &dy.device, lora: lora.device, da, db });
        host.push(LoraGradients { x: &x.host, dy: &dy.host, lora: lora.host, da: da_host, db: db_host });
    }
    c.device.lora_gradients(&mut device)?;
    c.cpu.lora_gradients(&mut host)?;
    for ((case, da), db) in cases.iter().zip(&da).zip(&db) {
        c.compare("lora_gradients dA", &case.at(), da)?;
        c.compare("lora_gradients dB", &case.at(), db)?;
    }
    Ok(())
}
