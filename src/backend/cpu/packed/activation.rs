//! The MLP's non-linearity, to the same bits as behind the products.

use super::Packed;
use super::isa::{Isa, Ready};
use super::lanes::{Row, lanes};
use crate::backend::cpu::activation::{BLOCK, activated, of_kind, sloped};
use crate::backend::{Activation, Result};
use crate::tensor::Tensor;
use rayon::prelude::*;

pub fn activation<E: Packed>(isa: Isa, kind: Activation, z: &Tensor, g: &mut Tensor) -> Result<()> {
    let isa: Ready<E> = isa.ready();
    let (g, z) = (g.typed_mut::<E>()?, z.typed::<E>()?);
    g.par_chunks_mut(BLOCK).zip(z.par_chunks(BLOCK)).for_each(|(g, z)| activate(isa, kind, z, g));
    Ok(())
}

pub fn activation_backward<E: Packed>(isa: Isa, kind: Activation, z: &Tensor, d: &mut Tensor) -> Result<()> {
    let isa: Ready<E> = isa.ready();
    let (d, z) = (d.typed_mut::<E>()?, z.typed::<E>()?);
    d.par_chunks_mut(BLOCK).zip(z.par_chunks(BLOCK)).for_each(|(d, z)| slope(isa, kind, z, d));
    Ok(())
}

lanes! {
    /// g = act(z).
    fn activate[L, E](kind: Activation, z: &[E], g: &mut [E]) {
        of_kind!(kind => {
            for (g, z) in g.chunks_mut(32).zip(z.chunks(32)) {
                activated(kind, Row::<L>::widened_part(z)).round_to(g);
            }
        })
    }
}

lanes! {
    /// d becomes d·act′(z).
    fn slope[L, E](kind: Activation, z: &[E], d: &mut [E]) {
        of_kind!(kind => {
            for (d, z) in d.chunks_mut(32).zip(z.chunks(32)) {
                sloped(kind, Row::<L>::widened_part(z), Row::widened_part(d)).round_to(d);
            }
        })
    }
}
