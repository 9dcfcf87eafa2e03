//! Every check on a host twin that rounds as roughly as a device may, so that no bound is too narrow for a GPU. Whole
//! steps are taken in the product form of the linear layers, which rounds more than the fused one.
//! `--nocapture` shows the errors that are nearest to their bounds.

use clip_engine::backend::cuda::twin::{Rounding, Twin};
use clip_engine::backend::cuda::{Cuda, LoraForm};
use clip_engine::check::Row;
use clip_engine::check::device::{
    Scope, check_attention, check_lora_linear, check_part_of_steps, check_small,
};
use clip_engine::tensor::DType;
use std::sync::Arc;

fn cuda(dtype: DType, rounding: Rounding, form: LoraForm) -> Cuda {
    let twin = Twin::new(dtype, 90).unwrap().with_rounding(rounding).unwrap();
    Cuda::new(Arc::new(twin), dtype, form).unwrap()
}

fn passes(dtype: DType) {
    let device = |form| cuda(dtype, Rounding::Device { seed: 2 }, form);
    let operations = || {
        let cuda = device(LoraForm::Auto);
        let products = check_lora_linear(&device(LoraForm::Product), Scope::Quick).unwrap();
        let linear = check_lora_linear(&cuda, Scope::Quick).unwrap();
        [check_small(&cuda, Scope::Quick).unwrap(), linear, products].concat()
    };
    let steps = |part| check_part_of_steps(&device(LoraForm::Product), part, 2).unwrap();
    let attention = check_attention(&device(LoraForm::Auto), Scope::Quick).unwrap();
    let mut rows = std::thread::scope(|scope| {
        let other = scope.spawn(|| [operations(), steps(1)].concat());
        [steps(0), other.join().unwrap()].concat()
    });
    let exact = cuda(dtype, Rounding::EachOperation, LoraForm::Auto);
    let exact = check_attention(&exact, Scope::Quick).unwrap();
    let same = attention.iter().zip(&exact).filter(|(row, exact)| row.error == exact.error).count();
    assert!(
        same < attention.len() / 4,
        "{same} of {} rows of attention are rounded as before",
        attention.len()
    );
    rows.extend(attention);

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
