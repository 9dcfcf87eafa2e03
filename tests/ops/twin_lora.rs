//! Linear layers with and without adapters on the host twin, in every form, against the CPU's in f64.

use super::clocked::Clocked;
use clip_engine::backend::cuda::driver::Driver;
use clip_engine::backend::cuda::{BiasForm, Cuda, CudaTensor, LoraForm};
use clip_engine::backend::prelude::*;
use clip_engine::backend::{
    BackendError, DeviceTensor, Dropout, Linear, Lora, LoraGradients, LoraLinear, LoraLinearBackward,
    LoraSite,
};
use clip_engine::dev::ops::Group;
use clip_engine::dev::ops::device::{Scope, rows};
use clip_engine::dev::twin::{BlockOrder, Twin};
use clip_engine::tensor::{DType, Shape, Tensor};
use std::sync::Arc;

fn check(dtype: DType, compute_capability: u32, form: LoraForm) {
    let twin = Twin::new(dtype, compute_capability).unwrap();
    let cuda = Cuda::new(Arc::new(twin), dtype, form).unwrap();
    let biased = cuda.with_bias_form(BiasForm::Activation).unwrap();
    let groups = [(&cuda, Group::LINEAR), (&biased, &[Group::LinearActivation, Group::ClassTail])];
    let rows = groups.map(|(cuda, groups)| rows(cuda, Scope::Quick, groups).unwrap());
    assert!(rows.iter().all(|rows| !rows.is_empty()));
    let rows = rows.concat();
    let failed: Vec<String> = rows
        .iter()
        .filter(|row| !row.passed())
        .map(|row| format!("{} at {}: {:.2e}, bound {:.2e}", row.name, row.at, row.error, row.bound))
        .collect();
    assert!(failed.is_empty(), "{dtype} on sm_{compute_capability}, {form:?}:\n{}", failed.join("\n"));
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn f32_matches_the_definition() {
    check(DType::F32, 90, LoraForm::Gemm);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn f16_matches_the_definition_in_the_fused_form() {
    check(DType::F16, 90, LoraForm::Fused);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn f16_matches_the_definition_in_the_product_form() {
    check(DType::F16, 90, LoraForm::Gemm);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn bf16_matches_the_definition_in_the_fused_form() {
    check(DType::BF16, 90, LoraForm::Fused);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn bf16_matches_the_definition_in_the_product_form() {
    check(DType::BF16, 90, LoraForm::Gemm);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn f16_matches_the_definition_without_tensor_cores() {
    check(DType::F16, 75, LoraForm::Auto);
}

const WIDTH: usize = 24;
const RANK: usize = 8;

/// What a layer with adapters on the first and last of three segments computes.
struct Computed {
    u: Tensor,
    y: Tensor,
    du: Tensor,
    da: Tensor,
    db: Tensor,
    dx: Tensor,
}

impl Computed {
    fn tensors(&self) -> [&Tensor; 6] {
        [&self.u, &self.y, &self.du, &self.da, &self.db, &self.dx]
    }
}

/// Numbers without a pattern, from -1 to 1.
fn noise(shape: impl Into<Shape>, seed: usize) -> Tensor {
    let shape = shape.into();
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0;
    let values: Vec<f32> = (0..shape.elements()).map(value).collect();
    Tensor::from_slice(shape, &values).unwrap()
}

/// The adapters see what dropout of probability `dropped` leaves of the input.
fn compute(
    cuda: &Cuda,
    rows: usize,
    columns: &[usize],
    dropped: Option<f64>,
) -> Result<Computed, BackendError> {
    let (real, outputs, width) = (cuda.compute_dtype(), 3 * WIDTH, 2 * RANK);
    let upload = |tensor: Tensor, dtype| cuda.upload(tensor.view(), dtype);
    let weight = upload(noise([outputs, WIDTH], 1), real)?;
    let layer = Linear::<Cuda> { weight, bias: Some(upload(noise([outputs], 2), real)?) };
    let a = upload(noise([width, WIDTH], 3), DType::F32)?;
    let b = upload(noise([2, WIDTH, RANK], 4), DType::F32)?;
    let (x, dy) = (upload(noise([rows, WIDTH], 5), real)?, upload(noise([rows, outputs], 6), real)?);
    let lora = Lora { a: &a, b: &b, columns, scale: 0.5 };
    let (mut u, mut y) = (cuda.empty([rows, width], real)?, cuda.empty([rows, outputs], real)?);
    let draw = upload(Tensor::from_slice([4], &[1u32, 2, 3, 0])?, DType::U32)?;
    let mask = dropped.map(|probability| Dropout { draw: &draw, site: 4, probability });
    let mut seen = cuda.empty([rows, WIDTH], real)?;
    mask.map_or(Ok(()), |mask| cuda.dropout(&x, mask, &mut seen))?;
    cuda.lora_linear(LoraLinear {
        x: &x,
        seen: mask.map(|_| &seen),
        layer: &layer,
        lora,
        residual: None,
        u: &mut u,
        y: &mut y,
    })?;
    let (mut du, mut dx) = (cuda.empty([rows, width], real)?, cuda.empty([rows, WIDTH], real)?);
    let mut da = cuda.empty([width, WIDTH], DType::F32)?;
    let mut db = cuda.empty([2, WIDTH, RANK], DType::F32)?;
    cuda.lora_linear_backward(LoraLinearBackward {
        dy: &dy,
        x: if mask.is_some() { &seen } else { &x },
        dropout: mask,
        u: &u,
        layer: &layer,
        lora,
        du: &mut du,
        da: &mut da,
        db: &mut db,
        dx: Some(&mut dx),
    })?;
    let get = |tensor| cuda.download(tensor);
    Ok(Computed { u: get(&u)?, y: get(&y)?, du: get(&du)?, da: get(&da)?, db: get(&db)?, dx: get(&dx)? })
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn the_order_of_blocks_changes_no_bit() {
    let twin = Arc::new(Twin::new(DType::F16, 90).unwrap());
    for (form, dropped) in [(LoraForm::Fused, None), (LoraForm::Gemm, None), (LoraForm::Gemm, Some(0.5))] {
        let cuda = Cuda::new(twin.clone(), DType::F16, form).unwrap();
        let results = [BlockOrder::Ascending, BlockOrder::Descending, BlockOrder::Shuffled(7)].map(|order| {
            twin.set_block_order(order);
            compute(&cuda, 66, &[0, 2 * WIDTH], dropped).unwrap()
        });
        let first = &results[0];
        for other in &results[1..] {
            for (a, b) in first.tensors().into_iter().zip(other.tensors()) {
                assert_eq!(a.bytes(), b.bytes(), "{form:?}");
            }
        }
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn the_order_of_blocks_changes_no_bit_of_gradients_of_several_layers() {
    let twin = Arc::new(Twin::new(DType::F16, 90).unwrap());
    let cuda = Cuda::new(twin.clone(), DType::F16, LoraForm::Folded).unwrap();
    let upload = |tensor: Tensor, dtype| cuda.upload(tensor.view(), dtype).unwrap();
    // Several slabs of rows, and one.
    let layers = [(700, 2), (66, 1), (9, 2)].map(|(rows, parts)| {
        let a = upload(noise([parts * RANK, WIDTH], 1), DType::F32);
        let b = upload(noise([parts, WIDTH, RANK], 2), DType::F32);
        let (x, dy) = (noise([rows, WIDTH], 3), noise([rows, parts * WIDTH], 4));
        (a, b, upload(x, DType::F16), upload(dy, DType::F16), [0, WIDTH][..parts].to_vec())
    });
    let gradients = |order| {
        twin.set_block_order(order);
        let empty = |like: &CudaTensor| cuda.empty(like.shape(), DType::F32).unwrap();
        let mut results: Vec<_> = layers.iter().map(|(a, b, ..)| (empty(a), empty(b))).collect();
        let together = layers.iter().zip(&mut results).map(|((a, b, x, dy, columns), (da, db))| {
            let lora = Lora { a, b, columns, scale: 0.5 };
            LoraGradients { x, dy, lora, da, db }
        });
        cuda.lora_gradients(&mut together.collect::<Vec<_>>()).unwrap();
        let tensors = results.iter().flat_map(|(da, db)| [da, db]);
        tensors.map(|tensor| cuda.download(tensor).unwrap().bytes().to_vec()).collect::<Vec<_>>()
    };
    let first = gradients(BlockOrder::Ascending);
    assert!(first.iter().all(|bytes| bytes.iter().any(|byte| *byte != 0)));
    for order in [BlockOrder::Descending, BlockOrder::Shuffled(7)] {
        assert!(gradients(order) == first, "{order:?}");
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn parts_that_kernels_cannot_place_are_refused() {
    let cuda = Cuda::new(Arc::new(Twin::new(DType::F16, 90).unwrap()), DType::F16, LoraForm::Fused).unwrap();
    for columns in [[0, WIDTH / 2], [WIDTH, WIDTH], [0, 3 * WIDTH], [0, 900 * WIDTH]] {
        let Err(error) = compute(&cuda, 9, &columns, None) else { panic!("{columns:?} passed") };
        assert!(error.to_string().contains("parts lie on different multiples of 24"), "{error}");
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn the_faster_form_is_timed_once_and_taken() {
    let columns = [0, 2 * WIDTH];
    for (slow, form) in [
        ("fused", Some(LoraForm::Gemm)),
        ("start", Some(LoraForm::Fused)),
        ("64x64", None),
        ("128x128", None),
    ] {
        let clocked = Arc::new(Clocked::new(slow));
        let cuda = Cuda::new(clocked.clone(), DType::F16, LoraForm::Auto).unwrap();
        compute(&cuda, 9, &columns, None).unwrap();
        let timings = clocked.timings();
        assert!(timings > 0);
        clocked.launched();
        let auto = compute(&cuda, 9, &columns, None).unwrap();
        assert_eq!(clocked.timings(), timings, "the choices are remembered");
        let launched = clocked.launched();
        assert!(!launched.iter().any(|kernel| kernel.contains(slow)), "{slow}: {launched:?}");
        let Some(form) = form else { continue };
        assert_eq!(launched.len(), 3, "{launched:?}");
        let asked = Cuda::new(Arc::new(Twin::new(DType::F16, 90).unwrap()), DType::F16, form).unwrap();
        let asked = compute(&asked, 9, &columns, None).unwrap();
        for (a, b) in auto.tensors().into_iter().zip(asked.tensors()) {
            assert_eq!(a.bytes(), b.bytes(), "{form:?}");
        }
    }
}

/// One layer of a step, timed in both ways that training has for it.
#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn adapters_are_folded_in_training_where_that_is_faster() {
    for (slow, folded) in [("lora_linear_", true), ("lora_gradients", false), ("lora_fold", false)] {
        let clocked = Arc::new(Clocked::new(slow));
        let cuda = Cuda::new(clocked.clone(), DType::F16, LoraForm::Auto).unwrap();
        let layer = Linear { weight: cuda.zeros([WIDTH, WIDTH], DType::F16).unwrap(), bias: None };
        let a = cuda.zeros([8, WIDTH], DType::F32).unwrap();
        let b = cuda.zeros([1, WIDTH, 8], DType::F32).unwrap();
        let lora = Lora { a: &a, b: &b, columns: &[0], scale: 2.0 };
        let before = clocked.allocated().0;
        let sites = [LoraSite { rows: 9, layer: &layer, lora }];
        assert_eq!(cuda.trains_folded(&sites).unwrap(), folded, "{slow}");
        let timings = clocked.timings();
        assert!(timings > 0);
        assert_eq!(cuda.trains_folded(&sites).unwrap(), folded, "{slow}");
        assert_eq!(clocked.timings(), timings, "the choice is remembered");
        // Scratch memory and tables stay.
        assert!(clocked.allocated().0 < before + (4 << 20));
        let beside = cuda.with_lora_form(LoraForm::Beside).unwrap();
        assert!(!beside.trains_folded(&sites).unwrap());
    }
    let bf16 = Cuda::new(Arc::new(Clocked::new("none")), DType::BF16, LoraForm::Folded).unwrap();
    assert!(!bf16.can_train_folded());
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_form_that_another_process_chose_first_is_taken() {
    for (first, taken) in [("product", false), ("no form", true)] {
        let mut clocked = Clocked::new("start");
        clocked.first = Some(first);
        let clocked = Arc::new(clocked);
        let cuda = Cuda::new(clocked.clone(), DType::F16, LoraForm::Auto).unwrap();
        compute(&cuda, 9, &[0, 2 * WIDTH], None).unwrap();
        assert!(clocked.timings() > 0);
        // What is launched after the last of the timings is the form that is used.
        let launched = clocked.launched();
        assert_eq!(launched.iter().any(|kernel| kernel.contains("fused")), taken, "{first}: {launched:?}");
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn dropout_takes_one_launch_more_and_no_timing() {
    let clocked = Arc::new(Clocked::new("fused"));
    let cuda = Cuda::new(clocked.clone(), DType::F16, LoraForm::Auto).unwrap();
    compute(&cuda, 9, &[0, 2 * WIDTH], Some(0.25)).unwrap();
    assert_eq!(clocked.timings(), 0);
    let expected = [
        "dropout_apply",
        "lora_linear_start_16_rows",
        "lora_linear_dropout_backward_start_16_rows",
        "lora_linear_gradients",
    ];
    assert_eq!(clocked.launched(), expected);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn dropout_of_nothing_changes_no_bit() {
    for (dtype, capability) in [(DType::F16, 90), (DType::F16, 75), (DType::F32, 90)] {
        let twin = Arc::new(Twin::new(dtype, capability).unwrap());
        let cuda = Cuda::new(twin, dtype, LoraForm::Gemm).unwrap();
        let [plain, dropped] =
            [None, Some(0.0)].map(|dropped| compute(&cuda, 35, &[0, 2 * WIDTH], dropped).unwrap());
        for (a, b) in plain.tensors().into_iter().zip(dropped.tensors()) {
            assert_eq!(a.bytes(), b.bytes(), "{dtype} on sm_{capability}");
        }
    }
}
