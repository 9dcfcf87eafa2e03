//! What the stand-ins refuse, as the real libraries do, and what the GPU driver makes of it.

use crate::driver::{Squares, bytes, download, failure, launch, launch_of, scale, square, upload};
use crate::stand_in::Session;
use clip_engine::backend::cuda::CudaError;
use clip_engine::backend::cuda::driver::{Address, Args, Driver, Gemm, Launch};
use clip_engine::backend::cuda::gpu::GpuOptions;
use clip_engine::tensor::DType;
use std::ffi::c_void;
use std::ptr::null_mut;

/// Statuses of the driver.
const SUCCESS: i32 = 0;
const NOT_INITIALIZED: i32 = 3;
const CAPTURE_UNSUPPORTED: i32 = 900;
const CAPTURE_INVALIDATED: i32 = 901;

/// Calls a function of the stand-in for libcuda by name, with arguments of these types.
macro_rules! call {
    ($session:expr, $name:ident($($argument:expr => $type:ty),* $(,)?)) => {{
        let library = $session.library();
        // SAFETY: a function of the driver, which has these parameters.
        unsafe {
            let function = library.get::<unsafe extern "C" fn($($type),*) -> i32>(stringify!($name).as_bytes());
            function.unwrap()($($argument),*)
        }
    }};
}

/// A stream of the stand-in, beside those of the engine.
struct Stream(*mut c_void);

impl Stream {
    /// Needs a current context, which a [`Gpu`] that has done something leaves.
    fn new(session: &Session) -> Stream {
        let mut raw = null_mut();
        assert_eq!(call!(session, cuStreamCreate(&mut raw => &mut *mut c_void, 1 => u32)), SUCCESS);
        Stream(raw)
    }

    fn destroy(self, session: &Session) {
        assert_eq!(call!(session, cuStreamDestroy_v2(self.0 => *mut c_void)), SUCCESS);
    }
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn nothing_can_be_called_before_the_driver_is_started() {
    let session = Session::begin();
    session.calls_may_fail();
    session.set("STARTED", "0");
    let mut count = 0;
    assert_eq!(call!(session, cuDeviceGetCount(&mut count => &mut i32)), NOT_INITIALIZED);
    // The engine starts it.
    drop(session.probe());
    assert_eq!(call!(session, cuDeviceGetCount(&mut count => &mut i32)), SUCCESS);
}

/// A capture that is not relaxed is broken by what another library may do at any time.
#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn only_a_relaxed_capture_puts_up_with_allocations_and_the_like() {
    let session = Session::begin();
    session.calls_may_fail();
    let gpu = session.probe();
    let kept = upload(&gpu, &[1.0; 8]);
    let stream = Stream::new(&session);
    let (mut memory, mut pinned, mut event, mut module) = (0u64, null_mut(), null_mut(), null_mut());
    assert_eq!(call!(session, cuEventCreate(&mut event => &mut *mut c_void, 0 => u32)), SUCCESS);
    for (mode, expected) in [(0, CAPTURE_UNSUPPORTED), (1, CAPTURE_UNSUPPORTED), (2, SUCCESS)] {
        let begin = || call!(session, cuStreamBeginCapture_v2(stream.0 => *mut c_void, mode => i32));
        let end = || {
            let mut graph = null_mut();
            let status =
                call!(session, cuStreamEndCapture(stream.0 => *mut c_void, &mut graph => &mut *mut c_void));
            if status == SUCCESS {
                assert_eq!(call!(session, cuGraphDestroy(graph => *mut c_void)), SUCCESS);
            }
            status
        };
        let check = |name: &str, status: i32, tried: &mut dyn FnMut() -> i32| {
            assert_eq!(begin(), SUCCESS);
            assert_eq!(tried(), status, "{name} in mode {mode}");
            let ended = if status == CAPTURE_UNSUPPORTED { CAPTURE_INVALIDATED } else { SUCCESS };
            assert_eq!(end(), ended, "{name} in mode {mode}");
        };
        check(
            "cuMemAlloc",
            expected,
            &mut || call!(session, cuMemAlloc_v2(&mut memory => &mut u64, 64 => usize)),
        );
        check(
            "cuMemHostAlloc",
            expected,
            &mut || call!(session, cuMemHostAlloc(&mut pinned => &mut *mut c_void, 64 => usize, 0 => u32)),
        );
        check("cuEventQuery", expected, &mut || call!(session, cuEventQuery(event => *mut c_void)));
        if expected == SUCCESS {
            check("cuMemFree", expected, &mut || call!(session, cuMemFree_v2(memory => u64)));
            check("cuMemFreeHost", expected, &mut || call!(session, cuMemFreeHost(pinned => *mut c_void)));
        } else {
            let no_cubin = [0u8; 64];
            check(
                "cuModuleLoadData",
                expected,
                &mut || call!(session, cuModuleLoadData(&mut module => &mut *mut c_void, no_cubin.as_ptr() => *const u8)),
            );
        }
    }
    assert_eq!(call!(session, cuEventDestroy_v2(event => *mut c_void)), SUCCESS);
    stream.destroy(&session);
    gpu.free(kept);
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn pinned_memory_that_is_written_too_early_is_noticed() {
    let mut session = Session::begin();
    let gpu = session.probe();
    let kept = upload(&gpu, &[1.0; 8]);
    let (stream, mut pinned) = (Stream::new(&session), std::ptr::null_mut::<u8>());
    assert_eq!(call!(session, cuMemHostAlloc(&mut pinned => &mut *mut u8, 32 => usize, 0 => u32)), SUCCESS);
    for changed in [false, true] {
        let copied = call!(session, cuMemcpyHtoDAsync_v2(
            kept.0 => u64, pinned => *const u8, 32 => usize, stream.0 => *mut c_void));
        assert_eq!(copied, SUCCESS);
        if changed {
            // SAFETY: 32 bytes were allocated there.
            unsafe { pinned.write(1) };
        }
        assert_eq!(call!(session, cuStreamSynchronize(stream.0 => *mut c_void)), SUCCESS);
    }
    session.misused(1);
    assert_eq!(call!(session, cuMemFreeHost(pinned => *mut u8)), SUCCESS);
    stream.destroy(&session);
    gpu.free(kept);
}

/// A graph that outlives its device's driver keeps the kernels that it launches.
#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn graphs_keep_the_kernels_that_are_in_them() {
    let session = Session::begin();
    let gpu = session.probe();
    let x = upload(&gpu, &[1.0; 8]);
    scale(&gpu, x, x, 8, 2.0).unwrap();
    gpu.begin_capture().unwrap();
    scale(&gpu, x, x, 8, 2.0).unwrap();
    let graph = gpu.end_capture().unwrap();
    gpu.free(x);
    drop(gpu);
    drop(graph);
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn blocks_are_no_larger_than_their_kernel_was_compiled_for() {
    let session = Session::begin();
    session.calls_may_fail();
    let gpu = session.probe();
    let numbers: Vec<f32> = (0..64u8).map(f32::from).collect();
    let x = upload(&gpu, &numbers);
    let turn = |threads: u32, bytes: usize| {
        let args = Args::new().address(x).int(bytes / 4);
        launch(&gpu, &Launch { block: [threads, 1, 1], shared: bytes, ..launch_of("probe_bounded", args) })
    };
    assert_eq!(
        failure(turn(65, 1024)),
        "launch: kernel probe_bounded of kernels/probe.cu: a block of [65, 1, 1] threads, and it was compiled \
         for at most 64"
    );
    // 8 KiB are static: without asking there are 40 KiB more.
    let mut expected = numbers;
    for kib in [40, 41, 219] {
        turn(64, kib << 10).unwrap();
        expected.reverse();
        assert_eq!(download(&gpu, x, 64), expected, "{kib} KiB");
    }
    assert_eq!(
        failure(turn(64, 220 << 10)),
        "kernel probe_bounded of kernels/probe.cu needs 225280 bytes of dynamic shared memory, and this device \
         has 224256 for it"
    );
    gpu.free(x);
}

/// Whichever call fails, the error names it, the device goes on and nothing is left behind.
#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn any_call_may_fail_and_is_named() {
    let session = Session::begin();
    session.calls_may_fail();
    let cache = tempfile::tempdir().unwrap();
    // Plans and kernels are kept, so that every round makes the same calls.
    let gpu = session.probe_in(Some(cache.path().into()), DType::F32);
    let squares = Squares::new(&gpu);
    squares.run(&gpu);
    squares.free(&gpu);
    drop(gpu);
    let calls = [
        "cuStreamCreate",
        "cuModuleLoadData",
        "cuMemAlloc_v2",
        "cuMemcpyHtoDAsync_v2",
        "cuStreamSynchronize",
        "cuModuleGetFunction",
        "cuFuncGetAttribute",
        "cuLaunchKernel",
        "cuLaunchKernelEx",
        "cuMemHostAlloc",
        "cuEventCreate",
        "cuEventRecord",
        "cuStreamWaitEvent",
        "cuMemcpyDtoDAsync_v2",
        "cuMemcpyDtoHAsync_v2",
        "cuMemsetD8Async",
        "cuEventSynchronize",
        "cuStreamBeginCapture_v2",
        "cuStreamEndCapture",
        "cuGraphInstantiateWithFlags",
        "cuGraphUpload",
        "cuGraphLaunch",
        "cublasLtCreate",
        "cublasLtMatmulDescCreate",
        "cublasLtMatmulDescSetAttribute",
        "cublasLtMatrixLayoutCreate",
        "cublasLtMatmul",
    ];
    let round = || -> Result<(), CudaError> {
        let gpu = session.try_probe_in(Some(cache.path().into()), DType::F32)?;
        let memory = gpu.allocate(256)?;
        let body = || {
            gpu.upload(memory, &bytes(&[1.0; 64]))?;
            gpu.feed(&[(memory, &bytes(&[1.0; 64]))])?;
            scale(&gpu, memory, memory, 64, 2.0)?;
            gpu.overlap(true);
            scale(&gpu, memory, memory, 64, 2.0)?;
            gpu.clear(memory, 4)?;
            gpu.begin_capture()?;
            let captured = gpu.copy(memory.offset(128), memory, 128);
            let graph = gpu.end_capture();
            captured?;
            gpu.replay(&*graph?)?;
            gpu.fetch(memory, 8)?.wait()?;
            let [x, w, y] = [memory, gpu.allocate(256)?, gpu.allocate(256)?];
            // SAFETY: the three are of the size that the product names.
            let multiplied = unsafe { gpu.gemm(&square(x, w, y)) };
            gpu.free(w);
            gpu.free(y);
            multiplied?;
            gpu.download(memory, &mut [0; 8])
        };
        let done = body();
        gpu.free(memory);
        done
    };
    session.set("FAIL", "");
    round().unwrap();
    for name in calls {
        let held = session.held();
        let plain = name.trim_end_matches("_v2").trim_end_matches("WithFlags");
        let mut failed = 0;
        for number in 1.. {
            // A status that no version of CUDA has yet.
            session.set("FAIL", &format!("{name}:{number}:9876"));
            let Err(error) = round() else { break };
            assert!(error.to_string().contains(plain), "{name}: {error}");
            assert!(error.to_string().contains("status 9876"), "{name}: {error}");
            failed += 1;
            assert_eq!(session.held(), held, "{name}, call {number}: something is left behind");
        }
        assert!(failed > 0, "{name} is not called, or its failure is not noticed");
    }
}

/// What the heuristic proposes may fail all the same.
#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn candidates_that_fail_when_they_run_are_passed_over() {
    let session = Session::begin();
    session.calls_may_fail();
    let cache = tempfile::tempdir().unwrap();
    session.set("FAILING", "2");
    let gpu = session.probe_in(Some(cache.path().into()), DType::F32);
    let squares = Squares::new(&gpu);
    squares.run(&gpu);
    assert_eq!(squares.algorithm(&gpu), 3, "2 would be the fastest");
    assert_eq!(download(&gpu, squares.at[2], 64), [4.0; 64]);
    squares.free(&gpu);
    drop(gpu);
    // Who does not measure has the first only.
    session.set("FAILING", "1");
    let gpu = session.probe_with(
        DType::F32,
        GpuOptions { cache: None, measure: false, capture: true, cooperative: true, overlap: true },
    );
    let squares = Squares::new(&gpu);
    let text = failure(squares.try_run(&gpu));
    assert_eq!(
        text,
        "cublasLtMatmul: product f32 m=8 n=8 k=8 x/8 wT/8 y/8 aligned 256 256 256 256: \
         CUBLAS_STATUS_EXECUTION_FAILED"
    );
    squares.free(&gpu);
}

/// Which products have a kernel is cuBLASLt's affair: rows at odd distances may have none.
#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn products_without_a_kernel_are_named() {
    let session = Session::begin();
    session.calls_may_fail();
    session.set("ROWS_ALIGNED", "16");
    let gpu = session.probe();
    let [x, w, y] = [0; 3].map(|_| gpu.allocate(1024).unwrap());
    let odd = Gemm { x_stride: 9, ..square(x, w, y) };
    let call = "cublasLtMatmulAlgoGetHeuristic: product f32 m=8 n=8 k=8";
    let named = format!("{call} x/9 wT/8 y/8 aligned 256 256 256 256: ");
    for (answer, problem) in
        [("refused", "CUBLAS_STATUS_NOT_SUPPORTED"), ("none", "cuBLASLt has no algorithm for it")]
    {
        session.set("WITHOUT_KERNEL", answer);
        // SAFETY: it is refused.
        assert_eq!(failure(unsafe { gpu.gemm(&odd) }), format!("{named}{problem}"));
    }
    let shifted = Gemm { x: x.offset(4), ..square(x, w, y) };
    // SAFETY: it is refused.
    let text = failure(unsafe { gpu.gemm(&shifted) });
    assert_eq!(text, format!("{call} x/8 wT/8 y/8 aligned 4 256 256 256: cuBLASLt has no algorithm for it"));
    // SAFETY: there is room for the rows.
    unsafe { gpu.gemm(&square(x, w, y)) }.unwrap();
    for at in [x, w, y] {
        gpu.free(at);
    }
}

#[test]
#[cfg_attr(not(all(cxx, nvrtc)), ignore = "needs c++ and NVRTC")]
fn a_bias_off_its_alignment_and_an_output_over_an_input_are_noticed() {
    let mut session = Session::begin();
    session.calls_may_fail();
    let gpu = session.probe();
    let [x, w, y] = [0; 3].map(|_| upload(&gpu, &[1.0; 64]));
    let bias = |at: Address| Gemm { bias: Some(at), ..square(x, w, y) };
    // SAFETY: all of them have 64 numbers.
    unsafe { gpu.gemm(&bias(w.offset(16))) }.unwrap();
    // SAFETY: it is refused.
    let text = failure(unsafe { gpu.gemm(&bias(w.offset(4))) });
    assert!(text.ends_with("bias aligned 256 256 256 4: CUBLAS_STATUS_INVALID_VALUE"), "{text}");
    // SAFETY: the stand-in gathers the inputs before it writes.
    unsafe { gpu.gemm(&square(x, w, x)) }.unwrap();
    gpu.synchronize().unwrap();
    session.misused(1);
    for at in [x, w, y] {
        gpu.free(at);
    }
}
