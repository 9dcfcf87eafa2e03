//! Frozen linear layers: a cuBLASLt product each. Where an activation function is behind one, its bias is the product's,
//! or added with the function: a product without one has more algorithms, such as split k, which would round it twice.

use super::choose::fastest;
use super::driver::Gemm;
use super::*;

impl LinearOp for Cuda {
    fn linear_checked(
        device: Checked<'_, Self>,
        x: &CudaTensor,
        layer: &Linear<Cuda>,
        residual: Option<&CudaTensor>,
        y: &mut CudaTensor,
    ) -> Result<()> {
        let sizes = Sizes::of(x.matrix(), y.shape.columns(), layer);
        Frozen::forward(&device, sizes, x, layer, residual, y)?.gemm(&device)
    }

    fn linear_backward_checked(
        device: Checked<'_, Self>,
        dy: &CudaTensor,
        layer: &Linear<Cuda>,
        dx: &mut CudaTensor,
    ) -> Result<()> {
        let (m, n) = dy.matrix();
        let sizes = Sizes::of((m, dx.shape.columns()), n, layer);
        Frozen::backward(&device, sizes, dy, layer, dx)?.gemm(&device)
    }

    fn linear_activation_checked(
        device: Checked<'_, Self>,
        x: &CudaTensor,
        layer: &Linear<Cuda>,
        kind: Activation,
        z: &mut CudaTensor,
        g: &mut CudaTensor,
    ) -> Result<Kept> {
        let sizes = Sizes::of(x.matrix(), z.shape.columns(), layer);
        let product = Frozen::forward(&device, sizes, x, layer, None, z)?;
        let mut run = |form: BiasForm, backward: bool| {
            let bias = kept_in(form).bias(layer);
            let product = Frozen { bias: product.bias.filter(|_| bias.is_none()), ..product };
            product.gemm(&device)?;
            Self::activation_checked(device, kind, z, bias, g)?;
            if backward { Self::activation_backward_checked(device, kind, z, bias, g) } else { Ok(()) }
        };
        let form = bias_form(&device, &product, kind, &mut |form| run(form, true))?;
        run(form, false)?;
        Ok(kept_in(form))
    }
}

fn kept_in(form: BiasForm) -> Kept {
    if form == BiasForm::Activation { Kept::Product } else { Kept::Sum }
}

/// Where the product's bias is added: as asked for, else by the clock, with the function only where rows are whole
/// packs. `run` enqueues a form forward and backward, since the choice is for both; between the two the gradient stands
/// in the place of the result.
fn bias_form(
    cuda: &Cuda,
    product: &Frozen,
    kind: Activation,
    run: &mut dyn FnMut(BiasForm) -> Result<()>,
) -> Result<BiasForm> {
    let Sizes { m, k, n, .. } = product.sizes;
    match cuda.bias_form() {
        _ if product.bias.is_none() || cuda.pack(n) == 1 || m == 0 => Ok(BiasForm::Product),
        BiasForm::Auto => {
            let key = format!("linear_activation {} {m}x{k} to {n}, {kind:?}", product.dtype);
            fastest(cuda, &key, &BiasForm::BOTH, run)
        }
        form => Ok(form),
    }
}

/// Rows, inputs and outputs of a layer, and elements from one row of its weight to the next.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub m: usize,
    pub k: usize,
    pub n: usize,
    pub weight_stride: usize,
}

impl Sizes {
    /// `x`: the rows and columns of the input or of its gradient.
    pub fn of(x: (usize, usize), outputs: usize, layer: &Linear<Cuda>) -> Self {
        Sizes { m: x.0, k: x.1, n: outputs, weight_stride: layer.weight.shape.columns() }
    }
}

/// A frozen layer's product, forward (y from x) or backward (dx from dy), without a low-rank update.
#[derive(Clone, Copy)]
pub struct Frozen {
    pub sizes: Sizes,
    pub forward: bool,
    pub from: Address,
    pub weight: Address,
    pub bias: Option<Address>,
    pub residual: Option<Address>,
    pub to: Address,
    pub dtype: DType,
}

impl Frozen {
    pub fn forward(
        cuda: &Cuda,
        sizes: Sizes,
        x: &CudaTensor,
        layer: &Linear<Cuda>,
        residual: Option<&CudaTensor>,
        y: &mut CudaTensor,
    ) -> Result<Self> {
        let real = cuda.real();
        Ok(Frozen {
            sizes,
            forward: true,
            from: x.typed(real)?,
            weight: layer.weight.typed(real)?,
            bias: layer.bias.as_ref().map(|b| b.typed(real)).transpose()?,
            residual: residual.map(|r| r.typed(real)).transpose()?,
            to: y.typed(real)?,
            dtype: real,
        })
    }

    pub fn backward(
        cuda: &Cuda,
        sizes: Sizes,
        dy: &CudaTensor,
        layer: &Linear<Cuda>,
        dx: &mut CudaTensor,
    ) -> Result<Self> {
        let real = cuda.real();
        Ok(Frozen {
            sizes,
            forward: false,
            from: dy.typed(real)?,
            weight: layer.weight.typed(real)?,
            bias: None,
            residual: None,
            to: dx.typed(real)?,
            dtype: real,
        })
    }

    /// Columns of the result, and of what it is computed from.
    pub fn columns(&self) -> (usize, usize) {
        if self.forward { (self.sizes.n, self.sizes.k) } else { (self.sizes.k, self.sizes.n) }
    }

    /// Enqueues it as one product.
    pub fn gemm(&self, cuda: &Cuda) -> Result<()> {
        if self.sizes.m == 0 {
            return Ok(());
        }
        cuda.gemm(&self.as_gemm())
    }

    pub fn as_gemm(&self) -> Gemm {
        let (n, k) = self.columns();
        Gemm {
            m: self.sizes.m,
            n,
            k,
            x: self.from,
            x_stride: k,
            w: self.weight,
            w_stride: self.sizes.weight_stride,
            transposed: self.forward,
            bias: self.bias,
            add: self.residual,
            y: self.to,
            y_stride: n,
            dtype: self.dtype,
        }
    }
}
