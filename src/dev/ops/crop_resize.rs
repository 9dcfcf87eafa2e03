//! Checks and benchmark of crop_resize.

use super::bench::Sizes;
use super::*;

pub struct Checks;

impl<B: Backend> Operation<B> for Checks {
    fn check(c: &mut Checker<'_, B>) -> Result<()> {
        // Height, width and side. One pixel; odd sizes, enlarged and reduced at once; as they are; more rows and
        // columns than a block makes; more neighbours and rows than are taken at a time.
        let mut cases: Vec<([usize; 3], &[Crop])> = vec![
            ([1, 1, 1], &[[0, 0, 1, 1, 1]]),
            ([7, 5, 9], &[[0, 0, 7, 5, 0], [2, 1, 3, 4, 1], [6, 4, 1, 1, 0]]),
            ([13, 17, 13], &[[0, 2, 13, 13, 0], [0, 4, 13, 13, 1], [5, 0, 8, 17, 0]]),
            ([30, 41, 77], &[[3, 2, 20, 31, 1]]),
            ([90, 67, 5], &[[1, 0, 89, 67, 0], [10, 30, 70, 20, 1]]),
        ];
        if c.scope == Scope::Full {
            let several: &[Crop] =
                &[[0, 0, 256, 256, 0], [7, 9, 249, 240, 1], [100, 31, 72, 81, 0], [3, 200, 250, 56, 1]];
            cases.push(([256, 256, 224], several));
            cases.push(([640, 480, 224], &[[0, 0, 640, 480, 0], [13, 17, 600, 450, 1]]));
            cases.push(([1500, 1000, 96], &[[0, 0, 1500, 1000, 1]]));
        }
        for (size, crops) in cases {
            c.case(format!("{size:?}"), |c| c.crop_resize_case(size, crops))?;
        }
        Ok(())
    }

    const BENCHES: &[&str] = &["crop_resize"];

    /// From images of 256 px to 224, say: crops of nine tenths by three quarters of them, half mirrored.
    fn bench(b: &Bench<'_, B>, _name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
        let Sizes { batch, side, .. } = *b.sizes;
        let source = side * 8 / 7;
        let (height, width) = (source * 9 / 10, source * 3 / 4);
        let images = b.levels([batch, source])?;
        let crops: Vec<u32> = (0..batch)
            .flat_map(|i| [i % (source - height + 1), i % (source - width + 1), height, width, i % 2])
            .map(|field| field as u32)
            .collect();
        let crops = b.backend.upload(Tensor::from_slice([batch, 5], &crops)?.view(), DType::U32)?;
        let mut y = b.backend.empty([batch, side, side, 3], DType::U8)?;
        let at = format!("{batch} of {source} px to {side}");
        let run = Box::new(|| b.backend.crop_resize(&images, &crops, &mut y));
        visit(Ready { name: "crop_resize", at, run })
    }
}

/// A crop: top, left, height, width, mirrored.
type Crop = [u32; 5];

impl<B: Backend> Checker<'_, B> {
    fn crop_resize_case(&mut self, size: [usize; 3], crops: &[Crop]) -> Result<()> {
        let ([height, width, side], batch) = (size, crops.len());
        // Levels without a pattern: sharp edges, which make sums below 0 and above 255.
        let levels: Vec<u8> = (0..(batch * height * width * 3) as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 11 & 511).saturating_sub(128).min(255) as u8)
            .collect();
        let images = self.same(Tensor::from_slice([batch, height, width, 3], &levels)?)?;
        let crops = self.same(Tensor::from_slice([batch, 5], crops.as_flattened())?)?;
        let mut y = self.same(Tensor::zeros([batch, side, side, 3], DType::U8))?;
        both!(self.crop_resize(&images, &crops, &mut y));
        let at = format!("{batch} of {height}x{width} to {side}");
        // Both sum in f32, in another order. A sum near a half may round to either side: no level may be off by more
        // than one, and no more than one in a thousand (and one) by that.
        let found = self.device.download(&y.device)?;
        let (found, expected) = (found.typed::<u8>()?, y.host.typed::<u8>()?);
        let differences = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b));
        let largest = f64::from(differences.clone().max().unwrap_or(0));
        let count = differences.filter(|&d| d > 0).count() as f64;
        let row = |name, error, bound| Row::new(name, at.clone(), error, bound);
        self.row(row("crop_resize, in levels", largest, 1.0));
        let some = 1.0 + expected.len() as f64 / 1000.0;
        self.row(row("crop_resize, levels that differ", count, some.floor()));
        Ok(())
    }
}
