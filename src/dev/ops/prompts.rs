//! Checks and benchmark of prompts.

use super::bench::Sizes;
use super::*;

/// Prompts of a layer.
const PROMPTS: usize = 16;

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        let case = |batch, kept, count, width, layers| Case { batch, kept, count, width, layers };
        // One of everything; the class token alone; rows that packs of 16 bytes divide and others, in several
        // blocks; more sequences than a block has warps.
        let mut cases =
            vec![case(1, 1, 1, 1, 1), case(3, 5, 2, 7, 2), case(2, 1, 3, 33, 1), case(2, 4, 5, 72, 3)];
        cases.extend([case(19, 3, 4, 8, 2), case(2, 9, 3, 264, 1), case(10, 2, 2, 141, 1)]);
        if c.scope == Scope::Full {
            cases.extend([case(32, 50, 16, 768, 1), case(32, 226, 16, 768, 12), case(8, 197, 50, 1024, 2)]);
        }
        for case in cases {
            c.case(format!("inserted, {}", case.at()), |c| c.insert_prompts_case(case))?;
            c.case(format!("replaced, {}", case.at()), |c| c.replace_prompts_case(case))?;
        }
        Ok(())
    }

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        for [batch, kept, count, width] in [[3, 4, 2, 7], [2, 1, 3, 33]] {
            insert_prompts_gradients(b, [batch, kept, count, width], rows)?;
            replace_prompts_gradients(b, [batch, kept, count, width], rows)?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["insert_prompts", "replace_prompts"];

    fn bench(b: &Bench<'_, B>, name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        if name == "insert_prompts" { b.insert_prompts(visit) } else { b.replace_prompts(visit) }
    }
}

/// Sizes of a case: sequences, their tokens without prompts, prompts, width; and layers of prompts, of which
/// the last is used.
#[derive(Clone, Copy)]
struct Case {
    batch: usize,
    kept: usize,
    count: usize,
    width: usize,
    layers: usize,
}

impl Case {
    fn at(&self) -> String {
        let Case { batch, kept, count, width, layers } = self;
        format!("{batch}x{kept}x{width} and {count} prompts, layer {layers}")
    }

    /// The shape of all prompts.
    fn prompts(&self) -> [usize; 3] {
        [self.layers, self.count, self.width]
    }

    /// The shape of sequences with the prompts.
    fn with(&self) -> [usize; 3] {
        [self.batch, self.kept + self.count, self.width]
    }
}

impl<B: Backend> Checker<'_, B> {
    fn insert_prompts_case(&mut self, case: Case) -> Result<()> {
        let (real, parameter, layer, at) =
            (self.real(), self.device.parameter_dtype(), case.layers - 1, case.at());
        let x = self.random([case.batch, case.kept, case.width], real, 1.0, 1)?;
        // Prompts that the activations' type can hold: what is left is a copy.
        let prompts = self.random(case.prompts(), real, 1.0, 2)?;
        let prompts = self.pair(&prompts.host, parameter)?;
        let mut y = self.output(case.with(), real)?;
        both!(self.insert_prompts(&x, &prompts, layer, &mut y));
        self.compare_within("insert_prompts y", &at, &y, 0.0)?;

        let dy = self.random(case.with(), real, 1.0, 3)?;
        for wanted in [true, false] {
            let mut d_prompts = self.random(case.prompts(), parameter, 1.0, 4)?;
            let mut dx = self.output(x.device.shape(), real)?;
            both!(self.insert_prompts_backward(&dy, layer, &mut d_prompts, wanted => &mut dx));
            // The sums are in the parameter dtype, whatever the activations are in.
            self.compare_within("insert_prompts d_prompts", &at, &d_prompts, bound(parameter))?;
            if wanted {
                self.compare_within("insert_prompts dx", &at, &dx, 0.0)?;
            }
        }
        Ok(())
    }

    fn replace_prompts_case(&mut self, case: Case) -> Result<()> {
        let (real, parameter, layer, at) =
            (self.real(), self.device.parameter_dtype(), case.layers - 1, case.at());
        let prompts = self.random(case.prompts(), parameter, 1.0, 1)?;
        let mut x = self.random(case.with(), real, 1.0, 2)?;
        both!(self.replace_prompts(&prompts, layer, &mut x));
        self.compare("replace_prompts x", &at, &x)?;

        let mut d: Pair<B> = self.random(case.with(), real, 1.0, 3)?;
        let mut d_prompts = self.random(case.prompts(), parameter, 1.0, 4)?;
        both!(self.replace_prompts_backward(&mut d, layer, &mut d_prompts));
        self.compare_within("replace_prompts d", &at, &d, 0.0)?;
        self.compare_within("replace_prompts d_prompts", &at, &d_prompts, bound(parameter))
    }
}

fn insert_prompts_gradients(
    b: &F64,
    [batch, kept, count, width]: [usize; 4],
    rows: &mut Vec<Row>,
) -> Result<()> {
    let (layer, shape) = (1, [batch, kept + count, width]);
    let (x, prompts) = (random([batch, kept, width], 1)?, random([2, count, width], 2)?);
    let (w, before) = (random(shape, 3)?, random(prompts.shape(), 4)?);
    let loss = |x: &Tensor, prompts: &Tensor| -> Result<f64> {
        let mut y = zeros(shape);
        b.insert_prompts(x, prompts, layer, &mut y)?;
        dot(&y, &w)
    };
    let (mut d_prompts, mut dx) = (before.clone(), zeros(x.shape()));
    b.insert_prompts_backward(&w, layer, &mut d_prompts, Some(&mut dx))?;
    let (at, d_prompts) = (format!("{batch}x{kept}x{width} and {count}"), added(&d_prompts, &before)?);
    row(rows, "insert_prompts dx", at.clone(), &x, &dx, |x| loss(x, &prompts))?;
    row(rows, "insert_prompts d_prompts", at, &prompts, &d_prompts, |prompts| loss(&x, prompts))
}

fn replace_prompts_gradients(
    b: &F64,
    [batch, kept, count, width]: [usize; 4],
    rows: &mut Vec<Row>,
) -> Result<()> {
    let (layer, shape) = (1, [batch, kept + count, width]);
    let (x, prompts) = (random(shape, 1)?, random([2, count, width], 2)?);
    let (w, before) = (random(shape, 3)?, random(prompts.shape(), 4)?);
    let loss = |x: &Tensor, prompts: &Tensor| -> Result<f64> {
        let mut x = x.clone();
        b.replace_prompts(prompts, layer, &mut x)?;
        dot(&x, &w)
    };
    let (mut d_prompts, mut dx) = (before.clone(), w.clone());
    b.replace_prompts_backward(&mut dx, layer, &mut d_prompts)?;
    let (at, d_prompts) = (format!("{batch}x{kept}x{width} and {count}"), added(&d_prompts, &before)?);
    row(rows, "replace_prompts dx", at.clone(), &x, &dx, |x| loss(x, &prompts))?;
    row(rows, "replace_prompts d_prompts", at, &prompts, &d_prompts, |prompts| loss(&x, prompts))
}

impl<B: Backend> Bench<'_, B> {
    fn insert_prompts(&self, visit: &mut Visit<'_>) -> backend::Result<()> {
        let Sizes { batch, tokens, width, .. } = *self.sizes;
        let (prompts, mut d_prompts) =
            (self.parameter([1, PROMPTS, width], 0.02)?, self.parameter([1, PROMPTS, width], 0.0)?);
        let (x, mut y) =
            (self.random([batch, tokens, width])?, self.empty([batch, tokens + PROMPTS, width])?);
        let at = format!("{batch}x{tokens}x{width} and {PROMPTS}");
        let run = Box::new(|| self.backend.insert_prompts(&x, &prompts, 0, &mut y));
        visit(Ready { name: "insert_prompts", at: at.clone(), run })?;
        let (dy, mut dx) =
            (self.random([batch, tokens + PROMPTS, width])?, self.empty([batch, tokens, width])?);
        let run = Box::new(|| self.backend.insert_prompts_backward(&dy, 0, &mut d_prompts, Some(&mut dx)));
        visit(Ready { name: "insert_prompts_backward", at, run })
    }

    fn replace_prompts(&self, visit: &mut Visit<'_>) -> backend::Result<()> {
        let Sizes { batch, tokens, width, .. } = *self.sizes;
        let (prompts, mut d_prompts) =
            (self.parameter([1, PROMPTS, width], 0.02)?, self.parameter([1, PROMPTS, width], 0.0)?);
        let mut x = self.random([batch, tokens + PROMPTS, width])?;
        let at = format!("{batch}x{}x{width}, {PROMPTS} of them", tokens + PROMPTS);
        let run = Box::new(|| self.backend.replace_prompts(&prompts, 0, &mut x));
        visit(Ready { name: "replace_prompts", at: at.clone(), run })?;
        let mut d = self.random([batch, tokens + PROMPTS, width])?;
        let run = Box::new(|| self.backend.replace_prompts_backward(&mut d, 0, &mut d_prompts));
        visit(Ready { name: "replace_prompts_backward", at, run })
    }
}
