//! The bundled model in this engine and in transformers: features of the demo's pictures and prompts.

use clip_engine::backend::cpu::Cpu;
use clip_engine::clip::text::FLOWER_TEMPLATES;
use clip_engine::clip::vision::{Purpose, VisionActivations};
use clip_engine::data::demo::demo_class_names;
use clip_engine::dev::check::relative_error;
use clip_engine::objective::Objective;
use clip_engine::optim::{Rate, Rates};
use clip_engine::progress::Silent;
use clip_engine::tensor::{DType, Shape, Tensor, View};
use clip_engine::train::demo;
use clip_engine::train::learner::{Batch, Input, Learner, LearnerSpec, Which};
use clip_engine::tune::{Head, KaimingInit, LoraSpec, Param, Target, TowerTuning, Trained, initial_head};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use safetensors::SafeTensors;
use std::sync::Arc;

fn reference(name: &str) -> Tensor {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/demo/reference.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    let dtype = if name == "pixels" { DType::U8 } else { DType::F32 };
    let shape = Shape::try_from(tensor.shape()).unwrap();
    View::new(shape, dtype, tensor.data()).unwrap().to_tensor(dtype).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    tensor.view().to_tensor(DType::F64).unwrap().typed::<f64>().unwrap().to_vec()
}

#[test]
fn image_features_from_u8_pixels_are_those_of_transformers() {
    let backend = Cpu::<f32>::new();
    let tower = demo::model().unwrap().vision(&backend).unwrap();
    let pixels = reference("pixels");
    let batch = pixels.shape().rows();
    let mut a =
        VisionActivations::new(&backend, &tower, batch, TowerTuning::NONE, Purpose::Inference).unwrap();
    tower.infer(&backend, &pixels, None, TowerTuning::NONE, &mut a).unwrap();
    let error = relative_error(&floats(a.features()), &floats(&reference("image_features")));
    assert!(error < 1e-5, "{error:e}");
}

#[test]
fn class_features_of_the_four_templates_are_those_of_transformers() {
    let backend = Cpu::<f32>::new();
    let model = demo::model().unwrap();
    let templates = FLOWER_TEMPLATES.map(String::from);
    let text = model.text_classifier(&backend, &demo_class_names(), &templates, None, &Silent).unwrap();
    let error = relative_error(&floats(&text.features), &floats(&reference("class_features")));
    assert!(error < 1e-5, "{error:e}");
}

/// A learner for evaluation alone gives the logits of one that trains, holds no gradients and moments, and refuses to
/// train.
#[test]
fn evaluation_alone_has_no_memory_for_the_optimizer() {
    let backend = Cpu::<f32>::new();
    let model = demo::model().unwrap();
    let text = model.text_classifier(&backend, &demo_class_names(), &["{}".into()], None, &Silent).unwrap();
    let pixels = reference("pixels");
    let (classes, side) = (text.features.shape().rows(), pixels.shape().dims()[1]);
    let image = Shape::from([side, side, 3]);
    let labels: Vec<u32> = (0..pixels.shape().rows()).map(|i| (i % classes) as u32).collect();
    let rate = Rate { learning_rate: 1e-3, weight_decay: 0.0 };
    let rates = Rates { head: rate, lora: rate, prompt: rate };
    let evaluated = |trains: bool| {
        let tower = model.vision(&backend).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (weight, bias) = initial_head(classes, tower.features(), &mut rng);
        let head = Head::new(&backend, weight.view(), bias.view()).unwrap();
        let (spec, mut init) = (LoraSpec::new(4, 8.0, &Target::ALL), KaimingInit { rank: 4, rng: &mut rng });
        let lora = tower.adapters(&backend, &spec, &mut init).unwrap();
        let trained = Trained { lora, text_lora: Vec::new(), prompts: None, head };
        let spec = LearnerSpec::new(&backend, labels.len(), image, DType::U8, Objective::new(1.0, 0.3));
        let spec = LearnerSpec { trains, ..spec };
        let mut learner = Learner::new(backend, Arc::new(tower), trained, &text, &spec).unwrap();
        learner.evaluate(Input::Images(pixels.view().into()), &labels, Which::Tuned).unwrap();
        let (head, _) = learner.logits().unwrap();
        let elements = |p: &&Param<Cpu<f32>>| {
            [&p.gradient, &p.first_moment, &p.second_moment].map(|t| t.shape().elements())
        };
        let elements: usize = learner.params().iter().flat_map(elements).sum();
        let step = learner.train_step(Batch::new(pixels.view(), &labels), &rates, 1.0);
        (head, elements, learner.trained_elements(), step)
    };
    let (expected, elements, trained, step) = evaluated(true);
    assert_eq!(elements, 3 * trained);
    step.unwrap();
    let (found, elements, _, step) = evaluated(false);
    assert_eq!((found.bytes(), elements), (expected.bytes(), 0));
    let error = step.unwrap_err().to_string();
    assert!(error.contains("evaluation alone"), "{error}");
}
