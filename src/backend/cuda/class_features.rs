//! Class features from the features of their prompts.

use super::*;

const THREADS: usize = 128;

/// Elements that a thread moves at a time where the width divides.
const FOUR: usize = 4;

impl ClassFeaturesOp for Cuda {
    fn class_features_checked(
        device: Checked<'_, Self>,
        f: &CudaTensor,
        t: &mut CudaTensor,
        norms: &mut CudaTensor,
    ) -> Result<()> {
        let (classes, width) = t.matrix();
        let prompts = f.shape().rows() / classes;
        let name = if width.is_multiple_of(FOUR) { "class_features_fours" } else { "class_features_ones" };
        let args = Args::new()
            .address(f.typed(DType::F32)?)
            .address(t.typed(DType::F32)?)
            .address(norms.typed(DType::F32)?)
            .int(prompts)
            .int(width)
            .moving(f.bytes() + t.bytes() + norms.bytes());
        device.launch("class_features", name, [classes, 1, 1], THREADS, 0, args)
    }

    fn class_features_backward_checked(
        device: Checked<'_, Self>,
        dt: &CudaTensor,
        t: &CudaTensor,
        norms: &CudaTensor,
        df: &mut CudaTensor,
    ) -> Result<()> {
        let (classes, width) = t.matrix();
        let prompts = df.shape().rows() / classes;
        let name = match width.is_multiple_of(FOUR) {
            true => "class_features_backward_fours",
            false => "class_features_backward_ones",
        };
        let args = Args::new()
            .address(dt.typed(DType::F32)?)
            .address(t.typed(DType::F32)?)
            .address(norms.typed(DType::F32)?)
            .address(df.typed(DType::F32)?)
            .int(prompts)
            .int(width)
            .moving(dt.bytes() + t.bytes() + norms.bytes() + df.bytes());
        device.launch("class_features", name, [classes, 1, 1], THREADS, 0, args)
    }
}
