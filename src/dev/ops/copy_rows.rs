//! Checks and benchmark of copy_rows.

use super::*;

pub struct Checks;

impl Operation for Checks {
    fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
        // Rows of x and of y, what is copied from where to where, and the width of a row.
        let cases = [(1, 1, [0, 0, 1], 1), (5, 7, [1, 3, 4], 3), (4, 4, [2, 0, 2], 64), (3, 2, [1, 1, 0], 5)];
        for (x_rows, y_rows, [from, to, rows], width) in cases {
            let at = format!("{rows} of {width} from {from} to {to}");
            c.case(at.clone(), |c| {
                let x = c.random([x_rows, width], c.real(), 1.0, 1)?;
                let mut y = c.random([y_rows, width], c.real(), 1.0, 2)?;
                both!(c.copy_rows(&x, from, &mut y, to, rows));
                c.compare_within("copy_rows y", &at, &y, 0.0)
            })?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["copy_rows"];

    fn bench<B: Backend>(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        b.copy_rows(visit)
    }
}

impl<B: Backend> Bench<'_, B> {
    /// The features of as many texts as there are images, into those of all classes.
    fn copy_rows(&self, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (rows, all, e) =
            (self.sizes.batch.min(self.sizes.classes), self.sizes.classes, self.sizes.features);
        let (x, mut y) = (self.parameter([rows, e], 1.0)?, self.parameter([all, e], 0.0)?);
        let run = Box::new(|| self.backend.copy_rows(&x, 0, &mut y, all - rows, rows));
        visit(Ready { name: "copy_rows", at: format!("{rows}x{e}"), run })
    }
}
