//! The learning rate over a run.

use serde::{Deserialize, Serialize};

/// The course of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// 1 in every step.
    Constant,
    /// Half a cosine from 1 down to 0 at the last step.
    Cosine,
}

/// A factor for every learning rate, per step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// The course behind the warm-up.
    pub kind: ScheduleKind,
    /// Steps over which the factor climbs linearly to 1; the first step has 1/`warmup`.
    pub warmup: u64,
    /// Steps of the whole run, warm-up included.
    pub total: u64,
}

impl Schedule {
    /// The factor of `step`, counted from 0.
    pub fn factor(&self, step: u64) -> f64 {
        if step < self.warmup {
            return (step + 1) as f64 / self.warmup as f64;
        }
        match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Cosine => {
                let length = self.total.saturating_sub(self.warmup).max(1) as f64;
                let done = (step - self.warmup) as f64 / length;
                0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_climbs_to_one_and_cosine_falls_to_zero() {
        let schedule = Schedule { kind: ScheduleKind::Cosine, warmup: 4, total: 14 };
        let factors: Vec<f64> = (0..14).map(|step| schedule.factor(step)).collect();
        assert_eq!(&factors[..5], &[0.25, 0.5, 0.75, 1.0, 1.0]);
        assert!((factors[9] - 0.5).abs() < 1e-12, "half way down: {}", factors[9]);
        assert!(factors[4..].windows(2).all(|pair| pair[1] < pair[0]));
        assert!(schedule.factor(14) < 1e-12 && schedule.factor(1000) < 1e-12);
    }

    #[test]
    fn constant_stays_at_one() {
        let schedule = Schedule { kind: ScheduleKind::Constant, warmup: 0, total: 3 };
        assert!((0..10).all(|step| schedule.factor(step) == 1.0));
    }
}
