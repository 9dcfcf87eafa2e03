//! Prompt tokens between the class token and the patches.

use super::*;

/// The sizes of sequences with prompts in them.
#[derive(Debug, Clone, Copy)]
pub struct PromptExtents {
    /// B.
    pub batch: usize,
    /// Tokens of a sequence, with the prompts.
    pub tokens: usize,
    /// m, the prompts.
    pub count: usize,
    /// D.
    pub width: usize,
    /// The one whose prompts they are.
    pub layer: usize,
}

impl PromptExtents {
    /// `sequences` \[B, tokens, D\] have room for `prompts` \[n, m, D\].
    fn of(op: &'static str, sequences: Shape, prompts: Shape, layer: usize) -> Result<Self> {
        match (sequences.dims(), prompts.dims()) {
            (&[batch, tokens, width], &[layers, count, same])
                if same == width && layer < layers && tokens > count && width > 0 =>
            {
                Ok(PromptExtents { batch, tokens, count, width, layer })
            }
            _ => {
                let problem = format!("prompts {prompts} of layer {layer} do not go into {sequences}");
                Err(BackendError::Invalid { op, problem })
            }
        }
    }

    /// The shape of sequences without the prompts.
    fn without(&self) -> Shape {
        [self.batch, self.tokens - self.count, self.width].into()
    }

    /// Where the first of the layer's numbers is among those of all layers' prompts.
    pub fn first(&self) -> usize {
        self.layer * self.count * self.width
    }
}

/// Prompt tokens between the class token and the patches.
pub trait PromptsOp: Memory {
    /// y = \[x₀; `prompts`\[layer\]; x₁; x₂; …\] per sequence: `x` \[B, S, D\], `prompts` \[n, m, D\] in the
    /// parameter dtype, `y` \[B, S+m, D\].
    fn insert_prompts(
        &self,
        x: &Self::Tensor,
        prompts: &Self::Tensor,
        layer: usize,
        y: &mut Self::Tensor,
    ) -> Result<()> {
        const OP: &str = "insert_prompts";
        let extents = PromptExtents::of(OP, y.shape(), prompts.shape(), layer)?;
        expect_shape(OP, "x", extents.without(), x.shape())?;
        Self::insert_prompts_checked(Checked(self), x, prompts, extents, y)
    }

    /// Adds Σ over the batch of the prompts' rows of `dy` to `d_prompts`\[layer\]; dx = the other rows, where
    /// it is wanted.
    fn insert_prompts_backward(
        &self,
        dy: &Self::Tensor,
        layer: usize,
        d_prompts: &mut Self::Tensor,
        dx: Option<&mut Self::Tensor>,
    ) -> Result<()> {
        const OP: &str = "insert_prompts_backward";
        let extents = PromptExtents::of(OP, dy.shape(), d_prompts.shape(), layer)?;
        if let Some(dx) = &dx {
            expect_shape(OP, "dx", extents.without(), dx.shape())?;
        }
        Self::insert_prompts_backward_checked(Checked(self), dy, extents, d_prompts, dx)
    }

    /// Rows 1 to m of every sequence become `prompts`\[layer\], in place: `x` \[B, S, D\].
    fn replace_prompts(&self, prompts: &Self::Tensor, layer: usize, x: &mut Self::Tensor) -> Result<()> {
        const OP: &str = "replace_prompts";
        let extents = PromptExtents::of(OP, x.shape(), prompts.shape(), layer)?;
        Self::replace_prompts_checked(Checked(self), prompts, extents, x)
    }

    /// Adds Σ over the batch of rows 1 to m of `d` to `d_prompts`\[layer\] and sets these rows to zero: `d` held
    /// the gradient of what [`PromptsOp::replace_prompts`] left, and then holds that of what it was given.
    fn replace_prompts_backward(
        &self,
        d: &mut Self::Tensor,
        layer: usize,
        d_prompts: &mut Self::Tensor,
    ) -> Result<()> {
        const OP: &str = "replace_prompts_backward";
        let extents = PromptExtents::of(OP, d.shape(), d_prompts.shape(), layer)?;
        Self::replace_prompts_backward_checked(Checked(self), d, extents, d_prompts)
    }

    /// [`Self::insert_prompts`] of what was checked.
    fn insert_prompts_checked(
        device: Checked<'_, Self>,
        x: &Self::Tensor,
        prompts: &Self::Tensor,
        extents: PromptExtents,
        y: &mut Self::Tensor,
    ) -> Result<()>;

    /// [`Self::insert_prompts_backward`] of what was checked.
    fn insert_prompts_backward_checked(
        device: Checked<'_, Self>,
        dy: &Self::Tensor,
        extents: PromptExtents,
        d_prompts: &mut Self::Tensor,
        dx: Option<&mut Self::Tensor>,
    ) -> Result<()>;

    /// [`Self::replace_prompts`] of what was checked.
    fn replace_prompts_checked(
        device: Checked<'_, Self>,
        prompts: &Self::Tensor,
        extents: PromptExtents,
        x: &mut Self::Tensor,
    ) -> Result<()>;

    /// [`Self::replace_prompts_backward`] of what was checked.
    fn replace_prompts_backward_checked(
        device: Checked<'_, Self>,
        d: &mut Self::Tensor,
        extents: PromptExtents,
        d_prompts: &mut Self::Tensor,
    ) -> Result<()>;
}
