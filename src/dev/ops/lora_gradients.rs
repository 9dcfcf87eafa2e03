//! Checks and benchmark of lora_gradients.

use super::lora_linear::{Case, Layer, cases, together};
use super::*;
use crate::backend::{Lora, LoraGradients};

pub struct Checks;

impl Operation for Checks {
    fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
        for case in cases(c) {
            c.case(case.at(), |c| lora_gradients(c, &[case]))?;
        }
        for cases in together() {
            c.case(format!("{} layers", cases.len()), |c| lora_gradients(c, &cases))?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["lora_gradients"];

    fn bench<B: Backend>(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        b.lora_gradients(visit)
    }
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

/// The adapters of a layer.
pub(super) struct Adapted<B: Backend> {
    pub a: B::Tensor,
    pub b: B::Tensor,
    pub columns: Vec<usize>,
}

impl<B: Backend> Adapted<B> {
    pub fn lora(&self) -> Lora<'_, B> {
        Lora { a: &self.a, b: &self.b, columns: &self.columns, scale: 2.0 }
    }
}

impl<B: Backend> Bench<'_, B> {
    /// Queries, keys and values of as many blocks as a tower has, and the projections behind attention.
    pub(super) fn adapted(&self) -> backend::Result<Vec<Adapted<B>>> {
        const BLOCKS: usize = 12;
        let (d, r) = (self.sizes.width, self.sizes.rank);
        let layers = [3, 1].into_iter().cycle().take(2 * BLOCKS).map(|parts| {
            Ok(Adapted {
                a: self.parameter([parts * r, d], 1.0 / (d as f64).sqrt())?,
                b: self.parameter([parts, d, r], 0.02)?,
                columns: (0..parts).map(|i| i * d).collect(),
            })
        });
        layers.collect()
    }

    /// All layers of a tower.
    fn lora_gradients(&self, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (rows, d, r) = (self.sizes.rows(), self.sizes.width, self.sizes.rank);
        let adapted = self.adapted()?;
        let inputs = adapted.iter().map(|_| self.random([rows, d])).collect::<backend::Result<Vec<_>>>()?;
        let outputs = adapted.iter().map(|layer| self.random([rows, layer.columns.len() * d]));
        let outputs = outputs.collect::<backend::Result<Vec<_>>>()?;
        let parameter = self.backend.parameter_dtype();
        let like = |tensor: &B::Tensor| self.backend.empty(tensor.shape(), parameter);
        let mut da = adapted.iter().map(|layer| like(&layer.a)).collect::<backend::Result<Vec<_>>>()?;
        let mut db = adapted.iter().map(|layer| like(&layer.b)).collect::<backend::Result<Vec<_>>>()?;
        let segments: usize = adapted.iter().map(|layer| layer.columns.len()).sum();
        let run = Box::new(|| {
            let mut layers = Vec::new();
            let gradients = da.iter_mut().zip(&mut db);
            for (((layer, x), dy), (da, db)) in adapted.iter().zip(&inputs).zip(&outputs).zip(gradients) {
                layers.push(LoraGradients { x, dy, lora: layer.lora(), da, db });
            }
            self.backend.lora_gradients(&mut layers)
        });
        let at = format!("{} layers, {rows}x{d} to {segments}x{d}, r {r}", adapted.len());
        visit(Ready { name: "lora_gradients", at, run })
    }
}
