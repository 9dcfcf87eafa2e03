//! Checks and benchmark of take_rows.

use super::*;

pub struct Checks;

impl Operation for Checks {
    fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
        let mut sizes = vec![(1, 1, 1), (3, 5, 7), (2, 4, 64), (2, 3, 1200)];
        if c.scope == Scope::Full {
            sizes.extend([(32, 50, 768), (8, 77, 512)]);
        }
        sizes.into_iter().try_for_each(|size| c.case(format!("rows of {size:?}"), |c| take_rows(c, size)))
    }

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        take_rows_gradients(b, rows)
    }

    const BENCHES: &[&str] = &["take_rows"];

    fn bench<B: Backend>(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        b.take_rows(visit)
    }
}

fn take_rows<B: Backend>(c: &mut Checker<'_, B>, (batch, s, width): (usize, usize, usize)) -> Result<()> {
    let real = c.real();
    let chosen: Vec<u32> = (0..batch).map(|b| ((b * 3 + s - 1) % s) as u32).collect();
    let rows = c.same(Tensor::from_slice([batch], &chosen)?)?;
    let x = c.random([batch, s, width], real, 1.0, 1)?;
    let mut y = c.output([batch, 1, width], real)?;
    both!(c.take_rows(&x, &rows, &mut y));
    let at = format!("{batch}x{s}x{width}");
    c.compare_within("take_rows y", &at, &y, 0.0)?;

    let dy = c.random([batch, 1, width], real, 1.0, 2)?;
    let mut dx = c.random([batch, s, width], real, 1.0, 3)?;
    both!(c.take_rows_backward(&dy, &rows, &mut dx));
    c.compare("take_rows dx", &at, &dx)
}

fn take_rows_gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
    let (x, w) = (random([3, 5, 7], 1)?, random([3, 1, 7], 2)?);
    let chosen = Tensor::from_slice([3], &[0u32, 4, 2])?;
    let mut dx = zeros(x.shape());
    b.take_rows_backward(&w, &chosen, &mut dx)?;
    row(rows, "take_rows dx", "3x5x7".into(), &x, &dx, |x| {
        let mut y = zeros([3, 1, 7]);
        b.take_rows(x, &chosen, &mut y)?;
        dot(&y, &w)
    })
}

impl<B: Backend> Bench<'_, B> {
    /// The last token of each text, say.
    fn take_rows(&self, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (batch, tokens, d) = (self.sizes.batch, self.sizes.tokens, self.sizes.width);
        let (x, mut y) = (self.random([batch, tokens, d])?, self.empty([batch, 1, d])?);
        let last = Tensor::from_slice([batch], &vec![tokens as u32 - 1; batch])?;
        let rows = self.backend.upload(last.view(), DType::U32)?;
        let at = format!("{batch} of {tokens}x{d}");
        let run = Box::new(|| self.backend.take_rows(&x, &rows, &mut y));
        visit(Ready { name: "take_rows", at: at.clone(), run })?;
        let (dy, mut dx) = (self.random([batch, 1, d])?, self.random([batch, tokens, d])?);
        let run = Box::new(|| self.backend.take_rows_backward(&dy, &rows, &mut dx));
        visit(Ready { name: "take_rows_backward", at, run })
    }
}
