//! Timing of single operations, on any backend: what `engine bench ops` and `cargo bench` run; what a training step
//! launches on a GPU; the heads of the ladder.

pub mod heads;
pub mod launches;
pub mod step;

use crate::backend::{Backend, Result};
use crate::tensor::DType;

/// An operation ready to run again and again.
pub struct Op<'a> {
    pub name: &'static str,
    /// Sizes of the operation, for people.
    pub at: String,
    /// Floating-point operations of the products in it.
    pub flop: f64,
    pub bytes: f64,
    /// Calls it once, on tensors that are there already; does not wait for a GPU.
    pub run: Box<dyn FnMut() -> Result<()> + 'a>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Percentiles {
    /// Seconds that the fastest fifth of the runs stayed within.
    pub p20: f64,
    pub p50: f64,
    /// Seconds that all but the slowest fifth of the runs stayed within.
    pub p80: f64,
}

impl Percentiles {
    /// Percentiles of the runs' seconds, in any order, each percentile one of them; not a number where there are none.
    pub fn of(seconds: &[f64]) -> Self {
        let mut sorted = seconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |p: f64| match sorted.len() {
            0 => f64::NAN,
            n => sorted[((n - 1) as f64 * p).round() as usize],
        };
        Percentiles { p20: at(0.2), p50: at(0.5), p80: at(0.8) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// One run after another, as in a training step: what fits the caches is found there.
    pub warm: Percentiles,
    /// With the device's cache emptied before each run; only where that can be done.
    pub cold: Option<Percentiles>,
}

/// Runs of an operation that are timed as one where the backend captures: a single one is shorter than what
/// events resolve.
const BURST: usize = 20;

/// Times `op`, `reps` times, after runs that warm up.
pub fn time<B: Backend>(backend: &B, op: &mut Op<'_>, reps: usize) -> Result<Timing> {
    for _ in 0..2 {
        (op.run)()?;
    }
    let mut warm = Vec::with_capacity(reps);
    if backend.can_capture() {
        let graph = backend.capture(|| (0..BURST).try_for_each(|_| (op.run)()))?;
        backend.replay(&graph)?;
        for _ in 0..reps {
            warm.push(backend.seconds(&mut || backend.replay(&graph))? / BURST as f64);
        }
    } else {
        for _ in 0..reps {
            warm.push(backend.seconds(&mut op.run)?);
        }
    }
    let mut cold = None;
    if backend.cache_bytes() > 0 {
        let mut evict = backend.empty([2 * backend.cache_bytes()], DType::U8)?;
        let mut seconds = Vec::with_capacity(reps);
        for _ in 0..reps {
            backend.clear(&mut evict)?;
            seconds.push(backend.seconds(&mut op.run)?);
        }
        cold = Some(Percentiles::of(&seconds));
    }
    Ok(Timing { warm: Percentiles::of(&warm), cold })
}
