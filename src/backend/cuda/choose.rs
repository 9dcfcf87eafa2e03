//! Which of several forms of the same work is the fastest.

use super::*;

/// The form of `forms`, which have names, that is remembered under `key`; else the fastest by the clock, from then on
/// remembered; the first where nothing is measured. `run` enqueues a form, which must only write what it also
/// overwrites the next time, so that timing leaves nothing behind. Never times inside a capture: what is captured has
/// run before.
pub fn fastest<F: Copy>(
    cuda: &Cuda,
    key: &str,
    forms: &[(&'static str, F)],
    run: &mut dyn FnMut(F) -> Result<()>,
) -> Result<F> {
    let named = |name: &str| forms.iter().find(|(known, _)| *known == name).map(|(_, form)| *form);
    let (mut best, others) = match forms {
        [] => return Err(BackendError::Invalid { op: "fastest", problem: format!("{key}: no form of it") }),
        [(_, only)] => return Ok(*only),
        [(_, first), ..] if !cuda.driver().measures() => return Ok(*first),
        [first, others @ ..] => ((*first, f64::INFINITY), others),
    };
    if let Some(form) = cuda.driver().recall(key).as_deref().and_then(named) {
        return Ok(form);
    }
    best.1 = seconds(cuda, &mut || run(best.0.1))?;
    for form in others {
        let seconds = seconds(cuda, &mut || run(form.1))?;
        if seconds < best.1 {
            best = (*form, seconds);
        }
    }
    let held = cuda.driver().remember(key, best.0.0)?;
    Ok(named(&held).unwrap_or(best.0.1))
}

/// The shortest of several timings of a few launches each. They are captured where that can be, as in a training
/// step: what the host takes to launch them is left out.
fn seconds(cuda: &Cuda, run: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    const REPETITIONS: usize = 5;
    const LAUNCHES: usize = 8;
    // Products may choose their algorithm now, which a capture would not let them.
    run()?;
    let mut all = || (0..LAUNCHES).try_for_each(|_| run());
    let graph = if cuda.can_capture() { Some(cuda.capture(&mut all)?) } else { None };
    let mut once = || graph.as_ref().map_or_else(&mut all, |graph| cuda.replay(graph));
    once()?;
    let mut best = f64::INFINITY;
    for _ in 0..REPETITIONS {
        best = best.min(cuda.seconds(&mut once)?);
    }
    Ok(best)
}
