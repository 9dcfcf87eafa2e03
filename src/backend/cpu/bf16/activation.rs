//! The MLP's non-linearity in bf16, as behind the products.

use crate::backend::cpu::packed::isa::Isa;
use crate::backend::cpu::packed::lanes::{Row, lanes};
use crate::backend::cpu::activation::{BLOCK, activated, of_kind, sloped};
use crate::backend::{Activation, Result};
use crate::tensor::Tensor;
use half::bf16;
use rayon::prelude::*;

pub fn activation(isa: Isa, kind: Activation, z: &Tensor, g: &mut Tensor) -> Result<()> {
    let isa = isa.ready();
    let (g, z) = (g.typed_mut::<bf16>()?, z.typed::<bf16>()?);
    g.par_chunks_mut(BLOCK).zip(z.par_chunks(BLOCK)).for_each(|(g, z)| activate(isa, kind, z, g));
    Ok(())
}

pub fn activation_backward(isa: Isa, kind: Activation, z: &Tensor, d: &mut Tensor) -> Result<()> {
    let isa = isa.ready();
    let (d, z) = (d.typed_mut::<bf16>()?, z.typed::<bf16>()?);
    d.par_chunks_mut(BLOCK).zip(z.par_chunks(BLOCK)).for_each(|(d, z)| slope(isa, kind, z, d));
    Ok(())
}

lanes! {
    /// g = act(z).
    fn activate[L](kind: Activation, z: &[bf16], g: &mut [bf16]) {
        of_kind!(kind => {
            for (g, z) in g.chunks_mut(32).zip(z.chunks(32)) {
                activated(kind, Row::<L>::widened_part(z)).round_to(g);
            }
        })
    }
}

lanes! {
    /// d becomes d·act′(z).
    fn slope[L](kind: Activation, z: &[bf16], d: &mut [bf16]) {
        of_kind!(kind => {
            for (d, z) in d.chunks_mut(32).zip(z.chunks(32)) {
                sloped(kind, Row::<L>::widened_part(z), Row::widened_part(d)).round_to(d);
            }
        })
    }
}
