//! The host twin itself: right kernels give right results, and each kind of mistake is reported.

use clip_engine::backend::cuda::driver::{Address, Args, Driver, Gemm, Kernel, Launch};
use clip_engine::backend::cuda::kernel_sources::Sources;
use clip_engine::backend::cuda::{Cuda, LoraForm};
use clip_engine::dev::ops::Group;
use clip_engine::dev::ops::device::{Scope, rows};
use clip_engine::dev::twin::{BlockOrder, Rounding, Twin};
use clip_engine::tensor::DType;
use std::sync::Arc;

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

/// Launches a kernel of works.cu.
#[track_caller]
fn run(twin: &Twin, name: &'static str, grid: [u32; 3], block: [u32; 3], shared: usize, args: Args) {
    let kernel = Kernel { file: "works", name };
    // SAFETY: the twin checks arguments and accesses.
    unsafe { twin.launch(&Launch { kernel, grid, block, shared, cooperative: false, args }) }.unwrap();
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

/// The bits of `values` in 16 bits, and the numbers that they stand for.
fn rounded(dtype: DType, values: &[f32]) -> (Vec<u16>, Vec<f32>) {
    let round = |&v: &f32| match dtype {
        DType::F16 => (half::f16::from_f32(v).to_bits(), half::f16::from_f32(v).to_f32()),
        _ => (half::bf16::from_f32(v).to_bits(), half::bf16::from_f32(v).to_f32()),
    };
    values.iter().map(round).unzip()
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_block_sum_is_shared_by_all_threads() {
    let twin = twin(DType::F32);
    let (rows, columns) = (5, 300);
    let x: Vec<f32> = (0..rows * columns).map(|i| (i % 7 + 1) as f32).collect();
    let from = upload(&twin, &x);
    let to = twin.allocate(x.len() * 4).unwrap();
    let args = Args::new().address(from).address(to).int(columns);
    run(&twin, "share_of_row", [rows as u32, 1, 1], [256, 1, 1], 0, args);
    let y: Vec<f32> = download(&twin, to, x.len());
    for (x, y) in x.chunks(columns).zip(y.chunks(columns)) {
        let sum: f32 = x.iter().sum();
        for (x, y) in x.iter().zip(y) {
            assert!((x / sum - y).abs() < 1e-6);
        }
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn shuffles_reach_the_lanes_they_name() {
    let twin = twin(DType::F32);
    let x: Vec<i32> = (0..32).map(|i| 100 + i).collect();
    let y = twin.allocate(7 * 32 * 4).unwrap();
    run(&twin, "shuffles", [1, 1, 1], [32, 1, 1], 0, Args::new().address(upload(&twin, &x)).address(y));
    let y: Vec<i32> = download(&twin, y, 7 * 32);
    for lane in 0..32 {
        let sources = [
            (lane + 5) % 32,
            lane / 8 * 8 + 3,
            if lane < 2 { lane } else { lane - 2 },
            if lane % 8 < 2 { lane } else { lane - 2 },
            if lane > 28 { lane } else { lane + 3 },
            if lane % 16 > 12 { lane } else { lane + 3 },
            lane ^ 12,
        ];
        for (i, &source) in sources.iter().enumerate() {
            assert_eq!(y[i * 32 + lane], x[source], "shuffle {i}, lane {lane}");
        }
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn groups_of_lanes_can_go_different_ways() {
    let twin = twin(DType::F32);
    let x: Vec<i32> = (0..64).collect();
    let (sums, votes) = (twin.allocate(64 * 4).unwrap(), twin.allocate(64 * 4).unwrap());
    let args = Args::new().address(upload(&twin, &x)).address(sums).address(votes);
    run(&twin, "partial_masks", [1, 1, 1], [64, 1, 1], 0, args);
    let (sums, votes): (Vec<i32>, Vec<u32>) = (download(&twin, sums, 64), download(&twin, votes, 64));
    for t in 0..64 {
        let group = t / 8 * 8;
        let sum: i32 = (group..group + 8).map(|i| x[i]).sum();
        let expected = sum * 8i32.pow((t % 32 / 8) as u32);
        assert_eq!(sums[t], if t == 0 { -expected } else { expected }, "thread {t}");
        let first = t / 32 * 32;
        let expected = match (t % 32 < 16, t / 32) {
            (true, _) => (0..16).filter(|i| x[first + i] % 3 == 0).map(|i| 1 << i).sum::<u32>(),
            (false, 0) => 0b11,
            (false, _) => 0b01,
        };
        assert_eq!(votes[t], expected, "thread {t}");
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn warp_barriers_order_shared_memory() {
    let twin = twin(DType::F32);
    let x: Vec<i32> = (0..64).collect();
    let y = twin.allocate(64 * 4).unwrap();
    run(&twin, "pass_on", [1, 1, 1], [64, 1, 1], 0, Args::new().address(upload(&twin, &x)).address(y));
    let y: Vec<i32> = download(&twin, y, 64);
    for (t, &found) in y.iter().enumerate() {
        let (warp, lane) = (t / 32, t % 32);
        let passed = warp * 32 + (lane + warp + 1) % 32;
        assert_eq!(found, passed as i32 + if lane == 0 { 1000 } else { 0 });
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn blocks_meet_in_atomics_in_any_order() {
    let twin = twin(DType::F32);
    let x: Vec<u32> = (0..5 * 64).map(|i| (i * 37) % 1009).collect();
    for order in [BlockOrder::Ascending, BlockOrder::Descending, BlockOrder::Shuffled(7)] {
        twin.set_block_order(order);
        let counter = upload(&twin, &[0u32]);
        let (maximum, least, bits) = (upload(&twin, &[0u32]), upload(&twin, &[0i32]), upload(&twin, &[0u32]));
        let (parts, sum) = (twin.allocate(5 * 4).unwrap(), twin.allocate(4).unwrap());
        let args = Args::new().address(upload(&twin, &x)).address(counter).address(maximum).address(least);
        let args = args.address(bits).address(parts).address(sum);
        run(&twin, "over_blocks", [5, 1, 1], [64, 1, 1], 0, args);
        assert_eq!(download::<u32>(&twin, counter, 1), [0], "ready for the next launch");
        assert_eq!(download::<u32>(&twin, maximum, 1)[0], *x.iter().max().unwrap());
        assert_eq!(download::<i32>(&twin, least, 1)[0], -(*x.iter().max().unwrap() as i32));
        assert_eq!(download::<u32>(&twin, bits, 1)[0], x.iter().fold(0, |all, v| all | 1 << (v % 32)));
        let odd = x.iter().filter(|&v| v % 2 == 1).count();
        assert_eq!(download::<f32>(&twin, sum, 1), [odd as f32]);
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn indices_have_three_dimensions() {
    let twin = twin(DType::F32);
    let (rows, blocks) = (50, 12);
    let y = twin.allocate(blocks * rows * 4).unwrap();
    run(&twin, "indices", [2, 3, 2], [3, 4, 5], 60 * 4, Args::new().address(y).int(rows));
    let y: Vec<i32> = download(&twin, y, blocks * rows);
    for (i, &found) in y.iter().enumerate() {
        assert_eq!(found as usize, 1000 * (i / rows) + rows - 1 - i % rows);
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn neighbouring_bytes_are_no_race() {
    let twin = twin(DType::F32);
    let y = twin.allocate(64).unwrap();
    run(&twin, "narrow_neighbours", [1, 1, 1], [32, 1, 1], 0, Args::new().address(y));
    let y: Vec<u16> = download(&twin, y, 32);
    for (t, &found) in y.iter().enumerate() {
        assert_eq!(found as usize, 3 * (31 - t) + (t ^ 1));
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn half_precision_is_converted_exactly() {
    let twin = twin(DType::F32);
    let x: Vec<u16> = (0..=u16::MAX).collect();
    // Bits spread over all floats, and those around the ties of f16.
    let spread = (0..1u32 << 15).map(|i| i.wrapping_mul(2_654_435_761));
    let ties = (0..1u32 << 15).map(|i| 0x3300_0000 + (i << 12) + (i % 3) - 1);
    let y: Vec<f32> = spread.chain(ties).map(f32::from_bits).collect();
    let (wide, narrow) = (twin.allocate(x.len() * 4).unwrap(), twin.allocate(x.len() * 2).unwrap());
    let args = Args::new().address(upload(&twin, &x)).address(wide).address(upload(&twin, &y));
    run(&twin, "halves", [256, 1, 1], [256, 1, 1], 0, args.address(narrow).int(x.len()));
    for (bits, found) in x.iter().zip(download::<f32>(&twin, wide, x.len())) {
        let exact = half::f16::from_bits(*bits).to_f32();
        assert!(exact == found || exact.is_nan() && found.is_nan(), "{bits:#x}: {found}, not {exact}");
    }
    for (value, found) in y.iter().zip(download::<u16>(&twin, narrow, y.len())) {
        let exact = half::f16::from_f32(*value);
        let found = half::f16::from_bits(found);
        assert!(exact.to_bits() == found.to_bits() || exact.is_nan() && found.is_nan(), "{value}: {found}");
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn fragments_of_tensor_cores_match_plain_loops() {
    for dtype in [DType::F16, DType::BF16] {
        let twin = twin(dtype);
        let ((a_bits, a), (b_bits, b)) = (rounded(dtype, &noise(256, 3)), rounded(dtype, &noise(128, 4)));
        let c = twin.allocate(16 * 8 * 4).unwrap();
        let args = Args::new().address(upload(&twin, &a_bits)).address(upload(&twin, &b_bits)).address(c);
        run(&twin, "one_mma", [1, 1, 1], [32, 1, 1], 0, args);
        for (i, found) in download::<f32>(&twin, c, 16 * 8).into_iter().enumerate() {
            let exact: f32 = (0..16).map(|k| a[i / 8 * 16 + k] * b[k * 8 + i % 8]).sum();
            assert!((found - exact).abs() < 1e-5, "{dtype} {i}: {found}, not {exact}");
        }
    }
}

/// Unwatched launches compute the same, from memory that nobody has written too.
#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn what_is_not_watched_is_computed_all_the_same() {
    for dtype in [DType::F32, DType::BF16] {
        let of = |twin: Twin| {
            let cuda = Cuda::new(Arc::new(twin), dtype, LoraForm::Auto).unwrap();
            rows(&cuda, Scope::Quick, &[Group::LayerNorm, Group::L2Norm]).unwrap()
        };
        let twin = || Twin::new(dtype, 90).unwrap();
        let (watched, unwatched) = (of(twin()), of(twin().unwatched()));
        assert!(watched.len() > 10 && watched.len() == unwatched.len());
        for (a, b) in watched.iter().zip(&unwatched) {
            assert!(
                a.passed() && a.error == b.error,
                "{dtype} {} at {}: {}, {}",
                a.name,
                a.at,
                a.error,
                b.error
            );
        }
    }
}

fn twin_of_a_device(dtype: DType, seed: u32) -> Twin {
    twin(dtype).with_rounding(Rounding::Device { seed }).unwrap()
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_device_fuses_and_approximates_as_documented() {
    let once = 1.0f32 + 2f32.powi(-12);
    let x = [once, once, once * once, 3.7, 0.3, f32::NEG_INFINITY];
    let found = |twin: Twin| {
        let (x, y) = (upload(&twin, &x), twin.allocate(11 * 4).unwrap());
        run(&twin, "roundings", [1; 3], [1; 3], 0, Args::new().address(x).address(y));
        download::<f32>(&twin, y, 11)
    };
    let exact = found(twin(DType::F32));
    let devices: Vec<_> = (0..16).map(|seed| found(twin_of_a_device(DType::F32, seed))).collect();
    assert_eq!(exact[0], 0.0);
    // Units in the last place, in the order of the kernel's lines.
    for (i, ulps) in [(1, 2), (2, 1), (3, 2), (4, 2), (5, 2), (6, 4), (7, 6), (8, 0), (9, 0), (10, 0)] {
        let off = |device: &Vec<f32>| device[i].to_bits().abs_diff(exact[i].to_bits());
        assert!(devices.iter().all(|device| off(device) == ulps), "line {i}");
        let up = devices.iter().filter(|device| device[i] > exact[i]).count();
        assert!(ulps == 0 || (2..=14).contains(&up), "line {i}: {up} of 16 seeds go up");
    }
    assert!(devices.iter().all(|device| device[0] == 2f32.powi(-24)), "a fused multiply-add loses nothing");
}

/// As kernels/twin/tensor_core.h has it.
#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_devices_tensor_cores_cut_sums_off() {
    let twin = twin_of_a_device(DType::F16, 0);
    // Each row of a has 1 or -1 first and a factor at some places, each for a product with 2^-12.
    let (half, unit) = (2f32.powi(-12), 2f32.powi(-23));
    let rows: [(f32, f32, &[usize], f32); 5] = [
        (1.0, half, &[1, 2], 1.0 + unit),
        (1.0, half, &[1, 2, 3], 1.0 + unit),
        (-1.0, -half, &[1, 2, 3], -1.0 - unit),
        (1.0, half, &[1, 8], 1.0),
        (1.0, half / 2.0, &[1, 2, 3, 4, 5, 6, 7], 1.0),
    ];
    let (mut a, mut b) = ([0.0; 16 * 16], [half; 16 * 8]);
    b[..8].fill(1.0);
    for (row, (one, factor, places, _)) in a.chunks_mut(16).zip(rows) {
        row[0] = one;
        places.iter().for_each(|&k| row[k] = factor);
    }
    let (a, b) = (rounded(DType::F16, &a).0, rounded(DType::F16, &b).0);
    let c = twin.allocate(16 * 8 * 4).unwrap();
    let args = Args::new().address(upload(&twin, &a)).address(upload(&twin, &b)).address(c);
    run(&twin, "one_mma", [1, 1, 1], [32, 1, 1], 0, args);
    let c: Vec<f32> = download(&twin, c, 16 * 8);
    for (found, (one, factor, places, sum)) in c.chunks(8).zip(rows) {
        assert_eq!(found, [sum; 8], "{one}, {factor:e} at {places:?}");
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn ldmatrix_hands_out_what_loads_by_hand_do() {
    let twin = twin(DType::F16);
    let x: Vec<u16> = (0..256).collect();
    let (loaded, by_hand) = (twin.allocate(512 * 4).unwrap(), twin.allocate(512 * 4).unwrap());
    let args = Args::new().address(upload(&twin, &x)).address(loaded).address(by_hand);
    run(&twin, "fragments", [1, 1, 1], [32, 1, 1], 0, args);
    let loaded: Vec<u32> = download(&twin, loaded, 512);
    assert_eq!(loaded, download::<u32>(&twin, by_hand, 512));
    assert_eq!(
        loaded[..4],
        [0x0001_0000, 0x0003_0002, 0x0005_0004, 0x0007_0006],
        "the first row of the first"
    );
    assert_eq!(loaded[128..132], [0x0008_0000, 0x0018_0010, 0x0028_0020, 0x0038_0030], "its first column");
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_pipelined_product_on_tensor_cores_matches_plain_loops() {
    let k = 200;
    for dtype in [DType::F16, DType::BF16] {
        let twin = twin(dtype);
        let (a_bits, a) = rounded(dtype, &noise(64 * k, 1));
        let (b_bits, b) = rounded(dtype, &noise(64 * k, 2));
        let c = twin.allocate(64 * 64 * 4).unwrap();
        let args = Args::new().address(upload(&twin, &a_bits)).address(upload(&twin, &b_bits)).address(c);
        run(&twin, "product_64", [1, 1, 1], [128, 1, 1], 2 * 2 * 64 * 40 * 2, args.int(k));
        for (i, found) in download::<f32>(&twin, c, 64 * 64).into_iter().enumerate() {
            let terms = (0..k).map(|l| f64::from(a[i / 64 * k + l]) * f64::from(b[i % 64 * k + l]));
            assert!((f64::from(found) - terms.sum::<f64>()).abs() < 1e-4, "{dtype} {i}");
        }
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_capture_runs_when_it_is_replayed_and_not_before() {
    let twin = twin(DType::F32);
    let x = upload(&twin, &[1.0f32, 2.0, 3.0, 4.0]);
    let (y, z) = (upload(&twin, &[9.0f32; 4]), upload(&twin, &[9.0f32; 8]));
    twin.begin_capture().unwrap();
    let args = Args::new().address(x).address(y).int(4);
    run(&twin, "share_of_row", [1, 1, 1], [32, 1, 1], 0, args);
    twin.clear(z, 16).unwrap();
    twin.copy(z.offset(16), y, 16).unwrap();
    let during = twin.download(y, &mut [0; 16]).unwrap_err().to_string();
    says(&during, &["download during a capture"]);
    says(&twin.synchronize().unwrap_err().to_string(), &["synchronize during a capture"]);
    let graph = twin.end_capture().unwrap();
    assert_eq!(download::<f32>(&twin, y, 4), [9.0; 4]);
    twin.replay(&*graph).unwrap();
    assert_eq!(download::<f32>(&twin, y, 4), [0.1, 0.2, 0.3, 0.4]);
    assert_eq!(download::<f32>(&twin, z, 8), [0.0, 0.0, 0.0, 0.0, 0.1, 0.2, 0.3, 0.4]);
    twin.upload(x, bytemuck::cast_slice(&[4.0f32, 3.0, 2.0, 1.0])).unwrap();
    twin.replay(&*graph).unwrap();
    assert_eq!(download::<f32>(&twin, y, 4), [0.4, 0.3, 0.2, 0.1]);
}

/// As the GPU's driver does it.
#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn an_error_ends_a_capture_and_nothing_else() {
    let twin = twin(DType::F32);
    let x = upload(&twin, &[1.0f32, 1.0, 2.0, 4.0]);
    let y = upload(&twin, &[9.0f32; 4]);
    let share =
        || run(&twin, "share_of_row", [1; 3], [32, 1, 1], 0, Args::new().address(x).address(y).int(4));
    twin.begin_capture().unwrap();
    twin.clear(y, 16).unwrap();
    let problem = twin.clear(y, 32).unwrap_err().to_string();
    share();
    assert_eq!(download::<f32>(&twin, y, 4), [0.125, 0.125, 0.25, 0.5], "no capture is open");
    let message = twin.end_capture().err().unwrap().to_string();
    says(&message, &["an error ended the capture", &problem]);
    says(&twin.end_capture().err().unwrap().to_string(), &["without begin_capture"]);
    twin.begin_capture().unwrap();
    twin.clear(y, 16).unwrap();
    says(&twin.begin_capture().unwrap_err().to_string(), &["open already; both are thrown away"]);
    twin.begin_capture().unwrap();
    share();
    twin.replay(&*twin.end_capture().unwrap()).unwrap();
    assert_eq!(download::<f32>(&twin, y, 4), [0.125, 0.125, 0.25, 0.5]);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn products_take_strides_bias_and_addend() {
    let (m, n, k) = (5, 7, 6);
    let roundings = [Rounding::EachOperation, Rounding::Device { seed: 0 }];
    let types = [DType::F16, DType::BF16, DType::F32];
    for (dtype, rounding) in types.into_iter().flat_map(|dtype| roundings.map(|rounding| (dtype, rounding))) {
        let twin = twin(dtype).with_rounding(rounding).unwrap();
        let put = |values: &[f32]| match dtype {
            DType::F32 => (upload(&twin, values), values.to_vec()),
            _ => {
                let (bits, numbers) = rounded(dtype, values);
                (upload(&twin, &bits), numbers)
            }
        };
        for transposed in [false, true] {
            let ((x_at, x), (w_at, w)) = (put(&noise(m * 8, 5)), put(&noise(9 * 9, 6)));
            let ((bias_at, bias), (y_at, add)) = (put(&noise(n, 7)), put(&noise(m * 10, 8)));
            let gemm = Gemm {
                m,
                n,
                k,
                x: x_at,
                x_stride: 8,
                w: w_at,
                w_stride: 9,
                transposed,
                bias: Some(bias_at),
                add: Some(y_at),
                y: y_at,
                y_stride: 10,
                dtype,
            };
            // SAFETY: the twin checks the addresses.
            unsafe { twin.gemm(&gemm) }.unwrap();
            let y: Vec<f32> = match dtype {
                DType::F32 => download(&twin, y_at, m * 10),
                DType::F16 => download::<half::f16>(&twin, y_at, m * 10).iter().map(|v| v.to_f32()).collect(),
                _ => download::<half::bf16>(&twin, y_at, m * 10).iter().map(|v| v.to_f32()).collect(),
            };
            let tolerance = if dtype == DType::BF16 { 2e-2 } else { 2e-3 };
            for i in 0..m {
                for j in 0..10 {
                    let w = |l: usize| if transposed { w[j * 9 + l] } else { w[l * 9 + j] };
                    let sum = || (0..k).map(|l| x[i * 8 + l] * w(l)).sum::<f32>() + bias[j];
                    let exact = add[i * 10 + j] + if j < n { sum() } else { 0.0 };
                    assert!((y[i * 10 + j] - exact).abs() <= if j < n { tolerance } else { 0.0 });
                }
            }
            let beyond = Gemm { y: y_at.offset(16), ..gemm };
            // SAFETY: as above; it is refused.
            let message = unsafe { twin.gemm(&beyond) }.unwrap_err().to_string();
            says(&message, &["product's y: ", "bytes from byte 16 on, in a buffer of"]);
        }
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn memory_is_poisoned_counted_and_bounded() {
    let twin = twin(DType::F32);
    let before = twin.allocated();
    let a = twin.allocate(100).unwrap();
    assert_eq!(a.0 % 256, 0);
    assert!(download::<f32>(&twin, a, 25).iter().all(|v| v.is_nan()));
    assert_eq!(twin.allocated(), (before.0 + 100, before.1.max(before.0 + 100)));
    let beyond = twin.upload(a.offset(90), &[0; 11]).unwrap_err().to_string();
    says(&beyond, &["upload: 11 bytes from byte 90 on, in a buffer of 100 bytes"]);
    says(&twin.clear(a.offset(100), 1).unwrap_err().to_string(), &["clear: 1 bytes at"]);
    says(&twin.copy(a, a.offset(1), 100).unwrap_err().to_string(), &["copy from: 100 bytes from byte 1 on"]);
    twin.free(a);
    assert_eq!(twin.allocated().0, before.0);
    says(&twin.download(a, &mut [0]).unwrap_err().to_string(), &["download: 1 bytes at", "not allocated"]);
    let small = Twin::new(DType::F32, 90).unwrap().with_memory(64 << 20);
    small.allocate(48 << 20).unwrap();
    let much = small.allocate(32 << 20).unwrap_err().to_string();
    says(&much, &["out of GPU memory: 32 MiB more were asked for, 16 MiB of 64 MiB are free"]);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_kernel_that_does_not_compile_shows_the_compilers_log() {
    let cases = [
        ("float v = nothing;", &["kernels/wrong.cu does not compile", "wrong.cu:2", "nothing"][..]),
        // Sums of floats in the order of arrival would differ from run to run.
        ("atomicAdd(y, 1.0f);", &["kernels/wrong.cu does not compile", "atomicAdd"]),
    ];
    for (body, parts) in cases {
        let text =
            format!("#include \"prelude.cuh\"\nextern \"C\" __global__ void wrong(float* y) {{ {body} }}\n");
        let twin =
            Twin::with_sources(Sources::embedded().with_file("wrong.cu", &text), DType::F32, 90).unwrap();
        let kernel = Kernel { file: "wrong", name: "wrong" };
        let launch =
            Launch { kernel, grid: [1; 3], block: [1; 3], shared: 0, cooperative: false, args: Args::new() };
        // SAFETY: it never runs.
        says(&unsafe { twin.launch(&launch) }.unwrap_err().to_string(), parts);
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn every_kernel_of_the_engine_compiles() {
    // Without tensor cores f16 and bf16 are other code; f32 is the same on every device.
    let devices =
        [(DType::F32, 90), (DType::F16, 90), (DType::BF16, 90), (DType::F16, 75), (DType::BF16, 75)];
    for (dtype, compute_capability) in devices {
        Twin::new(dtype, compute_capability).unwrap().compile_all().unwrap();
    }
}

/// Launches a kernel of broken.cu on one block (two for those that need another) and gives the message.
fn report(twin: &Twin, name: &'static str, threads: u32, blocks: u32, shared: usize, args: Args) -> String {
    report_launch(twin, name, [threads, blocks], shared, args, false)
}

fn report_launch(
    twin: &Twin,
    name: &'static str,
    [threads, blocks]: [u32; 2],
    shared: usize,
    args: Args,
    cooperative: bool,
) -> String {
    let kernel = Kernel { file: "broken", name };
    let launch = Launch { kernel, grid: [blocks, 1, 1], block: [threads, 1, 1], shared, cooperative, args };
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
#[cfg_attr(not(cxx), ignore = "needs c++")]
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
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn races_in_device_memory_are_reported() {
    let twin = broken(DType::F32);
    let (x, y) = two_buffers(&twin);
    let only_y = Args::new().address(y);
    let wrote = "wrote at kernels/broken.cu:";
    let inside = report(&twin, "global_race_in_block", 64, 1, 0, Args::new().address(x).address(y));
    let buffer = "of a buffer of 256 bytes at kernels/broken.cu:";
    says(
        &inside,
        &["thread (32,0,0): race: reads byte 64", buffer, "which thread (16,0,0)", wrote, "no barrier"],
    );
    let twice = report(&twin, "global_written_twice", 32, 2, 0, only_y);
    let another = "which another block wrote at kernels/broken.cu:";
    says(&twice, &["block (1,0,0): thread (0,0,0): race: writes byte 0", another, "in the same launch"]);
    let from = report(&twin, "global_from_another_block", 1, 2, 0, only_y);
    says(&from, &["block (1,0,0): thread (0,0,0): race: reads byte 0", another, "in the same launch"]);
    let over = report(&twin, "global_over_readers", 1, 2, 0, only_y);
    says(
        &over,
        &["race: writes byte 4", "which another block read at kernels/broken.cu:", "in the same launch"],
    );
    let counter = upload(&twin, &[0u32]);
    let early = report(&twin, "count_before_result", 32, 2, 0, only_y.address(counter));
    says(&early, &["block (1,0,0)", "race: reads byte 0", another, "in the same launch"]);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_kernel_that_waits_for_another_block_is_given_up() {
    let twin = broken(DType::F32);
    let args = Args::new().address(upload(&twin, &[0i32]));
    let message = report(&twin, "waits_forever", 1, 2, 0, args);
    says(
        &message,
        &["waits_forever: block", "accesses the block still runs; the last was at kernels/broken.cu:"],
    );
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn blocks_of_a_cooperative_launch_meet() {
    const ROUNDS: usize = 5;
    for order in [BlockOrder::Ascending, BlockOrder::Descending, BlockOrder::Shuffled(7)] {
        let twin = twin(DType::F32);
        twin.set_block_order(order);
        let counter = upload(&twin, &[0u32]);
        let start = [1u32, 20, 300, 4000];
        let at = [upload(&twin, &start), upload(&twin, &[0u32; 4])];
        let args = Args::new().address(counter).address(at[0]).address(at[1]).int(ROUNDS);
        let kernel = Kernel { file: "works", name: "sums_of_all" };
        let launch =
            Launch { kernel, grid: [4, 1, 1], block: [64, 1, 1], shared: 0, cooperative: true, args };
        // SAFETY: the twin checks arguments and accesses.
        unsafe { twin.launch(&launch) }.unwrap();
        let mut expected = start.to_vec();
        for _ in 0..ROUNDS {
            let sum: u32 = expected.iter().sum();
            expected = (0..4).map(|block| sum + block).collect();
        }
        assert_eq!(download::<u32>(&twin, at[ROUNDS % 2], 4), expected, "{order:?}");
        assert_eq!(download::<u32>(&twin, counter, 1), [0], "the counter is left as it was found");
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn blocks_that_do_not_meet_as_they_should_are_reported() {
    let twin = broken(DType::F32);
    let run = |name, blocks, cooperative| {
        let args = Args::new().address(upload(&twin, &[0u32])).address(upload(&twin, &[0.0f32; 8]));
        report_launch(&twin, name, [64, blocks], 0, args, cooperative)
    };
    says(
        &run("a_block_stays_away", 4, true),
        &[
            "no thread can go on",
            "threads 1 to 63 wait in __syncthreads at kernels/prelude.cuh:",
            "threads 0 wait in a meeting at kernels/prelude.cuh:",
        ],
    );
    let another = "which another block";
    says(
        &run("reads_before_they_meet", 4, true),
        &["race: ", another, " at kernels/broken.cu:", "in the same launch"],
    );
    says(
        &run("writes_before_they_meet", 4, true),
        &["race: writes byte", another, " read at kernels/broken.cu:", "in the same launch"],
    );
    says(&run("keeps_shared_memory", 4, true), &["reads", "which this block has not written yet"]);
    says(
        &run("keeps_shared_memory", 4, false),
        &["waits for other blocks at kernels/prelude.cuh:", "the launch is not cooperative"],
    );
    says(&run("keeps_shared_memory", 5, true), &["5 blocks that wait for each other on 4 multiprocessors"]);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
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
            "(from kernels/broken.cu:",
        ],
    );
    let foreign = report(&twin, "foreign_mask", 32, 1, 0, only_y);
    says(
        &foreign,
        &["thread (16,0,0): __shfl_sync with a mask (0000ffff) without its own lane at kernels/broken.cu:"],
    );
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
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
#[cfg_attr(not(cxx), ignore = "needs c++")]
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
    let short = report(&twin, "half_a_warp", 16, 1, 0, Args::new().address(y));
    says(&short, &["mma_m16n8k16 at kernels/prelude.cuh:", "in a warp of fewer than 32 threads"]);
    says(&matrix, &["misaligned: ldmatrix of 16 bytes at kernels/prelude.cuh:", "(from kernels/broken.cu:"]);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
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
#[cfg_attr(not(cxx), ignore = "needs c++")]
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
    let launch =
        Launch { kernel, grid: [1, 1, 1], block: [32, 1, 1], shared: 0, cooperative: false, args: both };
    // SAFETY: the twin checks arguments and accesses.
    unsafe { twin.launch(&launch) }.expect("the same kernel with the right wait is fine");
    assert_eq!(download::<f32>(&twin, y, 64), [1.0; 64]);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
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
    says(&said(both.int(1 << 31).int(1 << 40)), &["race_read: a size of 2147483648 is 2³¹ or more"]);
    let much = report(&twin, "race_read", 64, 1, (227 << 10) + 1, both);
    says(&much, &["race_read: 232449 bytes of shared memory, the device has 232448 per block"]);
    says(
        &report(&twin, "race_read", 1025, 1, 0, both),
        &["race_read: a block of [1025, 1, 1] threads", "1024"],
    );
    says(&report(&twin, "race_read", 64, 0, 0, both), &["race_read: a grid of [0, 1, 1] blocks"]);
    says(&report(&twin, "absent", 64, 1, 0, both), &["kernels/broken.cu exports no kernel absent"]);
}
