//! Adapters in PEFT's format, prompts, and heads with their class names, as files.

use super::files::{Staged, TensorFile, stage_tensors};
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::tensor::{Shape, Tensor};
use crate::tune::{
    BlockLora, Head, LoraSpec, PromptMode, PromptSharing, PromptSpec, Prompts, Target, lora::LoraInit,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// What PEFT puts in front of the names of the model it wraps, and where this engine's adapters are.
const PREFIX: &str = "base_model.model.vision_model.encoder.layers.";

/// Every trained tensor by layer and target: A \[r, in\] and B \[out, r\].
pub type AdapterTensors = BTreeMap<(usize, Target), (Tensor, Tensor)>;

/// Splits stacked adapters into one A and one B per layer and target.
pub fn tensors<B: Backend>(backend: &B, lora: &[BlockLora<B>]) -> Result<AdapterTensors> {
    let mut tensors = AdapterTensors::new();
    for (l, block) in lora.iter().enumerate() {
        for layer in block.layers() {
            let (a, b) = (backend.download(&layer.a.value)?, backend.download(&layer.b.value)?);
            let rank = a.shape().rows() / layer.targets.len();
            let outputs = b.shape().row_elements() / rank;
            for (i, &target) in layer.targets.iter().enumerate() {
                let part_a = a.view().rows(i * rank, rank)?.to_tensor(a.dtype())?;
                let part_b = b.view().rows(i, 1)?.to_tensor(b.dtype())?.reshape([outputs, rank])?;
                tensors.insert((l, target), (part_a, part_b));
            }
        }
    }
    Ok(tensors)
}

/// Prepares `dir`/adapter_model.safetensors and `dir`/adapter_config.json.
pub fn stage(dir: &Path, tensors: &AdapterTensors, spec: &LoraSpec, base_model: &str) -> Result<[Staged; 2]> {
    std::fs::create_dir_all(dir).map_err(TrainError::io(dir, "create the folder"))?;
    let targets: Vec<&str> = spec.targets.iter().map(|t| t.name()).collect();
    let config = json!({
        "peft_type": "LORA",
        "task_type": null,
        "base_model_name_or_path": base_model,
        "inference_mode": true,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "use_rslora": false,
        "use_dora": false,
        "modules_to_save": null,
        "target_modules":
            format!(r".*vision_model\.encoder\.layers\.\d+\.self_attn\.({})", targets.join("|")),
    });
    let mut named = BTreeMap::new();
    for (&(layer, target), (a, b)) in tensors {
        let name = format!("{PREFIX}{layer}.self_attn.{target}");
        named.insert(format!("{name}.lora_A.weight"), a.clone());
        named.insert(format!("{name}.lora_B.weight"), b.clone());
    }
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let tensors = stage_tensors(&dir.join("adapter_model.safetensors"), &named, metadata)?;
    Ok([tensors, Staged::new(&dir.join("adapter_config.json"), format!("{config:#}\n").as_bytes())?])
}

/// An adapter read from files, ready to start training or inference from.
#[derive(Debug)]
pub struct Adapter {
    pub spec: LoraSpec,
    path: PathBuf,
    tensors: AdapterTensors,
}

impl Adapter {
    /// Reads `dir`, in PEFT's format.
    ///
    /// # Errors
    /// Files that cannot be read, options that are not supported, and tensors that are missing, surplus or
    /// of another rank than the configuration says.
    pub fn load(dir: &Path) -> Result<Self> {
        let config_path = dir.join("adapter_config.json");
        let text =
            std::fs::read_to_string(&config_path).map_err(TrainError::io(&config_path, "read the file"))?;
        let wrong = |problem: String| TrainError::file(&config_path, problem);
        let config: Value = serde_json::from_str(&text)
            .map_err(|e| wrong(format!("not valid JSON ({e}); save the adapter again")))?;
        let (rank, alpha) = read_config(&config).map_err(wrong)?;
        let path = dir.join("adapter_model.safetensors");
        let tensors = read_tensors(&path, rank)?;
        let mut targets: Vec<Target> = tensors.keys().map(|&(_, target)| target).collect();
        targets.sort_unstable();
        targets.dedup();
        Ok(Adapter { spec: LoraSpec { rank, alpha, targets }, path, tensors })
    }

    /// Makes sure that the adapter has exactly the layers of a tower of `layers` blocks, `width` wide.
    pub fn check(&self, layers: usize, width: usize) -> Result<()> {
        let (r, wrong) = (self.spec.rank, |problem| TrainError::file(&self.path, problem));
        if let Some(((layer, _), _)) = self.tensors.iter().find(|((layer, _), _)| *layer >= layers) {
            return Err(wrong(format!(
                "has layer {layer}, the model has {layers}; it belongs to another model"
            )));
        }
        for key in (0..layers).flat_map(|l| self.spec.targets.iter().map(move |&t| (l, t))) {
            let (layer, target) = key;
            let Some((a, b)) = self.tensors.get(&key) else {
                return Err(wrong(format!("has no adapter for {target} of layer {layer}; save it again")));
            };
            for (tensor, expected) in [(a, Shape::from([r, width])), (b, Shape::from([width, r]))] {
                let found = tensor.shape();
                if found != expected {
                    return Err(wrong(format!(
                        "{target} of layer {layer} has shape {found} where {expected} is needed; \
                         it belongs to another model"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Rank and alpha of a PEFT configuration; the error says what is not supported.
fn read_config(config: &Value) -> std::result::Result<(usize, f64), String> {
    if config["peft_type"] != "LORA" {
        return Err(format!("peft_type is {}, only \"LORA\" is supported", config["peft_type"]));
    }
    for option in ["use_rslora", "use_dora", "fan_in_fan_out", "lora_bias"] {
        if config[option] == true {
            return Err(format!("{option} is not supported; train the adapter without it"));
        }
    }
    for option in ["modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform"] {
        let value = &config[option];
        let empty = value.is_null()
            || value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(serde_json::Map::is_empty);
        if !empty {
            return Err(format!("{option} is not supported; train the adapter without it"));
        }
    }
    if !matches!(config["bias"].as_str(), None | Some("none")) {
        return Err(format!("bias is {}, only \"none\" is supported", config["bias"]));
    }
    let rank = config["r"].as_u64().filter(|&r| (1..=1024).contains(&r));
    let rank = rank.ok_or_else(|| format!("r is {}, not a rank from 1 to 1024", config["r"]))?;
    let alpha = config["lora_alpha"].as_f64().filter(|&alpha| (alpha as f32).is_finite());
    let alpha = alpha.ok_or_else(|| format!("lora_alpha is {}, not a number", config["lora_alpha"]))?;
    Ok((rank as usize, alpha))
}

fn read_tensors(path: &Path, rank: usize) -> Result<AdapterTensors> {
    let file = TensorFile::read(path)?;
    let wrong = |problem: String| TrainError::file(path, problem);
    let mut halves: BTreeMap<(usize, Target), [Option<Tensor>; 2]> = BTreeMap::new();
    for (name, tensor) in file.tensors {
        let (key, half) = parse_name(&name).ok_or_else(|| {
            wrong(format!("tensor {name} belongs to no attention layer of the vision tower"))
        })?;
        if tensor.shape().dims().get(half) != Some(&rank) {
            let shape = tensor.shape();
            return Err(wrong(format!("tensor {name} has shape {shape}, its rank should be {rank}")));
        }
        halves.entry(key).or_default()[half] = Some(tensor);
    }
    if halves.is_empty() {
        return Err(wrong("holds no adapter; save it again".into()));
    }
    halves
        .into_iter()
        .map(|(key, [a, b])| match (a, b) {
            (Some(a), Some(b)) => Ok((key, (a, b))),
            _ => Err(wrong(format!("{} of layer {} lacks its lora_A or lora_B", key.1, key.0))),
        })
        .collect()
}

/// Layer, target, and 0 for A or 1 for B.
fn parse_name(name: &str) -> Option<((usize, Target), usize)> {
    let (layer, rest) = name.strip_prefix(PREFIX)?.split_once(".self_attn.")?;
    let (target, part) = rest.split_once('.')?;
    let half = match part {
        "lora_A.weight" => 0,
        "lora_B.weight" => 1,
        _ => return None,
    };
    let number: usize = layer.parse().ok()?;
    // One layer has one name.
    (number.to_string() == layer).then_some(((number, target.parse().ok()?), half))
}

impl LoraInit for Adapter {
    fn start(&mut self, layer: usize, target: Target, inputs: usize, outputs: usize) -> (Tensor, Tensor) {
        let zeros = |shape| Tensor::zeros(shape, crate::tensor::DType::F32);
        // `check` has made sure that every tensor is there.
        self.tensors
            .get(&(layer, target))
            .cloned()
            .unwrap_or_else(|| (zeros([self.spec.rank, inputs]), zeros([outputs, self.spec.rank])))
    }
}

/// Prepares a file of head.weight \[C, E\] and head.bias \[C\], with the class names as a JSON list in the metadata.
pub fn stage_head(path: &Path, weight: Tensor, bias: Tensor, class_names: &[String]) -> Result<Staged> {
    let tensors = BTreeMap::from([("head.weight".to_string(), weight), ("head.bias".to_string(), bias)]);
    let metadata = HashMap::from([("class_names".to_string(), json!(class_names).to_string())]);
    stage_tensors(path, &tensors, metadata)
}

/// Prepares a file of `prompts`: \[m, D\] where all blocks share them, else \[L, m, D\]; with the mode in the
/// metadata, which the shape does not tell.
pub fn stage_prompts<B: Backend>(
    path: &Path,
    backend: &B,
    prompts: &Prompts<B>,
    spec: &PromptSpec,
) -> Result<Staged> {
    let mut values = backend.download(&prompts.param.value)?;
    if spec.sharing == PromptSharing::Shared {
        let width = values.shape().columns();
        values = values.reshape([spec.count, width])?;
    }
    let metadata = HashMap::from([(MODE.to_string(), spec.mode.name().to_string())]);
    stage_tensors(path, &BTreeMap::from([("prompts".to_string(), values)]), metadata)
}

/// The metadata entry for [`PromptMode`].
const MODE: &str = "mode";

/// What the prompts in a file are.
///
/// # Errors
/// A file without prompts, or without their mode.
pub fn prompt_spec(path: &Path) -> Result<PromptSpec> {
    let file = TensorFile::read(path)?;
    let shape = file.tensors.get("prompts").map(Tensor::shape).filter(|shape| shape.elements() > 0);
    let (count, sharing) = match shape.as_ref().map(Shape::dims) {
        Some(&[count, _]) => (count, PromptSharing::Shared),
        Some(&[_, count, _]) => (count, PromptSharing::PerLayer),
        _ => return Err(TrainError::file(path, "holds no prompts [m, D] or [L, m, D]; save them again")),
    };
    let mode = file.metadata.get(MODE).and_then(|name| PromptMode::from_name(name));
    let mode = mode.ok_or_else(|| {
        TrainError::file(
            path,
            "does not say in its metadata whether mode is replace or accumulate; save it again",
        )
    })?;
    Ok(PromptSpec { count, sharing, mode })
}

/// Reads prompts for a tower of `layers` blocks, `width` wide: \[sets, m, D\].
///
/// # Errors
/// Prompts of another shape than `spec` asks for.
pub fn load_prompts(path: &Path, spec: &PromptSpec, layers: usize, width: usize) -> Result<Tensor> {
    let found = prompt_spec(path)?;
    if found.mode != spec.mode {
        let mode = found.mode.name();
        return Err(TrainError::file(
            path,
            format!("prompts were trained with --prompt-mode {mode}; set it"),
        ));
    }
    let mut file = TensorFile::read(path)?;
    let shape = match spec.sharing {
        PromptSharing::Shared => Shape::from([spec.count, width]),
        PromptSharing::PerLayer => Shape::from([layers, spec.count, width]),
    };
    let found = file.tensors.get("prompts").map(Tensor::shape);
    if let Some(found) = found.filter(|&found| found != shape) {
        let problem = format!(
            "prompts have shape {found} where {shape} is needed; set --prompts and --prompt-count to theirs, \
             or use the model they were trained with"
        );
        return Err(TrainError::file(path, problem));
    }
    Ok(file.take(path, "prompts", shape)?.reshape([spec.sets(layers), spec.count, width])?)
}

/// The head's tensors as host copies: weight, bias.
pub fn head_tensors<B: Backend>(backend: &B, head: &Head<B>) -> Result<(Tensor, Tensor)> {
    Ok((backend.download(&head.weight.value)?, backend.download(&head.bias.value)?))
}

/// A head read from its file.
#[derive(Debug)]
pub struct HeadFile {
    pub weight: Tensor,
    pub bias: Tensor,
    pub class_names: Vec<String>,
}

impl HeadFile {
    /// Reads a head for features of width `width`.
    pub fn load(path: &Path, width: usize) -> Result<Self> {
        let mut file = TensorFile::read(path)?;
        let names = file.metadata.get("class_names");
        let names = names.and_then(|names| serde_json::from_str::<Vec<String>>(names).ok());
        let names = names.filter(|names| !names.is_empty());
        let class_names = names
            .ok_or_else(|| TrainError::file(path, "has no class names in its metadata; save it again"))?;
        let classes = class_names.len();
        Ok(HeadFile {
            weight: file.take(path, "head.weight", [classes, width].into())?,
            bias: file.take(path, "head.bias", [classes].into())?,
            class_names,
        })
    }

    /// Makes sure that the head was trained for the classes of the data at hand.
    pub fn check_classes(&self, path: &Path, class_names: &[String]) -> Result<()> {
        if self.class_names == class_names {
            return Ok(());
        }
        let (ours, theirs) = (self.class_names.len(), class_names.len());
        let first = self.class_names.iter().zip(class_names).find(|(a, b)| a != b);
        let difference = match first {
            Some((a, b)) => format!("{a:?} where the data has {b:?}"),
            None => format!("{ours} classes where the data has {theirs}"),
        };
        Err(TrainError::file(
            path,
            format!("knows {difference}; use data with the classes it was trained on"),
        ))
    }
}
