//! Checks and benchmark of lora_fold.

use super::bench::Adapted;
use super::lora_linear::{Layer, alone_and_together};
use super::*;
use crate::backend::LoraFold;

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        for (at, cases) in alone_and_together(c.scope) {
            c.case(at, |c| {
                let layers = cases.iter().map(|&case| Layer::new(c, case)).collect::<Result<Vec<_>>>()?;
                let room = cases.iter().map(|case| {
                    let room = c.output([case.outputs(), case.inputs], c.real())?;
                    c.weight(&room)
                });
                let mut folded = room.collect::<Result<Vec<_>>>()?;
                let (mut device, mut host) = (Vec::new(), Vec::new());
                for (layer, Both { device: on_device, host: on_host }) in layers.iter().zip(&mut folded) {
                    let (frozen, lora) = (&layer.frozen, layer.lora());
                    device.push(LoraFold {
                        weight: &frozen.device.weight,
                        lora: lora.device,
                        folded: on_device,
                    });
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
            })?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["lora_fold"];

    /// All layers of a tower.
    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (d, r) = (b.sizes.width, b.sizes.rank);
        let adapted = b.adapted()?;
        let weight = |layer: &Adapted<B::Tensor>| b.weight(d, layer.columns.len() * d);
        let weights = adapted.iter().map(weight).collect::<backend::Result<Vec<_>>>()?;
        let mut folded = adapted.iter().map(weight).collect::<backend::Result<Vec<_>>>()?;
        let segments: usize = adapted.iter().map(|layer| layer.columns.len()).sum();
        let run = Box::new(|| {
            let layers = adapted.iter().zip(&weights).zip(&mut folded);
            let layers =
                layers.map(|((layer, weight), folded)| LoraFold { weight, lora: b.adapter(layer), folded });
            b.backend.lora_fold(&mut layers.collect::<Vec<_>>())
        });
        let at = format!("{} layers, {segments}x{d} by {d}, r {r}", adapted.len());
        visit(Ready { name: "lora_fold", at, run })
    }
}
