//! The kernels of layer norm, activation, crops, embedding, prompts, L2 norm, head and loss, triplets and
//! AdamW on the host twin, against the CPU forms; and what the CPU forms do not tell: indices out of range,
//! blocks in any order, recorded steps.
#![cfg(target_os = "linux")]

use clip_engine::backend::cpu::Cpu;
use clip_engine::backend::cuda::twin::{BlockOrder, Twin};
use clip_engine::backend::cuda::{Cuda, CudaTensor, LoraForm};
use clip_engine::backend::{
    AdamwStep, AdamwTensor, Backend, Classifier, Control, LossScaling, LossWeights, Result, Stat, Targets,
};
use clip_engine::check::device::{Scope, check_small};
use clip_engine::tensor::{DType, Element, Shape, Tensor};
use std::sync::Arc;

fn twin(dtype: DType, capability: u32) -> (Arc<Twin>, Cuda) {
    let twin = Arc::new(Twin::new(dtype, capability).unwrap());
    let cuda = Cuda::new(twin.clone(), dtype, LoraForm::Auto).unwrap();
    (twin, cuda)
}

fn passes(dtype: DType, capability: u32) {
    let (_, cuda) = twin(dtype, capability);
    let rows = check_small(&cuda, Scope::Quick).unwrap();
    let failed: Vec<_> = rows.iter().filter(|row| !row.passed()).collect();
    for row in &failed {
        eprintln!("{} at {}: {:e}, bound {:e}", row.name, row.at, row.error, row.bound);
    }
    assert!(failed.is_empty(), "{} of {} rows are above their bounds", failed.len(), rows.len());
}

#[test]
fn f32_matches_the_definitions() {
    passes(DType::F32, 90);
}

#[test]
fn f16_matches_the_definitions() {
    passes(DType::F16, 90);
}

#[test]
fn bf16_matches_the_definitions() {
    passes(DType::BF16, 90);
}

#[test]
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

/// A batch with its classifier, and what a step computes from them.
struct Head {
    f: CudaTensor,
    weight: CudaTensor,
    bias: CudaTensor,
    text: CudaTensor,
    labels: CudaTensor,
    logits: [CudaTensor; 2],
    stats: CudaTensor,
    gradients: [CudaTensor; 3],
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
            logits: [empty(&[b, c]), empty(&[b, c])],
            stats: cuda.zeros([Stat::COUNT], DType::F32).unwrap(),
            gradients: [empty(&[c, e]), empty(&[c]), empty(&[b, e])],
        }
    }

    /// Forward and backward; all numbers that come out.
    fn run(&mut self, cuda: &Cuda) -> [Vec<f32>; 6] {
        let Head { f, weight, bias, text, labels, logits, stats, gradients } = self;
        let classifier = Classifier { weight, bias, text, text_scale: 2.0 };
        let [head, text] = logits;
        let targets = Targets { labels, mix: None };
        cuda.head_loss(f, classifier, targets, head, text, stats).unwrap();
        let [dw, db, df] = gradients;
        let weights = LossWeights { head: 1.0, text: 0.3 };
        cuda.head_loss_backward(f, classifier, targets, weights, None, head, text, dw, db, Some(df)).unwrap();
        [stats, head, text, dw, db, df].map(|t| numbers(cuda, t))
    }
}

#[test]
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

#[test]
fn the_order_of_the_blocks_changes_no_bit() {
    let (twin, cuda) = twin(DType::F16, 90);
    let labels: Vec<u32> = (0..Head::BATCH as u32).collect();
    let mut first = None;
    for order in [BlockOrder::Ascending, BlockOrder::Descending, BlockOrder::Shuffled(7)] {
        twin.set_block_order(order);
        let head = Head::new(&cuda, &labels).run(&cuda);
        let adamw = Adamw::new(&cuda, Some(LossScaling::default())).run(&cuda, 3).state(&cuda);
        let triplet = triplet_of(&cuda, &noise(40 * 9, 1), &labels.repeat(4)[..40], 9);
        let found: Vec<_> = head.iter().chain(&adamw).chain(&triplet).map(|values| bits(values)).collect();
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
            })
            .collect();
        let step = AdamwStep { beta1: 0.9, beta2: 0.999, eps: 1e-8, scaling: *scaling, factor, control };
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
fn adamw_without_tensors_counts_the_step() {
    let (_, cuda) = twin(DType::F32, 90);
    let adamw = Adamw { tensors: Vec::new(), ..Adamw::new(&cuda, None) }.run(&cuda, 2);
    assert_eq!(adamw.state(&cuda), [vec![2.0, 1.0, 0.0], vec![0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]]);
}

#[test]
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
    }];
    let (factor, control) = (&factor, &mut control);
    let step = AdamwStep { beta1: 0.9, beta2: 0.999, eps: 1e-8, scaling: None, factor, control };
    Cpu::<f32>::new().adamw(&mut tensors, step, &mut stats).unwrap();
    let expected = stats.typed::<f32>().unwrap()[Stat::GradientSquared as usize];
    let found = numbers(&cuda, &device.stats)[Stat::GradientSquared as usize];
    approx::assert_relative_eq!(found, expected, max_relative = 1e-5);
    let found = numbers(&cuda, &device.tensors[0][0]);
    for (found, expected) in found.iter().zip(value.typed::<f32>().unwrap()) {
        approx::assert_abs_diff_eq!(found, expected, epsilon = 1e-6);
    }
}

#[test]
fn a_recorded_step_of_adamw_is_the_step() {
    let (_, cuda) = twin(DType::F32, 90);
    let scaling = Some(LossScaling { interval: 2, ..LossScaling::default() });
    let plain = Adamw::new(&cuda, scaling).run(&cuda, 4).state(&cuda);
    let mut recorded = Adamw::new(&cuda, scaling).run(&cuda, 1);
    let recording = cuda.record(|| recorded.step(&cuda)).unwrap();
    // Tables of other tensors leave that of the recording alone.
    Adamw::new(&cuda, scaling).run(&cuda, 1);
    for _ in 0..3 {
        cuda.replay(&recording).unwrap();
    }
    assert_eq!(recorded.state(&cuda), plain);
    assert_eq!(plain[plain.len() - 2], [4.0, 4.0 * 65536.0, 0.0], "two times two good steps");
}

#[test]
fn a_recording_refuses_tensors_it_has_not_met() {
    let (_, cuda) = twin(DType::F32, 90);
    let mut adamw = Adamw::new(&cuda, None);
    let Err(error) = cuda.record(|| adamw.step(&cuda)) else { panic!("the table cannot be uploaded") };
    assert!(error.to_string().contains("record"), "{error}");
}
