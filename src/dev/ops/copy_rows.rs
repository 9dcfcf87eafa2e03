//! Checks and benchmark of copy_rows.

use super::*;

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
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

    /// The features of as many texts as there are images, into those of all classes.
    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (rows, all, e) = (b.sizes.batch.min(b.sizes.classes), b.sizes.classes, b.sizes.features);
        let (x, mut y) = (b.parameter([rows, e], 1.0)?, b.parameter([all, e], 0.0)?);
        let run = Box::new(|| b.backend.copy_rows(&x, 0, &mut y, all - rows, rows));
        visit(Ready { name: "copy_rows", at: format!("{rows}x{e}"), run })
    }
}
