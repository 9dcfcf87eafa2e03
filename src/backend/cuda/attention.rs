//! Scaled dot-product attention.

use super::choose::fastest;
use super::*;

/// Threads of every block.
const THREADS: usize = 128;

/// Rows that a block of the tensor-core form owns, and rows of a tile on the other side.
const MMA_ROWS: usize = 64;

/// Kernels built for heads of up to `width` columns, or of so many 16-byte accesses of 8 lanes.
struct Variant {
    width: usize,
    file: &'static str,
    forward: &'static str,
    backward: &'static str,
    /// Backward, with a block for a head that fits into one tile. Of the tensor-core form only.
    whole: &'static str,
}

macro_rules! variant {
    ($file:expr, $form:literal, $width:literal) => {
        Variant {
            width: $width,
            file: $file,
            forward: concat!("attention_", $form, "_", $width),
            backward: concat!("attention_backward_", $form, "_", $width),
            whole: concat!("attention_backward_", $form, "_whole_", $width),
        }
    };
}

/// Wider heads are taken in chunks of the last one's width.
const GENERAL: [Variant; 2] = [variant!("attention", "general", 64), variant!("attention", "general", 128)];

/// The form with tensor cores.
const MMA: [Variant; 5] = [
    variant!("attention_mma_32", "mma", 32),
    variant!("attention_mma_64", "mma", 64),
    variant!("attention_mma_80", "mma", 80),
    variant!("attention_mma_96", "mma", 96),
    variant!("attention_mma_128", "mma", 128),
];

/// The form for one query.
const SINGLE: [Variant; 3] = [
    variant!("attention", "single", 1),
    variant!("attention", "single", 2),
    variant!("attention", "single", 4),
];

/// Extents of one attention, and how far apart rows are.
#[derive(Clone, Copy)]
struct Extents {
    of: AttentionExtents,
    /// Elements from one row of queries to the next, and of keys or values.
    q_stride: usize,
    kv_stride: usize,
}

impl std::ops::Deref for Extents {
    type Target = AttentionExtents;

    fn deref(&self) -> &AttentionExtents {
        &self.of
    }
}

impl Extents {
    fn of(of: AttentionExtents, input: &AttentionInput<'_, Cuda>) -> Self {
        let (q_stride, kv_stride) = match input {
            AttentionInput::Packed(_) => (3 * of.width, 3 * of.width),
            AttentionInput::Split { .. } => (of.width, 2 * of.width),
        };
        Extents { of, q_stride, kv_stride }
    }

    /// Numbers in queries, keys and values, and in o, which is as large as the queries.
    fn elements(&self) -> (usize, usize) {
        let [o, keys] = [self.queries, self.keys].map(|rows| self.batch * rows * self.width);
        (o + 2 * keys, o)
    }

    /// Floating-point operations of one product of every query with every key.
    fn flop(&self) -> usize {
        2 * self.batch * self.queries * self.keys * self.width
    }

    /// The grid with so many blocks for each head of each image.
    fn grid(&self, blocks: usize) -> [usize; 3] {
        [blocks, self.heads, self.batch]
    }

    /// The parameters at the end of every kernel's list.
    fn push(&self, args: Args) -> Args {
        args.int(self.queries)
            .int(self.keys)
            .int(self.head)
            .int(self.q_stride)
            .int(self.kv_stride)
            .float((1.0 / (self.head as f64).sqrt()) as f32)
            .int(self.causal.into())
    }
}

/// Which kernels compute it.
#[derive(Clone, Copy)]
enum AttentionForm {
    General(&'static Variant),
    Mma(&'static Variant),
    Single(&'static Variant),
}

impl AttentionForm {
    /// Rows must be whole 16-byte accesses for all forms but the general one. With a single query tensor
    /// cores would multiply mostly zeros.
    fn of(cuda: &Cuda, e: &Extents) -> AttentionForm {
        let fits = |variants: &'static [Variant], width| variants.iter().find(|v| width <= v.width);
        let elements = 16 / cuda.real().size();
        let aligned = e.head.is_multiple_of(elements);
        let special = match e.queries {
            1 if aligned => fits(&SINGLE, e.head.div_ceil(8 * elements)).map(AttentionForm::Single),
            2.. if aligned && cuda.has_tensor_cores() => fits(&MMA, e.head).map(AttentionForm::Mma),
            _ => None,
        };
        special
            .unwrap_or(AttentionForm::General(fits(&GENERAL, e.head).unwrap_or(&GENERAL[GENERAL.len() - 1])))
    }

    fn variant(self) -> &'static Variant {
        let (AttentionForm::General(variant) | AttentionForm::Mma(variant) | AttentionForm::Single(variant)) =
            self;
        variant
    }

    fn multiplies_in_tensor_cores(self) -> bool {
        matches!(self, AttentionForm::Mma(_))
    }

    /// Blocks for so many rows that they own.
    fn blocks(self, rows: usize) -> usize {
        match self {
            // Four warps, and registers for 256 columns of results in a warp's lanes.
            AttentionForm::General(variant) => rows.div_ceil(4 * 256 / variant.width),
            AttentionForm::Mma(_) => rows.div_ceil(MMA_ROWS),
            AttentionForm::Single(_) => 1,
        }
    }

    /// The kernels for the backward pass, the one to take without a clock first.
    fn backward(self, e: &Extents) -> Vec<(&'static str, Backward)> {
        let variant = self.variant();
        let mut forms = Vec::new();
        if matches!(self, AttentionForm::Mma(_)) && e.queries.max(e.keys) <= MMA_ROWS {
            // Tiles of q, k, v and do, and the scores' gradients and probabilities, from which do·o follows.
            let shared = self.shared(4, 0) + 2 * tile_bytes(MMA_ROWS);
            forms
                .push((variant.whole, Backward { kernel: variant.whole, blocks: 1, shared, reads_o: false }));
        }
        let blocks = match self {
            // With a single query a block does it all.
            AttentionForm::Single(_) => 1,
            // Some own keys, others queries.
            _ => self.blocks(e.keys) + self.blocks(e.queries),
        };
        // Two stages of two tiles, and of two numbers for each of a tile's queries; a tile of o.
        let shared = self.shared(5, 4 * MMA_ROWS);
        forms.push((variant.backward, Backward { kernel: variant.backward, blocks, shared, reads_o: true }));
        forms
    }

    /// Dynamic shared memory for so many tiles and so many floats. That of the other forms is static.
    fn shared(self, tiles: usize, floats: usize) -> usize {
        match self {
            AttentionForm::Mma(variant) => tiles * tile_bytes(variant.width) + floats * size_of::<f32>(),
            _ => 0,
        }
    }
}

/// A kernel for the backward pass.
#[derive(Clone, Copy)]
struct Backward {
    kernel: &'static str,
    /// For each head of each image.
    blocks: usize,
    /// Dynamic shared memory.
    shared: usize,
    reads_o: bool,
}

/// Bytes of a tile of 16-bit numbers, whose rows are padded by 16 bytes.
fn tile_bytes(width: usize) -> usize {
    MMA_ROWS * (width + 8) * 2
}

/// Where queries, keys and values begin, of an input or of a gradient with its shapes.
struct Parts {
    q: Address,
    k: Address,
    v: Address,
}

impl Parts {
    fn packed(cuda: &Cuda, qkv: &CudaTensor, e: &Extents) -> Result<Self> {
        let (q, d) = (qkv.typed(cuda.real())?, e.width * cuda.real().size());
        Ok(Parts { q, k: q.offset(d), v: q.offset(2 * d) })
    }

    fn split(cuda: &Cuda, q: &CudaTensor, kv: &CudaTensor, e: &Extents) -> Result<Self> {
        let (q, k) = (q.typed(cuda.real())?, kv.typed(cuda.real())?);
        Ok(Parts { q, k, v: k.offset(e.width * cuda.real().size()) })
    }

    fn of(cuda: &Cuda, input: &AttentionInput<'_, Cuda>, e: &Extents) -> Result<Self> {
        match input {
            AttentionInput::Packed(qkv) => Parts::packed(cuda, qkv, e),
            AttentionInput::Split { q, kv } => Parts::split(cuda, q, kv, e),
        }
    }

    fn of_gradient(cuda: &Cuda, gradient: &AttentionGradient<'_, Cuda>, e: &Extents) -> Result<Self> {
        match gradient {
            AttentionGradient::Packed(dqkv) => Parts::packed(cuda, dqkv, e),
            AttentionGradient::Split { dq, dkv } => Parts::split(cuda, dq, dkv, e),
        }
    }

    fn push(&self, args: Args) -> Args {
        args.address(self.q).address(self.k).address(self.v)
    }
}

impl AttentionOp for Cuda {
    fn attention_checked(
        device: Checked<'_, Self>,
        input: AttentionInput<'_, Cuda>,
        extents: AttentionExtents,
        saved: &mut CudaTensor,
        o: &mut CudaTensor,
    ) -> Result<()> {
        let e = Extents::of(extents, &input);
        let form = AttentionForm::of(&device, &e);
        let args = Parts::of(&device, &input, &e)?.push(Args::new());
        let args = e.push(args.address(saved.typed(DType::F32)?).address(o.typed(device.real())?));
        let (qkv, out) = e.elements();
        let args = args.moving((qkv + out) * device.real().size() + saved.bytes());
        let args = args.multiplying(2 * e.flop(), form.multiplies_in_tensor_cores());
        let grid = e.grid(form.blocks(e.queries));
        // Tiles of queries, keys and values.
        device.launch(form.variant().file, form.variant().forward, grid, THREADS, form.shared(3, 0), args)
    }

    fn attention_backward_checked(
        device: Checked<'_, Self>,
        args: AttentionBackward<'_, Cuda>,
        extents: AttentionExtents,
    ) -> Result<()> {
        let AttentionBackward { d_o, o, input, saved, gradient, .. } = args;
        let e = Extents::of(extents, &input);
        let form = AttentionForm::of(&device, &e);
        let args = Args::new().address(d_o.typed(device.real())?).address(o.typed(device.real())?);
        let args = Parts::of(&device, &input, &e)?.push(args).address(saved.typed(DType::F32)?);
        let args = e.push(Parts::of_gradient(&device, &gradient, &e)?.push(args));
        let (qkv, out) = e.elements();
        let args = args.multiplying(5 * e.flop(), form.multiplies_in_tensor_cores());
        let mut launch = |Backward { kernel, blocks, shared, reads_o }: Backward| {
            // q, k, v and do, and the gradients of all but do.
            let rows = 2 * qkv + if reads_o { 2 * out } else { out };
            let args = args.moving(rows * device.real().size() + saved.bytes());
            device.launch(form.variant().file, kernel, e.grid(blocks), THREADS, shared, args)
        };
        let AttentionExtents { batch, heads, queries, keys, head, causal, .. } = e.of;
        let key = format!(
            "attention_backward {} {batch}x{heads} heads of {head}, {queries} of {keys}, {causal}",
            device.real()
        );
        let chosen = fastest(&device, &key, &form.backward(&e), &mut launch)?;
        launch(chosen)
    }

    fn attention_saved(&self, batch: usize, heads: usize, queries: usize, _keys: usize) -> Shape {
        [batch, heads, queries].into()
    }
}
