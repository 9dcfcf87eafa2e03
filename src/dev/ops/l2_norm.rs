//! Checks and benchmark of l2_norm.

use super::*;

pub struct Checks;

impl Operation for Checks {
    fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
        let mut sizes = vec![(1, 1), (3, 7), (5, 100), (2, 515), (9, 512)];
        if c.scope == Scope::Full {
            sizes.extend([(32, 512), (102, 768), (8, 1024)]);
        }
        for (rows, width) in sizes {
            c.case(format!("{rows}x{width}"), |c| l2_norm(c, rows, width))?;
        }
        c.case("zero", zero)
    }

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        for (n, width) in [(3, 7), (4, 512)] {
            l2_norm_gradients(b, n, width, rows)?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["l2_norm"];

    fn bench<B: Backend>(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        b.l2_norm(visit)
    }
}

fn l2_norm<B: Backend>(c: &mut Checker<'_, B>, rows: usize, width: usize) -> Result<()> {
    let (real, parameter) = (c.real(), c.device.parameter_dtype());
    let x = c.random([rows, width], real, 1.0, 1)?;
    let (mut f, mut norms) = (c.output([rows, width], parameter)?, c.output([rows], parameter)?);
    both!(c.l2_norm(&x, &mut f, &mut norms));
    let at = format!("{rows}x{width}");
    // Nothing is rounded to the activations' type here: the bound of f32 holds for all of them.
    c.compare_within("l2_norm f", &at, &f, bound(parameter))?;
    c.compare_within("l2_norm norms", &at, &norms, bound(parameter))?;
    if width == 1 {
        // The gradient is zero but for rounding: there is no scale to measure it by.
        return Ok(());
    }
    let df = c.random([rows, width], parameter, 1.0, 2)?;
    let (f, norms) = (c.pair(&f.host, parameter)?, c.pair(&norms.host, parameter)?);
    let mut dx = c.output([rows, width], real)?;
    both!(c.l2_norm_backward(&df, &f, &norms, &mut dx));
    c.compare("l2_norm dx", &at, &dx)
}

/// A row of zeros has no direction, and must not become NaN.
fn zero<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
    let (real, parameter) = (c.real(), c.device.parameter_dtype());
    let mut values = normal(3 * 8, 1);
    values[8..16].fill(0.0);
    let x = c.pair(&Tensor::from_slice([3, 8], &values)?, real)?;
    let (mut f, mut norms) = (c.output([3, 8], parameter)?, c.output([3], parameter)?);
    both!(c.l2_norm(&x, &mut f, &mut norms));
    c.compare_within("l2_norm f", "a row of zeros", &f, bound(parameter))?;
    c.compare_within("l2_norm norms", "a row of zeros", &norms, bound(parameter))
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

impl<B: Backend> Bench<'_, B> {
    fn l2_norm(&self, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (batch, e) = (self.sizes.batch, self.sizes.features);
        let (x, mut f, mut norms) =
            (self.random([batch, e])?, self.parameter([batch, e], 0.0)?, self.parameter([batch], 0.0)?);
        let at = format!("{batch}x{e}");
        let run = Box::new(|| self.backend.l2_norm(&x, &mut f, &mut norms));
        visit(Ready { name: "l2_norm", at: at.clone(), run })?;
        let (df, mut dx) = (self.parameter([batch, e], 1.0)?, self.empty([batch, e])?);
        let run = Box::new(|| self.backend.l2_norm_backward(&df, &f, &norms, &mut dx));
        visit(Ready { name: "l2_norm_backward", at, run })
    }
}
