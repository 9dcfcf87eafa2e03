//! How the trained tensors move: AdamW's constants, the learning rate's course, and when to stop.

mod early_stop;
mod schedule;

pub use early_stop::{EarlyStop, EarlyStopSpec, StopAgainst};
pub use schedule::{Schedule, ScheduleKind};

use crate::tune::Group;

/// Learning rate and weight decay of one group of trained tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Learning rate before the schedule's factor.
    pub learning_rate: f64,
    /// Decoupled weight decay: a step multiplies values by 1 − rate·decay, with the schedule's factor in the rate.
    pub weight_decay: f64,
}

/// The rates of all groups, before the schedule's factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Rate of the head's weight and bias.
    pub head: Rate,
    /// Rate of the adapters in both towers.
    pub lora: Rate,
    /// Rate of the visual prompts.
    pub prompt: Rate,
}

impl Rates {
    /// Rates of 0, with which nothing moves.
    pub(crate) const STILL: Rates = Rates::all(Rate { learning_rate: 0.0, weight_decay: 0.0 });

    /// One rate for all.
    pub const fn all(rate: Rate) -> Self {
        Rates { head: rate, lora: rate, prompt: rate }
    }

    pub(crate) fn of(&self, group: Group) -> Rate {
        match group {
            Group::Head => self.head,
            Group::Lora => self.lora,
            Group::Prompt => self.prompt,
        }
    }
}

/// AdamW's constants, PyTorch's defaults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adamw {
    /// Share of the first moment that a step keeps.
    pub beta1: f64,
    /// Share of the second moment that a step keeps.
    pub beta2: f64,
    /// ε, added to the root of the second moment after its bias correction.
    pub eps: f64,
}

impl Default for Adamw {
    fn default() -> Self {
        Adamw { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}
