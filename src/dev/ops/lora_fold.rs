//! Checks and benchmark of lora_fold.

use super::lora_gradients::Adapted;
use super::lora_linear::{Case, Layer, cases, together};
use super::*;
use crate::backend::LoraFold;

pub struct Checks;

impl Operation for Checks {
    fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
        for case in cases(c) {
            c.case(case.at(), |c| lora_fold(c, &[case]))?;
        }
        for cases in together() {
            c.case(format!("{} layers", cases.len()), |c| lora_fold(c, &cases))?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["lora_fold"];

    fn bench<B: Backend>(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        b.lora_fold(visit)
    }
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

impl<B: Backend> Bench<'_, B> {
    /// All layers of a tower.
    fn lora_fold(&self, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (d, r) = (self.sizes.width, self.sizes.rank);
        let adapted = self.adapted()?;
        let weight = |layer: &Adapted<B>| self.weight(d, layer.columns.len() * d);
        let weights = adapted.iter().map(weight).collect::<backend::Result<Vec<_>>>()?;
        let mut folded = adapted.iter().map(weight).collect::<backend::Result<Vec<_>>>()?;
        let segments: usize = adapted.iter().map(|layer| layer.columns.len()).sum();
        let run = Box::new(|| {
            let layers = adapted.iter().zip(&weights).zip(&mut folded);
            let layers =
                layers.map(|((layer, weight), folded)| LoraFold { weight, lora: layer.lora(), folded });
            self.backend.lora_fold(&mut layers.collect::<Vec<_>>())
        });
        let at = format!("{} layers, {segments}x{d} by {d}, r {r}", adapted.len());
        visit(Ready { name: "lora_fold", at, run })
    }
}
