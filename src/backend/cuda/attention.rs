//! Scaled dot-product attention.

use super::*;

const FILE: &str = "attention";

/// Threads of every block.
const THREADS: usize = 128;

/// Rows that a block of the tensor-core form owns, and rows of a tile on the other side.
const MMA_ROWS: usize = 64;

/// Kernels built for heads of up to `width` columns.
struct Variant {
    width: usize,
    forward: &'static str,
    backward: &'static str,
}

macro_rules! variant {
    ($form:literal, $width:literal) => {
        Variant {
            width: $width,
            forward: concat!("attention_", $form, "_", $width),
            backward: concat!("attention_backward_", $form, "_", $width),
        }
    };
}

/// Wider heads are taken in chunks of the last one's width.
const GENERAL: [Variant; 2] = [variant!("general", 64), variant!("general", 128)];

/// The form with tensor cores.
const MMA: [Variant; 5] = [
    variant!("mma", 32),
    variant!("mma", 64),
    variant!("mma", 80),
    variant!("mma", 96),
    variant!("mma", 128),
];

/// Extents of one attention.
#[derive(Clone, Copy)]
struct Extents {
    batch: usize,
    queries: usize,
    keys: usize,
    /// Width of all heads together.
    width: usize,
    heads: usize,
    /// Width of one head.
    head: usize,
    causal: bool,
    /// Elements from one row of queries to the next, and of keys or values.
    q_stride: usize,
    kv_stride: usize,
}

impl Extents {
    fn of(op: &'static str, input: &AttentionInput<'_, Cuda>, shape: AttentionShape) -> Result<Self> {
        let invalid = |problem: String| Err(BackendError::Invalid { op, problem });
        let (batch, queries, keys, width, q_stride, kv_stride) = match input {
            AttentionInput::Packed(qkv) => match *qkv.shape().dims() {
                [batch, s, width] if width % 3 == 0 => (batch, s, s, width / 3, width, width),
                _ => return invalid(format!("qkv {} is not [B, S, 3·D]", qkv.shape())),
            },
            AttentionInput::Split { q, kv } => match (q.shape().dims(), kv.shape().dims()) {
                (&[batch, sq, width], &[same, s, double]) if batch == same && double == 2 * width => {
                    (batch, sq, s, width, width, double)
                }
                _ => {
                    let (q, kv) = (q.shape(), kv.shape());
                    return invalid(format!("q {q} and kv {kv} are not [B, Sq, D] and [B, S, 2·D]"));
                }
            },
        };
        let (heads, causal) = (shape.heads, shape.causal);
        if heads == 0 || width == 0 || width % heads != 0 {
            return invalid(format!("{heads} heads do not divide a width of {width}"));
        }
        if causal && matches!(input, AttentionInput::Split { .. }) {
            return invalid("a causal mask needs packed queries, keys and values".into());
        }
        if keys == 0 {
            return invalid("there are no keys".into());
        }
        let head = width / heads;
        Ok(Extents { batch, queries, keys, width, heads, head, causal, q_stride, kv_stride })
    }

    fn saved(&self) -> [usize; 3] {
        [self.batch, self.heads, self.queries]
    }

    fn o(&self) -> [usize; 3] {
        [self.batch, self.queries, self.width]
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
enum Form {
    General(&'static Variant),
    Mma(&'static Variant),
}

impl Form {
    /// Tensor cores need rows that are 16-byte aligned. With one query for each head they would multiply
    /// mostly zeros.
    fn of(cuda: &Cuda, e: &Extents) -> Form {
        let fits = |variants: &'static [Variant]| variants.iter().find(|v| e.head <= v.width);
        if cuda.has_tensor_cores() && e.head % 8 == 0 && e.queries > 1 {
            if let Some(variant) = fits(&MMA) {
                return Form::Mma(variant);
            }
        }
        Form::General(fits(&GENERAL).unwrap_or(&GENERAL[GENERAL.len() - 1]))
    }

    /// Rows that a block owns.
    fn rows(&self) -> usize {
        match self {
            // Four warps, and registers for 256 columns of results in a warp's lanes.
            Form::General(variant) => 4 * 256 / variant.width,
            Form::Mma(_) => MMA_ROWS,
        }
    }

    /// Dynamic shared memory for so many tiles, whose rows are padded by 16 bytes, and so many floats. The
    /// general form's is static.
    fn shared(&self, tiles: usize, floats: usize) -> usize {
        match self {
            Form::General(_) => 0,
            Form::Mma(variant) => tiles * MMA_ROWS * (variant.width + 8) * 2 + floats * size_of::<f32>(),
        }
    }
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

    fn of_gradient(
        cuda: &Cuda,
        gradient: &AttentionGradient<'_, Cuda>,
        input: &AttentionInput<'_, Cuda>,
        e: &Extents,
    ) -> Result<Self> {
        const OP: &str = "attention_backward";
        match (gradient, input) {
            (AttentionGradient::Packed(dqkv), AttentionInput::Packed(qkv)) => {
                expect_shape(OP, "dqkv", qkv.shape(), dqkv.shape())?;
                Parts::packed(cuda, dqkv, e)
            }
            (AttentionGradient::Split { dq, dkv }, AttentionInput::Split { q, kv }) => {
                expect_shape(OP, "dq", q.shape(), dq.shape())?;
                expect_shape(OP, "dkv", kv.shape(), dkv.shape())?;
                Parts::split(cuda, dq, dkv, e)
            }
            _ => Err(BackendError::Invalid {
                op: OP,
                problem: "input and gradient must both be packed or both be split".into(),
            }),
        }
    }

    fn push(&self, args: Args) -> Args {
        args.address(self.q).address(self.k).address(self.v)
    }
}

pub fn attention(
    cuda: &Cuda,
    input: AttentionInput<'_, Cuda>,
    shape: AttentionShape,
    saved: &mut CudaTensor,
    o: &mut CudaTensor,
) -> Result<()> {
    const OP: &str = "attention";
    let e = Extents::of(OP, &input, shape)?;
    expect_shape(OP, "saved", e.saved(), saved.shape())?;
    expect_shape(OP, "o", e.o(), o.shape())?;
    let form = Form::of(cuda, &e);
    let (Form::General(variant) | Form::Mma(variant)) = form;
    let args = Parts::of(cuda, &input, &e)?.push(Args::new());
    let args = e.push(args.address(saved.typed(DType::F32)?).address(o.typed(cuda.real())?));
    let grid = e.grid(e.queries.div_ceil(form.rows()));
    // Tiles of queries, keys and values.
    cuda.launch(FILE, variant.forward, grid, THREADS, form.shared(3, 0), args)
}

#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    cuda: &Cuda,
    d_o: &CudaTensor,
    o: &CudaTensor,
    input: AttentionInput<'_, Cuda>,
    saved: &CudaTensor,
    shape: AttentionShape,
    scratch: &mut CudaTensor,
    gradient: AttentionGradient<'_, Cuda>,
) -> Result<()> {
    const OP: &str = "attention_backward";
    let e = Extents::of(OP, &input, shape)?;
    expect_shape(OP, "do", e.o(), d_o.shape())?;
    expect_shape(OP, "o", e.o(), o.shape())?;
    expect_shape(OP, "saved", e.saved(), saved.shape())?;
    expect_shape(OP, "scratch", saved.shape(), scratch.shape())?;
    let form = Form::of(cuda, &e);
    let (Form::General(variant) | Form::Mma(variant)) = form;
    let args = Args::new().address(d_o.typed(cuda.real())?).address(o.typed(cuda.real())?);
    let args = Parts::of(cuda, &input, &e)?.push(args).address(saved.typed(DType::F32)?);
    let args = e.push(Parts::of_gradient(cuda, &gradient, &input, &e)?.push(args));
    // Blocks that own keys, and blocks that own queries.
    let grid = e.grid(e.keys.div_ceil(form.rows()) + e.queries.div_ceil(form.rows()));
    // Two stages of two tiles, and of two numbers for each of a tile's queries.
    cuda.launch(FILE, variant.backward, grid, THREADS, form.shared(4, 4 * MMA_ROWS), args)
}
