//! Checks and benchmark of triplet.

use super::*;
use crate::backend::{Control, Stat};

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        // Batch, width, classes. One image; sizes that no tile divides, with rows of 16 bytes and without; a
        // batch of one class, and of classes of one image, which leave no loss; more columns than a block takes,
        // and more images than a warp has lanes and a block takes at a time.
        let mut sizes = vec![(1, 1, 1), (5, 7, 2), (9, 33, 3), (6, 8, 1), (6, 8, 6), (7, 260, 3)];
        sizes.extend([(70, 5, 8), (37, 12, 36)]);
        if c.scope == Scope::Full {
            sizes.extend([(32, 512, 20), (256, 512, 102), (300, 768, 10), (64, 1023, 5)]);
        }
        for size in sizes {
            let (batch, width, classes) = size;
            c.case(format!("{size:?}"), |c| c.triplet_random(batch, width, classes))?;
        }
        c.case("ties", Checker::triplet_ties)?;
        c.case("hub", Checker::triplet_hub)
    }

    fn gradients(b: &F64, rows: &mut Vec<Row>) -> Result<()> {
        for (n, classes, width, margin) in [(9, 3, 7, 1.0), (32, 5, 64, 1.0), (12, 4, 9, -2.0)] {
            triplet_gradients(b, [n, classes, width], margin, rows)?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["triplet"];

    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let (n, e) = (b.sizes.batch, b.sizes.features);
        let f = b.parameter([n, e], 1.0 / (e as f64).sqrt())?;
        // Four images of each class.
        let labels: Vec<u32> = (0..n as u32).map(|i| i / 4).collect();
        let labels = b.backend.upload(Tensor::from_slice([n], &labels)?.view(), DType::U32)?;
        let mut pairs = b.backend.zeros([n, 2], DType::U32)?;
        let (mut distances, mut stats) = (b.parameter([n, 2], 0.0)?, b.parameter([Stat::COUNT], 0.0)?);
        let at = format!("{n}x{e}");
        let run = Box::new(|| b.backend.triplet(&f, &labels, 1.0, &mut pairs, &mut distances, &mut stats));
        visit(Ready { name: "triplet", at: at.clone(), run })?;
        let mut df = b.parameter([n, e], 0.0)?;
        let run = Box::new(|| b.backend.triplet_backward(&f, &pairs, &distances, 0.3, None, &mut df));
        visit(Ready { name: "triplet_backward", at, run })
    }
}

impl<B: Backend> Checker<'_, B> {
    /// Features on the unit sphere, whose distances and losses of these seeds lie far enough apart for f32 to
    /// choose as f64 does.
    fn triplet_random(&mut self, batch: usize, width: usize, classes: usize) -> Result<()> {
        let mut values = normal(batch * width, 1);
        for row in values.chunks_exact_mut(width) {
            let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            row.iter_mut().for_each(|v| *v /= norm);
        }
        let labels: Vec<u32> = (0..batch).map(|i| (i * 7 % classes) as u32).collect();
        let at = format!("{batch} of {classes} classes, width {width}");
        // Every anchor that has both; and only some, whose loss the margin does not lift above zero.
        self.triplet_case(&values, &labels, 1.0, &at)?;
        self.triplet_case(&values, &labels, -0.3, &format!("{at}, margin below 0"))
    }

    /// Small integers: many distances are exactly equal and the first of them counts, some are 0 and have no
    /// gradient, and with a margin of 0 some losses are exactly 0.
    fn triplet_ties(&mut self) -> Result<()> {
        for (batch, width) in [(11, 2), (75, 4)] {
            let values: Vec<f64> = (0..batch * width).map(|i| ((i * i + i / 3) % 3) as f64).collect();
            let labels: Vec<u32> = (0..batch).map(|i| (i / 2 % 3) as u32).collect();
            for margin in [0.0, 1.0] {
                self.triplet_case(&values, &labels, margin, &format!("{batch} with ties, margin {margin}"))?;
            }
        }
        // All distances are the same: with a margin of 0 every loss is exactly 0.
        let corners: Vec<f64> = (0..36).map(|i| f64::from(u8::from(i / 6 == i % 6))).collect();
        for margin in [0.0, 1.0] {
            self.triplet_case(&corners, &[0, 1, 2, 0, 1, 2], margin, &format!("corners, margin {margin}"))?;
        }
        // Closer than the smallest distance but not equal: a gradient that was not clamped would show.
        let near = [0.0, 0.0, 5e-7, 0.0, 1.0, 0.0, 0.0, 1.0];
        self.triplet_case(&near, &[0, 0, 1, 1], 2.0, "two nearly equal")
    }

    /// One image that is the farthest positive or the nearest negative of all others.
    fn triplet_hub(&mut self) -> Result<()> {
        let (batch, width) = (67, 36);
        let mut values = normal(batch * width, 3);
        values[5 * width..6 * width].iter_mut().for_each(|v| *v *= 0.01);
        let mut labels = vec![0; batch];
        (labels[5], labels[6]) = (1, 1);
        self.triplet_case(&values, &labels, 1.0, "one near to all")
    }

    fn triplet_case(&mut self, values: &[f64], labels: &[u32], margin: f64, at: &str) -> Result<()> {
        let (parameter, batch) = (self.device.parameter_dtype(), labels.len());
        let f = self.pair(&Tensor::from_slice([batch, values.len() / batch], values)?, parameter)?;
        let labels = self.same(Tensor::from_slice([batch], labels)?)?;
        let mut pairs = self.same(Tensor::zeros([batch, 2], DType::U32))?;
        let mut distances = self.output([batch, 2], parameter)?;
        // The other numbers of a step are left as they are.
        let mut stats = self.random([Stat::COUNT], parameter, 1.0, 2)?;
        both!(self.triplet(&f, &labels, margin, &mut pairs, &mut distances, &mut stats));
        self.triplet_pairs(&pairs, at)?;
        self.compare_within("triplet distances", at, &distances, bound(parameter))?;
        self.compare_within("triplet stats", at, &stats, bound(parameter))?;
        self.triplet_backward_case(&f, pairs.host, &distances.host, at)
    }

    /// How many of the chosen images are others.
    fn triplet_pairs(&mut self, pairs: &Pair<B>, at: &str) -> Result<()> {
        let found = self.device.download(&pairs.device)?;
        let both = found.typed::<u32>()?.iter().zip(pairs.host.typed::<u32>()?);
        let (error, name) = (both.filter(|(a, b)| a != b).count() as f64, "triplet pairs that differ");
        self.row(Row::new(name, at, error, 0.0));
        Ok(())
    }

    /// The gradient, from the pairs and distances of the definition.
    fn triplet_backward_case(
        &mut self,
        f: &Pair<B>,
        pairs: Tensor,
        distances: &Tensor,
        at: &str,
    ) -> Result<()> {
        let parameter = self.device.parameter_dtype();
        let (pairs, distances) = (self.same(pairs)?, self.pair(distances, parameter)?);
        let mut control = [1.0; Control::COUNT];
        control[Control::LossScale as usize] = 1024.0;
        let control = self.pair(&Tensor::from_slice([Control::COUNT], &control)?, parameter)?;
        for scaled in [false, true] {
            let mut df = self.random(f.device.shape(), parameter, 0.1, 4)?;
            both!(self.triplet_backward(&f, &pairs, &distances, 0.3, scaled => &control, &mut df));
            let at = if scaled { format!("{at}, scaled") } else { at.into() };
            self.compare_within("triplet df", &at, &df, bound(parameter))?;
        }
        Ok(())
    }
}

fn triplet_gradients(
    b: &F64,
    [n, classes, width]: [usize; 3],
    margin: f64,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let (f, before) = (random([n, width], 1)?, random([n, width], 2)?);
    let labels: Vec<u32> = (0..n).map(|i| (i * 7 % classes) as u32).collect();
    let labels = Tensor::from_slice([n], &labels)?;
    let forward = |f: &Tensor, pairs: &mut Tensor, distances: &mut Tensor| -> Result<f64> {
        let mut stats = zeros([Stat::COUNT]);
        b.triplet(f, &labels, margin, pairs, distances, &mut stats)?;
        Ok(values(&stats)?[Stat::LossTriplet as usize])
    };
    let outputs = || (Tensor::zeros([n, 2], DType::U32), zeros([n, 2]));
    let (mut pairs, mut distances) = outputs();
    forward(&f, &mut pairs, &mut distances)?;
    let mut df = before.clone();
    b.triplet_backward(&f, &pairs, &distances, 0.3, None, &mut df)?;
    let at = format!("{n} of {classes} classes, width {width}, margin {margin}");
    row(rows, "triplet df", at, &f, &added(&df, &before)?, |f| {
        let (mut pairs, mut distances) = outputs();
        Ok(0.3 * forward(f, &mut pairs, &mut distances)?)
    })
}
