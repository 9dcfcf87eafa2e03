//! The bundled model in this engine and in transformers: features of the demo's pictures and prompts.

use clip_engine::backend::cpu::Cpu;
use clip_engine::clip::Evaluated;
use clip_engine::clip::text::FLOWER_TEMPLATES;
use clip_engine::clip::vision::{Purpose, VisionActivations};
use clip_engine::data::demo::demo_class_names;
use clip_engine::dev::check::relative_error;
use clip_engine::progress::Silent;
use clip_engine::tensor::{DType, Tensor, View};
use clip_engine::train::demo;
use clip_engine::tune::TowerTuning;
use safetensors::SafeTensors;

fn reference(name: &str) -> Tensor {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/demo/reference.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    let dtype = if name == "pixels" { DType::U8 } else { DType::F32 };
    let shape = clip_engine::tensor::Shape::try_from(tensor.shape()).unwrap();
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
    tower.infer(&backend, &pixels, None, Evaluated::NONE, None, &mut a).unwrap();
    let error = relative_error(&floats(&a.features), &floats(&reference("image_features")));
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
