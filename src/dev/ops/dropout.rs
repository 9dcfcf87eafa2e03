//! Checks and benchmark of dropout.

use super::*;
use crate::backend::Dropout;

pub struct Checks;

impl Operation for Checks {
    fn check<B: Backend>(c: &mut Checker<'_, B>) -> Result<()> {
        // One element; less than 16 bytes, 16 bytes and a rest; and more than a block takes, with a rest and without.
        let mut shapes: Vec<Shape> = vec![[1, 1].into(), [1, 3].into(), [2, 3, 7].into(), [65, 41].into()];
        shapes.push([16, 256].into());
        if c.scope == Scope::Full {
            shapes.extend([[32, 50, 768].into(), [32, 50, 3072].into(), [102, 77, 512].into()] as [Shape; 3]);
        }
        for shape in shapes {
            for probability in [0.0, 0.25, 0.5, 0.9] {
                c.case(format!("{shape}, {probability}"), |c| dropout(c, shape, probability))?;
            }
        }
        Ok(())
    }

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        dropout_gradients(b, rows)
    }

    const BENCHES: &[&str] = &["dropout"];

    fn bench<B: Backend>(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        b.dropout(visit)
    }
}

/// Dropout with the same masks on the device and on the host.
pub(super) struct DropoutPair<B: Backend> {
    draw: Pair<B>,
    probability: f64,
}

impl<B: Backend> DropoutPair<B> {
    pub fn new(c: &Checker<'_, B>, probability: f64) -> Result<Self> {
        // The last word must not matter; the highest bit of each of the others does.
        let draw = [0x9234_5678u32, 0x8765_4321, 0xfff0_0007, 0x1111_1111];
        Ok(DropoutPair { draw: c.same(Tensor::from_slice([4], &draw)?)?, probability })
    }

    pub fn device(&self, site: u32) -> Dropout<'_, B> {
        Dropout { draw: &self.draw.device, site, probability: self.probability }
    }

    pub fn host(&self, site: u32) -> Dropout<'_, Cpu<f64>> {
        Dropout { draw: &self.draw.host, site, probability: self.probability }
    }
}

fn dropout<B: Backend>(c: &mut Checker<'_, B>, shape: Shape, probability: f64) -> Result<()> {
    let (real, at) = (c.real(), format!("{shape}, p {probability}"));
    let mask = DropoutPair::new(c, probability)?;
    let x = c.random(shape, real, 1.0, 1)?;
    let mut y = c.output(shape, real)?;
    both!(c.dropout(&x, mask(0xf000_0005), &mut y));
    let found = c.found(&y)?;
    let both = found.iter().zip(y.host.typed::<f64>()?);
    // The masks are the same to the bit.
    let (error, name) =
        (both.filter(|(a, b)| (**a == 0.0) != (**b == 0.0)).count() as f64, "dropout elements that differ");
    c.row(Row::new(name, at.clone(), error, 0.0));
    c.compare("dropout y", &at, &y)
}

/// A seed and the number of a batch.
pub(super) fn draw() -> Result<Tensor> {
    Ok(Tensor::from_slice([4], &[7u32, 8, 9, 0])?)
}

/// The gradient of what dropout leaves is dropout of the gradient.
fn dropout_gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
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

impl<B: Backend> Bench<'_, B> {
    /// A seed and the number of a batch.
    pub(super) fn draw(&self) -> backend::Result<B::Tensor> {
        self.backend.upload(Tensor::from_slice([4], &[1u32, 2, 3, 0])?.view(), DType::U32)
    }

    fn dropout(&self, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (rows, d) = (self.sizes.rows(), self.sizes.width);
        let (x, mut y, draw) = (self.random([rows, d])?, self.empty([rows, d])?, self.draw()?);
        let mask = Dropout { draw: &draw, site: 1, probability: 0.25 };
        let run = Box::new(|| self.backend.dropout(&x, mask, &mut y));
        let at = format!("{rows}x{d}");
        visit(Ready { name: "dropout", at, run })
    }
}
