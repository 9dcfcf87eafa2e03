//! A device: its memory, what is copied to and from it, and how its operations are run.

use super::{BackendError, Result, expect_shape};
use crate::tensor::{DType, Shape, Source, Tensor, View};

/// Memory on a device, with a shape and an element type.
pub trait DeviceTensor: Send + Sync {
    /// The shape as it was set last, which may take less than the memory.
    fn shape(&self) -> Shape;
    /// The element type, which stays that of the allocation.
    fn dtype(&self) -> DType;
    /// Takes another shape within the memory allocated at the start. The contents are unspecified
    /// afterwards, unless only the leading dimension has changed: then those of kept rows stay.
    fn set_shape(&mut self, shape: Shape) -> Result<()>;
    /// Changes the leading dimension within the memory allocated at the start.
    fn set_rows(&mut self, rows: usize) -> Result<()> {
        self.set_shape(self.shape().with_rows(rows))
    }
}

impl DeviceTensor for Tensor {
    fn shape(&self) -> Shape {
        self.shape()
    }

    fn dtype(&self) -> DType {
        self.dtype()
    }

    fn set_shape(&mut self, shape: Shape) -> Result<()> {
        Ok(self.set_shape(shape)?)
    }
}

/// Bytes of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Name of the memory, for people: "GPU memory".
    pub name: &'static str,
    /// Bytes that could still be allocated.
    pub free: usize,
    /// Bytes of `free` that are better left to what is not a tensor: what libraries load at its first use.
    pub reserve: usize,
    /// Bytes that this backend has allocated now.
    pub allocated: usize,
}

/// A device that is handed arguments which were checked: an operation's own method makes one, and nobody outside of this
/// crate, so that a device's form of the operation may rely on the check.
pub struct Checked<'a, B>(pub(super) &'a B);

impl<B> std::ops::Deref for Checked<'_, B> {
    type Target = B;

    fn deref(&self) -> &B {
        self.0
    }
}

copyable!(Memory: Checked);

/// A device with memory, to which operations are given in order.
pub trait Memory: Clone + Send + Sync + 'static {
    /// Memory on this device, given back when dropped.
    type Tensor: DeviceTensor;
    /// The weight of a frozen linear layer, as this device's products read it.
    type Weight: Send + Sync;
    /// A tensor on its way to the host.
    type Pending: Send;
    /// Operations captured to be run again; a CUDA graph.
    type Graph: Send;

    /// Describes the device for people: "CPU, 2 threads, f32".
    fn describe(&self) -> String;
    /// Element type of activations and frozen weights.
    fn compute_dtype(&self) -> DType;
    /// Element type of trained tensors, their gradients, optimizer state, statistics, normalised features,
    /// logits and losses.
    fn parameter_dtype(&self) -> DType;

    /// A frozen weight \[out, in\], rounded to the compute type.
    fn weight(&self, source: View<'_>) -> Result<Self::Weight>;
    /// The extents \[out, in\] of a weight.
    fn weight_shape(&self, weight: &Self::Weight) -> Shape;
    /// Bytes that a weight will take besides, once a gradient has gone through its layer.
    fn weight_bytes_to_come(&self, _weight: &Self::Weight) -> usize {
        0
    }
    /// A copy on the host, in the compute type; waits for the device.
    fn weight_values(&self, weight: &Self::Weight) -> Result<Tensor>;

    /// New memory, zeroed.
    fn zeros(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Self::Tensor>;
    /// New memory for something that is written before it is read.
    fn empty(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Self::Tensor> {
        self.zeros(shape, dtype)
    }
    /// New memory with a copy of `source`, converted to `dtype`.
    fn upload(&self, source: View<'_>, dtype: DType) -> Result<Self::Tensor>;
    /// Overwrites `target` with `source` of the same shape, converting.
    fn copy_from_host(&self, source: View<'_>, target: &mut Self::Tensor) -> Result<()>;
    /// A copy on the host; waits for the device.
    fn download(&self, source: &Self::Tensor) -> Result<Tensor>;
    /// Overwrites tensors, each with the source of its shape, converting, in order with the operations; for these the
    /// caller does not wait.
    ///
    /// Where it is given two sets of tensors in turns, it may be in order with the operations before the last feed only:
    /// those since then, which read the one set while the other is fed, must leave the other alone.
    fn feed(&self, parts: Vec<(Source<'_>, &mut Self::Tensor)>) -> Result<()>;
    /// Sets of tensors that [`Memory::feed`] is best given in turns: 2 where it goes on beside the operations.
    fn feed_sets(&self) -> usize {
        1
    }
    /// Starts copying `source`, as it is after the operations so far, to the host.
    fn fetch(&self, source: &Self::Tensor) -> Result<Self::Pending>;
    /// Returns the copy that [`Memory::fetch`] started, if it is here; waits for it where `wait` is true.
    fn arrived(&self, pending: &mut Self::Pending, wait: bool) -> Result<Option<Tensor>>;
    /// Waits for all operations.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    /// Runs `body`, whose operations are all that a profiler of the device sees which waits to be started.
    fn profile(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        body()
    }

    /// Seconds that the operations called for by `body` take on the device; waits for them.
    fn seconds(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        self.synchronize()?;
        let start = std::time::Instant::now();
        body()?;
        self.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    }
    /// Settles by time what work on `rows` rows of `width` activations leaves open.
    fn settle(&self, _rows: usize, _width: usize) -> Result<()> {
        Ok(())
    }

    /// Bytes of the last cache in front of the memory; 0 where timings need not care.
    fn cache_bytes(&self) -> usize {
        0
    }

    /// The device's memory; none where the system does not say.
    fn memory(&self) -> Result<Option<DeviceMemory>> {
        Ok(None)
    }

    /// Bytes that were allocated. Only what comes in between two calls on one thread counts: the CPU does not
    /// see what is given back.
    fn allocated(&self) -> Result<usize> {
        Ok(self.memory()?.map_or(0, |memory| memory.allocated))
    }

    /// True where operations can be captured, which saves most of the cost of starting them one by one.
    fn can_capture(&self) -> bool {
        false
    }
    /// Captures the operations that `body` calls for, without running them. All must have run before in
    /// the same shapes. Copies between host and device and new memory are no operations in this sense.
    fn capture(&self, body: impl FnOnce() -> Result<()>) -> Result<Self::Graph>;
    /// Runs captured operations, on the tensors that they were captured with.
    fn replay(&self, graph: &Self::Graph) -> Result<()>;

    /// Rows `to` to `to` + n − 1 of y = rows `from` to `from` + n − 1 of x, n = `rows`; of one type, and of one
    /// number of elements in a row.
    fn copy_rows(
        &self,
        x: &Self::Tensor,
        from: usize,
        y: &mut Self::Tensor,
        to: usize,
        rows: usize,
    ) -> Result<()> {
        let [from, to, bytes] = copied_bytes((x, from), (&*y, to), rows)?;
        Self::copy_bytes(Checked(self), x, from, y, to, bytes)
    }

    /// Copies `count` bytes of x, from the byte `from` on, to the byte `to` of y; they are there.
    fn copy_bytes(
        device: Checked<'_, Self>,
        x: &Self::Tensor,
        from: usize,
        y: &mut Self::Tensor,
        to: usize,
        count: usize,
    ) -> Result<()>;

    /// Sets every element to zero.
    fn clear(&self, x: &mut Self::Tensor) -> Result<()>;
}

/// The first bytes in x and in y of what [`Memory::copy_rows`] copies, and their number, after it was checked
/// that they are there.
fn copied_bytes<T: DeviceTensor>(
    (x, from): (&T, usize),
    (y, to): (&T, usize),
    rows: usize,
) -> Result<[usize; 3]> {
    const OP: &str = "copy_rows";
    expect_shape(OP, "y", x.shape().with_rows(y.shape().rows()), y.shape())?;
    let last =
        (from + rows).saturating_sub(x.shape().rows()).max((to + rows).saturating_sub(y.shape().rows()));
    if last > 0 || x.dtype() != y.dtype() {
        let (a, b) = (x.dtype(), y.dtype());
        let problem = format!("{rows} rows from {from} to {to} of {} {a} and {} {b}", x.shape(), y.shape());
        return Err(BackendError::Invalid { op: OP, problem });
    }
    let row = x.shape().row_elements() * x.dtype().size();
    Ok([from * row, to * row, rows * row])
}
