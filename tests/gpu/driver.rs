//! The GPU driver (src/backend/cuda/gpu) on stand-ins for libcuda and libcublasLt: memory, copies beside the
//! running work, captured graphs, products and their plans, caches, refusals. What a GPU itself does is not
//! tested here.

use crate::stand_in::Session;
use clip_engine::backend::cuda::CudaError;
use clip_engine::backend::cuda::driver::{Address, Args, Driver, Gemm, Kernel, Launch};
use clip_engine::backend::cuda::gpu::{Gpu, GpuOptions};
use clip_engine::tensor::DType;
use half::{bf16, f16};
use std::path::{Path, PathBuf};

/// Bytes of memory as the stand-in has them unless a test says otherwise.
const ENOUGH: &str = "1073741824";

/// What the stand-in's clock says of anything that is not a product.
const STEP: f64 = 1e-6;

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

pub fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn download(gpu: &Gpu, from: Address, count: usize) -> Vec<f32> {
    let mut found = vec![0; 4 * count];
    gpu.download(from, &mut found).unwrap();
    floats(&found)
}

/// Memory with these numbers in it.
pub fn upload(gpu: &Gpu, values: &[f32]) -> Address {
    let address = gpu.allocate(4 * values.len()).unwrap();
    gpu.upload(address, &bytes(values)).unwrap();
    address
}

pub fn launch_of(name: &'static str, args: Args) -> Launch {
    let kernel = Kernel { file: "probe", name };
    Launch { kernel, grid: [1, 1, 1], block: [64, 1, 1], shared: 0, cooperative: false, args }
}

fn scaling(x: Address, y: Address, n: usize, s: f32) -> Launch {
    launch_of("probe_scale", Args::new().address(x).address(y).int(n).float(s))
}

/// y = s·x.
pub fn scale(gpu: &Gpu, x: Address, y: Address, n: usize, s: f32) -> Result<(), CudaError> {
    // SAFETY: the tests pass memory for n numbers, and these are the kernel's parameters.
    unsafe { gpu.launch(&scaling(x, y, n, s)) }
}

pub fn launch(gpu: &Gpu, launch: &Launch) -> Result<(), CudaError> {
    // SAFETY: what the tests pass is refused or right.
    unsafe { gpu.launch(launch) }
}

pub fn failure<T>(result: Result<T, CudaError>) -> String {
    result.err().expect("it was to fail").to_string()
}

// ---------------------------------------------------------------- memory

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn the_device_is_described() {
    let session = Session::begin();
    let gpu = session.probe();
    let info = gpu.info();
    assert_eq!((info.name.as_str(), info.index, info.compute_capability), ("stand-in", 0, 90));
    assert_eq!((info.multiprocessors, info.shared_memory_per_block), (4, 227 << 10));
    assert_eq!((info.l2_cache, info.memory), (1 << 10, 1 << 30));
    assert!(
        info.software.contains("CUDA 13.0, NVRTC ")
            && info.software.ends_with("cuBLASLt 13.1.0, nothing is measured")
    );
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn memory_is_counted_and_given_back() {
    let session = Session::begin();
    let gpu = session.probe();
    // The workspace of the products is not ours to count.
    let free = gpu.free_memory().unwrap();
    assert_eq!(free, gpu.info().memory - (32 << 20));
    let (a, b) = (gpu.allocate(1000).unwrap(), gpu.allocate(24).unwrap());
    assert_eq!(gpu.free_memory().unwrap(), free - 1024);
    assert!(a.0 % 256 == 0 && b.0 % 256 == 0 && a != b);
    assert_eq!(gpu.allocated(), (1024, 1024));
    gpu.free(a);
    assert_eq!(gpu.allocated(), (24, 1024));
    let c = gpu.allocate(0).unwrap();
    gpu.free(b);
    gpu.free(c);
    assert_eq!(gpu.allocated(), (0, 1024));
    assert_eq!(gpu.free_memory().unwrap(), free);
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn memory_that_runs_out_is_said_in_numbers() {
    let session = Session::begin();
    session.calls_may_fail();
    let gpu = session.probe();
    let a = gpu.allocate(64 << 20).unwrap();
    session.set("MEMORY", &(128 << 20).to_string());
    // The workspace of the products takes 32 MiB.
    let error = gpu.allocate(33 << 20).unwrap_err();
    assert_eq!(
        error.to_string(),
        "out of GPU memory: 33 MiB more were asked for, 32 MiB of 128 MiB are free"
    );
    assert_eq!(gpu.allocated(), (64 << 20, 64 << 20), "what was refused is not counted");
    let b = gpu.allocate(32 << 20).unwrap();
    gpu.free(a);
    gpu.free(b);
    assert_eq!(gpu.allocated(), (0, 96 << 20));
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn bytes_go_up_down_and_across() {
    let session = Session::begin();
    let gpu = session.probe();
    let x = upload(&gpu, &[1.0, 2.0, 3.0, 4.0]);
    let y = upload(&gpu, &[5.0, 6.0, 7.0, 8.0]);
    gpu.copy(y.offset(4), x.offset(8), 8).unwrap();
    gpu.clear(x.offset(4), 4).unwrap();
    assert_eq!(download(&gpu, y, 4), [5.0, 3.0, 4.0, 8.0]);
    assert_eq!(download(&gpu, x, 4), [1.0, 0.0, 3.0, 4.0]);
    gpu.upload(x, &[]).unwrap();
    gpu.clear(x, 0).unwrap();
    gpu.copy(x, y, 0).unwrap();
    gpu.feed(&[(x, &[])]).unwrap();
    gpu.download(x, &mut []).unwrap();
    assert_eq!(download(&gpu, x, 4), [1.0, 0.0, 3.0, 4.0]);
    gpu.free(x);
    gpu.free(y);
}

/// What was enqueued before may still need it.
#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn memory_is_given_back_behind_the_work_that_uses_it() {
    let session = Session::begin();
    let gpu = session.probe();
    let (x, y) = (upload(&gpu, &[2.0; 8]), gpu.allocate(32).unwrap());
    scale(&gpu, x, y, 8, 3.0).unwrap();
    gpu.free(x);
    assert_eq!(download(&gpu, y, 8), [6.0; 8]);
    gpu.free(y);
}

// ---------------------------------------------------------------- kernels

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn kernels_run_in_order_with_the_copies() {
    let session = Session::begin();
    let gpu = session.probe();
    let (x, y) = (upload(&gpu, &[1.0; 64]), upload(&gpu, &[0.0; 64]));
    let before = session.launches();
    for _ in 0..5 {
        scale(&gpu, x, y, 64, 2.0).unwrap();
        gpu.copy(x, y, 256).unwrap();
    }
    assert_eq!(session.launches(), before, "nothing has waited yet");
    assert_eq!(download(&gpu, x, 64), [32.0; 64]);
    assert_eq!(session.launches(), before + 5);
    gpu.free(x);
    gpu.free(y);
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn large_shared_memory_is_asked_for_first() {
    let session = Session::begin();
    let gpu = session.probe();
    let numbers: Vec<f32> = (0..64u8).map(f32::from).collect();
    let x = upload(&gpu, &numbers);
    let turn = |kib: usize| {
        let args = Args::new().address(x).int(kib * 256);
        launch(&gpu, &Launch { shared: kib << 10, ..launch_of("probe_turn", args) })
    };
    for (turns, kib) in [1, 48, 49, 227, 100].into_iter().enumerate() {
        turn(kib).unwrap();
        let mut expected = numbers.clone();
        if turns % 2 == 0 {
            expected.reverse();
        }
        assert_eq!(download(&gpu, x, 64), expected, "{kib} KiB");
    }
    assert_eq!(
        failure(turn(228)),
        "kernel probe_turn of kernels/probe.cu needs 233472 bytes of dynamic shared memory, and this device \
         has 232448 for it"
    );
    gpu.free(x);
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn launches_that_fit_no_kernel_are_refused() {
    let session = Session::begin();
    session.calls_may_fail();
    let gpu = session.probe();
    let x = upload(&gpu, &[1.0; 4]);
    let refusal = |l: Launch| failure(launch(&gpu, &l));
    assert_eq!(
        refusal(launch_of("probe_scale", Args::new().address(x).address(x).int(4))),
        "launch: kernel probe_scale of kernels/probe.cu: its parameters are of [8, 8, 4, 4] bytes, the \
         arguments of [8, 8, 4]"
    );
    assert_eq!(
        refusal(launch_of("probe_twist", Args::new())),
        "launch: kernel probe_twist of kernels/probe.cu: the file has no extern \"C\" __global__ function \
         probe_twist"
    );
    assert_eq!(
        refusal(scaling(x, x, (1 << 32) + 4, 2.0)),
        "launch: kernel probe_scale of kernels/probe.cu: a size of 4294967300 is 2³¹ or more; a smaller batch \
         may help"
    );
    let elsewhere = Kernel { file: "elsewhere", name: "probe_scale" };
    let there = Launch { kernel: elsewhere, ..scaling(x, x, 4, 2.0) };
    assert_eq!(refusal(there), "kernels/elsewhere.cu: no such kernel file");
    assert_eq!(
        refusal(Launch { block: [1025, 1, 1], ..scaling(x, x, 4, 2.0) }),
        "launch: kernel probe_scale of kernels/probe.cu: a block of [1025, 1, 1] threads, and it was compiled \
         for at most 1024"
    );
    assert_eq!(
        refusal(Launch { grid: [1, 65536, 1], ..scaling(x, x, 4, 2.0) }),
        "cuLaunchKernel: kernel probe_scale of kernels/probe.cu, grid [1, 65536, 1], block [64, 1, 1], 0 bytes \
         of shared memory: CUDA_ERROR_INVALID_VALUE (invalid argument)"
    );
    assert_eq!(
        refusal(Launch { grid: [5, 1, 1], cooperative: true, ..scaling(x, x, 4, 2.0) }),
        "cuLaunchCooperativeKernel: kernel probe_scale of kernels/probe.cu, grid [5, 1, 1], block [64, 1, 1], 0 \
         bytes of shared memory: CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE (too many blocks in cooperative launch)"
    );
    scale(&gpu, x, x, 4, 2.0).unwrap();
    assert_eq!(download(&gpu, x, 4), [2.0; 4]);
    launch(&gpu, &Launch { cooperative: true, ..scaling(x, x, 4, 2.0) }).unwrap();
    assert_eq!(download(&gpu, x, 4), [4.0; 4]);
    gpu.free(x);
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn launches_whose_blocks_wait_for_each_other_can_be_switched_off() {
    let session = Session::begin();
    for cooperative in [true, false] {
        let options = GpuOptions { cache: None, measure: false, capture: true, cooperative, overlap: true };
        let info = session.probe_with(DType::F32, options).info().clone();
        assert_eq!(info.cooperative, cooperative);
        assert_eq!(
            info.software.ends_with(", no blocks wait for each other"),
            !cooperative,
            "{}",
            info.software
        );
    }
}

/// Asked to, launches get the permission to begin early, in a capture too; the others of a step do not.
#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn launches_may_begin_while_the_one_before_ends() {
    let session = Session::begin();
    session.calls_may_fail();
    let gpu = session.probe();
    let x = gpu.allocate(16).unwrap();
    gpu.upload(x, &bytes(&[1.0; 4])).unwrap();
    let is_early = |gpu: &Gpu| {
        session.set("FAIL", "cuLaunchKernelEx:1:9876");
        let failed = scale(gpu, x, x, 4, 1.0).is_err();
        session.set("FAIL", "");
        failed
    };
    assert!(!is_early(&gpu));
    gpu.overlap(true);
    assert!(is_early(&gpu));
    scale(&gpu, x, x, 4, 2.0).unwrap();
    launch(&gpu, &Launch { cooperative: true, ..scaling(x, x, 4, 2.0) }).unwrap();
    gpu.begin_capture().unwrap();
    scale(&gpu, x, x, 4, 3.0).unwrap();
    let graph = gpu.end_capture().unwrap();
    gpu.replay(&*graph).unwrap();
    assert_eq!(download(&gpu, x, 4), [2.0 * 2.0 * 3.0; 4]);
    gpu.overlap(false);
    assert!(!is_early(&gpu));
    gpu.free(x);
    drop((graph, gpu));

    for (capability, overlap, on) in [("89", true, false), ("90", true, true), ("90", false, false)] {
        session.set("CAPABILITY", capability);
        let options = GpuOptions { cache: None, measure: false, capture: true, cooperative: true, overlap };
        let info = session.probe_with(DType::F32, options).info().clone();
        assert_eq!(info.overlap, on, "{capability}");
        assert_eq!(info.software.ends_with(", no launches overlap"), !overlap, "{}", info.software);
    }
}

// ---------------------------------------------------------------- beside the running work

/// Every batch arrives whole and in its turn, however late the device comes to it.
#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn feeds_keep_their_order_while_their_buffers_are_used_again() {
    let session = Session::begin();
    let gpu = session.probe();
    // Below, at and beyond what small buffers hold; large ones grow.
    for sizes in [vec![64], vec![64 << 10], vec![(64 << 10) + 4, 200 << 10], vec![1 << 21, 4, 80 << 10]] {
        let largest = *sizes.iter().max().unwrap();
        let fed = gpu.allocate(largest).unwrap();
        let turns = 40;
        let kept: Vec<Address> = (0..turns).map(|_| gpu.allocate(8).unwrap()).collect();
        for (turn, to) in kept.iter().enumerate() {
            let size = sizes[turn % sizes.len()];
            let mut batch = bytes(&vec![turn as f32; size / 4]);
            gpu.feed(&[(fed, &batch)]).unwrap();
            batch.fill(0xee);
            gpu.copy(*to, fed, 4).unwrap();
            gpu.copy(to.offset(4), fed.offset(size - 4), 4).unwrap();
        }
        for (turn, from) in kept.iter().enumerate() {
            assert_eq!(download(&gpu, *from, 2), [turn as f32; 2], "turn {turn} of {sizes:?}");
            gpu.free(*from);
        }
        gpu.free(fed);
    }
}

/// What is fed together arrives whole, each part where it belongs, by a transfer each: pieces that follow one another are
/// one.
#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn parts_of_a_feed_travel_together() {
    let session = Session::begin();
    session.calls_may_fail();
    let gpu = session.probe();
    for sizes in [vec![12, 0, 260, 4], vec![4, (64 << 10) + 4, 8], vec![]] {
        let places: Vec<Address> =
            sizes.iter().map(|&size: &usize| gpu.allocate(size.max(4)).unwrap()).collect();
        for turn in 0..8 {
            let values = |part: usize| bytes(&vec![(10 * turn + part) as f32; sizes[part] / 4]);
            let parts: Vec<Vec<u8>> = (0..sizes.len()).map(values).collect();
            let mut pieces: Vec<(Address, &[u8])> = Vec::new();
            for (to, part) in places.iter().zip(&parts) {
                let at = 4 * (turn % 3).min(part.len() / 4);
                pieces.extend([(*to, &part[..at]), (to.offset(at), &part[at..])]);
            }
            let transfers = sizes.iter().filter(|size| **size > 0).count();
            session.set("FAIL", &format!("cuMemcpyHtoDAsync_v2:{}:9876", transfers + 1));
            gpu.feed(&pieces).unwrap();
            session.set("FAIL", "");
            for (part, (from, size)) in places.iter().zip(&sizes).enumerate() {
                assert_eq!(
                    bytes(&download(&gpu, *from, size / 4)),
                    parts[part],
                    "turn {turn}, part {part} of {sizes:?}"
                );
            }
        }
        places.into_iter().for_each(|place| gpu.free(place));
    }
}

/// A copy from the host overwrites only what the work before it is done with.
#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn feeds_wait_for_the_work_before_them() {
    let session = Session::begin();
    let gpu = session.probe();
    let (x, y) = (upload(&gpu, &[1.0; 16]), gpu.allocate(64).unwrap());
    scale(&gpu, x, y, 16, 2.0).unwrap();
    gpu.feed(&[(x, &bytes(&[10.0; 16]))]).unwrap();
    scale(&gpu, x, x, 16, 2.0).unwrap();
    assert_eq!(download(&gpu, y, 16), [2.0; 16]);
    assert_eq!(download(&gpu, x, 16), [20.0; 16]);
    gpu.free(x);
    gpu.free(y);
}

/// Where two sets of memory are fed in turns, what is on its way to the one does not wait for the work on the other.
#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn feeds_in_turns_run_ahead_of_the_work_between_them() {
    const LARGE: usize = 40_000;
    let session = Session::begin();
    let gpu = session.probe();
    let sets: Vec<[Address; 2]> = (0..2).map(|_| [64, LARGE].map(|n| gpu.allocate(4 * n).unwrap())).collect();
    let turns = 12;
    let kept: Vec<Address> = (0..turns).map(|_| gpu.allocate(8).unwrap()).collect();
    let before = session.launches();
    for turn in 0..turns {
        let [small, large] = sets[turn % 2];
        // The last batch of an epoch is smaller.
        let n = if turn % 5 == 4 { LARGE / 2 } else { LARGE };
        let values = [vec![turn as f32; 64], vec![-(turn as f32); n]].map(|v| bytes(&v));
        gpu.feed(&[(small, &values[0]), (large, &values[1])]).unwrap();
        // The buffer was used three turns ago, by a feed that waited for the work of two turns before itself and earlier.
        if turn > 4 {
            assert_eq!(session.launches() - before, turn as i64 - 4, "turn {turn}");
        }
        scale(&gpu, small, kept[turn], 1, 2.0).unwrap();
        gpu.copy(kept[turn].offset(4), large.offset(4 * (n - 1)), 4).unwrap();
    }
    for (turn, from) in kept.iter().enumerate() {
        assert_eq!(download(&gpu, *from, 2), [2.0 * turn as f32, -(turn as f32)], "turn {turn}");
        gpu.free(*from);
    }
    sets.into_iter().flatten().for_each(|x| gpu.free(x));
}

/// Memory that is new where other memory was fed is fed behind what cleared it.
#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn feeds_of_new_memory_wait_for_all_work() {
    let session = Session::begin();
    let gpu = session.probe();
    const N: usize = 20_000;
    let sets = [0, 1].map(|_| gpu.allocate(4 * N).unwrap());
    let other = gpu.allocate(64).unwrap();
    let feed = |to: usize, value: f32| gpu.feed(&[(sets[to], &bytes(&[value; N]))]).unwrap();
    (0..4).for_each(|turn| feed(turn % 2, turn as f32));
    gpu.free(other);
    gpu.clear(sets[0], 4 * N).unwrap();
    feed(0, 9.0);
    // Until the buffer that the nines went through is used again, which is when they have arrived.
    (0..3).for_each(|_| feed(1, 0.0));
    assert_eq!(download(&gpu, sets[0], N), [9.0; N]);
    // Fed twice in a row: the second behind what was done with the first.
    scale(&gpu, sets[0], sets[1], 16, 2.0).unwrap();
    feed(0, 8.0);
    assert_eq!(download(&gpu, sets[0], N), [8.0; N]);
    assert_eq!(download(&gpu, sets[1], 16), [18.0; 16]);
    sets.into_iter().for_each(|x| gpu.free(x));
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn several_threads_may_feed_and_fetch_at_once() {
    let session = Session::begin();
    let gpu = session.probe();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let gpu = &gpu;
            scope.spawn(move || {
                let count = if thread % 2 == 0 { 16 } else { 40_000 };
                let (x, y) = (gpu.allocate(4 * count).unwrap(), gpu.allocate(4 * count).unwrap());
                for turn in 0..30 {
                    let value = (100 * thread + turn) as f32;
                    gpu.feed(&[(x, &bytes(&vec![value; count]))]).unwrap();
                    gpu.copy(y, x, 4 * count).unwrap();
                    let mut fetch = gpu.fetch(y, 4 * count).unwrap();
                    let found = floats(&fetch.wait().unwrap());
                    assert!(found.iter().all(|&v| v == value), "thread {thread}, turn {turn}");
                }
                gpu.free(x);
                gpu.free(y);
            });
        }
    });
    assert_eq!(gpu.allocated().0, 0);
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn fetches_bring_what_was_there_and_wait_only_when_asked() {
    let session = Session::begin();
    let gpu = session.probe();
    let x = upload(&gpu, &[0.0; 16]);
    let mut fetches = Vec::new();
    for turn in 0..12 {
        gpu.feed(&[(x, &bytes(&[turn as f32; 16]))]).unwrap();
        // Some are never looked at, and their memory is used again.
        drop(gpu.fetch(x, 64).unwrap());
        fetches.push(gpu.fetch(x, if turn % 2 == 0 { 64 } else { 8 }).unwrap());
    }
    assert_eq!(fetches[11].poll().unwrap(), None, "nothing has waited for it");
    for (turn, fetch) in fetches.iter_mut().enumerate() {
        let count = if turn % 2 == 0 { 16 } else { 2 };
        assert_eq!(floats(&fetch.wait().unwrap()), vec![turn as f32; count]);
    }
    assert_eq!(failure(fetches[3].wait()), "fetch: the bytes were handed out before");
    assert_eq!(failure(fetches[3].poll()), "fetch: the bytes were handed out before");
    let mut polled = gpu.fetch(x, 64).unwrap();
    let arrived = (0..100).find_map(|_| polled.poll().unwrap()).expect("it arrives while it is asked for");
    assert_eq!(floats(&arrived), [11.0; 16]);
    gpu.free(x);
    // A fetch may outlive the memory and the device's driver.
    drop(gpu);
    drop(fetches);
}

// ---------------------------------------------------------------- captured graphs

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn graphs_run_when_they_are_replayed_and_as_often() {
    let session = Session::begin();
    let gpu = session.probe();
    let (x, y) = (upload(&gpu, &[1.0; 8]), upload(&gpu, &[9.0; 8]));
    gpu.begin_capture().unwrap();
    scale(&gpu, x, x, 8, 2.0).unwrap();
    gpu.copy(y, x, 16).unwrap();
    gpu.clear(y.offset(28), 4).unwrap();
    let graph = gpu.end_capture().unwrap();
    assert_eq!(download(&gpu, x, 8), [1.0; 8]);
    assert_eq!(download(&gpu, y, 8), [9.0; 8]);
    gpu.replay(&*graph).unwrap();
    gpu.feed(&[(x, &bytes(&[5.0; 8]))]).unwrap();
    gpu.replay(&*graph).unwrap();
    gpu.replay(&*graph).unwrap();
    // What is enqueued needs it no more.
    drop(graph);
    assert_eq!(download(&gpu, x, 8), [20.0; 8]);
    assert_eq!(download(&gpu, y, 8), [20.0, 20.0, 20.0, 20.0, 9.0, 9.0, 9.0, 0.0]);
    gpu.free(x);
    gpu.free(y);
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn what_cannot_be_recorded_is_refused_and_leaves_the_capture_whole() {
    let session = Session::begin();
    let gpu = session.probe();
    let x = upload(&gpu, &[1.0; 8]);
    gpu.begin_capture().unwrap();
    let earlier = gpu.end_capture().unwrap();
    gpu.begin_capture().unwrap();
    scale(&gpu, x, x, 8, 2.0).unwrap();
    let refusals = [
        ("upload", failure(gpu.upload(x, &[0; 4]))),
        ("download", failure(gpu.download(x, &mut [0; 4]))),
        ("feed", failure(gpu.feed(&[(x, &[0; 4])]))),
        ("fetch", failure(gpu.fetch(x, 4))),
        ("replay", failure(gpu.replay(&*earlier))),
        ("synchronize", failure(gpu.synchronize())),
        ("seconds", failure(gpu.seconds(&mut || Ok(())))),
    ];
    for (call, text) in refusals {
        assert_eq!(text, format!("{call}: a capture is open, and this cannot be part of one"));
    }
    let graph = gpu.end_capture().unwrap();
    gpu.replay(&*graph).unwrap();
    assert_eq!(download(&gpu, x, 8), [2.0; 8]);
    gpu.free(x);
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn an_error_ends_a_capture_and_nothing_else() {
    let session = Session::begin();
    session.calls_may_fail();
    let gpu = session.probe();
    let x = upload(&gpu, &[1.0; 8]);
    gpu.begin_capture().unwrap();
    scale(&gpu, x, x, 8, 2.0).unwrap();
    let problem = failure(launch(&gpu, &launch_of("probe_twist", Args::new())));
    assert_eq!(failure(gpu.end_capture()), format!("end_capture: an error ended the capture: {problem}"));
    assert_eq!(failure(gpu.end_capture()), "end_capture: no capture is open");
    scale(&gpu, x, x, 8, 3.0).unwrap();
    assert_eq!(download(&gpu, x, 8), [3.0; 8], "what was captured has not run");
    gpu.begin_capture().unwrap();
    scale(&gpu, x, x, 8, 5.0).unwrap();
    gpu.replay(&*gpu.end_capture().unwrap()).unwrap();
    assert_eq!(download(&gpu, x, 8), [15.0; 8]);
    gpu.free(x);
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn a_capture_that_was_left_open_is_thrown_away() {
    let session = Session::begin();
    let gpu = session.probe();
    let x = upload(&gpu, &[1.0; 8]);
    gpu.begin_capture().unwrap();
    scale(&gpu, x, x, 8, 2.0).unwrap();
    assert_eq!(
        failure(gpu.begin_capture()),
        "begin_capture: a capture was open already; both are thrown away"
    );
    scale(&gpu, x, x, 8, 3.0).unwrap();
    assert_eq!(download(&gpu, x, 8), [3.0; 8]);
    gpu.begin_capture().unwrap();
    scale(&gpu, x, x, 8, 2.0).unwrap();
    // With the GPU itself, too.
    drop(gpu);
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn memory_may_be_given_back_while_a_capture_is_open() {
    let session = Session::begin();
    let gpu = session.probe();
    let (x, y) = (upload(&gpu, &[1.0; 8]), upload(&gpu, &[1.0; 8]));
    let free = gpu.free_memory().unwrap();
    scale(&gpu, x, y, 8, 2.0).unwrap();
    gpu.begin_capture().unwrap();
    scale(&gpu, y, y, 8, 3.0).unwrap();
    gpu.free(x);
    assert_eq!(gpu.allocated().0, 32);
    let graph = gpu.end_capture().unwrap();
    assert_eq!(gpu.free_memory().unwrap(), free + 32);
    gpu.replay(&*graph).unwrap();
    assert_eq!(download(&gpu, y, 8), [6.0; 8]);
    gpu.free(y);
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn graphs_belong_to_the_gpu_that_made_them() {
    let session = Session::begin();
    let (first, second) = (session.probe(), session.probe());
    first.begin_capture().unwrap();
    let graph = first.end_capture().unwrap();
    assert_eq!(failure(second.replay(&*graph)), "replay: the graph was made on another device");
    // In an order of no meaning: the graph is the last to go.
    drop(first);
    drop(second);
    drop(graph);
}

// ---------------------------------------------------------------- time

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn time_is_that_of_the_work_in_between() {
    let session = Session::begin();
    session.calls_may_fail();
    let gpu = session.probe();
    let x = upload(&gpu, &[1.0; 8]);
    scale(&gpu, x, x, 8, 2.0).unwrap();
    let seconds = gpu.seconds(&mut || (0..5).try_for_each(|_| scale(&gpu, x, x, 8, 2.0))).unwrap();
    assert!((seconds - 5.0 * STEP).abs() < 0.01 * STEP, "{seconds}");
    let text = failure(gpu.seconds(&mut || launch(&gpu, &launch_of("probe_twist", Args::new()))));
    assert!(text.contains("probe_twist"), "{text}");
    assert_eq!(download(&gpu, x, 8), [64.0; 8]);
    gpu.free(x);
}

// ---------------------------------------------------------------- products

fn encode(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        _ => bytes(values),
    }
}

fn decode(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        DType::F16 => pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
        DType::BF16 => pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        _ => floats(bytes),
    }
}

/// Between -1 and 1, exact in every number type.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + seed * 101) % 129) as f32 / 64.0 - 1.0).collect()
}

#[derive(Debug, Clone, Copy)]
enum Added {
    Nothing,
    Output,
    Other,
}

/// What a product is made of, and where it lies: rows of w, x and y have `gap` more elements than they need,
/// and each begins `shift` elements behind an aligned address.
#[derive(Debug, Clone, Copy)]
struct Variant {
    dtype: DType,
    transposed: bool,
    bias: bool,
    added: Added,
    gap: usize,
    shift: usize,
}

const M: usize = 5;
const N: usize = 7;
const K: usize = 6;

impl Variant {
    fn strides(&self) -> [usize; 3] {
        [K + self.gap, (if self.transposed { K } else { N }) + self.gap, N + self.gap]
    }

    /// Uploads the numbers as this variant's type, shifted; returns the allocation and where they begin.
    fn place(&self, gpu: &Gpu, values: &[f32]) -> (Address, Address) {
        self.place_shifted(gpu, values, self.shift * self.dtype.size())
    }

    /// The same for a bias, which cuBLASLt wants aligned to 16 bytes.
    fn place_bias(&self, gpu: &Gpu, values: &[f32]) -> (Address, Address) {
        self.place_shifted(gpu, values, (self.shift * self.dtype.size()).next_multiple_of(16))
    }

    /// The same, so many bytes from an aligned address.
    fn place_shifted(&self, gpu: &Gpu, values: &[f32], shift: usize) -> (Address, Address) {
        let encoded = encode(values, self.dtype);
        let memory = gpu.allocate(encoded.len() + shift).unwrap();
        gpu.upload(memory.offset(shift), &encoded).unwrap();
        (memory, memory.offset(shift))
    }

    /// Runs it `times` times, with two biases in turn, on the GPU and by plain loops, and compares all of y to
    /// the bit.
    fn check(&self, gpu: &Gpu, times: usize) {
        let [xs, ws, ys] = self.strides();
        let w_rows = if self.transposed { N } else { K };
        let (x, w) = (numbers(M * xs, 1), numbers(w_rows * ws, 2));
        let biases = [numbers(N, 3), numbers(N, 6)];
        let (other, mut y) = (numbers(M * ys, 4), numbers(M * ys, 5));
        let matrices = [&x, &w, &other, &y].map(|values| self.place(gpu, values));
        let places = biases.each_ref().map(|values| self.place_bias(gpu, values));
        let ([at_x, at_w, at_other, at_y], [first_bias, second_bias]) =
            (matrices.map(|(_, at)| at), places.map(|(_, at)| at));
        let gemm = Gemm {
            m: M,
            n: N,
            k: K,
            x: at_x,
            x_stride: xs,
            w: at_w,
            w_stride: ws,
            transposed: self.transposed,
            bias: self.bias.then_some(first_bias),
            add: match self.added {
                Added::Nothing => None,
                Added::Output => Some(at_y),
                Added::Other => Some(at_other),
            },
            y: at_y,
            y_stride: ys,
            dtype: self.dtype,
        };
        for time in 0..times {
            let bias = &biases[time % 2];
            let at_bias = [first_bias, second_bias][time % 2];
            let gemm = Gemm { bias: self.bias.then_some(at_bias), ..gemm };
            // SAFETY: every matrix was placed with the rows and strides that the product names.
            unsafe { gpu.gemm(&gemm) }.unwrap();
            for i in 0..M {
                for j in 0..N {
                    let w_at = |k: usize| if self.transposed { j * ws + k } else { k * ws + j };
                    let sum = (0..K).fold(0.0f32, |sum, k| sum + x[i * xs + k] * w[w_at(k)]);
                    let added = match self.added {
                        Added::Nothing => 0.0,
                        Added::Output => y[i * ys + j],
                        Added::Other => other[i * ys + j],
                    };
                    let sum = sum + added + if self.bias { bias[j] } else { 0.0 };
                    y[i * ys + j] = decode(&encode(&[sum], self.dtype), self.dtype)[0];
                }
            }
        }
        let mut found = vec![0; y.len() * self.dtype.size()];
        gpu.download(at_y, &mut found).unwrap();
        assert_eq!(decode(&found, self.dtype), y, "{self:?}, {times} times");
        matrices.iter().chain(&places).for_each(|(memory, _)| gpu.free(*memory));
    }
}

fn variants(dtype: DType) -> Vec<Variant> {
    let mut all = Vec::new();
    for (gap, shift) in [(0, 0), (3, 0), (2, 1), (0, 8)] {
        for added in [Added::Nothing, Added::Output, Added::Other] {
            for (transposed, bias) in [(true, true), (true, false), (false, true), (false, false)] {
                all.push(Variant { dtype, transposed, bias, added, gap, shift });
            }
        }
    }
    all
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn products_are_those_of_plain_loops() {
    let session = Session::begin();
    let cache = tempfile::tempdir().unwrap();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for measured in [true, false] {
            session.set("KERNELS", "");
            let options = GpuOptions {
                cache: Some(cache.path().into()),
                measure: measured,
                capture: true,
                cooperative: true,
                overlap: true,
            };
            let gpu = session.probe_with(dtype, options);
            // The second time there is a plan.
            variants(dtype).iter().for_each(|variant| variant.check(&gpu, 2));
            assert_eq!(gpu.allocated().0, 0);
        }
    }
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn products_without_rows_are_nothing() {
    let session = Session::begin();
    let gpu = session.probe();
    let x = upload(&gpu, &[1.0; 64]);
    let empty = Gemm { m: 0, ..square(x, x, x) };
    // SAFETY: nothing is touched.
    unsafe { gpu.gemm(&empty) }.unwrap();
    assert_eq!(download(&gpu, x, 64), [1.0; 64]);
    gpu.free(x);
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn products_that_cublaslt_refuses_are_named() {
    let session = Session::begin();
    session.calls_may_fail();
    let gpu = session.probe();
    let x = upload(&gpu, &[1.0; 64]);
    let overlapping = Gemm { x_stride: 7, ..square(x, x, x) };
    // SAFETY: it is refused.
    let text = failure(unsafe { gpu.gemm(&overlapping) });
    assert_eq!(
        text,
        "cublasLtMatmulAlgoGetHeuristic: product f32 m=8 n=8 k=8 x/7 wT/8 y/8 aligned 256 256 256 256: \
         CUBLAS_STATUS_INVALID_VALUE"
    );
    gpu.free(x);
}

/// y = x·wᵀ of 8 by 8 numbers.
pub fn square(x: Address, w: Address, y: Address) -> Gemm {
    Gemm {
        m: 8,
        n: 8,
        k: 8,
        x,
        x_stride: 8,
        w,
        w_stride: 8,
        transposed: true,
        bias: None,
        add: None,
        y,
        y_stride: 8,
        dtype: DType::F32,
    }
}

/// Three square matrices: x, w, and room for y.
pub struct Squares {
    pub at: [Address; 3],
}

impl Squares {
    pub fn new(gpu: &Gpu) -> Squares {
        Squares { at: [upload(gpu, &[1.0; 64]), upload(gpu, &[0.5; 64]), upload(gpu, &[0.0; 64])] }
    }

    pub fn run(&self, gpu: &Gpu) {
        self.try_run(gpu).unwrap();
    }

    pub fn try_run(&self, gpu: &Gpu) -> Result<(), CudaError> {
        let [x, w, y] = self.at;
        // SAFETY: the three are of the size that the product names.
        unsafe { gpu.gemm(&square(x, w, y)) }
    }

    /// The algorithm that is in use, as the clock tells: 30, 10 and 20 µs, or 4 on weights that are in the cache, and one
    /// for the step. The one that splits k is for products with a bias.
    pub fn algorithm(&self, gpu: &Gpu) -> u32 {
        let mut run = || {
            self.run(gpu);
            Ok(())
        };
        let microseconds = gpu.seconds(&mut run).unwrap() / STEP;
        match microseconds.round() as u32 {
            31 => 1,
            11 => 2,
            21 | 5 => 3,
            other => panic!("{other} µs are of no algorithm"),
        }
    }

    pub fn free(&self, gpu: &Gpu) {
        self.at.iter().for_each(|at| gpu.free(*at));
    }
}

/// The one file of choices in a cache.
fn choices_file(cache: &Path) -> PathBuf {
    let files = std::fs::read_dir(cache.join("choices")).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

/// The number of the only algorithm that is kept.
fn kept_algorithm(cache: &Path) -> String {
    let text = std::fs::read_to_string(choices_file(cache)).unwrap();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let kept = lines.fold(None, |before: Option<String>, line| {
        assert_eq!(line["map"], "gemms");
        assert_eq!(line["key"], "f32 m=8 n=8 k=8 x/8 wT/8 y/8 aligned 256 256 256 256");
        assert_eq!(line["replaces"].as_str(), before.as_deref());
        Some(line["choice"].as_str().unwrap().to_owned())
    });
    kept.unwrap()[..16].trim_start_matches('0').to_owned()
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn the_fastest_algorithm_is_measured_kept_and_checked_again() {
    let session = Session::begin();
    session.calls_may_fail();
    let cache = tempfile::tempdir().unwrap();
    let chosen = || {
        let gpu = session.probe_in(Some(cache.path().into()), DType::F32);
        let squares = Squares::new(&gpu);
        squares.run(&gpu);
        let algorithm = squares.algorithm(&gpu);
        assert_eq!(download(&gpu, squares.at[2], 64), [4.0; 64]);
        squares.free(&gpu);
        algorithm
    };
    assert_eq!(chosen(), 2);
    assert_eq!(kept_algorithm(cache.path()), "2");
    // Another one that works is believed, so nothing was measured.
    let file = choices_file(cache.path());
    let text = std::fs::read_to_string(&file).unwrap();
    let two = format!("\"{:016x}", 2);
    assert!(text.contains(&two), "{text}");
    std::fs::write(&file, text.replace(&two, &format!("\"{:016x}", 1))).unwrap();
    assert_eq!(chosen(), 1);
    // One that cuBLASLt no longer takes is replaced.
    std::fs::write(&file, &text).unwrap();
    session.set("RETIRED", "2");
    assert_eq!(chosen(), 3);
    assert_eq!(kept_algorithm(cache.path()), "3");
    for spoilt in [text.replace(&two, "\"zz"), text[..text.len() / 2].to_owned()] {
        std::fs::write(&file, spoilt).unwrap();
        assert_eq!(chosen(), 3);
        assert_eq!(kept_algorithm(cache.path()), "3");
    }
}

/// From cuBLASLt 13.3 on there is no heuristic while a stream is captured, so a product must have run before.
#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn products_are_planned_outside_of_graphs_only() {
    let session = Session::begin();
    let cache = tempfile::tempdir().unwrap();
    let gpu = session.probe_in(Some(cache.path().into()), DType::F32);
    let squares = Squares::new(&gpu);
    gpu.begin_capture().unwrap();
    let problem = failure(squares.try_run(&gpu));
    assert_eq!(
        problem,
        "product: f32 m=8 n=8 k=8 x/8 wT/8 y/8 aligned 256 256 256 256 is new, and cannot be planned while a \
         capture is open: run it once before"
    );
    assert_eq!(failure(gpu.end_capture()), format!("end_capture: an error ended the capture: {problem}"));
    squares.run(&gpu);
    gpu.begin_capture().unwrap();
    squares.run(&gpu);
    let graph = gpu.end_capture().unwrap();
    gpu.clear(squares.at[2], 256).unwrap();
    gpu.replay(&*graph).unwrap();
    assert_eq!(download(&gpu, squares.at[2], 64), [4.0; 64]);
    assert_eq!(squares.algorithm(&gpu), 2);
    squares.free(&gpu);
    drop((graph, gpu));

    // Who does not measure takes the first proposal and keeps nothing.
    let untouched = tempfile::tempdir().unwrap();
    let options = GpuOptions {
        cache: Some(untouched.path().into()),
        measure: false,
        capture: true,
        cooperative: true,
        overlap: true,
    };
    let gpu = session.probe_with(DType::F32, options);
    let squares = Squares::new(&gpu);
    squares.run(&gpu);
    assert_eq!(squares.algorithm(&gpu), 1);
    assert!(!untouched.path().join("choices").exists());
    squares.free(&gpu);
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn products_run_where_there_is_no_room_to_measure_them() {
    let session = Session::begin();
    session.calls_may_fail();
    let cache = tempfile::tempdir().unwrap();
    let gpu = session.probe_in(Some(cache.path().into()), DType::F32);
    let squares = Squares::new(&gpu);
    let used = gpu.info().memory - gpu.free_memory().unwrap();
    session.set("MEMORY", &(used + 100).to_string());
    squares.run(&gpu);
    assert_eq!(squares.algorithm(&gpu), 1);
    assert_eq!(download(&gpu, squares.at[2], 64), [4.0; 64]);
    squares.free(&gpu);
    drop(gpu);
    // A later start that finds room uses the same.
    assert_eq!(kept_algorithm(cache.path()), "1");
    session.set("MEMORY", ENOUGH);
    let gpu = session.probe_in(Some(cache.path().into()), DType::F32);
    let squares = Squares::new(&gpu);
    squares.run(&gpu);
    assert_eq!(squares.algorithm(&gpu), 1);
    squares.free(&gpu);
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn of_two_processes_that_measure_at_once_the_first_decides() {
    let session = Session::begin();
    session.calls_may_fail();
    let cache = tempfile::tempdir().unwrap();
    let open = || session.probe_in(Some(cache.path().into()), DType::F32);
    let gpus = [open(), open(), open()];
    let squares = gpus.each_ref().map(Squares::new);
    let chosen = |index: usize| {
        squares[index].run(&gpus[index]);
        squares[index].algorithm(&gpus[index])
    };
    // The first has no room to measure, and takes what is not the fastest.
    let used = gpus[0].info().memory - gpus[0].free_memory().unwrap();
    session.set("MEMORY", &(used + 100).to_string());
    assert_eq!(chosen(0), 1);
    session.set("MEMORY", ENOUGH);
    assert_eq!(chosen(1), 1, "the fastest is 2");
    // What cuBLASLt does not take here is not taken over.
    session.set("RETIRED", "1");
    assert_eq!(chosen(2), 2);
    squares.iter().zip(&gpus).for_each(|(squares, gpu)| squares.free(gpu));
}

// ---------------------------------------------------------------- what is kept

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn choices_of_launchers_are_remembered() {
    let session = Session::begin();
    let cache = tempfile::tempdir().unwrap();
    let gpu = session.probe_in(Some(cache.path().into()), DType::F32);
    assert_eq!(gpu.recall("lora 1600"), None);
    assert_eq!(gpu.remember("lora 1600", "fused").unwrap(), "fused");
    assert_eq!(gpu.recall("lora 1600").as_deref(), Some("fused"));
    drop(gpu);
    let later = session.probe_in(Some(cache.path().into()), DType::F32);
    assert_eq!(later.recall("lora 1600").as_deref(), Some("fused"));
    assert_eq!(later.forgets(), None);
    let without = session.probe_in(None, DType::F32);
    assert_eq!(without.recall("lora 1600"), None);
    assert!(without.forgets().is_some());
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn spoilt_kernels_in_the_cache_are_compiled_again() {
    let session = Session::begin();
    let cache = tempfile::tempdir().unwrap();
    drop(session.probe_in(Some(cache.path().into()), DType::F32));
    let entry = std::fs::read_dir(cache.path().join("kernels")).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        path.file_name().unwrap().to_string_lossy().starts_with("probe-").then_some(path)
    });
    let path = entry.expect("probe.cu is kept");
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for spoilt in [&flipped[..], &whole[..100], b""] {
        std::fs::write(&path, spoilt).unwrap();
        let gpu = session.probe_in(Some(cache.path().into()), DType::F32);
        let x = upload(&gpu, &[1.0; 4]);
        scale(&gpu, x, x, 4, 2.0).unwrap();
        assert_eq!(download(&gpu, x, 4), [2.0; 4]);
        gpu.free(x);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
}

/// Whatever is dropped first, in the end nothing is left of it; the end of every test looks, too.
#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn everything_is_given_back() {
    let session = Session::begin();
    let before = session.held();
    let gpu = session.probe_in(Some(session.cache()), DType::F32);
    let squares = Squares::new(&gpu);
    squares.run(&gpu);
    gpu.feed(&[(squares.at[0], &[0; 256])]).unwrap();
    gpu.feed(&[(squares.at[0], &[0; 64])]).unwrap();
    let fetch = gpu.fetch(squares.at[0], 256).unwrap();
    gpu.begin_capture().unwrap();
    gpu.clear(squares.at[1], 256).unwrap();
    let graph = gpu.end_capture().unwrap();
    gpu.replay(&*graph).unwrap();
    assert!(session.held() > before + 10);
    // With work on its way, and memory that nobody gave back.
    drop(gpu);
    drop(fetch);
    drop(graph);
    assert_eq!(session.held(), before);
}
