//! How the trained tensors move: AdamW's constants, the learning rate's course, and when to stop.

mod early_stop;
mod schedule;

pub use early_stop::{EarlyStop, EarlyStopSpec, StopAgainst};
pub use schedule::{Schedule, ScheduleKind};

/// Learning rate and weight decay of one group of trained tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    pub learning_rate: f64,
    pub weight_decay: f64,
}

/// The rates of all groups, before the schedule's factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    pub head: Rate,
    pub lora: Rate,
    pub prompt: Rate,
}

impl Rates {
    pub fn of(&self, group: crate::tune::Group) -> Rate {
        match group {
            crate::tune::Group::Head => self.head,
            crate::tune::Group::Lora => self.lora,
            crate::tune::Group::Prompt => self.prompt,
        }
    }
}

/// AdamW's constants, PyTorch's defaults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adamw {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
}

impl Default for Adamw {
    fn default() -> Self {
        Adamw { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}
