//! Class features from the features of their prompts.

use super::real::{Real, sum_of};
use crate::backend::{BackendError, Result, expect_shape};
use crate::tensor::Tensor;

/// Prompts of a class, from the shapes of their features and of the class features.
fn prompts_of_class(op: &'static str, f: &Tensor, t: &Tensor, norms: &Tensor) -> Result<usize> {
    let (prompts, classes) = (f.shape().rows(), t.shape().rows());
    if classes == 0 || !prompts.is_multiple_of(classes) || prompts == 0 {
        let problem = format!("{prompts} prompts are not the same number for each of {classes} classes");
        return Err(BackendError::Invalid { op, problem });
    }
    expect_shape(op, "f", t.shape().with_rows(prompts), f.shape())?;
    expect_shape(op, "norms", [classes], norms.shape())?;
    Ok(prompts / classes)
}

pub fn class_features<T: Real>(f: &Tensor, t: &mut Tensor, norms: &mut Tensor) -> Result<()> {
    let prompts = prompts_of_class("class_features", f, t, norms)?;
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

pub fn class_features_backward<T: Real>(
    dt: &Tensor,
    t: &Tensor,
    norms: &Tensor,
    df: &mut Tensor,
) -> Result<()> {
    const OP: &str = "class_features_backward";
    let prompts = prompts_of_class(OP, df, t, norms)?;
    expect_shape(OP, "dt", t.shape(), dt.shape())?;
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
