//! The MLP's activation functions.

use super::*;

const THREADS: usize = 256;

/// 16-byte packs that a block takes.
const PACKS: usize = 2 * THREADS;

/// Threads of a block with a bias, each with a pack of columns, and rows that they take.
const BIAS_THREADS: usize = 128;
const BIAS_ROWS: usize = 4;

/// The kernels of one function in one direction.
struct Kernels {
    plain: &'static str,
    /// With a bias, for rows of whole packs.
    bias: &'static str,
    /// With a bias, element by element.
    bias_ones: &'static str,
    /// How often each element is moved.
    moved: usize,
}

macro_rules! kernels {
    ($pass:literal, $kind:literal, $moved:literal) => {
        Kernels {
            plain: concat!("activation", $pass, "_", $kind),
            bias: concat!("activation_bias", $pass, "_", $kind),
            bias_ones: concat!("activation_bias", $pass, "_ones_", $kind),
            moved: $moved,
        }
    };
}

impl Kernels {
    fn forward(kind: Activation) -> Self {
        match kind {
            Activation::QuickGelu => kernels!("", "quick_gelu", 2),
            Activation::Gelu => kernels!("", "gelu", 2),
        }
    }

    fn backward(kind: Activation) -> Self {
        match kind {
            Activation::QuickGelu => kernels!("_backward", "quick_gelu", 3),
            Activation::Gelu => kernels!("_backward", "gelu", 3),
        }
    }

    /// Enqueues the one for `z` with `bias` or without one; `out` is written.
    fn launch(
        &self,
        cuda: &Cuda,
        z: &CudaTensor,
        bias: Option<&CudaTensor>,
        out: &mut CudaTensor,
    ) -> Result<()> {
        let (elements, real) = (z.shape().elements(), cuda.real());
        if elements == 0 {
            return Ok(());
        }
        let args = Args::new().address(z.typed(real)?);
        let Some(bias) = bias else {
            let pack = 16 / real.size();
            let args = args.address(out.typed(real)?).int(elements / pack).int(elements % pack);
            let blocks = (elements / pack).div_ceil(PACKS).max(1);
            let args = args.moving(self.moved * z.bytes());
            return cuda.launch("activation", self.plain, [blocks, 1, 1], THREADS, 0, args);
        };
        let ((rows, columns), pack) = (z.matrix(), cuda.pack(z.matrix().1));
        let name = if pack > 1 { self.bias } else { self.bias_ones };
        let args = args.address(bias.typed(real)?).address(out.typed(real)?).int(rows).int(columns);
        let grid = [rows.div_ceil(BIAS_ROWS), (columns / pack).div_ceil(BIAS_THREADS), 1];
        let args = args.moving(self.moved * z.bytes() + bias.bytes());
        cuda.launch("activation", name, grid, BIAS_THREADS, 0, args)
    }
}

impl ActivationOp for Cuda {
    fn activation_checked(
        device: Checked<'_, Self>,
        kind: Activation,
        z: &CudaTensor,
        bias: Option<&CudaTensor>,
        g: &mut CudaTensor,
    ) -> Result<()> {
        Kernels::forward(kind).launch(&device, z, bias, g)
    }

    fn activation_backward_checked(
        device: Checked<'_, Self>,
        kind: Activation,
        z: &CudaTensor,
        bias: Option<&CudaTensor>,
        d: &mut CudaTensor,
    ) -> Result<()> {
        Kernels::backward(kind).launch(&device, z, bias, d)
    }
}
