//! Checks and benchmark of linear.

use super::lora_linear::{Layer, cases};
use super::*;

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        for case in cases(c.scope) {
            let layer = Layer::new(c, case)?.frozen;
            c.case(case.at(), |c| {
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
            })?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["linear"];

    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (d, m) = (b.sizes.width, b.sizes.mlp);
        let layers = [(d, 3 * d), (d, d), (d, m), (m, d)];
        layers.into_iter().try_for_each(|(inputs, outputs)| b.linear(inputs, outputs, visit))
    }
}

impl<B: Backend> Bench<'_, B> {
    pub(super) fn linear(&self, inputs: usize, outputs: usize, visit: &mut Visit<'_>) -> backend::Result<()> {
        let rows = self.sizes.rows();
        let layer = self.layer(inputs, outputs)?;
        let (x, mut y) = (self.random([rows, inputs])?, self.empty([rows, outputs])?);
        let (dy, mut dx) = (self.random([rows, outputs])?, self.empty([rows, inputs])?);
        let at = format!("{rows}x{inputs} to {outputs}");
        let run = Box::new(|| self.backend.linear(&x, &layer, None, &mut y));
        visit(Ready { name: "linear", at: at.clone(), run })?;
        let run = Box::new(|| self.backend.linear_backward(&dy, &layer, &mut dx));
        visit(Ready { name: "linear_backward", at, run })
    }
}
