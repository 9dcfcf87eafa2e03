//! The kernels of layer norm, activation, dropout, crops, embedding, prompts, L2 norm, class features, mixing, head
//! and loss, triplets, accumulation and AdamW on the host twin, against the CPU forms; and what the CPU forms do not
//! tell: indices out of range, blocks in any order, captured steps.

use clip_engine::backend::cpu::Cpu;
use clip_engine::backend::cuda::{Cuda, CudaTensor, LoraForm};
use clip_engine::backend::prelude::*;
use clip_engine::backend::{
    AdamwStep, AdamwTensor, Backend, Classifier, Control, Dropout, HeadLossBackward, LayerNorm, Linear,
    LossScaling, LossWeights, Mix, PatchEmbed, PatchEmbedding, Result, Stat, Targets,
};
use clip_engine::dev::ops::Group;
use clip_engine::dev::ops::device::{Scope, rows};
use clip_engine::dev::twin::{BlockOrder, Twin};
use clip_engine::tensor::{DType, Element, Shape, Tensor};
use std::sync::Arc;

fn twin(dtype: DType, capability: u32) -> (Arc<Twin>, Cuda) {
    let twin = Arc::new(Twin::new(dtype, capability).unwrap());
    let cuda = Cuda::new(twin.clone(), dtype, LoraForm::Auto).unwrap();
    (twin, cuda)
}

fn passes(dtype: DType, capability: u32) {
    let (_, cuda) = twin(dtype, capability);
    let rows = rows(&cuda, Scope::Quick, Group::SMALL).unwrap();
    let failed: Vec<_> = rows.iter().filter(|row| !row.passed()).collect();
    for row in &failed {
        eprintln!("{} at {}: {:e}, bound {:e}", row.name, row.at, row.error, row.bound);
    }
    assert!(failed.is_empty(), "{} of {} rows are above their bounds", failed.len(), rows.len());
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn f32_matches_the_definitions() {
    passes(DType::F32, 90);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn f16_matches_the_definitions() {
    passes(DType::F16, 90);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn bf16_matches_the_definitions() {
    passes(DType::BF16, 90);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn f16_before_sm_80_matches_the_definitions() {
    passes(DType::F16, 75);
}

fn upload<T: Element>(cuda: &Cuda, shape: impl Into<Shape>, values: &[T]) -> CudaTensor {
    let tensor = Tensor::from_slice(shape, values).unwrap();
    cuda.upload(tensor.view(), tensor.dtype()).unwrap()
}

fn numbers(cuda: &Cuda, tensor: &CudaTensor) -> Vec<f32> {
    cuda.download(tensor).unwrap().typed::<f32>().unwrap().to_vec()
}

/// The same bits: NaN is equal to itself here.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Numbers without a pattern, from -1 to 1.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_row_out_of_range_gives_nan_and_changes_nothing() {
    for (s, width) in [(3, 8), (3, 5)] {
        let (_, cuda) = twin(DType::F32, 90);
        let x = upload(&cuda, [2, s, width], &noise(2 * s * width, 1));
        let rows = upload(&cuda, [2], &[1u32, s as u32]);
        let mut y = cuda.zeros([2, 1, width], DType::F32).unwrap();
        cuda.take_rows(&x, &rows, &mut y).unwrap();
        let (x, y) = (numbers(&cuda, &x), numbers(&cuda, &y));
        assert_eq!(y[..width], x[width..2 * width]);
        assert!(y[width..].iter().all(|v| v.is_nan()));

        let dy = upload(&cuda, [2, 1, width], &noise(2 * width, 2));
        let mut dx = upload(&cuda, [2, s, width], &vec![1.0f32; 2 * s * width]);
        cuda.take_rows_backward(&dy, &rows, &mut dx).unwrap();
        let (dy, dx) = (numbers(&cuda, &dy), numbers(&cuda, &dx));
        for (i, &v) in dx.iter().enumerate() {
            let chosen = (width..2 * width).contains(&i);
            assert_eq!(v, if chosen { 1.0 + dy[i - width] } else { 1.0 }, "element {i}");
        }
    }
}

fn mix(cuda: &Cuda, partner: &[u32], lambda: &[f32]) -> Mix<Cuda> {
    let n = partner.len();
    let mut inverse = vec![u32::MAX; n];
    for (i, &k) in partner.iter().enumerate() {
        // What is out of range has no row to be found from; the kernels must bear both.
        if let Some(place) = inverse.get_mut(k as usize) {
            *place = i as u32;
        }
    }
    Mix {
        partner: upload(cuda, [n], partner),
        inverse: upload(cuda, [n], &inverse),
        lambda: upload(cuda, [n], lambda),
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn rows_mixed_with_none_out_of_range_give_nan() {
    for width in [8, 5] {
        let (_, cuda) = twin(DType::F32, 90);
        let x = noise(3 * width, 1);
        // Row 1 is nobody's partner.
        let mix = mix(&cuda, &[2, 3, 0], &[0.25, 0.5, 1.0]);
        let source = upload(&cuda, [3, width], &x);
        let mut y = cuda.empty([3, width], DType::F32).unwrap();
        cuda.mix_rows(&source, &mix, &mut y).unwrap();
        let found = numbers(&cuda, &y);
        for column in 0..width {
            let (a, c) = (x[column], x[2 * width + column]);
            approx::assert_abs_diff_eq!(found[column], 0.25 * a + 0.75 * c, epsilon = 1e-6);
            assert!(found[width + column].is_nan());
            assert_eq!(found[2 * width + column], c, "all of it is its own");
        }

        cuda.mix_rows_backward(&source, &mix, &mut y).unwrap();
        let found = numbers(&cuda, &y);
        for column in 0..width {
            let (a, c) = (x[column], x[2 * width + column]);
            assert_eq!(found[column], 0.25 * a, "nothing of the row that has it as its partner");
            assert!(found[width + column].is_nan());
            approx::assert_abs_diff_eq!(found[2 * width + column], c + 0.75 * a, epsilon = 1e-6);
        }
    }
}

/// Two images of 689 pixels a side in patches of 53: rows so long that a block takes fewer than usual, of
/// which the last block's are fewer still.
struct Images {
    pixels: Tensor,
    patch: usize,
}

impl Images {
    fn of_levels() -> Self {
        let side = 689;
        let levels: Vec<u8> = (0..2 * side * side * 3).map(|i| (i * 89 % 257) as u8).collect();
        Images { pixels: Tensor::from_slice([2, side, side, 3], &levels).unwrap(), patch: 53 }
    }

    fn of_numbers(side: usize, patch: usize) -> Self {
        let numbers = noise(2 * 3 * side * side, 1);
        Images { pixels: Tensor::from_slice([2, 3, side, side], &numbers).unwrap(), patch }
    }

    /// The patches that a backend makes of them.
    fn patches<B: Backend>(&self, backend: &B, mix: Option<&Mix<B>>) -> Vec<f32> {
        let dims = self.pixels.shape().dims().to_vec();
        let (count, inputs) = ((dims[2] / self.patch).pow(2), 3 * self.patch * self.patch);
        let columns = backend.patch_columns(inputs);
        let zeros = |shape: &[usize]| match *shape {
            [n] => backend.zeros([n], DType::F32).unwrap(),
            [m, n] => backend.zeros([m, n], DType::F32).unwrap(),
            [b, m, n] => backend.zeros([b, m, n], DType::F32).unwrap(),
            _ => unreachable!("three dimensions at the most"),
        };
        let embedding = PatchEmbedding {
            projection: Linear {
                weight: backend.weight(Tensor::zeros([4, columns], DType::F32).view()).unwrap(),
                bias: None,
            },
            class: zeros(&[4]),
            position: zeros(&[count + 1, 4]),
            norm: LayerNorm { weight: zeros(&[4]), bias: zeros(&[4]), eps: 1e-5 },
            patch: self.patch,
            mean: [0.48, 0.46, 0.41],
            std: [0.27, 0.26, 0.28],
        };
        let pixels = backend.upload(self.pixels.view(), self.pixels.dtype()).unwrap();
        let mut patches = zeros(&[2, count, columns]);
        let (mut products, mut x) = (zeros(&[2, count, 4]), zeros(&[2, count + 1, 4]));
        let (pixels, embedding) = (&pixels, &embedding);
        let (to, products, x) = (&mut patches, &mut products, &mut x);
        backend.patch_embed(PatchEmbed { pixels, mix, embedding, patches: to, products, x }).unwrap();
        let patches = backend.download(&patches).unwrap();
        patches
            .typed::<f32>()
            .unwrap()
            .chunks_exact(columns)
            .flat_map(|row| &row[..inputs])
            .copied()
            .collect()
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn images_with_long_rows_are_mixed() {
    let (_, cuda) = twin(DType::F32, 90);
    let (partner, lambda) = ([1u32, 0], [0.3f32, 0.9]);
    let [indices, lambdas] =
        [Tensor::from_slice([2], &partner).unwrap(), Tensor::from_slice([2], &lambda).unwrap()];
    let on_host = Mix { partner: indices.clone(), inverse: indices, lambda: lambdas };
    let images = Images::of_levels();
    let expected = images.patches(&Cpu::<f32>::new(), Some(&on_host));
    let found = images.patches(&cuda, Some(&mix(&cuda, &partner, &lambda)));
    assert!(found == expected, "the same arithmetic gives the same numbers");
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn images_mixed_with_nothing_are_themselves() {
    let (_, cuda) = twin(DType::F32, 90);
    for images in [Images::of_levels(), Images::of_numbers(8, 4), Images::of_numbers(7, 3)] {
        let plain = images.patches(&cuda, None);
        let (first, second) = plain.split_at(plain.len() / 2);
        let own = images.patches(&cuda, Some(&mix(&cuda, &[1, 0], &[1.0, 1.0])));
        assert!(own == plain);
        let partners = images.patches(&cuda, Some(&mix(&cuda, &[1, 0], &[0.0, 0.0])));
        assert!(partners == [second, first].concat());
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn an_image_mixed_with_one_out_of_range_gives_nan() {
    let (_, cuda) = twin(DType::F32, 90);
    for images in [Images::of_levels(), Images::of_numbers(8, 4), Images::of_numbers(7, 3)] {
        let plain = images.patches(&cuda, None);
        let found = images.patches(&cuda, Some(&mix(&cuda, &[0, 2], &[0.5, 1.0])));
        let (first, second) = found.split_at(found.len() / 2);
        assert!(second.iter().all(|v| v.is_nan()));
        assert!(first == &plain[..first.len()], "two halves of the same are the whole");
    }
}

/// A batch with its classifier, and what a step computes from them.
struct Head {
    f: CudaTensor,
    weight: CudaTensor,
    bias: CudaTensor,
    text: CudaTensor,
    labels: CudaTensor,
    mix: Option<Mix<Cuda>>,
    logits: [CudaTensor; 2],
    stats: CudaTensor,
    gradients: [CudaTensor; 4],
}

impl Head {
    const BATCH: usize = 11;
    const CLASSES: usize = 50;
    const WIDTH: usize = 36;

    fn new(cuda: &Cuda, labels: &[u32]) -> Self {
        let (b, c, e) = (Head::BATCH, Head::CLASSES, Head::WIDTH);
        let empty = |shape: &[usize]| match *shape {
            [n] => cuda.empty([n], DType::F32).unwrap(),
            [m, n] => cuda.empty([m, n], DType::F32).unwrap(),
            _ => unreachable!("vectors and matrices only"),
        };
        Head {
            f: upload(cuda, [b, e], &noise(b * e, 1)),
            weight: upload(cuda, [c, e], &noise(c * e, 2)),
            bias: upload(cuda, [c], &noise(c, 3)),
            text: upload(cuda, [c, e], &noise(c * e, 4)),
            labels: upload(cuda, [b], labels),
            mix: None,
            logits: [empty(&[b, c]), empty(&[b, c])],
            stats: cuda.zeros([Stat::COUNT], DType::F32).unwrap(),
            gradients: [empty(&[c, e]), empty(&[c]), empty(&[b, e]), empty(&[c, e])],
        }
    }

    /// Forward and backward; all numbers that come out.
    fn run(&mut self, cuda: &Cuda) -> [Vec<f32>; 7] {
        let Head { f, weight, bias, text, labels, mix, logits, stats, gradients } = self;
        let classifier = Classifier { weight, bias, text, text_scale: 2.0 };
        let [head, text] = logits;
        let targets = Targets { mix: mix.as_ref(), ..Targets::of(labels) };
        cuda.head_loss(f, classifier, targets, head, text, stats).unwrap();
        let [d_weight, d_bias, df, d_text] = gradients;
        cuda.head_loss_backward(HeadLossBackward {
            f,
            classifier,
            targets,
            weights: LossWeights { head: 1.0, text: 0.3 },
            control: None,
            head,
            text,
            d_weight,
            d_bias,
            df: Some(df),
            d_text: Some(d_text),
        })
        .unwrap();
        let [dw, db, df, dt] = gradients;
        [stats, head, text, dw, db, df, dt].map(|t| numbers(cuda, t))
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_label_that_is_no_class_gives_nan() {
    let (_, cuda) = twin(DType::F32, 90);
    let mut labels = vec![1u32; Head::BATCH];
    labels[6] = Head::CLASSES as u32;
    let [stats, d_head, d_text, ..] = Head::new(&cuda, &labels).run(&cuda);
    assert!(stats[Stat::LossHead as usize].is_nan() && stats[Stat::LossText as usize].is_nan());
    for gradient in [d_head, d_text] {
        for (image, row) in gradient.chunks(Head::CLASSES).enumerate() {
            assert!(row.iter().all(|v| v.is_nan() == (image == 6)), "image {image}");
        }
    }
}

/// Each image with the next but one, and the permutation's labels.
fn next_but_one(labels: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let partner: Vec<u32> = (0..labels.len()).map(|i| ((i + 2) % labels.len()) as u32).collect();
    let theirs = partner.iter().map(|&k| labels[k as usize]).collect();
    (partner, theirs)
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_share_of_one_or_nothing_is_one_label() {
    let (_, cuda) = twin(DType::F32, 90);
    let labels: Vec<u32> = (0..Head::BATCH as u32).map(|i| i * 4).collect();
    let (partner, theirs) = next_but_one(&labels);
    for (lambda, same) in [(1.0, &labels), (0.0, &theirs)] {
        let plain = Head::new(&cuda, same).run(&cuda).map(|values| bits(&values));
        let mix = Some(mix(&cuda, &partner, &[lambda; Head::BATCH]));
        let mixed = Head { mix, ..Head::new(&cuda, &labels) }.run(&cuda).map(|values| bits(&values));
        assert_eq!(plain, mixed, "λ = {lambda}");
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn two_images_of_one_class_share_nothing() {
    let (_, cuda) = twin(DType::F32, 90);
    let plain = Head::new(&cuda, &[7; Head::BATCH]).run(&cuda);
    let lambda: Vec<f32> = (0..Head::BATCH).map(|i| i as f32 / 10.0).collect();
    let mix = Some(mix(&cuda, &next_but_one(&[7; Head::BATCH]).0, &lambda));
    let mixed = Head { mix, ..Head::new(&cuda, &[7; Head::BATCH]) }.run(&cuda);
    for (plain, mixed) in plain.iter().zip(&mixed) {
        for (&plain, &mixed) in plain.iter().zip(mixed) {
            approx::assert_relative_eq!(plain, mixed, max_relative = 1e-5, epsilon = 1e-7);
        }
    }
    let counts = Stat::Correct as usize..=Stat::TextCorrect as usize;
    assert_eq!(plain[0][counts.clone()], mixed[0][counts], "shares of one class are the whole image");
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_partner_that_is_no_image_gives_nan() {
    let (_, cuda) = twin(DType::F32, 90);
    let mut partner: Vec<u32> = (0..Head::BATCH as u32).rev().collect();
    partner[6] = Head::BATCH as u32;
    let mix = Some(mix(&cuda, &partner, &[1.0; Head::BATCH]));
    let [stats, d_head, d_text, ..] = Head { mix, ..Head::new(&cuda, &[1; Head::BATCH]) }.run(&cuda);
    assert!(stats[Stat::LossHead as usize].is_nan() && stats[Stat::LossText as usize].is_nan());
    for gradient in [d_head, d_text] {
        for (image, row) in gradient.chunks(Head::CLASSES).enumerate() {
            assert!(row.iter().all(|v| v.is_nan() == (image == 6)), "image {image}");
        }
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn the_order_of_the_blocks_changes_no_bit() {
    let (twin, cuda) = twin(DType::F16, 90);
    let labels: Vec<u32> = (0..Head::BATCH as u32).collect();
    let mut first = None;
    for order in [BlockOrder::Ascending, BlockOrder::Descending, BlockOrder::Shuffled(7)] {
        twin.set_block_order(order);
        let head = Head::new(&cuda, &labels).run(&cuda);
        let mix = Some(mix(&cuda, &next_but_one(&labels).0, &[0.7; Head::BATCH]));
        let mixed = Head { mix, ..Head::new(&cuda, &labels) }.run(&cuda);
        let adamw = Adamw::new(&cuda, Some(LossScaling::default())).run(&cuda, 3).state(&cuda);
        let triplet = triplet_of(&cuda, &noise(40 * 9, 1), &labels.repeat(4)[..40], 9);
        let all = head.iter().chain(&mixed).chain(&adamw).chain(&triplet);
        let found: Vec<_> = all.map(|values| bits(values)).collect();
        assert_eq!(*first.get_or_insert(found.clone()), found, "{order:?}");
    }
}

/// Two trained tensors and what AdamW keeps.
struct Adamw {
    tensors: Vec<[CudaTensor; 4]>,
    factor: CudaTensor,
    control: CudaTensor,
    stats: CudaTensor,
    scaling: Option<LossScaling>,
}

impl Adamw {
    fn new(cuda: &Cuda, scaling: Option<LossScaling>) -> Self {
        let tensor = |size: usize, seed: u32| {
            let gradient: Vec<f32> = noise(size, seed + 1).iter().map(|v| 65536.0 * v).collect();
            [
                upload(cuda, [size], &noise(size, seed)),
                upload(cuda, [size], &gradient),
                cuda.zeros([size], DType::F32).unwrap(),
                cuda.zeros([size], DType::F32).unwrap(),
            ]
        };
        Adamw {
            tensors: vec![tensor(5000, 1), tensor(13, 5)],
            factor: upload(cuda, [1], &[1.0f32]),
            control: upload(cuda, [Control::COUNT], &Control::start(scaling)),
            stats: cuda.zeros([Stat::COUNT], DType::F32).unwrap(),
            scaling,
        }
    }

    fn step(&mut self, cuda: &Cuda) -> Result<()> {
        let Adamw { tensors, factor, control, stats, scaling } = self;
        let mut tensors: Vec<_> = tensors
            .iter_mut()
            .map(|[value, gradient, first_moment, second_moment]| AdamwTensor {
                value,
                gradient,
                first_moment,
                second_moment,
                learning_rate: 1e-2,
                weight_decay: 1e-2,
                scale: 1.0,
            })
            .collect();
        let step =
            AdamwStep { beta1: 0.9, beta2: 0.999, eps: 1e-8, scaling: *scaling, clip: None, factor, control };
        cuda.adamw(&mut tensors, step, stats)
    }

    fn run(mut self, cuda: &Cuda, steps: usize) -> Self {
        for _ in 0..steps {
            self.step(cuda).unwrap();
        }
        self
    }

    fn state(&self, cuda: &Cuda) -> Vec<Vec<f32>> {
        let vectors = [&self.control, &self.stats];
        self.tensors.iter().flatten().chain(vectors).map(|tensor| numbers(cuda, tensor)).collect()
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn adamw_without_tensors_counts_the_step() {
    let (_, cuda) = twin(DType::F32, 90);
    let adamw = Adamw { tensors: Vec::new(), ..Adamw::new(&cuda, None) }.run(&cuda, 2);
    let mut stats = vec![0.0; Stat::COUNT];
    stats[Stat::LossScale as usize] = 1.0;
    assert_eq!(adamw.state(&cuda), [vec![2.0, 1.0, 0.0], stats]);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn adamw_adds_more_chunks_than_a_block_has_threads() {
    let (_, cuda) = twin(DType::F32, 90);
    let mut device = Adamw::new(&cuda, None);
    let size = 258 * 4096 + 3;
    let host = |seed| Tensor::from_slice([size], &noise(size, seed)).unwrap();
    let (mut value, gradient) = (host(1), host(2));
    let zeros = || Tensor::zeros([size], DType::F32);
    let moment = || upload(&cuda, [size], &vec![0.0f32; size]);
    let of_device = |t: &Tensor| cuda.upload(t.view(), DType::F32).unwrap();
    device.tensors = vec![[of_device(&value), of_device(&gradient), moment(), moment()]];
    device.step(&cuda).unwrap();

    let factor = Tensor::from_slice([1], &[1.0f32]).unwrap();
    let mut control = Tensor::from_slice([Control::COUNT], &Control::start(None)).unwrap();
    let mut stats = Tensor::zeros([Stat::COUNT], DType::F32);
    let mut tensors = [AdamwTensor {
        value: &mut value,
        gradient: &gradient,
        first_moment: &mut zeros(),
        second_moment: &mut zeros(),
        learning_rate: 1e-2,
        weight_decay: 1e-2,
        scale: 1.0,
    }];
    let (factor, control) = (&factor, &mut control);
    let step = AdamwStep { beta1: 0.9, beta2: 0.999, eps: 1e-8, scaling: None, clip: None, factor, control };
    Cpu::<f32>::new().adamw(&mut tensors, step, &mut stats).unwrap();
    let expected = stats.typed::<f32>().unwrap()[Stat::GradientSquared as usize];
    let found = numbers(&cuda, &device.stats)[Stat::GradientSquared as usize];
    approx::assert_relative_eq!(found, expected, max_relative = 1e-5);
    let found = numbers(&cuda, &device.tensors[0][0]);
    for (found, expected) in found.iter().zip(value.typed::<f32>().unwrap()) {
        approx::assert_abs_diff_eq!(found, expected, epsilon = 1e-6);
    }
}

/// So many that another launch adds up their squares: the same step as that of the CPU, and the clipping of it.
#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn adamw_adds_thousands_of_chunks() {
    const TENSORS: usize = 2100;
    let (_, cuda) = twin(DType::F32, 90);
    let numbers_of = |seed| noise(TENSORS, seed).iter().map(|&v| [v]).collect::<Vec<[f32; 1]>>();
    let zeros = || vec![[0.0f32]; TENSORS];
    let [value, gradient, first, second] = [numbers_of(1), numbers_of(2), zeros(), zeros()];
    let each = |of: &[[f32; 1]]| of.iter().map(|v| upload(&cuda, [1], v)).collect::<Vec<_>>();
    let (mut values, gradients) = (each(&value), each(&gradient));
    let (mut firsts, mut seconds) = (each(&first), each(&second));
    let mut tensors = Vec::new();
    let moments = firsts.iter_mut().zip(&mut seconds);
    for ((value, gradient), (first_moment, second_moment)) in values.iter_mut().zip(&gradients).zip(moments) {
        let (learning_rate, weight_decay) = (1e-2, 1e-2);
        let tensor = AdamwTensor {
            value,
            gradient,
            first_moment,
            second_moment,
            learning_rate,
            weight_decay,
            scale: 1.0,
        };
        tensors.push(tensor);
    }
    let (factor, mut control) = (upload(&cuda, [1], &[1.0f32]), upload(&cuda, [3], &Control::start(None)));
    let mut stats = cuda.zeros([Stat::COUNT], DType::F32).unwrap();
    let (factor, control) = (&factor, &mut control);
    let clip = Some(1.0);
    let step = AdamwStep { beta1: 0.9, beta2: 0.999, eps: 1e-8, scaling: None, clip, factor, control };
    cuda.adamw(&mut tensors, step, &mut stats).unwrap();
    let squares: f64 = gradient.iter().map(|g| f64::from(g[0]).powi(2)).sum();
    let found = numbers(&cuda, &stats)[Stat::GradientSquared as usize];
    approx::assert_relative_eq!(f64::from(found), squares, max_relative = 1e-5);
    for (moment, gradient) in firsts.iter().zip(&gradient) {
        let expected = 0.1 * f64::from(gradient[0]) / squares.sqrt();
        approx::assert_abs_diff_eq!(f64::from(numbers(&cuda, moment)[0]), expected, epsilon = 1e-8);
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_recorded_step_of_adamw_is_the_step() {
    let (_, cuda) = twin(DType::F32, 90);
    let scaling = Some(LossScaling { interval: 2, ..LossScaling::default() });
    let plain = Adamw::new(&cuda, scaling).run(&cuda, 4).state(&cuda);
    let mut recorded = Adamw::new(&cuda, scaling).run(&cuda, 1);
    let graph = cuda.capture(|| recorded.step(&cuda)).unwrap();
    // Tables of other tensors leave that of the graph alone.
    Adamw::new(&cuda, scaling).run(&cuda, 1);
    for _ in 0..3 {
        cuda.replay(&graph).unwrap();
    }
    assert_eq!(recorded.state(&cuda), plain);
    assert_eq!(plain[plain.len() - 2], [4.0, 4.0 * 65536.0, 0.0], "two times two good steps");
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_capture_refuses_tensors_it_has_not_met() {
    let (_, cuda) = twin(DType::F32, 90);
    let mut adamw = Adamw::new(&cuda, None);
    let Err(error) = cuda.capture(|| adamw.step(&cuda)) else { panic!("the table cannot be uploaded") };
    assert!(error.to_string().contains("capture"), "{error}");
}

/// Features, classes and what `triplet` and its backward form leave.
fn triplet_of<B: Backend>(b: &B, f: &[f32], labels: &[u32], width: usize) -> [Vec<f32>; 3] {
    let batch = labels.len();
    let upload = |tensor: Tensor| b.upload(tensor.view(), tensor.dtype()).unwrap();
    let f = upload(Tensor::from_slice([batch, width], f).unwrap());
    let labels = upload(Tensor::from_slice([batch], labels).unwrap());
    let mut pairs = b.zeros([batch, 2], DType::U32).unwrap();
    let (mut distances, mut stats) =
        (b.zeros([batch, 2], DType::F32).unwrap(), b.zeros([Stat::COUNT], DType::F32).unwrap());
    b.triplet(&f, &labels, 1.0, &mut pairs, &mut distances, &mut stats).unwrap();
    let mut df = b.zeros([batch, width], DType::F32).unwrap();
    b.triplet_backward(&f, &pairs, &distances, 0.3, None, &mut df).unwrap();
    [stats, distances, df].map(|t| b.download(&t).unwrap().typed::<f32>().unwrap().to_vec())
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_feature_that_is_nan_makes_the_triplet_loss_nan() {
    let (_, cuda) = twin(DType::F32, 90);
    for (batch, width) in [(40, 8), (5, 3)] {
        let labels: Vec<u32> = (0..batch as u32).map(|i| i / 2).collect();
        let mut f = noise(batch * width, 1);
        f[width + 2] = f32::NAN;
        let [device, host] =
            [triplet_of(&cuda, &f, &labels, width), triplet_of(&Cpu::<f32>::new(), &f, &labels, width)];
        for [stats, distances, df] in [&device, &host] {
            assert!(stats[Stat::LossTriplet as usize].is_nan());
            // As the one positive of image 0, and as a negative of image 2.
            assert!(distances[0].is_nan() && distances[5].is_nan());
            assert!(df[..width].iter().any(|v| v.is_nan()), "image 0 is pulled towards it");
        }
        let nans = |values: &[f32]| values.iter().map(|v| v.is_nan()).collect::<Vec<_>>();
        assert!(device.iter().zip(&host).all(|(device, host)| nans(device) == nans(host)));
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_triplet_out_of_range_gives_nan_where_it_belongs() {
    let (_, cuda) = twin(DType::F32, 90);
    for (batch, width) in [(35, 8), (3, 5)] {
        let f = upload(&cuda, [batch, width], &noise(batch * width, 1));
        let mut pairs = vec![u32::MAX; 2 * batch];
        pairs[2..4].copy_from_slice(&[0, batch as u32]);
        let pairs = upload(&cuda, [batch, 2], &pairs);
        let distances = upload(&cuda, [batch, 2], &vec![0.5f32; 2 * batch]);
        let mut df = upload(&cuda, [batch, width], &vec![1.0f32; batch * width]);
        cuda.triplet_backward(&f, &pairs, &distances, 1.0, None, &mut df).unwrap();
        let df = numbers(&cuda, &df);
        for (image, row) in df.chunks(width).enumerate() {
            assert!(row.iter().all(|v| v.is_nan() == (image == 1)), "image {image}");
            assert!(row.iter().all(|&v| (v == 1.0) == (image > 1)), "image {image}");
        }
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_crop_outside_its_image_is_moved_and_cut() {
    let (_, cuda) = twin(DType::F32, 90);
    let (height, width, side) = (9u32, 12u32, 7);
    let levels: Vec<u8> =
        noise((2 * height * width * 3) as usize, 1).iter().map(|v| (128.0 + v * 127.0) as u8).collect();
    let images = upload(&cuda, [2, height as usize, width as usize, 3], &levels);
    let crop = |crop: [u32; 5]| {
        // The first image's crop stays, to see that they are kept apart.
        let crops = upload(&cuda, [2, 5], &[[1, 2, 3, 4, 0], crop].concat());
        let mut y = cuda.zeros([2, side, side, 3], DType::U8).unwrap();
        cuda.crop_resize(&images, &crops, &mut y).unwrap();
        cuda.download(&y).unwrap().typed::<u8>().unwrap().to_vec()
    };
    let all = u32::MAX;
    for (wild, moved) in [
        ([all, all, 4, 5, 1], [5, 7, 4, 5, 1]),
        ([3, 2, all, all, 0], [0, 0, height, width, 0]),
        ([2, 3, 0, 0, 1], [2, 3, 1, 1, 1]),
        ([8, 0, 2, 12, 0], [7, 0, 2, 12, 0]),
        ([all, all, all, all, all], [0, 0, height, width, 1]),
    ] {
        assert_eq!(crop(wild), crop(moved), "{wild:?}");
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn prompts_that_do_not_fit_are_refused() {
    let (_, cuda) = twin(DType::F32, 90);
    let zeros = |shape: [usize; 3]| cuda.zeros(shape, DType::F32).unwrap();
    let prompts = zeros([2, 3, 8]);
    let refused = |layer: usize, x: [usize; 3], y: [usize; 3]| {
        let found = cuda.insert_prompts(&zeros(x), &prompts, layer, &mut zeros(y));
        assert!(found.unwrap_err().to_string().contains("insert_prompts"), "{layer}, {x:?}, {y:?}");
    };
    refused(2, [2, 4, 8], [2, 7, 8]);
    refused(0, [2, 4, 8], [2, 6, 8]);
    refused(0, [1, 4, 8], [2, 7, 8]);
    refused(0, [2, 4, 4], [2, 7, 4]);
    refused(0, [2, 0, 8], [2, 3, 8]);
    assert!(cuda.replace_prompts(&prompts, 1, &mut zeros([2, 3, 8])).is_err(), "no class token");
    assert!(cuda.replace_prompts(&prompts, 1, &mut zeros([2, 4, 8])).is_ok());
}

/// Gradients of two batches of two tensors, added up.
fn accumulate(cuda: &Cuda, sums: &mut [CudaTensor; 2]) -> Result<()> {
    for batch in [0, 1] {
        let gradients = [5000, 13].map(|n| upload(cuda, [n], &noise(n, 7 * batch + n as u32)));
        let mut pairs: Vec<_> = gradients.iter().zip(sums.iter_mut()).collect();
        cuda.accumulate(&mut pairs, batch == 0)?;
    }
    Ok(())
}

#[test]
fn accumulated_gradients_are_their_sums() {
    let (_, cuda) = twin(DType::F32, 90);
    let mut sums = [5000, 13].map(|n| cuda.empty([n], DType::F32).unwrap());
    accumulate(&cuda, &mut sums).unwrap();
    for (sum, n) in sums.iter().zip([5000, 13]) {
        let (first, second) = (noise(n, n as u32), noise(n, 7 + n as u32));
        let expected: Vec<f32> = first.iter().zip(&second).map(|(a, b)| a + b).collect();
        assert_eq!(numbers(&cuda, sum), expected);
    }
    cuda.accumulate(&mut [], true).unwrap();
    let short = cuda.zeros([12], DType::F32).unwrap();
    let error = cuda.accumulate(&mut [(&short, &mut sums[1])], false).unwrap_err().to_string();
    assert!(error.contains("accumulate: sum"), "{error}");
}

/// What dropout leaves of ones, from this seed and batch.
fn kept(cuda: &Cuda, draw: [u32; 4], site: u32, probability: f64) -> Vec<f32> {
    let (x, draw) = (upload(cuda, [1, 8], &[1.0f32; 8]), upload(cuda, [4], &draw));
    let mut y = cuda.empty([1, 8], DType::F32).unwrap();
    cuda.dropout(&x, Dropout { draw: &draw, site, probability }, &mut y).unwrap();
    numbers(cuda, &y)
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn dropout_keeps_what_the_published_words_reach() {
    let (_, cuda) = twin(DType::F32, 90);
    // Random123's known answer for a counter and a key of zeros.
    let words = [0x6627_e8d5u32, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8];
    for (element, word) in words.into_iter().map(f64::from).enumerate() {
        let of = |threshold: f64| kept(&cuda, [0; 4], 0, threshold / 2f64.powi(32))[element];
        approx::assert_relative_eq!(of(word), (1.0 / (1.0 - word / 2f64.powi(32))) as f32);
        assert_eq!(of(word + 1.0), 0.0);
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_mask_depends_on_each_of_seed_batch_and_site() {
    let (_, cuda) = twin(DType::F32, 90);
    let masks = [([0, 0, 0, 0], 0), ([1, 0, 0, 0], 0), ([0, 1, 0, 0], 0), ([0, 0, 1, 0], 0), ([0; 4], 1)]
        .map(|(draw, site)| kept(&cuda, draw, site, 0.5));
    for (i, mask) in masks.iter().enumerate() {
        assert!(mask[..4] != mask[4..], "blocks of words differ");
        assert!(!masks[..i].contains(mask), "mask {i}");
    }
    assert_eq!(kept(&cuda, [0, 0, 0, 9], 0, 0.5), masks[0], "the fourth element says nothing");
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_recorded_dropout_draws_anew_for_each_batch() {
    let (_, cuda) = twin(DType::F16, 90);
    let x = Tensor::from_slice([40, 9], &noise(360, 1)).unwrap();
    let x = cuda.upload(x.view(), DType::F16).unwrap();
    let mut draw = upload(&cuda, [4], &[3u32, 4, 0, 0]);
    let mut y = cuda.empty([40, 9], DType::F16).unwrap();
    let run = |draw: &CudaTensor, y: &mut CudaTensor| {
        cuda.dropout(&x, Dropout { draw, site: 2, probability: 0.25 }, y)
    };
    run(&draw, &mut y).unwrap();
    let graph = cuda.capture(|| run(&draw, &mut y)).unwrap();
    let mut masks = Vec::new();
    for batch in 1..4u32 {
        cuda.feed(vec![(Tensor::from_slice([4], &[3, 4, batch, 0]).unwrap().view().into(), &mut draw)])
            .unwrap();
        cuda.replay(&graph).unwrap();
        let replayed = cuda.download(&y).unwrap();
        run(&upload(&cuda, [4], &[3, 4, batch, 0]), &mut y).unwrap();
        assert_eq!(replayed.bytes(), cuda.download(&y).unwrap().bytes(), "batch {batch}");
        assert!(!masks.contains(&replayed.bytes().to_vec()), "batch {batch}");
        masks.push(replayed.bytes().to_vec());
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn dropout_and_class_features_that_make_no_sense_are_refused() {
    let (_, cuda) = twin(DType::F32, 90);
    let x = cuda.zeros([2, 3], DType::F32).unwrap();
    let mut y = cuda.zeros([2, 3], DType::F32).unwrap();
    let draw = cuda.zeros([4], DType::U32).unwrap();
    for probability in [-0.1, 1.0, f64::NAN] {
        let dropout = Dropout { draw: &draw, site: 0, probability };
        let error = cuda.dropout(&x, dropout, &mut y).unwrap_err().to_string();
        assert!(error.contains("is no probability below 1"), "{error}");
    }
    let short = cuda.zeros([3], DType::U32).unwrap();
    let dropout = Dropout { draw: &short, site: 0, probability: 0.5 };
    assert!(cuda.dropout(&x, dropout, &mut y).unwrap_err().to_string().contains("draw"));

    let prompts = cuda.zeros([5, 3], DType::F32).unwrap();
    let mut norms = cuda.zeros([2], DType::F32).unwrap();
    let error = cuda.class_features(&prompts, &mut y, &mut norms).unwrap_err().to_string();
    assert!(error.contains("5 prompts are not the same number for each of 2 classes"), "{error}");
}

/// The first moment after a step of AdamW, and the sum of squares.
fn clipped(cuda: &Cuda, gradient: [f32; 2], clip: Option<f64>) -> (Vec<f32>, f32) {
    let mut tensors = [[0.0f32; 2], gradient, [0.0; 2], [0.0; 2]].map(|values| upload(cuda, [2], &values));
    let (factor, mut control) = (upload(cuda, [1], &[1.0f32]), upload(cuda, [3], &Control::start(None)));
    let mut stats = cuda.zeros([Stat::COUNT], DType::F32).unwrap();
    let [value, gradient, first_moment, second_moment] = &mut tensors;
    let mut one = [AdamwTensor {
        value,
        gradient,
        first_moment,
        second_moment,
        learning_rate: 1e-2,
        weight_decay: 1e-2,
        scale: 1.0,
    }];
    let (factor, control) = (&factor, &mut control);
    let step = AdamwStep { beta1: 0.9, beta2: 0.999, eps: 1e-8, scaling: None, clip, factor, control };
    cuda.adamw(&mut one, step, &mut stats).unwrap();
    (numbers(cuda, &tensors[2]), numbers(cuda, &stats)[Stat::GradientSquared as usize])
}

#[test]
fn clipped_gradients_are_as_long_as_asked_for() {
    let (_, cuda) = twin(DType::F32, 90);
    for (clip, length) in [(Some(1.0), 1.0), (Some(5.0), 5.0), (Some(6.0), 5.0), (None, 5.0)] {
        let (moment, squares) = clipped(&cuda, [3.0, 4.0], clip);
        assert_eq!(squares, 25.0, "before clipping");
        approx::assert_relative_eq!(moment[0], 0.06 * length, max_relative = 1e-6);
        approx::assert_relative_eq!(moment[1], 0.08 * length, max_relative = 1e-6);
    }
    // So short that the constant in the divisor shows.
    let (moment, _) = clipped(&cuda, [3e-6, 4e-6], Some(3e-6));
    approx::assert_relative_eq!(moment[0], 0.1 * 3e-6 * 0.5, max_relative = 1e-5, epsilon = 0.0);
    let (moment, _) = clipped(&cuda, [3.0, f32::NAN], Some(1.0));
    assert!(moment.iter().all(|m| m.is_nan()), "as in PyTorch, a length that is no number spoils them all");
}
