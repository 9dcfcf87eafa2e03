//! Class features from the features of their prompts.

use super::*;

/// Checks that `f` \[C·k, E\], `t` \[C, E\] and `norms` \[C\] belong together.
fn expect<B: Memory>(op: &'static str, f: &B::Tensor, t: &B::Tensor, norms: &B::Tensor) -> Result<()> {
    let ((prompts, width), (classes, _)) = (f.shape().matrix(), t.shape().matrix());
    if classes == 0 || prompts == 0 || !prompts.is_multiple_of(classes) {
        let problem = format!("{prompts} prompts are not the same number for each of {classes} classes");
        return Err(BackendError::Invalid { op, problem });
    }
    expect_shape(op, "f", [prompts, width], f.shape())?;
    expect_shape(op, "t", [classes, width], t.shape())?;
    expect_shape(op, "norms", [classes], norms.shape())
}

/// Class features from the features of their prompts.
pub trait ClassFeaturesOp: Memory {
    /// Class features from those of their prompts: s\[c\] = Σ of the rows c·k to c·k + k − 1 of `f` \[C·k, E\],
    /// `norms`\[c\] = |s\[c\]|, `t` = s/|s| \[C, E\]; all in the parameter dtype.
    fn class_features(&self, f: &Self::Tensor, t: &mut Self::Tensor, norms: &mut Self::Tensor) -> Result<()> {
        const OP: &str = "class_features";
        expect::<Self>(OP, f, t, norms)?;
        Self::class_features_checked(Checked(self), f, t, norms)
    }

    /// Each of the k rows of class c: df = (dt − t·⟨t, dt⟩)/`norms`\[c\].
    fn class_features_backward(
        &self,
        dt: &Self::Tensor,
        t: &Self::Tensor,
        norms: &Self::Tensor,
        df: &mut Self::Tensor,
    ) -> Result<()> {
        const OP: &str = "class_features_backward";
        expect::<Self>(OP, df, t, norms)?;
        expect_shape(OP, "dt", t.shape(), dt.shape())?;
        Self::class_features_backward_checked(Checked(self), dt, t, norms, df)
    }

    /// [`Self::class_features`] of what was checked.
    fn class_features_checked(
        device: Checked<'_, Self>,
        f: &Self::Tensor,
        t: &mut Self::Tensor,
        norms: &mut Self::Tensor,
    ) -> Result<()>;

    /// [`Self::class_features_backward`] of what was checked.
    fn class_features_backward_checked(
        device: Checked<'_, Self>,
        dt: &Self::Tensor,
        t: &Self::Tensor,
        norms: &Self::Tensor,
        df: &mut Self::Tensor,
    ) -> Result<()>;
}
