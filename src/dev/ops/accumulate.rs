//! Checks and benchmark of accumulate.

use super::*;

pub struct Checks;

/// Less than a pack, a pack and a rest, one chunk and several, and nothing.
const SIZES: [usize; 5] = [1, 7, 4096, 0, 10_001];

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        let parameter = c.device.parameter_dtype();
        c.case("three batches", |c| {
            let mut sums =
                SIZES.iter().map(|&size| c.output([size], parameter)).collect::<Result<Vec<_>>>()?;
            for batch in 0..3 {
                let gradient = |(i, &size)| c.random([size], parameter, 1.0, 10 * batch + i as u64);
                let gradients = SIZES.iter().enumerate().map(gradient).collect::<Result<Vec<Pair<B>>>>()?;
                // What was there before the first batch is unspecified, and must not show.
                let (mut device, mut host) = (Vec::new(), Vec::new());
                for (gradient, sum) in gradients.iter().zip(&mut sums) {
                    device.push((&gradient.device, &mut sum.device));
                    host.push((&gradient.host, &mut sum.host));
                }
                c.device.accumulate(&mut device, batch == 0)?;
                c.cpu.accumulate(&mut host, batch == 0)?;
                for (sum, size) in sums.iter().zip(SIZES) {
                    c.compare_within("accumulate", &format!("{size}, batch {batch}"), sum, bound(parameter))?;
                }
            }
            Ok(())
        })
    }

    const BENCHES: &[&str] = &["accumulate"];

    /// From the second batch on.
    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let shapes = b.trained_shapes();
        let elements: usize = shapes.iter().map(Shape::elements).sum();
        let both = |shape: &Shape| -> backend::Result<_> {
            Ok((b.parameter(*shape, 1e-3)?, b.parameter(*shape, 1e-3)?))
        };
        let mut all = shapes.iter().map(both).collect::<backend::Result<Vec<_>>>()?;
        let at = format!("{elements} elements in {} tensors", all.len());
        let run = Box::new(|| {
            let mut pairs: Vec<_> = all.iter_mut().map(|(gradient, sum)| (&*gradient, sum)).collect();
            b.backend.accumulate(&mut pairs, false)
        });
        visit(Ready { name: "accumulate", at, run })
    }
}
