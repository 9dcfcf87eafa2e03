//! Checks and benchmark of dropout.

use super::*;
use crate::backend::Dropout;

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        // One element; less than 16 bytes, 16 bytes and a rest; and more than a block takes, with a rest and without.
        let mut shapes: Vec<Shape> = vec![[1, 1].into(), [1, 3].into(), [2, 3, 7].into(), [65, 41].into()];
        shapes.push([16, 256].into());
        if c.scope == Scope::Full {
            shapes.extend([[32, 50, 768].into(), [32, 50, 3072].into(), [102, 77, 512].into()] as [Shape; 3]);
        }
        for shape in shapes {
            for probability in [0.0, 0.25, 0.5, 0.9] {
                c.case(format!("{shape}, {probability}"), |c| c.dropout_case(shape, probability))?;
            }
        }
        Ok(())
    }

    /// The gradient of what dropout leaves is dropout of the gradient.
    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        let (x, w, draw) = (random([3, 5, 7], 1)?, random([3, 5, 7], 2)?, draw()?);
        let mask = Dropout { draw: &draw, site: 3, probability: 0.4 };
        let mut dx = zeros(x.shape());
        b.dropout(&w, mask, &mut dx)?;
        row(rows, "dropout dx", "3x5x7".into(), &x, &dx, |x| {
            let mut y = zeros(x.shape());
            b.dropout(x, mask, &mut y)?;
            dot(&y, &w)
        })
    }

    const BENCHES: &[&str] = &["dropout"];

    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (rows, d) = (b.sizes.rows(), b.sizes.width);
        let (x, mut y, draw) = (b.random([rows, d])?, b.empty([rows, d])?, b.draw()?);
        let mask = Dropout { draw: &draw, site: 1, probability: 0.25 };
        let run = Box::new(|| b.backend.dropout(&x, mask, &mut y));
        let at = format!("{rows}x{d}");
        visit(Ready { name: "dropout", at, run })
    }
}

impl<B: Backend> Checker<'_, B> {
    fn dropout_case(&mut self, shape: Shape, probability: f64) -> Result<()> {
        let (real, at) = (self.real(), format!("{shape}, p {probability}"));
        let draw = self.draw()?;
        let mask = both!(Dropout { draw: &draw, site: 0xf000_0005, probability });
        let x = self.random(shape, real, 1.0, 1)?;
        let mut y = self.output(shape, real)?;
        both!(self.dropout(&x, *mask, &mut y));
        let found = self.found(&y)?;
        let both = found.iter().zip(y.host.typed::<f64>()?);
        // The masks are the same to the bit.
        let (error, name) = (
            both.filter(|(a, b)| (**a == 0.0) != (**b == 0.0)).count() as f64,
            "dropout elements that differ",
        );
        self.row(Row::new(name, at.clone(), error, 0.0));
        self.compare("dropout y", &at, &y)
    }

    /// What is drawn, on both sides.
    pub(super) fn draw(&self) -> Result<Pair<B>> {
        // The last word must not matter; the highest bit of each of the others does.
        self.same(Tensor::from_slice([4], &[0x9234_5678u32, 0x8765_4321, 0xfff0_0007, 0x1111_1111])?)
    }
}

/// A seed and the number of a batch.
pub(super) fn draw() -> Result<Tensor> {
    Ok(Tensor::from_slice([4], &[7u32, 8, 9, 0])?)
}
