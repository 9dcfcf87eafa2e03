//! The MLP's activation functions.

use super::*;

const THREADS: usize = 256;

/// 16-byte packs that a block takes.
const PACKS: usize = 2 * THREADS;

/// Enqueues `name` over the elements of `z`, which moves each so many times; `out` is written.
fn launch(cuda: &Cuda, name: &'static str, z: &CudaTensor, moved: usize, out: &mut CudaTensor) -> Result<()> {
    let elements = z.shape().elements();
    if elements == 0 {
        return Ok(());
    }
    let pack = 16 / cuda.real().size();
    let args = Args::new()
        .address(z.typed(cuda.real())?)
        .address(out.typed(cuda.real())?)
        .int(elements / pack)
        .int(elements % pack)
        .moving(moved * z.bytes());
    let blocks = (elements / pack).div_ceil(PACKS).max(1);
    cuda.launch("activation", name, [blocks, 1, 1], THREADS, 0, args)
}

impl ActivationOp for Cuda {
    fn activation_checked(
        device: Checked<'_, Self>,
        kind: Activation,
        z: &CudaTensor,
        g: &mut CudaTensor,
    ) -> Result<()> {
        let name = match kind {
            Activation::QuickGelu => "activation_quick_gelu",
            Activation::Gelu => "activation_gelu",
        };
        launch(&device, name, z, 2, g)
    }

    fn activation_backward_checked(
        device: Checked<'_, Self>,
        kind: Activation,
        z: &CudaTensor,
        d: &mut CudaTensor,
    ) -> Result<()> {
        let name = match kind {
            Activation::QuickGelu => "activation_backward_quick_gelu",
            Activation::Gelu => "activation_backward_gelu",
        };
        launch(&device, name, z, 3, d)
    }
}
