//! The host twin itself: right kernels give right results, and each kind of mistake is reported.

use clip_engine::backend::cuda::driver::{Address, Args, Driver, Kernel, Launch};
use clip_engine::backend::cuda::source::Sources;
use clip_engine::backend::cuda::twin::Twin;
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
