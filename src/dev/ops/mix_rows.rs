//! Checks and benchmark of mix_rows.

use super::*;
use crate::backend::Mix;

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        // One row; odd widths; one pack; and more columns than a block takes, in packs and without.
        let mut sizes = vec![(1, 1), (2, 7), (3, 33), (9, 4), (5, 100), (3, 131), (6, 520)];
        if c.scope == Scope::Full {
            sizes.extend([(32, 512), (33, 768), (512, 1024)]);
        }
        for (batch, width) in sizes {
            c.case(format!("{batch}x{width}"), |c| c.mix_rows_case(batch, width))?;
        }
        Ok(())
    }

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        let (x, w, mix) = (random([4, 7], 1)?, random([4, 7], 2)?, mix(4)?);
        let mut dx = zeros(x.shape());
        b.mix_rows_backward(&w, &mix, &mut dx)?;
        row(rows, "mix_rows dx", "4x7".into(), &x, &dx, |x| {
            let mut y = zeros(x.shape());
            b.mix_rows(x, &mix, &mut y)?;
            dot(&y, &w)
        })
    }

    const BENCHES: &[&str] = &["mix_rows"];

    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let shape = [b.sizes.batch, b.sizes.features];
        let (mix, x, mut y) = (b.mix()?, b.parameter(shape, 1.0)?, b.parameter(shape, 0.0)?);
        let at = format!("{}x{}", shape[0], shape[1]);
        let run = Box::new(|| b.backend.mix_rows(&x, &mix, &mut y));
        visit(Ready { name: "mix_rows", at: at.clone(), run })?;
        let run = Box::new(|| b.backend.mix_rows_backward(&x, &mix, &mut y));
        visit(Ready { name: "mix_rows_backward", at, run })
    }
}

pub(super) type MixPair<B> = Both<Mix<B>, Mix<Cpu<f64>>>;

impl<B: Backend> Checker<'_, B> {
    /// A batch in which each has the next as its partner: a permutation that is not its own inverse. In one of
    /// more than three the first is its own partner. λ is 0, 1 and in between.
    pub(super) fn mix(&self, batch: usize) -> Result<MixPair<B>> {
        const LAMBDA: [f64; 7] = [0.3, 0.85, 0.0, 1.0, 0.6, 0.02, 0.97];
        let alone = usize::from(batch > 3);
        let turn = |i: usize, by: usize| match i.checked_sub(alone) {
            Some(i) => (alone + (i + by) % (batch - alone)) as u32,
            None => i as u32,
        };
        let partner: Vec<u32> = (0..batch).map(|i| turn(i, 1)).collect();
        let inverse: Vec<u32> = (0..batch).map(|i| turn(i, batch - alone - 1)).collect();
        let (partner, inverse) =
            (Tensor::from_slice([batch], &partner)?, Tensor::from_slice([batch], &inverse)?);
        let lambda: Vec<f64> = (0..batch).map(|i| LAMBDA[i % LAMBDA.len()]).collect();
        let lambda = self.pair(&Tensor::from_slice([batch], &lambda)?, self.device.parameter_dtype())?;
        let upload = |indices: &Tensor| self.device.upload(indices.view(), DType::U32);
        let device = Mix { partner: upload(&partner)?, inverse: upload(&inverse)?, lambda: lambda.device };
        Ok(Both { device, host: Mix { partner, inverse, lambda: lambda.host } })
    }

    fn mix_rows_case(&mut self, batch: usize, width: usize) -> Result<()> {
        // All of it is in the parameter dtype, whatever the activations are in.
        let parameter = self.device.parameter_dtype();
        let mix = self.mix(batch)?;
        let at = format!("{batch}x{width}");
        let x = self.random([batch, width], parameter, 1.0, 1)?;
        let mut y = self.output([batch, width], parameter)?;
        both!(self.mix_rows(&x, &mix, &mut y));
        self.compare_within("mix_rows y", &at, &y, bound(parameter))?;

        let dy = self.random([batch, width], parameter, 1.0, 2)?;
        let mut dx = self.output([batch, width], parameter)?;
        both!(self.mix_rows_backward(&dy, &mix, &mut dx));
        self.compare_within("mix_rows dx", &at, &dx, bound(parameter))
    }
}

/// A batch in which each has the next as its partner.
pub(super) fn mix(n: usize) -> Result<Mix<F64>> {
    let partner: Vec<u32> = (0..n).map(|i| ((i + 1) % n) as u32).collect();
    let inverse: Vec<u32> = (0..n).map(|i| ((i + n - 1) % n) as u32).collect();
    let lambda: Vec<f64> = (0..n).map(|i| (i * 3 % n) as f64 / (n - 1) as f64).collect();
    Ok(Mix {
        partner: Tensor::from_slice([n], &partner)?,
        inverse: Tensor::from_slice([n], &inverse)?,
        lambda: tensor([n], &lambda)?,
    })
}
