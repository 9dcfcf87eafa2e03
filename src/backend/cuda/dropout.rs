//! Dropout of activations; and what kernels that drop along the way are handed.

use super::*;

const THREADS: usize = 256;

/// A [`Dropout`] as kernels take it.
#[derive(Clone, Copy)]
pub struct Dropped {
    draw: Address,
    site: u32,
    /// The least word of an element that is kept.
    threshold: u32,
    /// Factor on kept elements: 1/(1 − p).
    scale: f32,
}

impl Dropped {
    pub fn of(dropout: Dropout<'_, Cuda>) -> Result<Self> {
        let Dropout { draw, site, probability } = dropout;
        Ok(Dropped {
            draw: draw.typed(DType::U32)?,
            site,
            threshold: (probability * 2f64.powi(32)) as u32,
            scale: (1.0 / (1.0 - probability)) as f32,
        })
    }

    /// The arguments that tell a kernel of it.
    pub fn add_to(&self, args: Args) -> Args {
        args.address(self.draw)
            .word(self.site)
            .word(self.threshold)
            .float(self.scale)
            .moving(4 * size_of::<u32>())
    }
}

impl DropoutOp for Cuda {
    fn dropout_checked(
        device: Checked<'_, Self>,
        x: &CudaTensor,
        dropout: Dropout<'_, Cuda>,
        y: &mut CudaTensor,
    ) -> Result<()> {
        let count = x.shape().elements();
        let args = Args::new().address(x.typed(device.real())?);
        let args = Dropped::of(dropout)?.add_to(args).address(y.typed(device.real())?).int(count);
        let args = args.moving(x.bytes() + y.bytes());
        let pack = 16 / device.real().size();
        device.launch("dropout", "dropout_apply", [count.div_ceil(pack * THREADS), 1, 1], THREADS, 0, args)
    }
}
