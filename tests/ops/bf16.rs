//! The CPU in bf16, by every kind of instruction that this machine has, against the definitions in f64.

use clip_engine::backend::cpu::{Cpu, Features, Isa};
use clip_engine::backend::prelude::*;
use clip_engine::backend::{Activation, Linear, Lora, LoraLinear, LoraLinearBackward};
use clip_engine::dev::ops::Group;
use clip_engine::dev::ops::device::{Scope, rows};
use clip_engine::tensor::{DType, Tensor};

fn found() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.runs_with(Features::found())).collect()
}

fn cpu(isa: Isa) -> Cpu<f32> {
    Cpu::in_bf16(isa).unwrap()
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
    for isa in found() {
        let cpu = cpu(isa);
        // Whole steps by the machine's own alone.
        let steps = isa == Isa::best(Features::found());
        let groups = if steps { &Group::ALL[..] } else { Group::ALL.split_last().unwrap().1 };
        let rows = rows(&cpu, Scope::Quick, groups).unwrap();
        let failed: Vec<String> = rows
            .iter()
            .filter(|row| !row.passed())
            .map(|row| format!("{} at {}: {:e} of {:e}", row.name, row.at, row.error, row.bound))
            .collect();
        assert!(rows.len() > 500, "{}: {} rows", cpu.describe(), rows.len());
        assert!(failed.is_empty(), "{}: of {} rows\n{}", cpu.describe(), rows.len(), failed.join("\n"));
    }
}

/// Outputs, and all that a layer with adapters leaves behind, of one kind of instructions and so many threads.
fn layer(isa: Isa, threads: usize, [rows, inputs, outputs, rank]: [usize; 4]) -> Vec<Tensor> {
    let cpu = cpu(isa);
    let run = || {
        let weight = cpu.weight(numbers([outputs, inputs], 1, DType::F32).view()).unwrap();
        let linear = Linear::<Cpu<f32>> { weight, bias: Some(numbers([outputs], 2, DType::BF16)) };
        let (a, b) = (numbers([rank, inputs], 3, DType::F32), numbers([1, outputs, rank], 4, DType::F32));
        let lora = Lora::<Cpu<f32>> { a: &a, b: &b, columns: &[0], scale: 0.5 };
        let (x, dy) = (numbers([rows, inputs], 5, DType::BF16), numbers([rows, outputs], 6, DType::BF16));
        let [mut u, mut du] = [(); 2].map(|()| zeros([rows, rank], DType::BF16));
        let (mut y, mut dx) = (zeros([rows, outputs], DType::BF16), zeros([rows, inputs], DType::BF16));
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
    for isa in found() {
        for sizes in [[1, 588, 40, 3], [70, 64, 200, 8], [300, 96, 96, 24]] {
            let one = layer(isa, 1, sizes);
            for threads in [2, 3, 7] {
                let several = layer(isa, threads, sizes);
                let same = one.iter().zip(&several).all(|(a, b)| a.bytes() == b.bytes());
                assert!(same, "{isa}, {sizes:?} on {threads} threads");
            }
        }
    }
}

/// The product with its activation is the product and then the activation.
#[test]
fn activations_beside_a_product_are_those_behind_it() {
    for isa in found() {
        let cpu = cpu(isa);
        for (rows, inputs, outputs) in [(1, 5, 11), (33, 64, 96), (70, 72, 136)] {
            let weight = cpu.weight(numbers([outputs, inputs], 1, DType::F32).view()).unwrap();
            let linear = Linear::<Cpu<f32>> { weight, bias: Some(numbers([outputs], 2, DType::BF16)) };
            let x = numbers([rows, inputs], 3, DType::BF16);
            let z_of_back = numbers([rows, inputs], 4, DType::BF16);
            let dy = numbers([rows, outputs], 5, DType::BF16);
            for kind in [Activation::QuickGelu, Activation::Gelu] {
                let out = || zeros([rows, outputs], DType::BF16);
                let [mut z, mut g, mut z_alone, mut g_alone] = [out(), out(), out(), out()];
                cpu.linear_activation(&x, &linear, kind, &mut z, &mut g).unwrap();
                cpu.linear(&x, &linear, None, &mut z_alone).unwrap();
                cpu.activation(kind, &z_alone, &mut g_alone).unwrap();
                assert!(
                    z.bytes() == z_alone.bytes() && g.bytes() == g_alone.bytes(),
                    "{isa}, {kind:?}, {rows}"
                );
                let [mut dz, mut dz_alone] = [(); 2].map(|()| zeros([rows, inputs], DType::BF16));
                cpu.linear_activation_backward(&dy, &linear, kind, &z_of_back, &mut dz).unwrap();
                cpu.linear_backward(&dy, &linear, &mut dz_alone).unwrap();
                cpu.activation_backward(kind, &z_of_back, &mut dz_alone).unwrap();
                assert!(dz.bytes() == dz_alone.bytes(), "{isa}, {kind:?}, {rows}, backward");
            }
        }
    }
}

/// What is beyond a matrix is not part of it, whatever stands there.
#[test]
fn numbers_that_are_none_stay_where_they_are() {
    for isa in found() {
        let cpu = cpu(isa);
        let weight = cpu.weight(numbers([33, 45], 1, DType::F32).view()).unwrap();
        let linear = Linear::<Cpu<f32>> { weight, bias: None };
        let mut values = vec![1.0f32; 3 * 45];
        values[45] = f32::NAN;
        let x = Tensor::from_slice([3, 45], &values).unwrap().view().to_tensor(DType::BF16).unwrap();
        let mut y = zeros([3, 33], DType::BF16);
        cpu.linear(&x, &linear, None, &mut y).unwrap();
        let y = y.view().to_tensor(DType::F32).unwrap();
        for (row, y) in y.typed::<f32>().unwrap().chunks(33).enumerate() {
            assert!(y.iter().all(|v| v.is_nan() == (row == 1)), "{isa}, row {row}: {y:?}");
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
    }
}

/// Wider ones too: their rows would be read as if they were those of the input.
#[test]
fn weights_of_another_width_are_refused() {
    for cpu in [Cpu::<f32>::new(), Cpu::in_bf16(Isa::Plain).unwrap()] {
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
