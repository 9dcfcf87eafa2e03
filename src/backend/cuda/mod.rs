//! The CUDA backend: kernels of our own, compiled at run time, and cuBLASLt for the large products.
//!
//! One file per operation holds its launcher, named as its kernel file. A launcher, which is handed
//! shapes that were checked, chooses form, grid and block, and enqueues; nothing here waits for the device. [`driver`] is the border below
//! which two devices differ: a GPU ([`gpu`]) and the host twin of the tests ([`crate::dev::twin`]).

mod accumulate;
mod activation;
mod adamw;
mod attention;
mod choose;
mod class_features;
mod class_tail;
mod crop_resize;
pub mod driver;
mod dropout;
mod error;
pub mod gpu;
mod head_loss;
pub mod kernel_sources;
mod l2_norm;
mod layer_norm;
mod linear;
mod lora_fold;
mod lora_gradients;
mod lora_linear;
mod mix_rows;
mod overlap;
mod patch_embed;
mod prompts;
mod tables;
mod take_rows;
mod triplet;

use super::*;
use crate::tensor::{DType, Shape, Source, Tensor, TensorError, View};
use driver::{Address, Args, Driver, Gemm, Kernel, Launch};
pub use error::CudaError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The environment variable that leaves the adapters beside the weights in training steps, when it is `0`.
pub const FOLD: &str = "CLIP_ENGINE_FOLD";

/// How a linear layer with an adapter is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoraForm {
    /// The faster of the two below in training steps in f16, timed once and remembered; elsewhere [`LoraForm::Beside`].
    #[default]
    Auto,
    /// In training steps without dropout one product, whose weight has the adapter in it; not in bf16. Where there is
    /// dropout, as [`LoraForm::Beside`].
    Folded,
    /// The faster of the two below for each shape, timed once and remembered.
    Beside,
    /// One tensor-core kernel of our own.
    Fused,
    /// A kernel for the low-rank part and a cuBLASLt product that adds to it.
    Gemm,
}

/// Where the bias of a layer with an activation function behind it is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BiasForm {
    /// The faster of the two below for each shape, timed once and remembered.
    #[default]
    Auto,
    /// In the product.
    Product,
    /// With the function, forward and backward; in the product where rows are no whole packs.
    Activation,
}

impl BiasForm {
    /// Those without the open question, under their names; the first is taken where nothing is measured.
    pub const BOTH: [(&'static str, BiasForm); 2] =
        [("product", BiasForm::Product), ("activation_bias", BiasForm::Activation)];
}

/// A device that computes in f16, bf16 or f32, with f32 for everything that is trained.
///
/// Operations on one device, clones of it included, belong to one thread at a time: some leave values in scratch
/// memory for their next launch, and what is enqueued while a capture is open becomes part of it, whichever
/// thread it comes from. Programs that train on several threads open the device once for each.
#[derive(Clone)]
pub struct Cuda {
    inner: Arc<Inner>,
}

struct Inner {
    driver: Arc<dyn Driver>,
    dtype: DType,
    lora_form: LoraForm,
    bias_form: BiasForm,
    /// Memory that one launch hands to the next, or one block to another; see [`Cuda::scratch`].
    scratch: Mutex<Scratch>,
    counters: Allocation,
    tables: Mutex<tables::Tables>,
}

/// The blocks of scratch memory so far; the last is the current one. Captured graphs may refer to earlier ones.
#[derive(Default)]
struct Scratch {
    blocks: Vec<Allocation>,
}

/// Device memory that is given back when dropped.
struct Allocation {
    driver: Arc<dyn Driver>,
    address: Address,
    bytes: usize,
}

impl Allocation {
    fn new(driver: &Arc<dyn Driver>, bytes: usize) -> Result<Self> {
        let address = if bytes == 0 { Address::NULL } else { driver.allocate(bytes)? };
        Ok(Allocation { driver: driver.clone(), address, bytes })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.address != Address::NULL {
            self.driver.free(self.address);
        }
    }
}

/// A dense row-major tensor in device memory.
pub struct CudaTensor {
    memory: Allocation,
    shape: Shape,
    dtype: DType,
}

impl CudaTensor {
    /// Address of the first element.
    pub fn address(&self) -> Address {
        self.memory.address
    }

    /// Bytes of the current shape.
    pub fn bytes(&self) -> usize {
        self.shape.elements() * self.dtype.size()
    }

    /// Its address, after its element type was checked.
    fn typed(&self, dtype: DType) -> Result<Address> {
        if self.dtype == dtype {
            return Ok(self.memory.address);
        }
        Err(TensorError::DType { expected: dtype, found: self.dtype }.into())
    }

    /// Rows and columns when all dimensions but the last are taken together.
    fn matrix(&self) -> (usize, usize) {
        self.shape.matrix()
    }
}

impl DeviceTensor for CudaTensor {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn set_shape(&mut self, shape: Shape) -> Result<()> {
        let (expected, found) = (shape.elements() * self.dtype.size(), self.memory.bytes);
        if expected > found {
            return Err(TensorError::Length { shape, dtype: self.dtype, expected, found }.into());
        }
        self.shape = shape;
        Ok(())
    }
}

impl Cuda {
    /// A backend on `driver`, computing in `dtype`.
    pub fn new(driver: Arc<dyn Driver>, dtype: DType, lora_form: LoraForm) -> Result<Self> {
        Cuda::with_forms(driver, dtype, lora_form, BiasForm::default())
    }

    fn with_forms(
        driver: Arc<dyn Driver>,
        dtype: DType,
        lora_form: LoraForm,
        bias_form: BiasForm,
    ) -> Result<Self> {
        kernel_sources::real_macro(dtype)?;
        let bytes = Cuda::COUNTERS * size_of::<u32>();
        let counters = Allocation::new(&driver, bytes)?;
        driver.clear(counters.address, bytes)?;
        let scratch = Mutex::new(Scratch::default());
        let tables = Mutex::new(tables::Tables::default());
        Ok(Cuda { inner: Arc::new(Inner { driver, dtype, lora_form, bias_form, scratch, counters, tables }) })
    }

    /// Counters that [`Cuda::counters`] can hand out at once.
    const COUNTERS: usize = 16 * 1024;

    /// The GPU `index`, with the embedded kernels or those of [`kernel_sources::OVERRIDE`]'s folder.
    pub fn open(index: usize, dtype: DType) -> Result<Self> {
        Self::open_with(index, dtype, gpu::GpuOptions::default())
    }

    /// The GPU `index` as [`Cuda::open`] gives it, but nothing is measured or written to the disk: neither compiled
    /// kernels nor what was found to be fastest.
    pub fn open_without_cache(index: usize, dtype: DType) -> Result<Self> {
        Self::open_with(
            index,
            dtype,
            gpu::GpuOptions { cache: None, measure: false, ..gpu::GpuOptions::default() },
        )
    }

    fn open_with(index: usize, dtype: DType, options: gpu::GpuOptions) -> Result<Self> {
        let sources = kernel_sources::Sources::load()?;
        let gpu = gpu::Gpu::new(index, dtype, &sources, options)?;
        let folds = std::env::var_os(FOLD).is_none_or(|value| value != "0");
        Cuda::new(Arc::new(gpu), dtype, if folds { LoraForm::Auto } else { LoraForm::Beside })
    }

    /// A backend on the same device, with another form of the linear layers with adapters.
    pub fn with_lora_form(&self, lora_form: LoraForm) -> Result<Self> {
        let Inner { driver, dtype, bias_form, .. } = &*self.inner;
        Cuda::with_forms(driver.clone(), *dtype, lora_form, *bias_form)
    }

    /// A backend on the same device, which adds the biases in front of activation functions elsewhere.
    pub fn with_bias_form(&self, bias_form: BiasForm) -> Result<Self> {
        let Inner { driver, dtype, lora_form, .. } = &*self.inner;
        Cuda::with_forms(driver.clone(), *dtype, *lora_form, bias_form)
    }

    /// A backend of the same type and forms on another device.
    pub(crate) fn on(&self, driver: Arc<dyn Driver>) -> Result<Self> {
        let Inner { dtype, lora_form, bias_form, .. } = *self.inner;
        Cuda::with_forms(driver, dtype, lora_form, bias_form)
    }

    /// The device below. Work given to it directly keeps its place among the operations.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.inner.driver
    }

    fn lora_form(&self) -> LoraForm {
        self.inner.lora_form
    }

    fn bias_form(&self) -> BiasForm {
        self.inner.bias_form
    }

    /// The type of activations.
    fn real(&self) -> DType {
        self.inner.dtype
    }

    /// Elements in 16 bytes if rows of `width` divide into them, else 1.
    fn pack(&self, width: usize) -> usize {
        let wide = 16 / self.real().size();
        if width.is_multiple_of(wide) { wide } else { 1 }
    }

    /// Whether the kernels that use tensor cores and asynchronous copies exist for this device and type.
    fn has_tensor_cores(&self) -> bool {
        self.inner.dtype != DType::F32 && self.driver().info().compute_capability >= 80
    }

    /// At least `bytes` of memory for one launch, or for one launch and the next: operations follow each
    /// other on one stream, so they can share it.
    fn scratch(&self, bytes: usize) -> Result<Address> {
        let mut scratch = locked(&self.inner.scratch);
        match scratch.blocks.last() {
            Some(block) if block.bytes >= bytes => Ok(block.address),
            _ => {
                let block = Allocation::new(&self.inner.driver, bytes.next_power_of_two().max(1 << 20))?;
                let address = block.address;
                scratch.blocks.push(block);
                Ok(address)
            }
        }
    }

    /// `count` counters for `last_block`: zero when a kernel starts, and the kernel leaves them zero.
    fn counters(&self, op: &'static str, count: usize) -> Result<Address> {
        if count > Cuda::COUNTERS {
            let problem = format!("{count} groups of blocks, more than {}", Cuda::COUNTERS);
            return Err(BackendError::Invalid { op, problem });
        }
        Ok(self.inner.counters.address)
    }

    /// Enqueues a kernel of kernels/`file`.cu.
    fn launch(
        &self,
        file: &'static str,
        name: &'static str,
        grid: [usize; 3],
        threads: usize,
        shared: usize,
        args: Args,
    ) -> Result<()> {
        self.enqueue(Kernel { file, name }, grid, (threads, shared), args, false)
    }

    /// The same with so many blocks that wait for each other, at most one for each multiprocessor.
    fn launch_together(
        &self,
        file: &'static str,
        name: &'static str,
        blocks: usize,
        threads: usize,
        shared: usize,
        args: Args,
    ) -> Result<()> {
        self.enqueue(Kernel { file, name }, [blocks, 1, 1], (threads, shared), args, true)
    }

    fn enqueue(
        &self,
        kernel: Kernel,
        grid: [usize; 3],
        (threads, shared): (usize, usize),
        args: Args,
        cooperative: bool,
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let [x, y, z] = grid.map(|n| n as u32);
        if grid[0] >= 1 << 31 || grid[1].max(grid[2]) >= 1 << 16 {
            return Err(BackendError::Invalid {
                op: kernel.name,
                problem: format!("a grid of {grid:?} blocks"),
            });
        }
        let block = [threads as u32, 1, 1];
        let launch = Launch { kernel, grid: [x, y, z], block, shared, cooperative, args };
        // SAFETY: the launchers of this folder pass the kernel's parameters in order, with tensors whose shapes the
        // operation has checked, or nobody had the `Checked` to call them; the host twin's tests hold them to it.
        Ok(unsafe { self.driver().launch(&launch) }?)
    }

    fn gemm(&self, gemm: &Gemm) -> Result<()> {
        // SAFETY: the launchers of this folder pass addresses of tensors, or of scratch memory as large, whose shapes
        // the operation has checked, and whose types they have; the host twin's tests hold them to it.
        Ok(unsafe { self.driver().gemm(gemm) }?)
    }
}

/// Bytes that are left for kernels which cuBLASLt loads when it first uses them, and for the driver's own.
const RESERVE: usize = 256 << 20;

/// A lock whose holder panicked guards nothing that could be half-written here.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory for Cuda {
    type Tensor = CudaTensor;
    type Weight = CudaTensor;
    type Pending = PendingTensor;
    type Graph = Box<dyn driver::Graph>;

    fn describe(&self) -> String {
        let info = self.driver().info();
        format!("{} (cuda:{}), {}", info.name, info.index, self.inner.dtype)
    }

    fn compute_dtype(&self) -> DType {
        self.inner.dtype
    }

    fn parameter_dtype(&self) -> DType {
        DType::F32
    }

    fn zeros(&self, shape: impl Into<Shape>, dtype: DType) -> Result<CudaTensor> {
        let mut tensor = self.empty(shape, dtype)?;
        self.clear(&mut tensor)?;
        Ok(tensor)
    }

    fn empty(&self, shape: impl Into<Shape>, dtype: DType) -> Result<CudaTensor> {
        let shape = shape.into();
        let memory = Allocation::new(&self.inner.driver, shape.elements() * dtype.size())?;
        Ok(CudaTensor { memory, shape, dtype })
    }

    fn upload(&self, source: View<'_>, dtype: DType) -> Result<CudaTensor> {
        let mut tensor = self.empty(source.shape(), dtype)?;
        self.copy_from_host(source, &mut tensor)?;
        Ok(tensor)
    }

    fn copy_from_host(&self, source: View<'_>, target: &mut CudaTensor) -> Result<()> {
        let converted = in_type_of(source.into(), target)?;
        match converted.as_ref().map_or(source.bytes(), Tensor::bytes) {
            [] => Ok(()),
            bytes => Ok(self.driver().upload(target.memory.address, bytes)?),
        }
    }

    fn weight(&self, source: View<'_>) -> Result<CudaTensor> {
        self.upload(source, self.real())
    }

    fn weight_shape(&self, weight: &CudaTensor) -> Shape {
        weight.shape
    }

    fn weight_values(&self, weight: &CudaTensor) -> Result<Tensor> {
        self.download(weight)
    }

    fn download(&self, source: &CudaTensor) -> Result<Tensor> {
        let mut tensor = Tensor::zeros(source.shape, source.dtype);
        if source.bytes() > 0 {
            self.driver().download(source.address(), tensor.bytes_mut())?;
        }
        Ok(tensor)
    }

    fn feed(&self, parts: Vec<(Source<'_>, &mut CudaTensor)>) -> Result<()> {
        // Converted on the host where the types differ.
        let converted = parts.iter().map(|(source, target)| in_type_of(*source, target));
        let converted = converted.collect::<Result<Vec<_>>>()?;
        let mut pieces = Vec::new();
        for ((source, target), converted) in parts.iter().zip(&converted) {
            let mut to = target.memory.address;
            let whole = converted.as_ref().map(Tensor::bytes);
            for piece in whole.as_ref().map_or(source.pieces(), std::slice::from_ref) {
                pieces.push((to, *piece));
                to = to.offset(piece.len());
            }
        }
        Ok(self.driver().feed(&pieces)?)
    }

    fn feed_sets(&self) -> usize {
        2
    }

    fn fetch(&self, source: &CudaTensor) -> Result<PendingTensor> {
        let fetch = self.driver().fetch(source.address(), source.bytes())?;
        Ok(PendingTensor { fetch, shape: source.shape, dtype: source.dtype })
    }

    fn arrived(&self, pending: &mut PendingTensor, wait: bool) -> Result<Option<Tensor>> {
        let bytes = if wait { Some(pending.fetch.wait()?) } else { pending.fetch.poll()? };
        let Some(bytes) = bytes else { return Ok(None) };
        Ok(Some(View::new(pending.shape, pending.dtype, &bytes)?.to_tensor(pending.dtype)?))
    }

    fn synchronize(&self) -> Result<()> {
        Ok(self.driver().synchronize()?)
    }

    fn profile(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let mut failed = None;
        let done = self.driver().profile(&mut || {
            failed = body().err();
            Ok(())
        });
        failed.map_or_else(|| Ok(done?), Err)
    }

    fn seconds(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let mut failed = None;
        let seconds = self.driver().seconds(&mut || {
            failed = body().err();
            Ok(())
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(seconds?),
        }
    }

    fn settle(&self, rows: usize, width: usize) -> Result<()> {
        overlap::settle(self, [rows, width])
    }

    fn cache_bytes(&self) -> usize {
        self.driver().info().l2_cache
    }

    fn memory(&self) -> Result<Option<DeviceMemory>> {
        let free = self.driver().free_memory()?;
        let allocated = self.driver().allocated().0;
        Ok(Some(DeviceMemory { name: "GPU memory", free, reserve: RESERVE, allocated }))
    }

    fn can_capture(&self) -> bool {
        self.driver().can_capture()
    }

    fn capture(&self, body: impl FnOnce() -> Result<()>) -> Result<Self::Graph> {
        self.driver().begin_capture()?;
        let done = body();
        let graph = self.driver().end_capture();
        done?;
        Ok(graph?)
    }

    fn replay(&self, graph: &Self::Graph) -> Result<()> {
        Ok(self.driver().replay(&**graph)?)
    }

    fn copy_bytes(
        device: Checked<'_, Self>,
        x: &CudaTensor,
        from: usize,
        y: &mut CudaTensor,
        to: usize,
        count: usize,
    ) -> Result<()> {
        Ok(device.driver().copy(y.address().offset(to), x.address().offset(from), count)?)
    }

    fn clear(&self, x: &mut CudaTensor) -> Result<()> {
        match x.bytes() {
            0 => Ok(()),
            bytes => Ok(self.driver().clear(x.address(), bytes)?),
        }
    }
}

/// A tensor on its way from the device.
pub struct PendingTensor {
    fetch: Box<dyn driver::Fetch>,
    shape: Shape,
    dtype: DType,
}

/// `source` in the type of `target`, which has its shape; none where it has that type.
fn in_type_of(source: Source<'_>, target: &CudaTensor) -> Result<Option<Tensor>> {
    if source.shape() != target.shape {
        return Err(TensorError::shape("copy", target.shape, source.shape()).into());
    }
    let other = source.dtype() != target.dtype;
    Ok(other.then(|| source.to_tensor(target.dtype)).transpose()?)
}
