//! Class features from the features of their prompts.

use super::real::{Real, sum_of};
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
            let length = sum_of(t, t, |a, b| a * b).sqrt();
            *norm = if length > T::from_f64(1e-12) { length } else { T::from_f64(1e-12) };
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
            let along = sum_of(t, dt, |a, b| a * b);
            for df in df.chunks_exact_mut(e) {
                for ((df, &t), &dt) in df.iter_mut().zip(t).zip(dt) {
                    *df = (dt - t * along) / norm;
                }
            }
        }
        Ok(())
    }
}
