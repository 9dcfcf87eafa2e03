//! Checks and benchmark of take_rows.

use super::*;

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        let mut sizes = vec![(1, 1, 1), (3, 5, 7), (2, 4, 64), (2, 3, 1200)];
        if c.scope == Scope::Full {
            sizes.extend([(32, 50, 768), (8, 77, 512)]);
        }
        for (batch, s, width) in sizes {
            c.case(format!("rows of {:?}", (batch, s, width)), |c| {
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
            })?;
        }
        Ok(())
    }

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
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

    const BENCHES: &[&str] = &["take_rows"];

    /// The last token of each text, say.
    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (batch, tokens, d) = (b.sizes.batch, b.sizes.tokens, b.sizes.width);
        let (x, mut y) = (b.random([batch, tokens, d])?, b.empty([batch, 1, d])?);
        let last = Tensor::from_slice([batch], &vec![tokens as u32 - 1; batch])?;
        let rows = b.backend.upload(last.view(), DType::U32)?;
        let at = format!("{batch} of {tokens}x{d}");
        let run = Box::new(|| b.backend.take_rows(&x, &rows, &mut y));
        visit(Ready { name: "take_rows", at: at.clone(), run })?;
        let (dy, mut dx) = (b.random([batch, 1, d])?, b.random([batch, tokens, d])?);
        let run = Box::new(|| b.backend.take_rows_backward(&dy, &rows, &mut dx));
        visit(Ready { name: "take_rows_backward", at, run })
    }
}
