//! Checks and benchmark of lora_gradients.

use super::lora_linear::{Layer, alone_and_together};
use super::*;
use crate::backend::LoraGradients;

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        for (at, cases) in alone_and_together(c.scope) {
            c.case(at, |c| {
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
                    let both = both!(LoraGradients { x: &x, dy: &dy, lora: *lora, da: &mut da, db: &mut db });
                    device.push(both.device);
                    host.push(both.host);
                }
                c.device.lora_gradients(&mut device)?;
                c.cpu.lora_gradients(&mut host)?;
                for ((case, da), db) in cases.iter().zip(&da).zip(&db) {
                    c.compare("lora_gradients dA", &case.at(), da)?;
                    c.compare("lora_gradients dB", &case.at(), db)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["lora_gradients"];

    /// All layers of a tower.
    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (rows, d, r) = (b.sizes.rows(), b.sizes.width, b.sizes.rank);
        let adapted = b.adapted()?;
        let inputs = adapted.iter().map(|_| b.random([rows, d])).collect::<backend::Result<Vec<_>>>()?;
        let outputs = adapted.iter().map(|layer| b.random([rows, layer.columns.len() * d]));
        let outputs = outputs.collect::<backend::Result<Vec<_>>>()?;
        let parameter = b.backend.parameter_dtype();
        let like = |tensor: &B::Tensor| b.backend.empty(tensor.shape(), parameter);
        let mut da = adapted.iter().map(|layer| like(&layer.a)).collect::<backend::Result<Vec<_>>>()?;
        let mut db = adapted.iter().map(|layer| like(&layer.b)).collect::<backend::Result<Vec<_>>>()?;
        let segments: usize = adapted.iter().map(|layer| layer.columns.len()).sum();
        let run = Box::new(|| {
            let mut layers = Vec::new();
            let gradients = da.iter_mut().zip(&mut db);
            for (((layer, x), dy), (da, db)) in adapted.iter().zip(&inputs).zip(&outputs).zip(gradients) {
                layers.push(LoraGradients { x, dy, lora: b.adapter(layer), da, db });
            }
            b.backend.lora_gradients(&mut layers)
        });
        let at = format!("{} layers, {rows}x{d} to {segments}x{d}, r {r}", adapted.len());
        visit(Ready { name: "lora_gradients", at, run })
    }
}
