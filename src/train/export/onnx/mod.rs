//! A tuned classifier as an ONNX model: from pixels to probabilities, with the adapters in the weights and the prompts
//! in front of the blocks.

pub(super) mod file;
mod graph;
mod proto;

use super::merge::Merged;
use crate::data::Preprocess;
use crate::data::decode::Orientation;
use crate::settings::Settings;
use crate::tensor::Tensor;
use crate::train::Result;
use crate::train::adapter::{Adapter, HeadFile};
use crate::train::model::Model;
use crate::tune::PromptMode;
pub(super) use graph::OPSET;
use graph::{Classifier, IR};
use proto::{ModelProto, OperatorSetIdProto, StringStringEntryProto};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::Path;

/// What an ONNX model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnnxInput {
    /// `pixels`, u8 \[N, S, S, 3\]: RGB, resized and cropped.
    Pixels,
    /// `pixel_values`, f32 \[N, 3, S, S\]: normalised, too.
    Normalised,
}

/// What belongs into a model.
pub(super) struct Parts<'a> {
    pub model: &'a Model,
    pub settings: &'a Settings,
    /// With the orientation of the run.
    pub preprocess: &'a Preprocess,
    pub adapter: Option<&'a Adapter>,
    /// \[sets, m, D\]
    pub prompts: Option<(PromptMode, &'a Tensor)>,
    pub head: &'a HeadFile,
}

/// Writes the model into `folder`; its large tensors into a file beside where one cannot hold them.
pub(super) fn write(folder: &Path, parts: &Parts<'_>, input: OnnxInput) -> Result<()> {
    write_up_to(file::MOST, folder, parts, input)
}

fn write_up_to(most: usize, folder: &Path, parts: &Parts<'_>, input: OnnxInput) -> Result<()> {
    let Parts { model, preprocess, adapter, prompts, head, .. } = *parts;
    let classifier = Classifier {
        input,
        preprocess,
        vision: &model.config.vision,
        features: model.config.projection,
        prompts,
        head,
    };
    let (graph, weights) = graph::graph(&classifier)?;
    let proto = ModelProto {
        ir_version: IR,
        producer_name: "clip-engine".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        metadata_props: metadata(parts),
    };
    file::write(folder, proto, &weights, &Merged::new(model, adapter), most)
}

/// What a program that has the file alone must know of it, as JSON where it is no plain word.
fn metadata(parts: &Parts<'_>) -> Vec<StringStringEntryProto> {
    let Parts { model, settings, preprocess, head, .. } = *parts;
    let base = model.base.without_path();
    let orientation = match preprocess.orientation() {
        Orientation::Exif => "exif",
        Orientation::Ignore => "ignore",
    };
    let processor = super::processor_config(preprocess);
    // As f32 they have the digits of CLIP's own configuration.
    let numbers = |values: [f32; 3]| format!("{values:?}");
    let mut entries = vec![
        ("class_names".to_string(), json!(head.class_names).to_string()),
        ("temperature".into(), (head.temperature as f32).to_string()),
        ("image_size".into(), preprocess.image_size().to_string()),
        ("image_mean".into(), numbers(preprocess.mean())),
        ("image_std".into(), numbers(preprocess.std())),
        ("size".into(), processor["size"].to_string()),
        ("crop_size".into(), processor["crop_size"].to_string()),
        ("resample".into(), "bicubic".into()),
        ("orientation".into(), orientation.into()),
        ("recipe".into(), settings.recipe.to_string()),
        ("base_model".into(), base.name()),
        ("engine_version".into(), env!("CARGO_PKG_VERSION").into()),
    ];
    if let Some((_, Some(revision))) = base.on_hub() {
        entries.push(("base_model_revision".into(), revision.into()));
    }
    entries.iter().map(|(key, value)| StringStringEntryProto::new(key, value)).collect()
}

#[cfg(test)]
mod tests {
    use super::proto::{EXTERNAL, GraphProto, NodeProto, TensorProto};
    use super::*;
    use crate::clip::weights::expected_tensors;
    use crate::settings::Recipe;
    use crate::tensor::DType;
    use crate::train::export::merged_tensors;
    use crate::tune::{PromptSharing, PromptSpec, initial_prompts};
    use prost::Message;
    use rand::SeedableRng;
    use std::collections::{BTreeMap, BTreeSet};

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
    }

    /// What is in a folder beside a model.
    struct Read {
        folder: tempfile::TempDir,
        graph: GraphProto,
        metadata: BTreeMap<String, String>,
    }

    impl Read {
        /// The file of `model` with these parts, read again.
        fn of(model: &Model, adapter: Option<&Adapter>, prompts: Option<PromptSpec>, most: usize) -> Read {
            let (width, layers) = (model.config.vision.tower.width, model.config.vision.tower.layers);
            let values =
                |spec| initial_prompts(&spec, layers, width, &mut rand_chacha::ChaCha8Rng::seed_from_u64(1));
            let values = prompts.map(|spec| (spec.mode, values(spec)));
            let (classes, features) = (2, model.config.projection);
            let head = HeadFile {
                weight: Tensor::from_slice([classes, features], &vec![0.5f32; classes * features]).unwrap(),
                bias: Tensor::from_slice([classes], &[1.0f32, 2.0]).unwrap(),
                temperature: 0.75,
                class_names: vec!["a \"b\"".into(), "ü".into()],
            };
            let parts = Parts {
                model,
                settings: &Settings::of(Recipe::Vpt),
                preprocess: &model.preprocess,
                adapter,
                prompts: values.as_ref().map(|(mode, values)| (*mode, values)),
                head: &head,
            };
            let folder = tempfile::tempdir().unwrap();
            write_up_to(most, folder.path(), &parts, OnnxInput::Pixels).unwrap();
            let bytes = std::fs::read(folder.path().join(file::MODEL)).unwrap();
            let file = ModelProto::decode(&bytes[..]).unwrap();
            assert_eq!((file.ir_version, file.opset_import.len(), file.opset_import[0].version), (8, 1, 17));
            let metadata = file.metadata_props.iter().map(|entry| (entry.key.clone(), entry.value.clone()));
            let (metadata, graph) = (metadata.collect(), file.graph.unwrap());
            let read = Read { folder, graph, metadata };
            read.check();
            read
        }

        /// Names stand for one thing each, which is there before it is used, and nothing is there that is not used.
        fn check(&self) {
            let inputs = self.graph.input.iter().map(|value| &value.name);
            let tensors = self.graph.initializer.iter().map(|tensor| &tensor.name);
            let mut known = BTreeSet::new();
            let mut used: BTreeSet<&String> = self.graph.output.iter().map(|value| &value.name).collect();
            assert!(inputs.chain(tensors).all(|name| known.insert(name)));
            for node in &self.graph.node {
                assert!(node.input.iter().all(|name| known.contains(name)), "{node:?}");
                used.extend(&node.input);
                assert!(node.output.len() == 1 && known.insert(&node.output[0]), "{node:?}");
            }
            assert_eq!(used, known);
            for tensor in &self.graph.initializer {
                assert_eq!(self.bytes(tensor).len(), size(tensor), "{}", tensor.name);
            }
        }

        /// The bytes of a tensor, wherever they lie.
        fn bytes(&self, tensor: &TensorProto) -> Vec<u8> {
            if tensor.data_location != EXTERNAL {
                return tensor.raw_data.clone();
            }
            let said = |key: &str| &tensor.external_data.iter().find(|entry| entry.key == key).unwrap().value;
            let [offset, length] = ["offset", "length"].map(|key| said(key).parse::<usize>().unwrap());
            assert!(offset.is_multiple_of(4096), "{offset}");
            std::fs::read(self.folder.path().join(said("location"))).unwrap()[offset..offset + length]
                .to_vec()
        }

        fn tensor(&self, name: &str) -> &TensorProto {
            self.graph
                .initializer
                .iter()
                .find(|tensor| tensor.name == name)
                .unwrap_or_else(|| panic!("{name}"))
        }

        fn nodes<'a>(&'a self, op: &'a str) -> impl Iterator<Item = &'a NodeProto> {
            self.graph.node.iter().filter(move |node| node.op_type == op)
        }

        /// All weights of the vision tower are those of `merged`, linear ones transposed.
        fn has(&self, model: &Model, merged: &BTreeMap<String, Tensor>) {
            let ours = |name: &str| name.starts_with("vision_model") || name == "visual_projection.weight";
            for (name, shape) in expected_tensors(&model.config).into_iter().filter(|(name, _)| ours(name)) {
                let found = self.tensor(&name);
                let turned = shape.dims().len() == 2 && !name.contains("position");
                let mut expected: Vec<i64> = shape.dims().iter().map(|&extent| extent as i64).collect();
                let values = match turned {
                    true => {
                        expected.reverse();
                        graph::transposed(&merged[&name]).unwrap()
                    }
                    false => merged[&name].clone(),
                };
                assert_eq!(found.dims, expected, "{name}");
                assert!(self.bytes(found) == values.bytes(), "{name}");
            }
        }
    }

    fn size(tensor: &TensorProto) -> usize {
        let bytes = if tensor.data_type == proto::INT64 { 8 } else { 4 };
        bytes * tensor.dims.iter().product::<i64>() as usize
    }

    #[test]
    fn models_of_every_kind_are_whole() {
        for (name, op, other) in
            [("tiny", "Sigmoid", "Erf"), ("odd", "Sigmoid", "Erf"), ("gelu", "Erf", "Sigmoid")]
        {
            let model = Model::open(&fixture("reference").join(name)).unwrap();
            let vision = &model.config.vision;
            let plain = merged_tensors(&model, None, DType::F32).unwrap();
            let read = Read::of(&model, None, None, file::MOST);
            read.has(&model, &plain);
            assert!(!read.folder.path().join(file::DATA).exists());
            assert_eq!(
                (read.nodes(op).count(), read.nodes(other).count()),
                (vision.tower.layers, 0),
                "{name}"
            );
            for norm in read.nodes("LayerNormalization") {
                let epsilon = norm.attribute.iter().find(|a| a.name == "epsilon").unwrap().f;
                assert_eq!(epsilon, Some(vision.tower.norm_eps as f32));
            }
            assert_eq!(read.tensor("head.weight").dims, [model.config.projection as i64, 2]);
            assert_eq!(read.metadata["class_names"], r#"["a \"b\"","ü"]"#);
            assert_eq!(read.metadata["temperature"], "0.75");
        }
    }

    #[test]
    fn large_tensors_lie_beside_a_model_that_one_file_cannot_hold() {
        let model = Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-clip")).unwrap();
        let weights = merged_tensors(&model, None, DType::F32).unwrap();
        let [whole, apart] = [file::MOST, 0].map(|most| Read::of(&model, None, None, most));
        apart.has(&model, &weights);
        assert_eq!(apart.graph.node, whole.graph.node);
        let outside = |read: &Read| {
            let tensors = read.graph.initializer.iter().filter(|tensor| tensor.data_location == EXTERNAL);
            tensors.map(|tensor| tensor.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(outside(&whole), [""; 0]);
        let names = outside(&apart);
        assert!(names.contains(&"vision_model.encoder.layers.1.mlp.fc2.weight".to_string()), "{names:?}");
        assert!(!names.contains(&"vision_model.pre_layrnorm.bias".to_string()), "{names:?}");
        let length = |read: &Read| std::fs::metadata(read.folder.path().join(file::MODEL)).unwrap().len();
        assert!(2 * length(&apart) < length(&whole));
    }

    #[test]
    fn adapters_are_in_the_weights() {
        let model = Model::open(&fixture("reference/tiny")).unwrap();
        for name in ["both", "mlp", "rslora", "text_only"] {
            let adapter = Adapter::load(&fixture("peft").join(name).join("adapter")).unwrap();
            let merged = merged_tensors(&model, Some(&adapter), DType::F32).unwrap();
            Read::of(&model, Some(&adapter), None, file::MOST).has(&model, &merged);
        }
    }

    #[test]
    fn prompts_stand_in_front_of_every_block() {
        let model = Model::open(&fixture("reference/odd")).unwrap();
        let (vision, count) = (&model.config.vision, 4);
        for sharing in [PromptSharing::Shared, PromptSharing::PerLayer] {
            for mode in [PromptMode::Replace, PromptMode::Accumulate] {
                let spec = PromptSpec { count, sharing, mode };
                let read = Read::of(&model, None, Some(spec), file::MOST);
                let sets = read.graph.initializer.iter().filter(|tensor| tensor.name.starts_with("prompts"));
                assert_eq!(sets.clone().count(), spec.sets(vision.tower.layers));
                assert!(sets.into_iter().all(|set| set.dims == [count as i64, vision.tower.width as i64]));
                for layer in 0..vision.tower.layers {
                    // The extents of its keys: batch, tokens, heads, width of a head.
                    let name = format!("vision_model.encoder.layers.{layer}.self_attn.keys.split");
                    let split = read.graph.node.iter().find(|node| node.name == name).unwrap();
                    let bytes = read.bytes(read.tensor(&split.input[1]));
                    let tokens = i64::from_le_bytes(bytes[8..16].try_into().unwrap());
                    assert_eq!(
                        tokens as usize,
                        spec.tokens(layer, vision.tokens()),
                        "{spec:?}, block {layer}"
                    );
                }
            }
        }
    }
}
