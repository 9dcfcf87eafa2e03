//! The form for every type, device and size: a kernel for the low-rank part, then the product that adds to it.

use super::*;

/// Rows of a block, in both bodies of both kernels.
const ROWS: usize = 16;

/// y from u·Bᵀ, bias and residual; then y += x·Wᵀ.
pub fn forward(cuda: &Cuda, work: &Forward) -> Result<()> {
    let Forward { frozen, parts, u } = work;
    let Sizes { m, k, n, .. } = frozen.sizes;
    let args = Args::new()
        .address(frozen.from)
        .address(parts.a)
        .address(parts.b)
        .optional(frozen.bias)
        .optional(frozen.residual)
        .address(*u)
        .address(frozen.to)
        .int(m)
        .int(k)
        .int(n)
        .int(parts.out)
        .int(parts.rank)
        .int(parts.width)
        .int(parts.part_of_segment)
        .float(parts.scale);
    let (name, threads) = match cuda.has_tensor_cores() && parts.in_packs(k) {
        true => ("lora_linear_start", 256),
        false => ("lora_linear_start_any", 128),
    };
    cuda.launch("lora_linear", name, [m.div_ceil(ROWS), 1, 1], threads, 0, args)?;
    Frozen { bias: None, residual: Some(frozen.to), ..*frozen }.product(cuda)
}

/// du and dx = du·A; then dx += dy·W.
pub fn backward(cuda: &Cuda, work: &Backward) -> Result<()> {
    let Backward { frozen, parts, du } = work;
    backward_start(cuda, parts, frozen.sizes, frozen.from, *du, Some(frozen.to))?;
    Frozen { residual: Some(frozen.to), ..*frozen }.product(cuda)
}

/// du = scale·dy·B, and dx = du·A where it is wanted.
pub fn backward_start(
    cuda: &Cuda,
    parts: &Parts,
    sizes: Sizes,
    dy: Address,
    du: Address,
    dx: Option<Address>,
) -> Result<()> {
    let args = Args::new()
        .address(dy)
        .address(parts.a)
        .address(parts.b)
        .address(du)
        .optional(dx)
        .int(sizes.m)
        .int(sizes.k)
        .int(sizes.n)
        .int(parts.out)
        .int(parts.rank)
        .int(parts.width)
        .int(parts.count)
        .int(parts.segment_of_part)
        .float(parts.scale);
    let (name, threads) = match cuda.has_tensor_cores() && parts.in_packs(sizes.k) {
        true => ("lora_linear_backward_start", 256),
        false => ("lora_linear_backward_start_any", 128),
    };
    cuda.launch("lora_linear", name, [sizes.m.div_ceil(ROWS), 1, 1], threads, 0, args)
}
