//! Layer norm over the last dimension, and its gradient with respect to the input.

use super::*;

/// Threads of a block whose warps hold a row each, and its rows.
const WARP_FORM: (usize, usize) = (128, 4);

/// Threads of a block that shares one row.
const GENERAL_THREADS: usize = 256;

/// The kernels of one operation: for rows of 256, 512, … elements in the registers of a warp, and for any
/// other width.
pub struct Forms {
    held: [&'static str; 5],
    general: &'static str,
}

/// Elements by which the widths of [`Forms::held`] grow: a 16-byte pack of 16-bit numbers for every lane.
const STEP: usize = 256;

const FORWARD: Forms = Forms {
    held: ["layer_norm_256", "layer_norm_512", "layer_norm_768", "layer_norm_1024", "layer_norm_1280"],
    general: "layer_norm_general",
};

const BACKWARD: Forms = Forms {
    held: [
        "layer_norm_backward_256",
        "layer_norm_backward_512",
        "layer_norm_backward_768",
        "layer_norm_backward_1024",
        "layer_norm_backward_1280",
    ],
    general: "layer_norm_backward_general",
};

/// The norm of the embedding's rows as they are added up.
pub const TOKENS: Forms = Forms {
    held: [
        "layer_norm_tokens_256",
        "layer_norm_tokens_512",
        "layer_norm_tokens_768",
        "layer_norm_tokens_1024",
        "layer_norm_tokens_1280",
    ],
    general: "layer_norm_tokens_general",
};

/// Enqueues the kernel of `forms` for `rows` rows of `width`.
pub fn launch_rows(cuda: &Cuda, forms: &Forms, rows: usize, width: usize, args: Args) -> Result<()> {
    if rows == 0 || width == 0 {
        return Ok(());
    }
    match forms.held.get((width - 1) / STEP) {
        Some(name) if width.is_multiple_of(STEP) => {
            let (threads, rows_of_block) = WARP_FORM;
            cuda.launch("layer_norm", name, [rows.div_ceil(rows_of_block), 1, 1], threads, 0, args)
        }
        _ => cuda.launch("layer_norm", forms.general, [rows, 1, 1], GENERAL_THREADS, 0, args),
    }
}

/// Addresses of a norm's weight and bias.
pub fn parameters(norm: &LayerNorm<Cuda>) -> Result<(Address, Address)> {
    Ok((norm.weight.typed(DType::F32)?, norm.bias.typed(DType::F32)?))
}

pub fn bytes_of_parameters(norm: &LayerNorm<Cuda>) -> usize {
    norm.weight.bytes() + norm.bias.bytes()
}

impl LayerNormOp for Cuda {
    fn layer_norm_checked(
        device: Checked<'_, Self>,
        x: &CudaTensor,
        norm: &LayerNorm<Cuda>,
        y: &mut CudaTensor,
        stats: &mut CudaTensor,
    ) -> Result<()> {
        let (rows, width) = x.matrix();
        let (weight, bias) = parameters(norm)?;
        let args = Args::new()
            .address(x.typed(device.real())?)
            .address(weight)
            .address(bias)
            .address(y.typed(device.real())?)
            .address(stats.typed(DType::F32)?)
            .int(rows)
            .int(width)
            .float(norm.eps as f32)
            .moving(x.bytes() + y.bytes() + stats.bytes() + bytes_of_parameters(norm));
        launch_rows(&device, &FORWARD, rows, width, args)
    }

    fn layer_norm_backward_checked(
        device: Checked<'_, Self>,
        dy: &CudaTensor,
        x: &CudaTensor,
        norm: &LayerNorm<Cuda>,
        stats: &CudaTensor,
        to: AddTo<'_, CudaTensor>,
        dx: &mut CudaTensor,
    ) -> Result<()> {
        let (rows, width) = x.matrix();
        let (weight, _) = parameters(norm)?;
        let before = match to {
            AddTo::Nothing => None,
            AddTo::Output => Some(dx.typed(device.real())?),
            AddTo::Tensor(before) => Some(before.typed(device.real())?),
        };
        let tensors = 3 + usize::from(before.is_some());
        let args = Args::new()
            .address(dy.typed(device.real())?)
            .address(x.typed(device.real())?)
            .address(weight)
            .address(stats.typed(DType::F32)?)
            .optional(before)
            .address(dx.typed(device.real())?)
            .int(rows)
            .int(width)
            .moving(tensors * dx.bytes() + norm.weight.bytes() + stats.bytes());
        launch_rows(&device, &BACKWARD, rows, width, args)
    }
}
