//! Dropout in front of adapters: which random numbers belong to which tensor.

use super::Tower;
use crate::backend::{Backend, Dropout, copyable};

/// Dropout in front of the adapters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DropoutSpec {
    /// Share of their inputs that is set to zero.
    pub probability: f64,
    /// Seed of the run, which with the number of a batch decides what is drawn.
    pub seed: u64,
}

/// Dropout in front of the adapters of a tower.
pub struct TowerDropout<'a, B: Backend> {
    /// See [`Dropout::draw`].
    pub draw: &'a B::Tensor,
    /// p.
    pub probability: f64,
    /// Tells parts of a batch apart that are computed one after the other.
    pub part: u32,
}

/// Dropout in front of the adapters of a block.
pub struct BlockDropout<'a, B: Backend> {
    draw: &'a B::Tensor,
    probability: f64,
    /// Site of the block's first tensor, to which a [`Slot`] adds.
    site: u32,
}

/// The linear layers of a block, by the tensors in front of them. Queries, keys and values see the same one, but
/// where the queries are computed apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// LN₁ of all rows, in front of queries, keys and values, or of keys and values alone.
    Projections = 0,
    /// LN₁ of the chosen rows, where the queries are computed apart.
    Queries = 1,
    /// Result of attention, in front of its output projection.
    Output = 2,
    /// LN₂, in front of the MLP's first linear layer.
    Expand = 3,
    /// Result of the activation function, in front of the MLP's second linear layer.
    Contract = 4,
}

impl<'a, B: Backend> TowerDropout<'a, B> {
    /// The same for part number `part` of a batch.
    pub(crate) fn of_part(self, part: usize) -> Self {
        TowerDropout { part: part as u32, ..self }
    }

    pub(crate) fn of(&self, tower: Tower, layer: usize) -> BlockDropout<'a, B> {
        let site = self.part << 16 | (tower as u32) << 15 | (layer as u32) << 3;
        BlockDropout { draw: self.draw, probability: self.probability, site }
    }
}

impl<'a, B: Backend> BlockDropout<'a, B> {
    pub fn of(&self, slot: Slot) -> Dropout<'a, B> {
        Dropout { draw: self.draw, site: self.site | slot as u32, probability: self.probability }
    }
}

copyable!(Backend: TowerDropout, BlockDropout);
