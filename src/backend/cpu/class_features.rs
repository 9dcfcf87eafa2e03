//! Class features from the features of their prompts.

use super::l2_norm::{length, row_backward};
use super::real::Real;
use super::*;

impl<T: Real> ClassFeaturesOp for Cpu<T> {
    fn class_features_checked(
        _device: Checked<'_, Self>,
        f: &Tensor,
        t: &mut Tensor,
        norms: &mut Tensor,
    ) -> Result<()> {
        let prompts = f.shape().rows() / t.shape().rows();
        let e = t.shape().columns();
        let classes = t.typed_mut::<T>()?.chunks_exact_mut(e).zip(f.typed::<T>()?.chunks_exact(prompts * e));
        for ((t, f), norm) in classes.zip(norms.typed_mut::<T>()?) {
            t.fill(T::ZERO);
            for f in f.chunks_exact(e) {
                t.iter_mut().zip(f).for_each(|(sum, &f)| *sum += f);
            }
            *norm = length(t);
            t.iter_mut().for_each(|t| *t = *t / *norm);
        }
        Ok(())
    }

    fn class_features_backward_checked(
        _device: Checked<'_, Self>,
        dt: &Tensor,
        t: &Tensor,
        norms: &Tensor,
        df: &mut Tensor,
    ) -> Result<()> {
        let prompts = df.shape().rows() / t.shape().rows();
        let e = t.shape().columns();
        let classes = t.typed::<T>()?.chunks_exact(e).zip(dt.typed::<T>()?.chunks_exact(e));
        let rows = df.typed_mut::<T>()?.chunks_exact_mut(prompts * e);
        for (((t, dt), &norm), df) in classes.zip(norms.typed::<T>()?).zip(rows) {
            let (first, others) = df.split_at_mut(e);
            row_backward(dt, t, norm, first);
            others.chunks_exact_mut(e).for_each(|df| df.copy_from_slice(first));
        }
        Ok(())
    }
}
