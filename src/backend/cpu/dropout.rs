//! Dropout with masks from a counter-based generator.

use super::number::{Number, OnHost};
use super::real::Real;
use super::*;
use rayon::prelude::*;

/// Elements that one task handles; a multiple of 4.
const BLOCK: usize = 16 * 1024;

impl<T: Real> DropoutOp for Cpu<T> {
    fn dropout_checked(
        device: Checked<'_, Self>,
        x: &Tensor,
        dropout: Dropout<'_, Self>,
        y: &mut Tensor,
    ) -> Result<()> {
        in_type!(device, apply<Self>(x, dropout, y))
    }
}

fn apply<T: Number, B: OnHost>(x: &Tensor, dropout: Dropout<'_, B>, y: &mut Tensor) -> Result<()> {
    y.typed_mut::<T>()?.copy_from_slice(x.typed::<T>()?);
    mask::<T, B>(y, dropout)
}

pub fn mask<T: Number, B: OnHost>(y: &mut Tensor, dropout: Dropout<'_, B>) -> Result<()> {
    let mask = Mask::of(dropout)?;
    y.typed_mut::<T>()?.par_chunks_mut(BLOCK).enumerate().for_each(|(block, y)| mask.apply(block * BLOCK, y));
    Ok(())
}

/// Which elements of a tensor are kept.
#[derive(Clone, Copy)]
pub struct Mask {
    key: [u32; 2],
    site: u32,
    step: u32,
    threshold: u32,
    scale: f64,
}

impl Mask {
    pub fn of<B: OnHost>(dropout: Dropout<'_, B>) -> Result<Self> {
        let Dropout { draw, site, probability } = dropout;
        let &[low, high, step, _] = draw.typed::<u32>()? else {
            return Err(BackendError::Invalid { op: "dropout", problem: "no draw".into() });
        };
        let threshold = (probability * 2f64.powi(32)) as u32;
        Ok(Mask { key: [low, high], site, step, threshold, scale: 1.0 / (1.0 - probability) })
    }

    /// Of elements from `first` on.
    pub fn apply<T: Number>(&self, first: usize, elements: &mut [T]) {
        let (scale, zero) = (T::Real::from_f64(self.scale), T::narrow(T::Real::ZERO));
        let mut next = first;
        let mut rest = elements;
        while !rest.is_empty() {
            let words = philox([(next / 4) as u32, 0, self.site, self.step], self.key);
            let (four, behind) = rest.split_at_mut((4 - next % 4).min(rest.len()));
            for (element, word) in four.iter_mut().zip(&words[next % 4..]) {
                *element = if *word >= self.threshold { T::narrow(element.widen() * scale) } else { zero };
            }
            next += four.len();
            rest = behind;
        }
    }
}

/// Philox4x32-10: four random words from a counter and a key.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for _ in 0..10 {
        let [a, b] = [MULTIPLIERS[0] * u64::from(counter[0]), MULTIPLIERS[1] * u64::from(counter[2])];
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::philox;

    /// From the known answers that Random123 is published with.
    #[test]
    fn philox_gives_the_published_words() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        let pi = ([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
        assert_eq!(philox(pi.0, pi.1), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }
}
