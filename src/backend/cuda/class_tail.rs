//! What stands behind the keys and values of a block that computes one row of each sequence: one cooperative launch each
//! way, or the operations that it is made of, whichever takes less time.

use super::choose::fastest;
use super::tables::Table;
use super::*;

const THREADS: usize = 256;

/// Warps of a block, and rows and columns of a product's tile.
const WARPS: usize = THREADS / 32;
const ROWS: usize = 32;
const COLUMNS: usize = 8;

/// Bytes of shared memory that the kernels declare themselves.
const STATIC_SHARED: usize = 16 << 10;

/// Names under which the forms are remembered.
const FORMS: [(&str, bool); 2] = [("one launch", true), ("operations", false)];

impl ClassTailOp for Cuda {
    fn class_tail_checked(
        device: Checked<'_, Self>,
        mut args: ClassTail<'_, Cuda>,
        extents: TailExtents,
    ) -> Result<()> {
        let launch = Tail::forward(&device, &args, extents)?;
        Tail::choose(&device, "class_tail", launch, extents, &mut || {
            tail_by_operations(device, &mut args, extents)
        })
    }

    fn class_tail_backward_checked(
        device: Checked<'_, Self>,
        mut args: ClassTailBackward<'_, Cuda>,
        extents: TailExtents,
    ) -> Result<()> {
        let launch = Tail::backward(&device, &args, extents)?;
        // Done twice it gives what it gives once: it starts from the gradient of the features.
        Tail::choose(&device, "class_tail_backward", launch, extents, &mut || {
            tail_backward_by_operations(device, &mut args, extents)
        })
    }
}

/// A launch that does all of it.
#[derive(Clone, Copy)]
struct Tail {
    kernel: &'static str,
    blocks: usize,
    shared: usize,
    args: Args,
}

impl Tail {
    /// The launch for all of it forward, where there is a kernel for such sizes on such a device.
    fn forward(cuda: &Cuda, a: &ClassTail<'_, Cuda>, e: TailExtents) -> Result<Option<Self>> {
        let shared = WARPS * e.attention.keys * size_of::<f32>();
        let Some(blocks) = blocks(cuda, e, shared) else { return Ok(None) };
        let real = cuda.real();
        let layers = Layers::of(cuda, &a.layers)?;
        // What others' launches left, but of `input` and `normed` one row of each sequence.
        let read = [a.kv, a.rows];
        let written = [
            &*a.chosen,
            a.chosen_normed,
            a.q,
            a.attended,
            a.middle,
            a.middle_normed,
            a.hidden,
            a.activated,
            a.last,
            a.last_normed,
            a.projected,
        ];
        let written_floats = [&*a.saved, a.stats, a.last_stats, a.norms, a.features];
        let mut entry = layers.addresses.to_vec();
        entry.extend([a.input.typed(real)?.0, a.normed.typed(real)?.0, a.kv.typed(real)?.0]);
        entry.push(a.rows.typed(DType::U32)?.0);
        push(&mut entry, &written, real)?;
        push(&mut entry, &written_floats, DType::F32)?;
        let table = Table::of(cuda, "class_tail", &entry, &[1])?;
        let moved = bytes_of(&read) + bytes_of(&written) + bytes_of(&written_floats);
        let args = Args::new().address(table.entries).address(meetings(cuda)?);
        let args = sizes(args, e, a.layers.activation)
            .float(a.layers.norm.eps as f32)
            .float(a.layers.end_norm.eps as f32)
            .float(scale(e))
            .moving(8 * entry.len() + layers.bytes + layers.bias_bytes + moved)
            .moving(a.chosen.bytes() + a.chosen_normed.bytes());
        Ok(Some(Tail { kernel: "class_tail_forward", blocks, shared, args: multiplying(args, e, 2, true) }))
    }

    /// The same backwards.
    fn backward(cuda: &Cuda, a: &ClassTailBackward<'_, Cuda>, e: TailExtents) -> Result<Option<Self>> {
        let shared = 2 * WARPS * e.attention.keys * size_of::<f32>();
        let Some(blocks) = blocks(cuda, e, shared) else { return Ok(None) };
        let real = cuda.real();
        let layers = Layers::of(cuda, &a.layers)?;
        let read = [a.q, a.kv, a.attended, a.middle, a.hidden, a.last];
        let read_floats = [a.saved, a.stats, a.last_stats, a.norms, a.features, a.d_features];
        let written =
            [&*a.d_projected, a.d_last_normed, a.d_middle, a.d_hidden, a.d_chosen, a.d_attended, a.dq, a.dkv];
        let mut entry = layers.addresses.to_vec();
        push(&mut entry, &read, real)?;
        push(&mut entry, &read_floats, DType::F32)?;
        push(&mut entry, &written, real)?;
        let table = Table::of(cuda, "class_tail_backward", &entry, &[1])?;
        // Of the table and the layers neither biases nor, where its gradient is not wanted, the weight of queries.
        let unread = if a.wanted { 0 } else { a.layers.q.weight.bytes() + 8 };
        let args = Args::new().address(table.entries).address(meetings(cuda)?);
        let args = sizes(args, e, a.layers.activation)
            .float(scale(e))
            .int(usize::from(a.wanted))
            .moving(8 * (entry.len() - Layers::BIASES) + layers.bytes - unread)
            .moving(bytes_of(&read) + bytes_of(&read_floats) + bytes_of(&written));
        let args = multiplying(args, e, 5, a.wanted);
        Ok(Some(Tail { kernel: "class_tail_backward", blocks, shared, args }))
    }

    /// Enqueues the launch or `operations`, the faster of the two; the latter where there is no launch.
    fn choose(
        cuda: &Cuda,
        op: &str,
        launch: Option<Self>,
        e: TailExtents,
        operations: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let Some(Tail { kernel, blocks, shared, args }) = launch else { return operations() };
        let AttentionExtents { batch, keys, width, heads, .. } = e.attention;
        let TailExtents { mlp, features, .. } = e;
        let key = format!("{op} {} {batch}x{keys}x{width}, {heads} heads, {mlp}, {features}", cuda.real());
        let mut run = |whole| match whole {
            true => cuda.launch_together("class_tail", kernel, blocks, THREADS, shared, args),
            false => operations(),
        };
        let whole = fastest(cuda, &key, &FORMS, &mut run)?;
        run(whole)
    }
}

/// Blocks of the launch; none where there is no kernel for such sizes on such a device.
fn blocks(cuda: &Cuda, e: TailExtents, shared: usize) -> Option<usize> {
    let TailExtents { attention: AttentionExtents { batch, width, heads, head, .. }, mlp, features } = e;
    let info = cuda.driver().info();
    let fits = cuda.has_tensor_cores()
        && info.cooperative
        && [width, head, mlp, features].into_iter().all(|columns| columns.is_multiple_of(COLUMNS))
        && shared + STATIC_SHARED <= info.shared_memory_per_block
        && batch > 0;
    // No phase has more than a block can take of it: tiles of the widest product, or heads.
    let tiles = batch.div_ceil(ROWS) * (width.max(mlp).max(features) / COLUMNS);
    let items = tiles.max((batch * heads).div_ceil(WARPS));
    // One for each multiprocessor is there at the same time as all others.
    fits.then(|| items.min(info.multiprocessors as usize))
}

/// Where the blocks count themselves when they meet.
fn meetings(cuda: &Cuda) -> Result<Address> {
    cuda.counters("class_tail", 1)
}

fn sizes(args: Args, e: TailExtents, activation: Activation) -> Args {
    let AttentionExtents { batch, keys, width, heads, .. } = e.attention;
    let args = args.int(batch).int(keys).int(width).int(e.mlp).int(heads).int(e.features);
    args.int(usize::from(activation == Activation::Gelu))
}

/// Of attention's scores.
fn scale(e: TailExtents) -> f32 {
    (1.0 / (e.attention.head as f64).sqrt()) as f32
}

/// The products with the layers, that of queries where it `has_queries`, and so many products of attention.
fn multiplying(args: Args, e: TailExtents, products: usize, has_queries: bool) -> Args {
    let AttentionExtents { batch, keys, width: d, .. } = e.attention;
    let weights = d * (d + 2 * e.mlp + e.features) + if has_queries { d * d } else { 0 };
    args.multiplying(2 * batch * weights, true).multiplying(products * 2 * batch * keys * d, false)
}

/// The layers as the kernels read them.
struct Layers {
    addresses: [u64; 14],
    /// Bytes of the weights of layers and norms.
    bytes: usize,
    /// Bytes of their biases.
    bias_bytes: usize,
}

impl Layers {
    /// Biases in the table.
    const BIASES: usize = 7;

    fn of(cuda: &Cuda, layers: &TailLayers<'_, Cuda>) -> Result<Self> {
        let real = cuda.real();
        let mut all = Layers { addresses: [0; 14], bytes: 0, bias_bytes: 0 };
        let TailLayers { q, out, fc1, fc2, projection, norm, end_norm, .. } = layers;
        for (i, layer) in [q, out, fc1, fc2, projection].into_iter().enumerate() {
            all.addresses[2 * i] = layer.weight.typed(real)?.0;
            all.bytes += layer.weight.bytes();
            if let Some(bias) = &layer.bias {
                all.addresses[2 * i + 1] = bias.typed(real)?.0;
                all.bias_bytes += bias.bytes();
            }
        }
        for (i, norm) in [norm, end_norm].into_iter().enumerate() {
            let (weight, bias) = layer_norm::parameters(norm)?;
            (all.addresses[10 + 2 * i], all.addresses[11 + 2 * i]) = (weight.0, bias.0);
            all.bytes += norm.weight.bytes();
            all.bias_bytes += norm.bias.bytes();
        }
        Ok(all)
    }
}

fn push(entry: &mut Vec<u64>, tensors: &[&CudaTensor], dtype: DType) -> Result<()> {
    for tensor in tensors {
        entry.push(tensor.typed(dtype)?.0);
    }
    Ok(())
}

fn bytes_of(tensors: &[&CudaTensor]) -> usize {
    tensors.iter().map(|tensor| tensor.bytes()).sum()
}
