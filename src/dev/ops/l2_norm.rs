//! Checks and benchmark of l2_norm.

use super::*;

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        let mut sizes = vec![(1, 1), (3, 7), (5, 100), (2, 515), (9, 512)];
        if c.scope == Scope::Full {
            sizes.extend([(32, 512), (102, 768), (8, 1024)]);
        }
        for (rows, width) in sizes {
            c.case(format!("{rows}x{width}"), |c| c.l2_norm_case(rows, width))?;
        }
        c.case("zero", Checker::l2_norm_zero)
    }

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        for (n, width) in [(3, 7), (4, 512)] {
            l2_norm_gradients(b, n, width, rows)?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["l2_norm"];

    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (batch, e) = (b.sizes.batch, b.sizes.features);
        let (x, mut f, mut norms) =
            (b.random([batch, e])?, b.parameter([batch, e], 0.0)?, b.parameter([batch], 0.0)?);
        let at = format!("{batch}x{e}");
        let run = Box::new(|| b.backend.l2_norm(&x, &mut f, &mut norms));
        visit(Ready { name: "l2_norm", at: at.clone(), run })?;
        let (df, mut dx) = (b.parameter([batch, e], 1.0)?, b.empty([batch, e])?);
        let run = Box::new(|| b.backend.l2_norm_backward(&df, &f, &norms, &mut dx));
        visit(Ready { name: "l2_norm_backward", at, run })
    }
}

impl<B: Backend> Checker<'_, B> {
    fn l2_norm_case(&mut self, rows: usize, width: usize) -> Result<()> {
        let (real, parameter) = (self.real(), self.device.parameter_dtype());
        let x = self.random([rows, width], real, 1.0, 1)?;
        let (mut f, mut norms) = (self.output([rows, width], parameter)?, self.output([rows], parameter)?);
        both!(self.l2_norm(&x, &mut f, &mut norms));
        let at = format!("{rows}x{width}");
        // Nothing is rounded to the activations' type here: the bound of f32 holds for all of them.
        self.compare_within("l2_norm f", &at, &f, bound(parameter))?;
        self.compare_within("l2_norm norms", &at, &norms, bound(parameter))?;
        if width == 1 {
            // The gradient is zero but for rounding: there is no scale to measure it by.
            return Ok(());
        }
        let df = self.random([rows, width], parameter, 1.0, 2)?;
        let (f, norms) = (self.pair(&f.host, parameter)?, self.pair(&norms.host, parameter)?);
        let mut dx = self.output([rows, width], real)?;
        both!(self.l2_norm_backward(&df, &f, &norms, &mut dx));
        self.compare("l2_norm dx", &at, &dx)
    }

    /// A row of zeros has no direction, and must not become NaN.
    fn l2_norm_zero(&mut self) -> Result<()> {
        let (real, parameter) = (self.real(), self.device.parameter_dtype());
        let mut values = normal(3 * 8, 1);
        values[8..16].fill(0.0);
        let x = self.pair(&Tensor::from_slice([3, 8], &values)?, real)?;
        let (mut f, mut norms) = (self.output([3, 8], parameter)?, self.output([3], parameter)?);
        both!(self.l2_norm(&x, &mut f, &mut norms));
        self.compare_within("l2_norm f", "a row of zeros", &f, bound(parameter))?;
        self.compare_within("l2_norm norms", "a row of zeros", &norms, bound(parameter))
    }
}

fn l2_norm_gradients(b: &F64, n: usize, width: usize, rows: &mut Vec<Row>) -> Result<()> {
    let (x, w) = (random([n, width], 1)?, random([n, width], 2)?);
    let (mut f, mut norms, mut dx) = (zeros(x.shape()), zeros([n]), zeros(x.shape()));
    b.l2_norm(&x, &mut f, &mut norms)?;
    b.l2_norm_backward(&w, &f, &norms, &mut dx)?;
    row(rows, "l2_norm dx", format!("{n}x{width}"), &x, &dx, |x| {
        let (mut f, mut norms) = (zeros(x.shape()), zeros([n]));
        b.l2_norm(x, &mut f, &mut norms)?;
        dot(&f, &w)
    })
}
