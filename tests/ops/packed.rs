//! The CPU where it multiplies by packed factors, by every kind of instruction that this machine has, against the
//! definitions in f64.

use clip_engine::backend::cpu::{Cpu, Features, Isa};
use clip_engine::backend::prelude::*;
use clip_engine::backend::{Activation, Kept, Linear, Lora, LoraFold, LoraLinear, LoraLinearBackward};
use clip_engine::dev::ops::Group;
use clip_engine::dev::ops::device::{Scope, rows};
use clip_engine::tensor::{DType, Tensor};

/// In f32 and in bf16.
fn found() -> Vec<Cpu<f32>> {
    Isa::ALL.into_iter().flat_map(|isa| [Cpu::packed(isa), Cpu::in_bf16(isa)]).flatten().collect()
}

/// By which instructions, and in what.
fn named(cpu: Cpu<f32>) -> String {
    format!("{cpu:?}")
}

/// Numbers in ±1 that follow from their place.
fn numbers<const D: usize>(shape: [usize; D], seed: usize, dtype: DType) -> Tensor {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
    let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
    Tensor::from_slice(shape, &values).unwrap().view().to_tensor(dtype).unwrap()
}

fn zeros<const D: usize>(shape: [usize; D], dtype: DType) -> Tensor {
    Tensor::zeros(shape, dtype)
}

#[test]
fn every_operation_is_within_its_bounds() {
    for cpu in found() {
        // Whole steps by the machine's own alone.
        let own = [Cpu::new(), Cpu::in_bf16(Isa::best(Features::found())).unwrap()];
        let steps = own.map(named).contains(&named(cpu));
        let groups = if steps { &Group::ALL[..] } else { Group::ALL.split_last().unwrap().1 };
        let rows = rows(&cpu, Scope::Quick, groups).unwrap();
        let failed: Vec<String> = rows
            .iter()
            .filter(|row| !row.passed())
            .map(|row| format!("{} at {}: {:e} of {:e}", row.name, row.at, row.error, row.bound))
            .collect();
        assert!(rows.len() > 500, "{}: {} rows", named(cpu), rows.len());
        assert!(failed.is_empty(), "{}: of {} rows\n{}", named(cpu), rows.len(), failed.join("\n"));
    }
}

/// Outputs, and all that a layer with adapters leaves behind, of one kind of instructions and so many threads.
fn layer(cpu: Cpu<f32>, threads: usize, [rows, inputs, outputs, rank]: [usize; 4]) -> Vec<Tensor> {
    let dtype = cpu.compute_dtype();
    let run = || {
        let weight = cpu.weight(numbers([outputs, inputs], 1, DType::F32).view()).unwrap();
        let linear = Linear::<Cpu<f32>> { weight, bias: Some(numbers([outputs], 2, dtype)) };
        let (a, b) = (numbers([rank, inputs], 3, DType::F32), numbers([1, outputs, rank], 4, DType::F32));
        let lora = Lora::<Cpu<f32>> { a: &a, b: &b, columns: &[0], scale: 0.5 };
        let (x, dy) = (numbers([rows, inputs], 5, dtype), numbers([rows, outputs], 6, dtype));
        let [mut u, mut du] = [(); 2].map(|()| zeros([rows, rank], dtype));
        let (mut y, mut dx) = (zeros([rows, outputs], dtype), zeros([rows, inputs], dtype));
        let (mut da, mut db) = (zeros([rank, inputs], DType::F32), zeros([1, outputs, rank], DType::F32));
        let layer = &linear;
        let (u_to, residual) = (&mut u, Some(&dy));
        cpu.lora_linear(LoraLinear { x: &x, seen: None, layer, lora, residual, u: u_to, y: &mut y }).unwrap();
        cpu.lora_linear_backward(LoraLinearBackward {
            dy: &dy,
            x: &x,
            dropout: None,
            u: &u,
            layer,
            lora,
            du: &mut du,
            da: &mut da,
            db: &mut db,
            dx: Some(&mut dx),
        })
        .unwrap();
        vec![y, u, du, da, db, dx]
    };
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
}

/// Sums do not depend on who computes them.
#[test]
fn products_have_the_same_bits_on_any_number_of_threads() {
    for cpu in found() {
        let name = named(cpu);
        for sizes in [[1, 588, 40, 3], [70, 64, 200, 8], [300, 96, 96, 24]] {
            let one = layer(cpu, 1, sizes);
            for threads in [2, 3, 7] {
                let several = layer(cpu, threads, sizes);
                let same = one.iter().zip(&several).all(|(a, b)| a.bytes() == b.bytes());
                assert!(same, "{name}, {sizes:?} on {threads} threads");
            }
        }
    }
}

/// The product with its activation is the product and then the activation.
#[test]
fn activations_beside_a_product_are_those_behind_it() {
    for cpu in found() {
        let (dtype, name) = (cpu.compute_dtype(), named(cpu));
        for (rows, inputs, outputs) in [(1, 5, 11), (33, 64, 96), (70, 72, 136)] {
            let weight = cpu.weight(numbers([outputs, inputs], 1, DType::F32).view()).unwrap();
            let linear = Linear::<Cpu<f32>> { weight, bias: Some(numbers([outputs], 2, dtype)) };
            let x = numbers([rows, inputs], 3, dtype);
            let z_of_back = numbers([rows, inputs], 4, dtype);
            let dy = numbers([rows, outputs], 5, dtype);
            for kind in [Activation::QuickGelu, Activation::Gelu] {
                let out = || zeros([rows, outputs], dtype);
                let [mut z, mut g, mut z_alone, mut g_alone] = [out(), out(), out(), out()];
                let kept = cpu.linear_activation(&x, &linear, kind, &mut z, &mut g).unwrap();
                assert_eq!(kept, Kept::Sum);
                cpu.linear(&x, &linear, None, &mut z_alone).unwrap();
                cpu.activation(kind, &z_alone, None, &mut g_alone).unwrap();
                assert!(
                    z.bytes() == z_alone.bytes() && g.bytes() == g_alone.bytes(),
                    "{name}, {kind:?}, {rows}"
                );
                let [mut dz, mut dz_alone] = [(); 2].map(|()| zeros([rows, inputs], dtype));
                cpu.linear_activation_backward(&dy, &linear, kind, &z_of_back, None, &mut dz).unwrap();
                cpu.linear_backward(&dy, &linear, &mut dz_alone).unwrap();
                cpu.activation_backward(kind, &z_of_back, None, &mut dz_alone).unwrap();
                assert!(dz.bytes() == dz_alone.bytes(), "{name}, {kind:?}, {rows}, backward");
            }
        }
    }
}

/// Rows a multiple of 4 KiB apart are read from a copy.
#[test]
fn rows_a_multiple_of_4_kib_apart_are_multiplied_as_others() {
    let (rows, inputs, outputs) = (70, 2048, 5);
    for cpu in found() {
        let dtype = cpu.compute_dtype();
        let of =
            |tensor: &Tensor| tensor.view().to_tensor(DType::F64).unwrap().typed::<f64>().unwrap().to_vec();
        let weight = cpu.weight(numbers([outputs, inputs], 1, DType::F32).view()).unwrap();
        let (x, w) = (numbers([rows, inputs], 3, dtype), of(&cpu.weight_values(&weight).unwrap()));
        let mut y = zeros([rows, outputs], dtype);
        cpu.linear(&x, &Linear { weight, bias: None }, None, &mut y).unwrap();
        let (x, y) = (of(&x), of(&y));
        let share = if dtype == DType::F32 { 4e-6 } else { 4e-3 };
        for (x, y) in x.chunks(inputs).zip(y.chunks(outputs)) {
            for (w, y) in w.chunks(inputs).zip(y) {
                let exact: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                assert!((y - exact).abs() <= share * (exact.abs() + 32.0), "{cpu:?}: {y} for {exact}");
            }
        }
    }
}

/// What is beyond a matrix is not part of it, whatever stands there.
#[test]
fn numbers_that_are_none_stay_where_they_are() {
    for cpu in found() {
        let (dtype, name) = (cpu.compute_dtype(), named(cpu));
        let weight = cpu.weight(numbers([33, 45], 1, DType::F32).view()).unwrap();
        let linear = Linear::<Cpu<f32>> { weight, bias: None };
        let mut values = vec![1.0f32; 3 * 45];
        values[45] = f32::NAN;
        let x = Tensor::from_slice([3, 45], &values).unwrap().view().to_tensor(dtype).unwrap();
        let mut y = zeros([3, 33], dtype);
        cpu.linear(&x, &linear, None, &mut y).unwrap();
        let y = y.view().to_tensor(DType::F32).unwrap();
        for (row, y) in y.typed::<f32>().unwrap().chunks(33).enumerate() {
            assert!(y.iter().all(|v| v.is_nan() == (row == 1)), "{name}, row {row}: {y:?}");
        }
    }
}

#[test]
fn what_the_machine_lacks_is_refused() {
    for isa in Isa::ALL {
        let made = Cpu::in_bf16(isa);
        assert_eq!(made.is_ok(), isa.runs_with(Features::found()), "{isa}");
        if let Ok(cpu) = made {
            assert_eq!(cpu.compute_dtype(), DType::BF16);
            assert_eq!(cpu.parameter_dtype(), DType::F32);
        }
        let made = Cpu::packed(isa);
        assert_eq!(made.is_ok(), isa.runs_f32_with(Features::found()), "{isa}");
        if let Ok(cpu) = made {
            assert_eq!((cpu.compute_dtype(), cpu.parameter_dtype()), (DType::F32, DType::F32));
        }
    }
}

/// Wider ones too: their rows would be read as if they were those of the input.
#[test]
fn weights_of_another_width_are_refused() {
    for cpu in found() {
        let dtype = cpu.compute_dtype();
        let (x, mut y) = (cpu.zeros([70, 32], dtype).unwrap(), cpu.zeros([70, 8], dtype).unwrap());
        for width in [31, 33, 64] {
            let weight = cpu.weight(Tensor::zeros([8, width], DType::F32).view()).unwrap();
            let layer = Linear { weight, bias: None };
            let problem = cpu.linear(&x, &layer, None, &mut y).unwrap_err().to_string();
            assert!(problem.contains("weight") && problem.contains("[8, 32]"), "{problem}");
        }
    }
}

#[test]
fn the_copy_for_the_way_back_is_counted_until_it_is_made() {
    for cpu in found() {
        let dtype = cpu.compute_dtype();
        let before = cpu.allocated().unwrap();
        let weight = cpu.weight(numbers([33, 45], 1, DType::F32).view()).unwrap();
        // Two panels of two steps.
        let bytes = 4 * 32 * 32 * dtype.size();
        assert_eq!(cpu.allocated().unwrap() - before, bytes, "{cpu:?}");
        let layer = Linear::<Cpu<f32>> { weight, bias: None };
        cpu.linear(&numbers([2, 45], 2, dtype), &layer, None, &mut zeros([2, 33], dtype)).unwrap();
        assert_eq!(cpu.weight_bytes_to_come(&layer.weight), bytes, "{cpu:?}");
        cpu.linear_backward(&numbers([2, 33], 2, dtype), &layer, &mut zeros([2, 45], dtype)).unwrap();
        assert_eq!(cpu.weight_bytes_to_come(&layer.weight), 0, "{cpu:?}");
    }
}

/// A weight that is folded anew has what is made of it made anew.
#[test]
fn folded_weights_serve_both_ways() {
    let (inputs, outputs, rank) = (45, 70, 3);
    for cpu in found() {
        let dtype = cpu.compute_dtype();
        let mut folded = cpu.weight(numbers([outputs, inputs], 7, DType::F32).view()).unwrap();
        let weight = cpu.weight(numbers([outputs, inputs], 1, DType::F32).view()).unwrap();
        for seed in [3, 8] {
            let a = numbers([2 * rank, inputs], seed, DType::F32);
            let b = numbers([2, 30, rank], seed + 1, DType::F32);
            let lora = Lora::<Cpu<f32>> { a: &a, b: &b, columns: &[0, 40], scale: 0.5 };
            let mut layers = [LoraFold { weight: &weight, lora, folded: &mut folded }];
            cpu.lora_fold(&mut layers).unwrap();
            let values = cpu.weight_values(&folded).unwrap();
            let layer = Linear::<Cpu<f32>> { weight: folded, bias: None };
            let same = Linear::<Cpu<f32>> { weight: cpu.weight(values.view()).unwrap(), bias: None };
            let (x, dy) = (numbers([9, inputs], 5, dtype), numbers([9, outputs], 6, dtype));
            let [mut y, mut y_same] = [(); 2].map(|()| zeros([9, outputs], dtype));
            let [mut dx, mut dx_same] = [(); 2].map(|()| zeros([9, inputs], dtype));
            for (layer, y, dx) in [(&layer, &mut y, &mut dx), (&same, &mut y_same, &mut dx_same)] {
                cpu.linear(&x, layer, None, y).unwrap();
                cpu.linear_backward(&dy, layer, dx).unwrap();
            }
            assert!(y.bytes() == y_same.bytes() && dx.bytes() == dx_same.bytes(), "{cpu:?}, {seed}");
            folded = layer.weight;
        }
    }
}
