//! Whether launches may begin while the one before them ends.

use super::choose::fastest;
use super::*;

/// Lets launches overlap from here on, where the device can and a chain of a block's operations on `rows` rows of `width`
/// activations takes less time that way. Without room to find out they do not, nor where the driver refuses one that may.
pub fn settle(cuda: &Cuda, [rows, width]: [usize; 2]) -> Result<()> {
    if !cuda.driver().info().overlap {
        return Ok(());
    }
    let forms = [("one after the other", false), ("overlapping", true)];
    let key = format!("launches of {} {rows}x{width}", cuda.real());
    let (mut chain, mut early) = (None, false);
    let chosen = fastest(cuda, &key, &forms, &mut |on| {
        if chain.is_none() {
            chain = Some(Chain::new(cuda, [rows, width])?);
        }
        early = on;
        cuda.driver().overlap(on);
        chain.as_mut().map_or(Ok(()), |chain| chain.run(cuda))
    });
    cuda.driver().overlap(matches!(chosen, Ok(true)));
    match chosen {
        Err(BackendError::Cuda(error)) if matches!(*error, CudaError::OutOfMemory { .. }) => Ok(()),
        Err(BackendError::Cuda(error)) if early && matches!(*error, CudaError::Call { .. }) => {
            cuda.driver().remember(&key, forms[0].0)?;
            Ok(())
        }
        chosen => chosen.map(drop),
    }
}

/// Kernels of our own behind a product, behind each other and behind what is no kernel, as in a step; each needs what the one
/// before wrote.
struct Chain {
    norm: LayerNorm<Cuda>,
    layer: Linear<Cuda>,
    values: [CudaTensor; 3],
    stats: CudaTensor,
}

impl Chain {
    fn new(cuda: &Cuda, [rows, width]: [usize; 2]) -> Result<Self> {
        let real = || cuda.zeros([rows, width], cuda.real());
        let vector = || cuda.zeros([width], DType::F32);
        Ok(Chain {
            norm: LayerNorm { weight: vector()?, bias: vector()?, eps: 1e-5 },
            layer: Linear { weight: cuda.zeros([width, width], cuda.real())?, bias: None },
            values: [real()?, real()?, real()?],
            stats: cuda.zeros([rows, 2], DType::F32)?,
        })
    }

    fn run(&mut self, cuda: &Cuda) -> Result<()> {
        let Chain { norm, layer, values: [x, y, z], stats } = self;
        cuda.clear(stats)?;
        cuda.layer_norm(x, norm, y, stats)?;
        cuda.linear(y, layer, None, z)?;
        cuda.activation(Activation::QuickGelu, z, None, y)?;
        cuda.activation_backward(Activation::QuickGelu, z, None, y)?;
        cuda.layer_norm_backward(y, z, norm, stats, AddTo::Nothing, x)
    }
}
