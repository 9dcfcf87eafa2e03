//! The host twin itself: right kernels give right results, and each kind of mistake is reported.

use clip_engine::backend::cuda::driver::{Address, Args, Driver, Kernel, Launch};
use clip_engine::backend::cuda::source::Sources;
use clip_engine::backend::cuda::twin::{BlockOrder, Twin};
use clip_engine::tensor::DType;

fn twin(dtype: DType) -> Twin {
    let sources = Sources::embedded().with_file("works.cu", include_str!("host_twin/works.cu"));
    Twin::with_sources(sources, dtype, 90).unwrap()
}

fn upload<T: bytemuck::NoUninit>(twin: &Twin, values: &[T]) -> Address {
    let bytes = bytemuck::cast_slice(values);
    let address = twin.allocate(bytes.len()).unwrap();
    twin.upload(address, bytes).unwrap();
    address
}

fn download<T: bytemuck::Pod>(twin: &Twin, from: Address, count: usize) -> Vec<T> {
    let mut values = vec![T::zeroed(); count];
    twin.download(from, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

#[test]
fn a_block_sum_is_shared_by_all_threads() {
    let twin = twin(DType::F32);
    let (rows, columns) = (5, 300);
    let x: Vec<f32> = (0..rows * columns).map(|i| (i % 7 + 1) as f32).collect();
    let from = upload(&twin, &x);
    let to = twin.allocate(x.len() * 4).unwrap();
    let launch = Launch {
        kernel: Kernel { file: "works", name: "share_of_row" },
        grid: [rows as u32, 1, 1],
        block: [256, 1, 1],
        shared: 0,
        args: Args::new().address(from).address(to).int(columns),
    };
    // SAFETY: the twin checks arguments and accesses.
    unsafe { twin.launch(&launch) }.unwrap();
    let y: Vec<f32> = download(&twin, to, x.len());
    for (x, y) in x.chunks(columns).zip(y.chunks(columns)) {
        let sum: f32 = x.iter().sum();
        for (x, y) in x.iter().zip(y) {
            assert!((x / sum - y).abs() < 1e-6);
        }
    }
}

/// Numbers without a pattern, from -1 to 1.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn a_pipelined_product_on_tensor_cores_matches_plain_loops() {
    let k = 200;
    let (a, b) = (noise(64 * k, 1), noise(64 * k, 2));
    for dtype in [DType::F16, DType::BF16] {
        let twin = twin(dtype);
        let round = |values: &[f32]| -> (Vec<u16>, Vec<f32>) {
            let bits = |v: f32| match dtype {
                DType::F16 => half::f16::from_f32(v).to_bits(),
                _ => half::bf16::from_f32(v).to_bits(),
            };
            let number = |b: u16| match dtype {
                DType::F16 => half::f16::from_bits(b).to_f32(),
                _ => half::bf16::from_bits(b).to_f32(),
            };
            let bits: Vec<u16> = values.iter().map(|&v| bits(v)).collect();
            let numbers = bits.iter().map(|&b| number(b)).collect();
            (bits, numbers)
        };
        let ((a_bits, a), (b_bits, b)) = (round(&a), round(&b));
        let (x, w) = (upload(&twin, &a_bits), upload(&twin, &b_bits));
        let c = twin.allocate(64 * 64 * 4).unwrap();
        let launch = Launch {
            kernel: Kernel { file: "works", name: "product_64" },
            grid: [1, 1, 1],
            block: [128, 1, 1],
            shared: 2 * 2 * 64 * 40 * 2,
            args: Args::new().address(x).address(w).address(c).int(k),
        };
        // SAFETY: the twin checks arguments and accesses.
        unsafe { twin.launch(&launch) }.unwrap();
        let c: Vec<f32> = download(&twin, c, 64 * 64);
        for i in 0..64 {
            for j in 0..64 {
                let exact: f64 = (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[j * k + l])).sum();
                assert!((f64::from(c[i * 64 + j]) - exact).abs() < 1e-4, "{dtype} {i} {j}");
            }
        }
    }
}

/// Launches a kernel of broken.cu on one block (two for those that need another) and gives the message.
fn report(twin: &Twin, name: &'static str, threads: u32, blocks: u32, shared: usize, args: Args) -> String {
    let kernel = Kernel { file: "broken", name };
    let launch = Launch { kernel, grid: [blocks, 1, 1], block: [threads, 1, 1], shared, args };
    // SAFETY: the twin checks arguments and accesses.
    match unsafe { twin.launch(&launch) } {
        Ok(()) => panic!("{name} went unnoticed"),
        Err(error) => error.to_string(),
    }
}

/// All parts, in this order.
#[track_caller]
fn says(message: &str, parts: &[&str]) {
    println!("{message}");
    let mut rest = message;
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else { panic!("no {part:?} in: {message}") };
        rest = after;
    }
}

fn broken(dtype: DType) -> Twin {
    let sources = Sources::embedded().with_file("broken.cu", include_str!("host_twin/broken.cu"));
    let twin = Twin::with_sources(sources, dtype, 90).unwrap();
    twin.set_block_order(BlockOrder::Ascending);
    twin
}

/// 64 floats to read and 64 to write.
fn two_buffers(twin: &Twin) -> (Address, Address) {
    (upload(twin, &[1.0f32; 64]), upload(twin, &[0.0f32; 64]))
}

#[test]
fn races_in_shared_memory_are_reported() {
    let twin = broken(DType::F32);
    let (x, y) = two_buffers(&twin);
    let both = Args::new().address(x).address(y);
    let said = |name, threads| report(&twin, name, threads, 1, 0, both);
    let start = "host twin: broken.cu, race_read: block (0,0,0): thread (1,0,0): race: reads byte ";
    let wrote = "which thread (0,0,0) wrote at kernels/broken.cu:";
    says(&said("race_read", 64), &[start, " at kernels/broken.cu:", wrote, "with no barrier between"]);
    let read = "which thread (0,0,0) read at kernels/broken.cu:";
    says(&said("race_overwrite", 64), &["thread (1,0,0): race: writes byte", read]);
    says(&said("race_write", 64), &["thread (1,0,0): race: writes byte", wrote]);
    says(&said("race_in_warp", 32), &["race: ", "no barrier between"]);
    says(&said("race_across_masks", 32), &["race: reads", "no barrier between"]);
    let atomic = report(&twin, "race_with_atomic", 64, 1, 0, Args::new().address(y));
    says(&atomic, &["race: ", "no barrier between"]);
}

#[test]
fn divergence_is_reported() {
    let twin = broken(DType::F32);
    let (x, y) = two_buffers(&twin);
    let only_y = Args::new().address(y);
    let two = report(&twin, "two_barriers", 64, 1, 0, only_y);
    says(
        &two,
        &[
            "two_barriers: block",
            "thread (32,0,0): reached __syncthreads at kernels/broken.cu:",
            "others wait",
        ],
    );
    let mixed = report(&twin, "divergent_barrier", 32, 1, 0, only_y);
    says(
        &mixed,
        &[
            "no thread can go on",
            "threads 0 to 15 wait in __syncthreads at",
            "threads 16 to 31 wait in __syncwarp at",
        ],
    );
    let lanes = report(&twin, "missing_lanes", 32, 1, 0, Args::new().address(x).address(y));
    says(
        &lanes,
        &[
            "no thread can go on",
            "threads 16 to 31 have returned",
            "threads 0 to 15 wait in __shfl_xor_sync at kernels/prelude.cuh:",
        ],
    );
    let foreign = report(&twin, "foreign_mask", 32, 1, 0, only_y);
    says(&foreign, &["thread (16,0,0): __shfl_sync at", "0000ffff", "without its own lane"]);
}

#[test]
fn accesses_out_of_bounds_are_reported() {
    let twin = broken(DType::F32);
    let (x, y) = two_buffers(&twin);
    let (both, only_y) = (Args::new().address(x).address(y), Args::new().address(y));
    let said = |name, args| report(&twin, name, 64, 1, 256, args);
    let beyond = "byte 256 of a buffer of 256 bytes";
    says(
        &said("read_beyond", both),
        &["thread (63,0,0): out of bounds: read of 4 bytes at kernels/broken.cu:", beyond],
    );
    says(&said("write_beyond", only_y), &["thread (63,0,0): out of bounds: write of 4 bytes at", beyond]);
    says(&said("write_before", only_y), &["thread (0,0,0): out of bounds: write of 4 bytes at"]);
    says(
        &said("atomic_beyond", only_y),
        &["thread (63,0,0): out of bounds: atomicAdd of 4 bytes at", beyond],
    );
    says(
        &said("write_null", Args::new().optional(None)),
        &["out of bounds: write of 4 bytes at", "a null pointer"],
    );
    let shared = "byte 256 of 256 bytes of dynamic shared memory";
    says(&said("shared_beyond", only_y), &["thread (63,0,0): out of bounds: write of 4 bytes at", shared]);
    twin.free(y);
    says(&said("write_beyond", only_y), &["thread (0,0,0): out of bounds: write of 4 bytes at"]);
}

#[test]
fn misaligned_accesses_are_reported() {
    let twin = broken(DType::F16);
    let (x, y) = two_buffers(&twin);
    let both = Args::new().address(x).address(y);
    let pack = report(&twin, "misaligned_pack", 8, 1, 0, both);
    let from = "load_pack of 16 bytes at kernels/prelude.cuh:";
    says(&pack, &["misaligned: ", from, "(from kernels/broken.cu:", "no multiple of 16"]);
    let cast = report(&twin, "misaligned_cast", 8, 1, 0, both);
    says(&cast, &["thread (1,0,0): misaligned: read of 4 bytes at kernels/broken.cu:", "no multiple of 4"]);
    let copy = report(&twin, "copy_misaligned", 1, 1, 0, Args::new().address(x));
    says(&copy, &["misaligned: cp.async from global memory of 16 bytes"]);
    let matrix = report(&twin, "ldmatrix_misaligned", 32, 1, 0, Args::new().address(y));
    says(&matrix, &["misaligned: ldmatrix of 16 bytes at kernels/prelude.cuh:", "(from kernels/broken.cu:"]);
}

#[test]
fn reads_of_unwritten_shared_memory_are_reported() {
    let twin = broken(DType::F32);
    let (_, y) = two_buffers(&twin);
    let only_y = Args::new().address(y);
    let half = report(&twin, "unwritten_shared", 64, 1, 0, only_y);
    says(
        &half,
        &[
            "thread (63,0,0): reads byte 252 of",
            "held of static shared memory at kernels/broken.cu:",
            "not written",
        ],
    );
    let left = report(&twin, "left_by_another_block", 64, 2, 0, only_y);
    says(&left, &["block (1,0,0): thread (63,0,0): reads byte", "not written"]);
}

#[test]
fn copies_that_were_not_waited_for_are_reported() {
    let twin = broken(DType::F16);
    let (x, y) = two_buffers(&twin);
    let both = Args::new().address(x).address(y);
    let said = |name| report(&twin, name, 32, 1, 0, both);
    let missing = "has not arrived: a cp_async_wait is missing or lets too many groups pend";
    says(
        &said("copy_without_wait"),
        &["reads byte", "of copy_in_groups", "held", "at kernels/broken.cu:", missing],
    );
    says(
        &said("copy_with_weak_wait"),
        &["reads byte", "of copy_in_groups", "held", "at kernels/broken.cu:", missing],
    );
    says(&said("copy_without_barrier"), &["race: ", "no barrier between"]);
    says(&said("copy_over_readers"), &["race: writes byte", "read at kernels/broken.cu:"]);

    let kernel = Kernel { file: "broken", name: "copy_with_wait" };
    let launch = Launch { kernel, grid: [1, 1, 1], block: [32, 1, 1], shared: 0, args: both };
    // SAFETY: the twin checks arguments and accesses.
    unsafe { twin.launch(&launch) }.expect("the same kernel with the right wait is fine");
    assert_eq!(download::<f32>(&twin, y, 64), [1.0; 64]);
}

#[test]
fn launches_that_a_driver_would_refuse_are_refused() {
    let twin = broken(DType::F32);
    let (x, y) = two_buffers(&twin);
    let both = Args::new().address(x).address(y);
    let said = |args| report(&twin, "race_read", 64, 1, 0, args);
    says(
        &said(Args::new().address(x)),
        &["broken.cu, race_read: launched with arguments of [8] bytes", "[8, 8]"],
    );
    says(&said(both.int(1)), &["arguments of [8, 8, 4] bytes", "[8, 8]"]);
    says(&said(Args::new().address(x).int(1)), &["arguments of [8, 4] bytes", "[8, 8]"]);
    let much = report(&twin, "race_read", 64, 1, (227 << 10) + 1, both);
    says(&much, &["race_read: 232449 bytes of shared memory, the device has 232448 per block"]);
    says(
        &report(&twin, "race_read", 1025, 1, 0, both),
        &["race_read: a block of [1025, 1, 1] threads", "1024"],
    );
    says(&report(&twin, "race_read", 64, 0, 0, both), &["race_read: a grid of [0, 1, 1] blocks"]);
    says(&report(&twin, "absent", 64, 1, 0, both), &["kernels/broken.cu exports no kernel absent"]);
}
