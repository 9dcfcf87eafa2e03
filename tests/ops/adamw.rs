//! AdamW against `torch.optim.AdamW`, with a decay and a rate large enough that each term of the update shows.

use approx::assert_abs_diff_eq;
use clip_engine::backend::cpu::Cpu;
use clip_engine::backend::cpu::real::Real;
use clip_engine::backend::prelude::*;
use clip_engine::backend::{AdamwStep, AdamwTensor, Control, Stat};
use clip_engine::tensor::{DType, Tensor};

/// lr 0.1, weight decay 0.3, betas (0.9, 0.999), eps 1e-8 on p = [1.5, -0.25, 0, 3] with these gradients,
/// f64, PyTorch 2.15 (here a rate of 0.2 and a factor of 0.5). The last element has a gradient near eps, and none at
/// first.
const GRADIENTS: [[f64; 4]; 3] = [[0.5, -2.0, 1e-3, 0.0], [0.25, 3.0, -1e-3, 1e-9], [-1.0, 0.5, 2e-3, 0.0]];
const EXPECTED: [f64; 4] =
    [1.2051337816128875, -0.18585143094090825, -0.13880770917875515, 2.730111212516439];

fn run<T: Real>() -> (Vec<f64>, f64) {
    run_on::<T>(&GRADIENTS, None, 1.0)
}

fn run_on<T: Real>(gradients: &[[f64; 4]], clip: Option<f64>, scale: f64) -> (Vec<f64>, f64) {
    let backend = Cpu::<T>::new();
    let numbers = |values: &[f64]| {
        Tensor::from_slice([values.len()], values).unwrap().view().to_tensor(T::DTYPE).unwrap()
    };
    let mut value = numbers(&[1.5, -0.25, 0.0, 3.0].map(|v| scale * v));
    let [mut first, mut second] = [(); 2].map(|()| Tensor::zeros([4], T::DTYPE));
    let mut stats = Tensor::zeros([Stat::COUNT], T::DTYPE);
    let mut control = Tensor::zeros([Control::COUNT], T::DTYPE);
    let factor = numbers(&[0.5]);
    for gradient in gradients {
        let mut tensors = [AdamwTensor {
            value: &mut value,
            gradient: &numbers(gradient),
            first_moment: &mut first,
            second_moment: &mut second,
            learning_rate: 0.2,
            weight_decay: 0.3,
            scale,
        }];
        let step = AdamwStep {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            scaling: None,
            clip,
            factor: &factor,
            control: &mut control,
        };
        backend.adamw(&mut tensors, step, &mut stats).unwrap();
    }
    let wide = |t: &Tensor| t.view().to_tensor(DType::F64).unwrap().typed::<f64>().unwrap().to_vec();
    (wide(&value), wide(&stats)[Stat::GradientSquared as usize])
}

#[test]
fn three_steps_are_pytorchs() {
    let (values, squared) = run::<f64>();
    assert_abs_diff_eq!(values[..], EXPECTED[..], epsilon = 1e-14);
    // The sum of squares is that of the last gradient.
    assert_abs_diff_eq!(squared, 1.0 + 0.25 + 4e-6, epsilon = 1e-12);
    let (values, _) = run::<f32>();
    assert_abs_diff_eq!(values[..], EXPECTED[..], epsilon = 1e-6);
}

/// A value that stands for c times what is moved: c times PyTorch's values come of gradients that are c times
/// smaller, as they are behind a layer that multiplies by c, and their length is that of what is moved.
#[test]
fn a_scale_moves_the_value_as_if_it_were_divided_by_it() {
    for clip in [None, Some(0.3)] {
        let (plain, squared) = run_on::<f64>(&GRADIENTS, clip, 1.0);
        let scale = 512f64.sqrt();
        let smaller = GRADIENTS.map(|gradient| gradient.map(|g| g / scale));
        let (values, scaled_squared) = run_on::<f64>(&smaller, clip, scale);
        let divided: Vec<f64> = values.iter().map(|v| v / scale).collect();
        assert_abs_diff_eq!(divided[..], plain[..], epsilon = 1e-12);
        assert_abs_diff_eq!(scaled_squared, squared, epsilon = 1e-12);
    }
}

#[test]
fn vectors_of_another_length_are_refused() {
    let backend = Cpu::<f32>::new();
    let refusal = |factor: usize, control: usize, stats: usize| {
        let [factor, mut control, mut stats] =
            [factor, control, stats].map(|n| Tensor::zeros([n], DType::F32));
        let (beta1, beta2, eps) = (0.9, 0.999, 1e-8);
        let (factor, control) = (&factor, &mut control);
        let step = AdamwStep { beta1, beta2, eps, scaling: None, clip: None, factor, control };
        backend.adamw(&mut [], step, &mut stats).err().map(|error| error.to_string())
    };
    assert_eq!(refusal(1, Control::COUNT, Stat::COUNT), None);
    for (name, sizes) in [
        ("factor", [0, Control::COUNT, Stat::COUNT]),
        ("factor", [2, Control::COUNT, Stat::COUNT]),
        ("control", [1, Control::COUNT - 1, Stat::COUNT]),
        ("stats", [1, Control::COUNT, Stat::COUNT - 1]),
    ] {
        let problem = refusal(sizes[0], sizes[1], sizes[2]).unwrap_or_default();
        assert!(problem.contains(&format!("adamw: {name} is")), "{sizes:?}: {problem}");
    }
}

/// `torch.nn.utils.clip_grad_norm_` by hand: with g·min(1, clip/(|g| + 1e-6)) for g, the steps are the same.
#[test]
fn clipping_multiplies_gradients_that_are_too_long() {
    let lengths = GRADIENTS.map(|gradient| gradient.iter().map(|g| g * g).sum::<f64>().sqrt());
    // Between the lengths: only one of the steps is clipped. Then the constant decides, and then all are.
    for (clip, scale) in [(2.5, 1.0), (1e-6, 1e-6), (0.1, 1.0)] {
        let gradients = GRADIENTS.map(|gradient| gradient.map(|g| scale * g));
        let mut shorter = gradients;
        for (gradient, length) in shorter.iter_mut().zip(lengths.map(|length| scale * length)) {
            let factor = (clip / (length + 1e-6)).min(1.0);
            gradient.iter_mut().for_each(|g| *g *= factor);
        }
        let ((clipped, squared), (expected, _)) =
            (run_on::<f64>(&gradients, Some(clip), 1.0), run_on::<f64>(&shorter, None, 1.0));
        assert_abs_diff_eq!(clipped[..], expected[..], epsilon = 1e-12);
        let last = scale * lengths[2];
        assert_abs_diff_eq!(squared, last * last, epsilon = 1e-12 * last * last);
    }
}
