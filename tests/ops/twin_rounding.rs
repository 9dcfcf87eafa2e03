//! Every check on a host twin that rounds as roughly as a device may, so that no bound is too narrow for a GPU. Whole
//! steps are taken in the product form of the linear layers, which rounds more than the fused one.
//! `--nocapture` shows the errors that are nearest to their bounds.

use clip_engine::backend::cuda::{BiasForm, Cuda, LoraForm};
use clip_engine::dev::check::Row;
use clip_engine::dev::ops::Group;
use clip_engine::dev::ops::device::{Scope, check_part_of_steps, rows};
use clip_engine::dev::twin::{Rounding, Twin};
use clip_engine::tensor::DType;
use std::sync::Arc;

fn cuda(dtype: DType, rounding: Rounding, form: LoraForm) -> Cuda {
    // The same launches are watched in twin_small, twin_attention, twin_lora and check_command, by the host's rounding.
    let twin = Twin::new(dtype, 90).unwrap().with_rounding(rounding).unwrap().unwatched();
    Cuda::new(Arc::new(twin), dtype, form).unwrap()
}

fn passes(dtype: DType) {
    let device = |form| cuda(dtype, Rounding::Device { seed: 2 }, form);
    let small = rows(&device(LoraForm::Auto), Scope::Quick, Group::SMALL).unwrap();
    let exact =
        rows(&cuda(dtype, Rounding::EachOperation, LoraForm::Auto), Scope::Quick, Group::SMALL).unwrap();
    // In 16 bits the last rounding hides most others; what is f32 in every type does not.
    let differ = small.iter().zip(&exact).filter(|(row, exact)| row.error != exact.error).count();
    assert!(differ > 100, "only {differ} of {} rows are rounded otherwise than by the host", small.len());

    let attention = || rows(&device(LoraForm::Auto), Scope::Quick, &[Group::Attention]).unwrap();
    let linear = |form| rows(&device(form), Scope::Quick, Group::LINEAR).unwrap();
    let biased = || {
        let cuda = device(LoraForm::Auto).with_bias_form(BiasForm::Activation).unwrap();
        rows(&cuda, Scope::Quick, &[Group::LinearActivation]).unwrap()
    };
    // In bf16 the steps alone take the product form.
    let gemm = || if dtype == DType::BF16 { Vec::new() } else { linear(LoraForm::Gemm) };
    let steps = |part| check_part_of_steps(&device(LoraForm::Gemm), part, 2).unwrap();
    let mut rows = std::thread::scope(|scope| {
        let other = scope.spawn(|| [linear(LoraForm::Auto), biased(), gemm(), steps(1)].concat());
        // In f16 half of them: the first tier takes all with the twin's own rounding.
        let others = if dtype == DType::F16 { Vec::new() } else { steps(0) };
        [small, attention(), others, other.join().unwrap()].concat()
    });

    let share = |row: &Row| if row.error == 0.0 { 0.0 } else { row.error / row.bound };
    rows.sort_by(|a, b| share(b).total_cmp(&share(a)));
    for row in &rows[..10] {
        println!("{dtype} {} at {}: {:.1e} of {:.1e}", row.name, row.at, row.error, row.bound);
    }
    let failed = rows.iter().filter(|row| !row.passed()).count();
    assert!(failed == 0, "{dtype}: {failed} of {} rows are above their bounds", rows.len());
}

#[test]
#[ignore = "long: the same checks on a twin that rounds every operation, of whole steps those in f16"]
fn f32_is_within_its_bounds_on_any_device() {
    passes(DType::F32);
}

#[test]
#[ignore = "long: as in f32"]
fn f16_is_within_its_bounds_on_any_device() {
    passes(DType::F16);
}

#[test]
#[ignore = "long: as in f32"]
fn bf16_is_within_its_bounds_on_any_device() {
    passes(DType::BF16);
}
