//! Checks and benchmark of class_features.

use super::*;

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        // Classes, prompts of each, width: one of everything; odd widths; and more columns than a block takes at a
        // time, in packs and without.
        let mut sizes = vec![(1, 1, 1), (3, 1, 7), (5, 3, 33), (4, 9, 64), (2, 4, 131), (3, 2, 520)];
        if c.scope == Scope::Full {
            sizes.extend([(102, 1, 512), (102, 7, 768), (1000, 3, 1023)]);
        }
        for size in sizes {
            let (classes, prompts, width) = size;
            c.case(format!("{size:?}"), |c| c.class_features_case(classes, prompts, width))?;
        }
        c.case("opposite prompts", Checker::class_features_opposite)
    }

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        for (classes, prompts, width) in [(3, 1, 7), (5, 4, 33)] {
            class_features_gradients(b, classes, prompts, width, rows)?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["class_features"];

    /// Four prompts of each class.
    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        const PROMPTS_OF_CLASS: usize = 4;
        let (classes, e) = (b.sizes.classes, b.sizes.features);
        let rows = PROMPTS_OF_CLASS * classes;
        let (f, mut t, mut norms) =
            (b.parameter([rows, e], 1.0)?, b.parameter([classes, e], 0.0)?, b.parameter([classes], 0.0)?);
        let at = format!("{classes} classes of {PROMPTS_OF_CLASS}, width {e}");
        let run = Box::new(|| b.backend.class_features(&f, &mut t, &mut norms));
        visit(Ready { name: "class_features", at: at.clone(), run })?;
        let (dt, mut df) = (b.parameter([classes, e], 1.0)?, b.parameter([rows, e], 0.0)?);
        let run = Box::new(|| b.backend.class_features_backward(&dt, &t, &norms, &mut df));
        visit(Ready { name: "class_features_backward", at, run })
    }
}

impl<B: Backend> Checker<'_, B> {
    fn class_features_case(&mut self, classes: usize, prompts: usize, width: usize) -> Result<()> {
        let parameter = self.device.parameter_dtype();
        let at = format!("{classes} classes of {prompts}, width {width}");
        let f = self.random([classes * prompts, width], parameter, 1.0, 1)?;
        let (mut t, mut norms) =
            (self.output([classes, width], parameter)?, self.output([classes], parameter)?);
        both!(self.class_features(&f, &mut t, &mut norms));
        self.compare_within("class_features t", &at, &t, bound(parameter))?;
        self.compare_within("class_features norms", &at, &norms, bound(parameter))?;
        if width == 1 {
            // The gradient is zero but for rounding: there is no scale to measure it by.
            return Ok(());
        }
        let dt = self.random([classes, width], parameter, 1.0, 2)?;
        let (t, norms) = (self.pair(&t.host, parameter)?, self.pair(&norms.host, parameter)?);
        let mut df = self.output([classes * prompts, width], parameter)?;
        both!(self.class_features_backward(&dt, &t, &norms, &mut df));
        self.compare_within("class_features df", &at, &df, bound(parameter))
    }

    /// Prompts that cancel out have no direction, and must not become NaN.
    fn class_features_opposite(&mut self) -> Result<()> {
        let parameter = self.device.parameter_dtype();
        let mut values = normal(4 * 8, 1);
        for i in 0..8 {
            values[24 + i] = -values[16 + i];
        }
        let f = self.pair(&Tensor::from_slice([4, 8], &values)?, parameter)?;
        let (mut t, mut norms) = (self.output([2, 8], parameter)?, self.output([2], parameter)?);
        both!(self.class_features(&f, &mut t, &mut norms));
        self.compare_within("class_features t", "opposite prompts", &t, bound(parameter))?;
        self.compare_within("class_features norms", "opposite prompts", &norms, bound(parameter))
    }
}

fn class_features_gradients(
    b: &F64,
    classes: usize,
    prompts: usize,
    width: usize,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let (f, w) = (random([classes * prompts, width], 1)?, random([classes, width], 2)?);
    let forward = |f: &Tensor| -> Result<(Tensor, Tensor)> {
        let (mut t, mut norms) = (zeros([classes, width]), zeros([classes]));
        b.class_features(f, &mut t, &mut norms)?;
        Ok((t, norms))
    };
    let ((t, norms), mut df) = (forward(&f)?, zeros(f.shape()));
    b.class_features_backward(&w, &t, &norms, &mut df)?;
    let at = format!("{classes} classes of {prompts}, width {width}");
    row(rows, "class_features df", at, &f, &df, |f| dot(&forward(f)?.0, &w))
}
