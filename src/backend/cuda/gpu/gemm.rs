//! Matrix products by cuBLASLt: what depends on the shape is planned once, and the algorithm of each shape
//! is measured once and kept.
//!
//! cuBLASLt counts columns first, so the row-major y = x·op(w) is computed as yᵀ = op(w)ᵀ·xᵀ: a row-major
//! matrix with rows `stride` apart is, column-major, its transpose with columns `stride` apart.

use super::calls::{Status, cublaslt as lt};
use super::choices::{Choices, Map};
use super::handles::{Context, DeviceBuffer, Event, Stream};
use crate::backend::cuda::driver::{Address, DeviceInfo, Gemm, Result};
use crate::backend::cuda::{CudaError, locked};
use crate::tensor::DType;
use std::collections::HashMap;
use std::ffi::{CStr, c_int, c_void};
use std::fmt;
use std::mem::{offset_of, size_of_val};
use std::ptr::{from_mut, from_ref, null, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Algorithms that are measured per shape. The heuristic's order is rough where there are few tiles for the
/// multiprocessors, as in a training step.
const CANDIDATES: usize = 24;
/// Seconds of work before the first measurement: until then the device's clock may still be rising.
const WARM_UP: f64 = 0.03;
/// Products in a graph that is timed, at least, and how often it is: the gaps between launches from the host, as
/// long as a small product, are not measured, and the shortest of the times is disturbed least.
const RUNS: usize = 10;
const REPETITIONS: usize = 3;
/// Copies of the weights that are multiplied in turns, at most. A step goes through more weights than the cache holds
/// before it comes back to the same ones, so that they lie in memory, not in the cache, when they are needed.
const MOST_COPIES: usize = 63;
/// A later candidate, which the heuristic thinks worse, must be faster by this factor.
const CLEARLY_FASTER: f64 = 0.98;
/// Alignments beyond this one gain nothing.
const MAX_ALIGNMENT: u64 = 256;

/// CUBLAS_OP_N and CUBLAS_OP_T, which are cuBLAS's and not in cudarc's module of cuBLASLt.
const OP_N: i32 = 0;
const OP_T: i32 = 1;

/// Matrix that is added to a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Add {
    Nothing,
    /// The output's own contents.
    Output,
    Separate,
}

/// Properties of a product that its plan depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    m: usize,
    n: usize,
    k: usize,
    x_stride: usize,
    w_stride: usize,
    y_stride: usize,
    transposed: bool,
    bias: bool,
    add: Add,
    dtype: DType,
    /// Alignment of x, w, the added matrix, and y with the bias: the powers of two, up to 256, that divide their
    /// addresses.
    alignment: [u32; 4],
}

impl Key {
    fn of(gemm: &Gemm) -> Self {
        let output = gemm.y.0 | gemm.bias.map_or(0, |a| a.0);
        let added = gemm.add.unwrap_or(gemm.y).0;
        Key {
            m: gemm.m,
            n: gemm.n,
            k: gemm.k,
            x_stride: gemm.x_stride,
            w_stride: gemm.w_stride,
            y_stride: gemm.y_stride,
            transposed: gemm.transposed,
            bias: gemm.bias.is_some(),
            add: match gemm.add {
                None => Add::Nothing,
                Some(add) if add == gemm.y => Add::Output,
                Some(_) => Add::Separate,
            },
            dtype: gemm.dtype,
            alignment: [gemm.x.0, gemm.w.0, added, output].map(alignment),
        }
    }
}

impl Key {
    /// Whether a product is rounded to its type once. An algorithm that splits k rounds the sum of the parts, and
    /// the epilogue that adds the bias rounds again.
    fn rounds_once_with(&self, algorithm: &lt::cublasLtMatmulAlgo_t) -> Result<bool> {
        if !self.bias || self.dtype == DType::F32 {
            return Ok(true);
        }
        let attribute = lt::cublasLtMatmulAlgoConfigAttributes_t::CUBLASLT_ALGO_CONFIG_SPLITK_NUM;
        let (mut parts, mut written) = (0u32, 0);
        let bytes = size_of_val(&parts);
        // SAFETY: an algorithm of cuBLASLt's, a place for the number and its size.
        let status = unsafe {
            let parts = from_mut(&mut parts).cast();
            lt::cublasLtMatmulAlgoConfigGetAttribute(algorithm, attribute, parts, bytes, &mut written)
        };
        check("cublasLtMatmulAlgoConfigGetAttribute", status).map_err(|error| about(error, self))?;
        Ok(parts <= 1)
    }
}

/// Under this name an algorithm is kept on the disk.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key { m, n, k, x_stride, w_stride, y_stride, dtype, .. } = self;
        let w = if self.transposed { "wT" } else { "w" };
        write!(f, "{dtype} m={m} n={n} k={k} x/{x_stride} {w}/{w_stride} y/{y_stride}")?;
        f.write_str(if self.bias { " bias" } else { "" })?;
        f.write_str(match self.add {
            Add::Nothing => "",
            Add::Output => " add=y",
            Add::Separate => " add",
        })?;
        let [x, w, add, y] = self.alignment;
        write!(f, " aligned {x} {w} {add} {y}")
    }
}

fn alignment(address: u64) -> u32 {
    // The lowest bit that is set divides the address; 0 is divided by everything.
    (1 << (address | MAX_ALIGNMENT).trailing_zeros()) as u32
}

/// How a new product gets its plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planning {
    /// Its algorithms are measured, and the fastest is taken.
    Measure,
    /// The heuristic's first proposal is taken.
    TakeFirst,
    /// The product is refused: from 13.3 on cuBLASLt has no heuristic while a stream is captured.
    Refuse,
}

/// cuBLASLt on one device, with a plan for every product it has seen.
pub struct Gemms {
    plans: Mutex<HashMap<Key, Plan>>,
    workspace: DeviceBuffer,
    workspace_bytes: usize,
    /// Bytes of the device's cache.
    l2_cache: usize,
    choices: Arc<Choices>,
    /// Whether measurements are of captured graphs.
    capture: bool,
    /// The device has worked for a while.
    warm: AtomicBool,
    handle: Handle,
    context: Arc<Context>,
}

impl Gemms {
    pub fn new(
        context: &Arc<Context>,
        info: &DeviceInfo,
        choices: Arc<Choices>,
        capture: bool,
    ) -> Result<Self> {
        // What NVIDIA recommends: 32 MiB from Hopper on, 4 before; some algorithms use a little more.
        let workspace_bytes = if info.compute_capability >= 90 { 32 << 20 } else { 8 << 20 };
        context.enter()?;
        Ok(Gemms {
            plans: Mutex::new(HashMap::new()),
            workspace: DeviceBuffer::new(context, workspace_bytes)?,
            workspace_bytes,
            l2_cache: info.l2_cache,
            choices,
            capture,
            warm: AtomicBool::new(false),
            handle: Handle::new()?,
            context: context.clone(),
        })
    }

    /// Enqueues a product.
    ///
    /// # Safety
    /// All addresses must be of allocated memory of the sizes that the product tells. The stream must be
    /// the same at every call, as all products share one workspace, and may be captured only where new
    /// products are refused.
    pub unsafe fn enqueue(&self, gemm: &Gemm, stream: &Stream, planning: Planning) -> Result<()> {
        if gemm.m == 0 || gemm.n == 0 {
            return Ok(());
        }
        self.context.enter()?;
        let key = Key::of(gemm);
        let mut plans = locked(&self.plans);
        let usable = plans.get(&key).is_some_and(|plan| plan.settled || planning != Planning::Measure);
        if !usable && planning == Planning::Refuse {
            let problem =
                format!("{key} is new, and cannot be planned while a capture is open: run it once before");
            return Err(CudaError::Call { call: "product", problem });
        }
        if !usable {
            // SAFETY: as the caller promises.
            let plan = unsafe { self.plan(&key, gemm, stream, planning == Planning::Measure) }?;
            plans.insert(key.clone(), plan);
        }
        let Some(plan) = plans.get(&key) else { return Ok(()) };
        // SAFETY: as the caller promises; the lock keeps the descriptor, which holds the bias's address,
        // to this thread.
        unsafe { self.run(plan, &plan.algorithm, gemm, stream) }
    }

    /// # Safety
    /// As [`Gemms::enqueue`].
    unsafe fn plan(&self, key: &Key, gemm: &Gemm, stream: &Stream, measure: bool) -> Result<Plan> {
        let mut plan = Plan::new(key)?;
        // The heuristic may look at whether there is a bias, and at its address.
        plan.set_bias(gemm)?;
        if let Some(algorithm) = self.remembered(key, &plan) {
            plan.algorithm = algorithm;
            plan.settled = true;
            return Ok(plan);
        }
        let candidates = self.candidates(key, &plan)?;
        plan.algorithm = candidates[0];
        if measure {
            // SAFETY: as the caller promises.
            let chosen = match unsafe { self.fastest(&plan, &candidates, gemm, stream) } {
                Ok(algorithm) => algorithm,
                // No room for a second output beside the caller's: the heuristic's first choice is right
                // too. It is remembered like any other, or a resumed run that finds more room would have
                // another.
                Err(CudaError::OutOfMemory { .. }) => candidates[0],
                Err(error) => return Err(error),
            };
            let held = self.choices.remember(Map::Gemms, &key.to_string(), &to_hex(&chosen));
            plan.algorithm = self.usable(key, &plan, &held).unwrap_or(chosen);
            plan.settled = true;
        }
        Ok(plan)
    }

    /// The algorithm that was measured before, if cuBLASLt still takes it.
    fn remembered(&self, key: &Key, plan: &Plan) -> Option<lt::cublasLtMatmulAlgo_t> {
        self.usable(key, plan, &self.choices.recall(Map::Gemms, &key.to_string())?)
    }

    /// An algorithm as it is kept, if cuBLASLt takes it.
    fn usable(&self, key: &Key, plan: &Plan, kept: &str) -> Option<lt::cublasLtMatmulAlgo_t> {
        let algorithm = from_hex(kept)?;
        let mut result = Proposal::empty();
        let (w, x, y) = (plan.w.0, plan.x.0, plan.y.0);
        // SAFETY: all descriptors exist, `algorithm` has the right size whatever is in it, and is checked
        // by this call; `result` is a place for the answer.
        let status = unsafe {
            let result = from_mut(&mut result).cast();
            lt::cublasLtMatmulAlgoCheck(self.handle.0, plan.operation.0, w, x, y, y, &algorithm, result)
        };
        let fits = status == 0 && result.state == 0 && result.workspace <= self.workspace_bytes;
        (fits && key.rounds_once_with(&algorithm).ok()?).then_some(algorithm)
    }

    /// The algorithms that the heuristic proposes, the best first; at least one. Those that round twice are left
    /// out, unless there are no others: which one is taken depends on the machine, and the results would too.
    fn candidates(&self, key: &Key, plan: &Plan) -> Result<Vec<lt::cublasLtMatmulAlgo_t>> {
        let preference = Preference::new(key, self.workspace_bytes)?;
        let mut results = [Proposal::empty(); CANDIDATES];
        let mut count: c_int = 0;
        let (w, x, y) = (plan.w.0, plan.x.0, plan.y.0);
        // SAFETY: all descriptors exist; there is room for as many results as are asked for.
        let status = unsafe {
            lt::cublasLtMatmulAlgoGetHeuristic(
                self.handle.0,
                plan.operation.0,
                w,
                x,
                y,
                y,
                preference.0,
                CANDIDATES as c_int,
                results.as_mut_ptr().cast(),
                &mut count,
            )
        };
        let call = "cublasLtMatmulAlgoGetHeuristic";
        check(call, status).map_err(|error| about(error, key))?;
        let found = &results[..usize::try_from(count).unwrap_or(0).min(CANDIDATES)];
        let good: Vec<_> = found.iter().filter(|r| r.state == 0).map(|r| r.algorithm).collect();
        if good.is_empty() {
            let problem = "cuBLASLt has no algorithm for it".into();
            return Err(about(CudaError::Call { call, problem }, key));
        }
        let mut once = Vec::with_capacity(good.len());
        for algorithm in &good {
            if key.rounds_once_with(algorithm)? {
                once.push(*algorithm);
            }
        }
        Ok(if once.is_empty() { good } else { once })
    }

    /// Enqueues the product with one algorithm.
    ///
    /// # Safety
    /// As [`Gemms::enqueue`].
    unsafe fn run(
        &self,
        plan: &Plan,
        algorithm: &lt::cublasLtMatmulAlgo_t,
        gemm: &Gemm,
        stream: &Stream,
    ) -> Result<()> {
        plan.set_bias(gemm)?;
        let pointer = |address: Address| address.0 as *mut c_void;
        let alpha = 1.0f32;
        let beta: f32 = if gemm.add.is_some() { 1.0 } else { 0.0 };
        let (w, x, y) = (plan.w.0, plan.x.0, plan.y.0);
        // SAFETY: all descriptors exist, `alpha` and `beta` are read on the host before the call returns,
        // the workspace has the size that is given, and the rest is the caller's promise.
        let status = unsafe {
            lt::cublasLtMatmul(
                self.handle.0,
                plan.operation.0,
                from_ref(&alpha).cast(),
                pointer(gemm.w),
                w,
                pointer(gemm.x),
                x,
                from_ref(&beta).cast(),
                pointer(gemm.add.unwrap_or(gemm.y)),
                y,
                pointer(gemm.y),
                y,
                algorithm,
                pointer(Address(self.workspace.address())),
                self.workspace_bytes,
                stream.raw().cast(),
            )
        };
        let Err(error) = check("cublasLtMatmul", status) else { return Ok(()) };
        // cuBLASLt hides a sticky error behind a status of its own; the driver tells.
        match self.context.memory() {
            Err(lost @ CudaError::Lost { .. }) => Err(lost),
            _ => Err(about(error, &Key::of(gemm))),
        }
    }

    /// The candidate that takes the least time on the caller's inputs; the output goes elsewhere.
    ///
    /// # Safety
    /// As [`Gemms::enqueue`].
    unsafe fn fastest(
        &self,
        plan: &Plan,
        candidates: &[lt::cublasLtMatmulAlgo_t],
        gemm: &Gemm,
        stream: &Stream,
    ) -> Result<lt::cublasLtMatmulAlgo_t> {
        let bytes = ((gemm.m - 1) * gemm.y_stride + gemm.n) * gemm.dtype.size();
        let scratch = DeviceBuffer::new(&self.context, bytes + MAX_ALIGNMENT as usize)?;
        // As far from an aligned address as the caller's output is.
        let y = Address(scratch.address() + gemm.y.0 % MAX_ALIGNMENT);
        // SAFETY: `bytes` is what the output spans, and there is as much room behind `y`.
        unsafe { stream.copy(y.0, gemm.y.0, bytes) }?;
        let add = gemm.add.map(|add| if add == gemm.y { y } else { add });
        let trial = Gemm { y, add, ..*gemm };
        // SAFETY: as the caller promises.
        let copies = unsafe { self.copies_of_weights(gemm, stream) }?;
        let weights = copies.iter().flat_map(|(_, weights)| weights);
        let trials: Vec<Gemm> = [gemm.w].iter().chain(weights).map(|w| Gemm { w: *w, ..trial }).collect();
        if !self.warm.swap(true, Ordering::Relaxed) {
            let mut seconds = 0.0;
            while seconds < WARM_UP {
                // SAFETY: as the caller promises, and the output has moved to scratch memory of its size.
                match unsafe { self.measure(plan, &candidates[0], &trials, stream) } {
                    // Each measurement is of REPETITIONS + 1 graphs.
                    Ok(one) if one > 0.0 => {
                        seconds += one * (RUNS.max(trials.len()) * (REPETITIONS + 1)) as f64;
                    }
                    // What is wrong with it is found again below.
                    _ => break,
                }
            }
        }
        let mut best = (candidates[0], f64::INFINITY);
        let mut failure = None;
        for algorithm in candidates {
            // SAFETY: as the caller promises, and the output has moved to scratch memory of its size.
            match unsafe { self.measure(plan, algorithm, &trials, stream) } {
                Ok(seconds) if seconds < best.1 * CLEARLY_FASTER => best = (*algorithm, seconds),
                Ok(_) => {}
                Err(error @ CudaError::Lost { .. }) => return Err(error),
                Err(error) => failure = Some(error),
            }
        }
        stream.synchronize()?;
        match failure {
            Some(error) if best.1.is_infinite() => Err(error),
            _ => Ok(best.0),
        }
    }

    /// As many copies of a product's weights as fill the cache with those they are copies of, each as far from an aligned
    /// address, and the memory that they lie in; none where there is no room for them.
    ///
    /// # Safety
    /// As [`Gemms::enqueue`].
    unsafe fn copies_of_weights(
        &self,
        gemm: &Gemm,
        stream: &Stream,
    ) -> Result<Option<(DeviceBuffer, Vec<Address>)>> {
        let (rows, columns) = if gemm.transposed { (gemm.n, gemm.k) } else { (gemm.k, gemm.n) };
        let bytes = ((rows - 1) * gemm.w_stride + columns) * gemm.dtype.size();
        let apart = (bytes as u64).next_multiple_of(MAX_ALIGNMENT);
        let count = (self.l2_cache / bytes).min(MOST_COPIES) as u64;
        let buffer = match DeviceBuffer::new(&self.context, (count * apart + MAX_ALIGNMENT) as usize) {
            Err(CudaError::OutOfMemory { .. }) => return Ok(None),
            buffer => buffer?,
        };
        let first = buffer.address() + gemm.w.0 % MAX_ALIGNMENT;
        let copies: Vec<Address> = (0..count).map(|index| Address(first + index * apart)).collect();
        for copy in &copies {
            // SAFETY: `bytes` is what the weights span, and there is as much room at each of the addresses.
            unsafe { stream.copy(copy.0, gemm.w.0, bytes) }?;
        }
        Ok(Some((buffer, copies)))
    }

    /// Seconds that one product takes with this algorithm, those given in turns.
    ///
    /// # Safety
    /// As [`Gemms::enqueue`].
    unsafe fn measure(
        &self,
        plan: &Plan,
        algorithm: &lt::cublasLtMatmulAlgo_t,
        trials: &[Gemm],
        stream: &Stream,
    ) -> Result<f64> {
        // SAFETY: as the caller promises.
        let run = |trial: &Gemm| unsafe { self.run(plan, algorithm, trial, stream) };
        run(&trials[0])?;
        stream.synchronize()?;
        let count = RUNS.max(trials.len());
        let runs = || trials.iter().cycle().take(count).try_for_each(run);
        let graph = self.capture.then(|| stream.capture(runs)?.instantiate()).transpose()?;
        let once = || graph.as_ref().map_or_else(runs, |graph| graph.launch(stream));
        let (start, end) = (Event::timing(&self.context)?, Event::timing(&self.context)?);
        once()?;
        let mut best = f64::INFINITY;
        for _ in 0..REPETITIONS {
            start.record(stream)?;
            once()?;
            end.record(stream)?;
            end.synchronize()?;
            best = best.min(start.seconds_until(&end)? / count as f64);
        }
        Ok(best)
    }
}

/// The descriptors of one shape and its algorithm.
struct Plan {
    operation: Operation,
    w: Layout,
    x: Layout,
    y: Layout,
    has_bias: bool,
    algorithm: lt::cublasLtMatmulAlgo_t,
    /// The algorithm was measured; else it is the heuristic's first proposal, until it may be measured.
    settled: bool,
}

impl Plan {
    fn new(key: &Key) -> Result<Self> {
        let kind = match key.dtype {
            DType::F16 => lt::cudaDataType_t::CUDA_R_16F,
            DType::BF16 => lt::cudaDataType_t::CUDA_R_16BF,
            DType::F32 => lt::cudaDataType_t::CUDA_R_32F,
            other => {
                return Err(CudaError::Unsupported(format!("products are in f16, bf16 or f32, not {other}")));
            }
        };
        // f32 stays f32: TensorFloat-32 is a compute type of its own.
        let operation = Operation::new()?;
        let w_operation = if key.transposed { OP_T } else { OP_N };
        let epilogue = match key.bias {
            true => lt::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
            false => lt::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
        };
        use lt::cublasLtMatmulDescAttributes_t as Attribute;
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &w_operation)?;
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &OP_N)?;
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        let (w_rows, w_columns) = if key.transposed { (key.k, key.n) } else { (key.n, key.k) };
        Ok(Plan {
            operation,
            w: Layout::new(kind, w_rows, w_columns, key.w_stride)?,
            x: Layout::new(kind, key.k, key.m, key.x_stride)?,
            y: Layout::new(kind, key.n, key.m, key.y_stride)?,
            has_bias: key.bias,
            algorithm: no_algorithm(),
            settled: false,
        })
    }

    /// The bias's address is part of the operation's description.
    fn set_bias(&self, gemm: &Gemm) -> Result<()> {
        if !self.has_bias {
            return Ok(());
        }
        let pointer = gemm.bias.map_or(null(), |address| address.0 as *const c_void);
        self.operation.set(lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &pointer)
    }
}

// ---------------------------------------------------------------- cuBLASLt's objects

struct Handle(lt::cublasLtHandle_t);

// SAFETY: cuBLASLt's handle may be used on any thread, several at once too.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    /// For the current context.
    fn new() -> Result<Self> {
        let mut handle = null_mut();
        // SAFETY: a place for the handle.
        check("cublasLtCreate", unsafe { lt::cublasLtCreate(&mut handle) })?;
        Ok(Handle(handle))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        unsafe { lt::cublasLtDestroy(self.0) };
    }
}

struct Operation(lt::cublasLtMatmulDesc_t);

// SAFETY: plain host memory that belongs to no thread.
unsafe impl Send for Operation {}

impl Operation {
    /// Accumulates in f32 and scales by f32 numbers.
    fn new() -> Result<Self> {
        let mut operation = null_mut();
        let compute = lt::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let scale = lt::cudaDataType_t::CUDA_R_32F;
        // SAFETY: a place for the handle.
        let status = unsafe { lt::cublasLtMatmulDescCreate(&mut operation, compute, scale) };
        check("cublasLtMatmulDescCreate", status)?;
        Ok(Operation(operation))
    }

    fn set<T>(&self, attribute: lt::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        let bytes = size_of_val(value);
        // SAFETY: the operation exists; cuBLASLt compares the size with that of the attribute and copies.
        let status =
            unsafe { lt::cublasLtMatmulDescSetAttribute(self.0, attribute, from_ref(value).cast(), bytes) };
        check("cublasLtMatmulDescSetAttribute", status)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        unsafe { lt::cublasLtMatmulDescDestroy(self.0) };
    }
}

/// A matrix, columns first.
struct Layout(lt::cublasLtMatrixLayout_t);

// SAFETY: plain host memory that belongs to no thread.
unsafe impl Send for Layout {}

impl Layout {
    fn new(kind: lt::cudaDataType_t, rows: usize, columns: usize, stride: usize) -> Result<Self> {
        let mut layout = null_mut();
        // SAFETY: a place for the handle.
        let status = unsafe {
            lt::cublasLtMatrixLayoutCreate(&mut layout, kind, rows as u64, columns as u64, stride as i64)
        };
        check("cublasLtMatrixLayoutCreate", status)?;
        Ok(Layout(layout))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        unsafe { lt::cublasLtMatrixLayoutDestroy(self.0) };
    }
}

/// Constraints on the heuristic's proposals: workspace, reduction schemes and alignments.
struct Preference(lt::cublasLtMatmulPreference_t);

impl Preference {
    fn new(key: &Key, workspace: usize) -> Result<Self> {
        let mut preference = null_mut();
        // SAFETY: a place for the handle.
        let status = unsafe { lt::cublasLtMatmulPreferenceCreate(&mut preference) };
        check("cublasLtMatmulPreferenceCreate", status)?;
        let preference = Preference(preference);
        use lt::cublasLtMatmulPreferenceAttributes_t as Attribute;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace)?;
        // Parts of a split sum are added in f32, never in the output's type: one rounding.
        let reductions = lt::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions)?;
        // cuBLASLt's A is w and its B is x.
        let [x, w, add, y] = key.alignment;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &w)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &x)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &add)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &y)?;
        Ok(preference)
    }

    fn set<T>(&self, attribute: lt::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<()> {
        let bytes = size_of_val(value);
        // SAFETY: the object exists; cuBLASLt compares the size with that of the attribute and copies.
        let status = unsafe {
            lt::cublasLtMatmulPreferenceSetAttribute(self.0, attribute, from_ref(value).cast(), bytes)
        };
        check("cublasLtMatmulPreferenceSetAttribute", status)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        unsafe { lt::cublasLtMatmulPreferenceDestroy(self.0) };
    }
}

/// cublasLtMatmulHeuristicResult_t, whose status is a number.
#[repr(C)]
#[derive(Clone, Copy)]
struct Proposal {
    algorithm: lt::cublasLtMatmulAlgo_t,
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

const _: () = {
    type Theirs = lt::cublasLtMatmulHeuristicResult_t;
    assert!(size_of::<Proposal>() == size_of::<Theirs>() && align_of::<Proposal>() == align_of::<Theirs>());
    assert!(offset_of!(Proposal, workspace) == offset_of!(Theirs, workspaceSize));
    assert!(offset_of!(Proposal, state) == offset_of!(Theirs, state));
};

impl Proposal {
    fn empty() -> Self {
        Proposal { algorithm: no_algorithm(), workspace: 0, state: 0, waves: 0.0, reserved: [0; 4] }
    }
}

fn no_algorithm() -> lt::cublasLtMatmulAlgo_t {
    lt::cublasLtMatmulAlgo_t { data: [0; 8] }
}

fn check(call: &'static str, status: Status) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: cuBLASLt returns a constant string for every status.
    let name = unsafe { lt::cublasLtGetStatusName(status) };
    let problem = if name.is_null() {
        format!("status {status}")
    } else {
        // SAFETY: not null, and ends with a zero.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    };
    Err(CudaError::Call { call, problem })
}

/// The error with the product it is about.
fn about(error: CudaError, key: &Key) -> CudaError {
    match error {
        CudaError::Call { call, problem } => {
            CudaError::Call { call, problem: format!("product {key}: {problem}") }
        }
        other => other,
    }
}

fn to_hex(algorithm: &lt::cublasLtMatmulAlgo_t) -> String {
    algorithm.data.iter().map(|word| format!("{word:016x}")).collect()
}

/// None where the text is not of an algorithm.
fn from_hex(text: &str) -> Option<lt::cublasLtMatmulAlgo_t> {
    let mut algorithm = no_algorithm();
    if text.len() != 16 * algorithm.data.len() || !text.is_ascii() {
        return None;
    }
    for (i, word) in algorithm.data.iter_mut().enumerate() {
        *word = u64::from_str_radix(&text[16 * i..16 * (i + 1)], 16).ok()?;
    }
    Some(algorithm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gemm() -> Gemm {
        Gemm {
            m: 1600,
            n: 2304,
            k: 768,
            x: Address(0x1000),
            x_stride: 768,
            w: Address(0x2010),
            w_stride: 776,
            transposed: true,
            bias: Some(Address(0x3004)),
            add: None,
            y: Address(0x4080),
            y_stride: 2304,
            dtype: DType::F16,
        }
    }

    #[test]
    fn plans_are_told_apart_by_shape_alignment_and_what_is_added() {
        let key = Key::of(&gemm());
        assert_eq!(key.alignment, [256, 16, 128, 4]);
        assert_eq!(key.to_string(), "f16 m=1600 n=2304 k=768 x/768 wT/776 y/2304 bias aligned 256 16 128 4");
        let moved = Gemm { x: Address(0x8_0000), y: Address(0x1_0080), ..gemm() };
        assert_eq!(Key::of(&moved), key, "addresses of the same alignment share a plan");
        let in_place = Key::of(&Gemm { add: Some(Address(0x4080)), ..gemm() });
        let separate = Key::of(&Gemm { add: Some(Address(0x9080)), ..gemm() });
        assert!(in_place.add == Add::Output && separate.add == Add::Separate);
        assert!(in_place.to_string() != separate.to_string());
    }

    #[test]
    fn algorithms_survive_as_text() {
        let mut algorithm = no_algorithm();
        for (i, word) in algorithm.data.iter_mut().enumerate() {
            *word = 0x0123_4567_89ab_cdef_u64.rotate_left(7 * i as u32);
        }
        assert_eq!(from_hex(&to_hex(&algorithm)), Some(algorithm));
        assert_eq!(from_hex("00"), None);
        assert_eq!(from_hex(&"g".repeat(128)), None);
    }
}
