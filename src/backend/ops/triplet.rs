//! Batch-hard triplet loss on features.

use super::*;

/// Checks that `f` \[B, E\], `pairs` \[B, 2\] and `distances` \[B, 2\] belong together.
fn expect<B: Memory>(
    op: &'static str,
    f: &B::Tensor,
    pairs: &B::Tensor,
    distances: &B::Tensor,
) -> Result<()> {
    let (batch, width) = f.shape().matrix();
    expect_shape(op, "f", [batch, width], f.shape())?;
    expect_shape(op, "pairs", [batch, 2], pairs.shape())?;
    expect_shape(op, "distances", [batch, 2], distances.shape())?;
    if batch == 0 || width == 0 {
        let problem = format!("a batch of {batch}, {width} features: neither may be 0");
        return Err(BackendError::Invalid { op, problem });
    }
    Ok(())
}

/// Batch-hard triplet loss on features.
pub trait TripletOp: Memory {
    /// Batch-hard triplet loss (Hermans et al. 2017): mean over the anchors i of max(0, d(i, p) − d(i, n) +
    /// margin), d(i, j) = √max(|fᵢ − fⱼ|², 1e-12), p the farthest other image of the same class, n the
    /// nearest of another (the first of equals); an anchor that lacks either counts as 0. `pairs` u32 \[B,
    /// 2\] keeps p and n, twice u32::MAX where the anchor's loss is 0; `distances` \[B, 2\] those of p and n, 0
    /// where the anchor lacks either. The mean goes to [`Stat::LossTriplet`] of `stats`, what else is known of the
    /// triplets behind it. A distance that is not a number counts as the
    /// farthest and the nearest, so that the loss is none either. All but the pairs in the parameter dtype.
    fn triplet(
        &self,
        f: &Self::Tensor,
        labels: &Self::Tensor,
        margin: f64,
        pairs: &mut Self::Tensor,
        distances: &mut Self::Tensor,
        stats: &mut Self::Tensor,
    ) -> Result<()> {
        const OP: &str = "triplet";
        expect::<Self>(OP, f, pairs, distances)?;
        expect_shape(OP, "labels", [f.shape().rows()], labels.shape())?;
        expect_shape(OP, "stats", [Stat::COUNT], stats.shape())?;
        Self::triplet_checked(Checked(self), f, labels, margin, pairs, distances, stats)
    }

    /// Adds the gradient of `weight`·loss to `df`, times the loss scale as in
    /// [`HeadLossOp::head_loss_backward`]. The gradient of a distance that was clamped is 0.
    fn triplet_backward(
        &self,
        f: &Self::Tensor,
        pairs: &Self::Tensor,
        distances: &Self::Tensor,
        weight: f64,
        control: Option<&Self::Tensor>,
        df: &mut Self::Tensor,
    ) -> Result<()> {
        const OP: &str = "triplet_backward";
        expect::<Self>(OP, f, pairs, distances)?;
        expect_shape(OP, "df", f.shape(), df.shape())?;
        expect_control::<Self>(OP, control)?;
        Self::triplet_backward_checked(Checked(self), f, pairs, distances, weight, control, df)
    }

    /// [`Self::triplet`] of what was checked.
    fn triplet_checked(
        device: Checked<'_, Self>,
        f: &Self::Tensor,
        labels: &Self::Tensor,
        margin: f64,
        pairs: &mut Self::Tensor,
        distances: &mut Self::Tensor,
        stats: &mut Self::Tensor,
    ) -> Result<()>;

    /// [`Self::triplet_backward`] of what was checked.
    fn triplet_backward_checked(
        device: Checked<'_, Self>,
        f: &Self::Tensor,
        pairs: &Self::Tensor,
        distances: &Self::Tensor,
        weight: f64,
        control: Option<&Self::Tensor>,
        df: &mut Self::Tensor,
    ) -> Result<()>;
}
