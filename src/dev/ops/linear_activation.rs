//! Checks and benchmark of linear_activation, and of the way back through the function.

use super::activation::KINDS;
use super::lora_linear::{Case, Layer, cases};
use super::*;
use crate::backend::{Activation, Linear};

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        for (case, kind) in cases(c.scope).into_iter().zip(KINDS.into_iter().cycle()) {
            let layer = Layer::new(c, case)?.frozen;
            c.case(format!("{kind:?}, {}", case.at()), |c| c.linear_activation_case(case, kind, &layer))?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["linear_activation"];

    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (rows, d, m) = (b.sizes.rows(), b.sizes.width, b.sizes.mlp);
        let layer = b.layer(d, m)?;
        KINDS.into_iter().try_for_each(|kind| {
            let (x, mut z, mut g) = (b.random([rows, d])?, b.empty([rows, m])?, b.empty([rows, m])?);
            let run = Box::new(|| b.backend.linear_activation(&x, &layer, kind, &mut z, &mut g).map(drop));
            visit(Ready { name: "linear_activation", at: format!("{kind:?} {rows}x{d} to {m}"), run })
        })
    }
}

impl<B: Backend> Checker<'_, B> {
    /// Back through the function it goes from a layer of five outputs behind it.
    fn linear_activation_case(
        &mut self,
        case: Case,
        kind: Activation,
        layer: &Both<Linear<B>, Linear<Cpu<f64>>>,
    ) -> Result<()> {
        let (real, at, shape) =
            (self.real(), format!("{kind:?}, {}", case.at()), [case.rows, case.outputs()]);
        let x = self.random([case.rows, case.inputs], real, 1.0, 5)?;
        let (mut z, mut g) = (self.output(shape, real)?, self.output(shape, real)?);
        let Both { device, host } = layer;
        let kept = self.device.linear_activation(&x.device, device, kind, &mut z.device, &mut g.device)?;
        let bias = kept.bias(device);
        let kept = self.cpu.linear_activation(&x.host, host, kind, &mut z.host, &mut g.host)?;
        let bias = Both { device: bias, host: kept.bias(host) };
        self.compare("linear_activation g", &at, &g)?;

        let weight = self.weight(&self.random([5, shape[1]], real, 0.5, 6)?)?;
        let behind = both!(Linear { weight: *weight, bias: None });
        let (dy, mut dz) = (self.random([case.rows, 5], real, 1.0, 7)?, self.output(shape, real)?);
        both!(self.linear_activation_backward(&dy, &behind, kind, &z, *bias, &mut dz));
        self.compare("linear_activation dz", &at, &dz)
    }
}
