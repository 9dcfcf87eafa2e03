//! The form for every type, device and size: a kernel for the low-rank part, then the product that adds to it.

use super::*;

/// y from u·Bᵀ, bias and residual; then y += x·Wᵀ.
pub fn forward(cuda: &Cuda, work: &Forward) -> Result<()> {
    let Forward { frozen, seen, parts, u } = work;
    let Sizes { m, k, n, .. } = frozen.sizes;
    let in_packs = parts.in_packs(k);
    let copies = 1 + usize::from(frozen.residual.is_some());
    let numbers = m * (k + parts.width + copies * n) + frozen.bias.map_or(0, |_| n);
    let args = Args::new()
        .address(*seen)
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
        .float(parts.scale)
        .moving(numbers * frozen.dtype.size() + parts.bytes(k))
        .multiplying(parts.flop(m, k), cuda.has_tensor_cores() && in_packs);
    let names = ["lora_linear_start_16_rows", "lora_linear_start_32_rows", "lora_linear_start_any"];
    start(cuda, "lora_linear", names, in_packs, m, n / parts.out, args)?;
    Frozen { bias: None, residual: Some(frozen.to), ..*frozen }.gemm(cuda)
}

/// du and dx = du·A, through the mask where there is one; then dx += dy·W.
pub fn backward(cuda: &Cuda, work: &Backward) -> Result<()> {
    let Backward { frozen, parts, du, dropped } = work;
    backward_start(cuda, parts, frozen.sizes, frozen.from, *du, Some(frozen.to), *dropped)?;
    Frozen { residual: Some(frozen.to), ..*frozen }.gemm(cuda)
}

/// du = scale·dy·B, and where it is wanted dx = du·A, through the mask of `dropped`.
pub fn backward_start(
    cuda: &Cuda,
    parts: &Parts,
    sizes: Sizes,
    dy: Address,
    du: Address,
    dx: Option<Address>,
    dropped: Option<Dropped>,
) -> Result<()> {
    let in_packs = parts.in_packs(sizes.k);
    // Without dx there is no product with A.
    let k = if dx.is_some() { sizes.k } else { 0 };
    let numbers = sizes.m * (parts.count * parts.out + parts.width + k);
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
        .float(parts.scale)
        .moving(numbers * cuda.real().size() + parts.bytes(k))
        .multiplying(parts.flop(sizes.m, k), cuda.has_tensor_cores() && in_packs);
    let Some(dropped) = dropped else {
        let names = [
            "lora_linear_backward_start_16_rows",
            "lora_linear_backward_start_32_rows",
            "lora_linear_backward_start_any",
        ];
        return start(cuda, "lora_linear", names, in_packs, sizes.m, 1, args);
    };
    let names = [
        "lora_linear_dropout_backward_start_16_rows",
        "lora_linear_dropout_backward_start_32_rows",
        "lora_linear_dropout_backward_start_any",
    ];
    start(cuda, "lora_linear_dropout", names, in_packs, sizes.m, 1, dropped.add_to(args))
}

/// Launches the kernel for blocks of 16 rows, or of 32 where those are still enough for all multiprocessors,
/// or the one for any type and size, all of `file`. The grid has `segments` blocks for the same rows.
fn start(
    cuda: &Cuda,
    file: &'static str,
    [of_16, of_32, any]: [&'static str; 3],
    in_packs: bool,
    rows: usize,
    segments: usize,
    args: Args,
) -> Result<()> {
    let enough = rows.div_ceil(32) * segments >= cuda.driver().info().multiprocessors as usize;
    let (name, rows_each, threads) = match cuda.has_tensor_cores() && in_packs {
        true if enough => (of_32, 32, 256),
        true => (of_16, 16, 256),
        false => (any, 16, 128),
    };
    cuda.launch(file, name, [rows.div_ceil(rows_each), segments, 1], threads, 0, args)
}
