//! adapter_config.json: what PEFT writes there, and what of it can be run.
//!
//! PEFT has many options, and more with each release. The list [`OPTIONS`] says of each whether it changes
//! what is computed; one that does and is not supported is refused by its name, and so is one that is not in
//! the list, unless it is off. A release after [`KNOWN_RELEASE`] writes its new options into every adapter: there
//! a number or a word is taken for the setting of something that is off. Checked against the source of that
//! release.

use super::pattern::{Names, Pattern, strings};
use crate::train::base_model::BaseModel;
use crate::tune::{LoraSpec, Target, Tower};
use serde_json::{Map, Value, json};

/// The release of PEFT whose options are all in [`OPTIONS`].
const KNOWN_RELEASE: [u64; 3] = [0, 21, 2];

/// Treatment of an option of PEFT's.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    /// Read below, or without a say in what is computed.
    Known,
    /// Supported only where it is off.
    Off,
}

/// The options of PEFT's `LoraConfig`.
const OPTIONS: [(&str, Rule); 42] = [
    ("alora_invocation_tokens", Rule::Off),
    ("alpha_pattern", Rule::Known),
    ("arrow_config", Rule::Off),
    ("auto_mapping", Rule::Known),
    ("base_model_name_or_path", Rule::Known),
    ("bias", Rule::Known),
    // The settings of ways to start: the start itself is judged by init_lora_weights.
    ("corda_config", Rule::Known),
    ("ensure_weight_tying", Rule::Off),
    ("eva_config", Rule::Known),
    ("exclude_modules", Rule::Known),
    ("fan_in_fan_out", Rule::Off),
    ("inference_mode", Rule::Known),
    ("init_lora_weights", Rule::Known),
    ("kasa_config", Rule::Off),
    ("layer_replication", Rule::Off),
    ("layers_pattern", Rule::Known),
    ("layers_to_transform", Rule::Known),
    ("loftq_config", Rule::Known),
    ("lora_alpha", Rule::Known),
    ("lora_bias", Rule::Off),
    ("lora_dropout", Rule::Known),
    ("lora_ga_config", Rule::Known),
    ("megatron_config", Rule::Off),
    ("megatron_core", Rule::Known),
    ("modules_to_save", Rule::Off),
    ("monteclora_config", Rule::Off),
    ("peft_type", Rule::Known),
    ("peft_version", Rule::Known),
    ("qalora_group_size", Rule::Known),
    ("r", Rule::Known),
    ("rank_pattern", Rule::Known),
    ("revision", Rule::Known),
    ("runtime_config", Rule::Known),
    ("target_modules", Rule::Known),
    ("target_parameters", Rule::Off),
    ("task_type", Rule::Known),
    ("trainable_token_indices", Rule::Off),
    ("use_bdlora", Rule::Off),
    ("use_dora", Rule::Off),
    ("use_qalora", Rule::Off),
    ("use_rslora", Rule::Known),
    ("velora_config", Rule::Off),
];

/// Starts that leave the model's own weights as they are, so that the adapter alone is all there is.
const PLAIN_STARTS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

/// Configuration of an adapter, as far as it decides what is computed.
#[derive(Debug)]
pub(super) struct PeftConfig {
    pub rslora: bool,
    pub dropout: f64,
    /// The towers of the model class that was adapted; `None` where the class is not named.
    pub towers: Option<Vec<Tower>>,
    /// Options of a later release that were passed over, with their values.
    pub ignored: Vec<String>,
    rank: usize,
    alpha: f64,
    target: Names,
    exclude: Option<Names>,
    blocks: Option<Blocks>,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
}

/// The blocks that `layers_to_transform` names.
#[derive(Debug)]
struct Blocks {
    numbers: Vec<usize>,
    /// Where the block's number stands in a name.
    lists: Vec<Pattern>,
}

impl PeftConfig {
    /// Reads the text of adapter_config.json; the error says which option is wrong, and what to do.
    pub fn read(text: &str) -> Result<Self, String> {
        let config: Value = serde_json::from_str(text)
            .map_err(|e| format!("not valid JSON ({e}); save the adapter again"))?;
        let Value::Object(options) = &config else {
            return Err("no JSON object; save the adapter again".into());
        };
        let ignored = refuse_unsupported(options)?;
        let target = Names::read("target_modules", &config["target_modules"])?;
        let target = target.ok_or("target_modules is missing; save the adapter again")?;
        Ok(PeftConfig {
            rslora: flag(&config, "use_rslora")?,
            dropout: dropout(&config["lora_dropout"])?,
            towers: towers(&config["auto_mapping"])?,
            ignored,
            rank: rank("r", &config["r"])?,
            alpha: alpha("lora_alpha", &config["lora_alpha"])?,
            blocks: Blocks::read(&config, &target)?,
            target,
            exclude: Names::read("exclude_modules", &config["exclude_modules"])?,
            ranks: patterns("rank_pattern", &config["rank_pattern"], rank)?,
            alphas: patterns("alpha_pattern", &config["alpha_pattern"], alpha)?,
        })
    }

    /// Whether the layer of this name carries an adapter.
    pub(crate) fn adapts(&self, module: &str) -> Result<bool, String> {
        if let Some(exclude) = &self.exclude
            && exclude.contain(module)?
        {
            return Ok(false);
        }
        if !self.target.contain(module)? {
            return Ok(false);
        }
        self.blocks.as_ref().map_or(Ok(true), |blocks| blocks.contain(module))
    }

    /// Rank and alpha of the layer of this name.
    pub(crate) fn rank_and_alpha(&self, module: &str) -> Result<(usize, f64), String> {
        Ok((
            first(&self.ranks, module)?.unwrap_or(self.rank),
            first(&self.alphas, module)?.unwrap_or(self.alpha),
        ))
    }
}

/// The value of the first pattern that matches.
fn first<T: Copy>(patterns: &[(Pattern, T)], module: &str) -> Result<Option<T>, String> {
    for (pattern, value) in patterns {
        if pattern.matches(module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

impl Blocks {
    fn read(config: &Value, target: &Names) -> Result<Option<Self>, String> {
        let wrong =
            |option: &str, what: &str| Err(format!("{option} is {}, {what}; correct it", config[option]));
        let numbers = match &config["layers_to_transform"] {
            Value::Null => Vec::new(),
            Value::Array(list) => {
                let numbers: Option<Vec<usize>> = list.iter().map(number).collect();
                let Some(numbers) = numbers else {
                    return wrong("layers_to_transform", "not a list of block numbers");
                };
                numbers
            }
            one => match number(one) {
                Some(number) => vec![number],
                None => return wrong("layers_to_transform", "not a block number"),
            },
        };
        if numbers.is_empty() {
            return Ok(None);
        }
        if !matches!(target, Names::Listed(_)) {
            return wrong("layers_to_transform", "which goes with a list of target_modules only");
        }
        let lists = match &config["layers_pattern"] {
            Value::Null => Vec::new(),
            Value::String(text) if text.is_empty() => Vec::new(),
            Value::String(text) => vec![text.clone()],
            list => match strings(list) {
                Some(list) => list,
                None => return wrong("layers_pattern", "not a name or a list of names"),
            },
        };
        // Without a name, the first number in a layer's name is that of its block.
        let lists = if lists.is_empty() { vec!["[^.]*".to_string()] } else { lists };
        let lists = lists.iter().map(|list| Pattern::list_of_blocks(list)).collect::<Result<_, _>>();
        let lists = lists.map_err(|why| format!("layers_pattern {why}; correct it"))?;
        Ok(Some(Blocks { numbers, lists }))
    }

    fn contain(&self, module: &str) -> Result<bool, String> {
        for list in &self.lists {
            if let Some(block) = list.block(module)? {
                return Ok(self.numbers.contains(&block));
            }
        }
        Ok(false)
    }
}

fn number(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok()
}

/// Refuses what would be computed in another way; the options that were passed over instead.
fn refuse_unsupported(options: &Map<String, Value>) -> Result<Vec<String>, String> {
    let kind = options.get("peft_type").unwrap_or(&Value::Null);
    if kind != "LORA" {
        return Err(format!(
            "peft_type is {kind}, only \"LORA\" is supported; train an adapter of that type"
        ));
    }
    let mut ignored = Vec::new();
    for (name, value) in options.iter().filter(|(_, value)| !is_off(value)) {
        match OPTIONS.iter().find(|(option, _)| option == name) {
            Some((_, Rule::Known)) => {}
            Some((_, Rule::Off)) => {
                return Err(format!(
                    "{name} is not supported; train the adapter without it, or merge it into the model with \
                     PEFT's merge_and_unload"
                ));
            }
            None if (value.is_number() || value.is_string()) && is_of_later_release(options) => {
                ignored.push(format!("{name} {value}"));
            }
            None => {
                return Err(format!(
                    "{name} is an option that this engine does not know; train the adapter without it"
                ));
            }
        }
    }
    refuse_other_weights(options)?;
    Ok(ignored)
}

/// Whether a release wrote this whose options are not all known.
fn is_of_later_release(options: &Map<String, Value>) -> bool {
    let version = options.get("peft_version").and_then(Value::as_str).unwrap_or_default();
    let mut parts = version.splitn(3, '.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse::<u64>().unwrap_or(0)
    });
    let release = [(); 3].map(|()| parts.next().unwrap_or(0));
    release > KNOWN_RELEASE
}

/// Refuses trained biases, and starts that change the model's own weights.
fn refuse_other_weights(options: &Map<String, Value>) -> Result<(), String> {
    match options.get("bias") {
        None | Some(Value::Null) => {}
        Some(bias) if bias == "none" => {}
        Some(bias) => {
            return Err(format!("bias is {bias}, only \"none\" is supported; train the adapter with that"));
        }
    }
    match options.get("init_lora_weights") {
        None | Some(Value::Null | Value::Bool(_)) => Ok(()),
        Some(Value::String(start)) if PLAIN_STARTS.contains(&start.to_lowercase().as_str()) => Ok(()),
        Some(start) => Err(format!(
            "init_lora_weights is {start}, which changes the model's own weights; save the adapter in PEFT with \
             path_initial_model_for_weight_conversion, which makes it a plain one"
        )),
    }
}

/// Null, false, empty.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}

fn flag(config: &Value, name: &str) -> Result<bool, String> {
    match &config[name] {
        Value::Null => Ok(false),
        Value::Bool(value) => Ok(*value),
        other => Err(format!("{name} is {other}, neither true nor false; correct it")),
    }
}

fn dropout(value: &Value) -> Result<f64, String> {
    if value.is_null() {
        return Ok(0.0);
    }
    let dropout = value.as_f64().filter(|dropout| (0.0..1.0).contains(dropout));
    dropout.ok_or_else(|| format!("lora_dropout is {value}, not a share from 0 to below 1; correct it"))
}

fn rank(name: &str, value: &Value) -> Result<usize, String> {
    let rank = number(value).filter(|rank| (1..=1024).contains(rank));
    rank.ok_or_else(|| format!("{name} is {value}, not a rank from 1 to 1024; train with such a rank"))
}

fn alpha(name: &str, value: &Value) -> Result<f64, String> {
    let number = value.as_f64().filter(|&alpha| (alpha as f32).is_finite());
    number.ok_or_else(|| format!("{name} is {value}, not a number that f32 holds; correct it"))
}

/// A mapping from layers to values.
fn patterns<T>(
    name: &str,
    value: &Value,
    read: fn(&str, &Value) -> Result<T, String>,
) -> Result<Vec<(Pattern, T)>, String> {
    let entries = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Object(entries) => entries,
        _ => return Err(format!("{name} is no mapping from layers to values; correct it")),
    };
    let entry = |(key, value): (&String, &Value)| {
        let pattern = Pattern::ending(key).map_err(|why| format!("{name} {why}; correct it"))?;
        Ok((pattern, read(&format!("{name} of {key:?}"), value)?))
    };
    entries.iter().map(entry).collect()
}

/// The towers of the class that `auto_mapping` names.
fn towers(mapping: &Value) -> Result<Option<Vec<Tower>>, String> {
    match mapping["base_model_class"].as_str() {
        None => Ok(None),
        Some("CLIPModel") => Ok(Some(Tower::ALL.to_vec())),
        Some("CLIPVisionModel" | "CLIPVisionModelWithProjection") => Ok(Some(vec![Tower::Vision])),
        Some("CLIPTextModel" | "CLIPTextModelWithProjection") => Ok(Some(vec![Tower::Text])),
        Some("CLIPForImageClassification") => Err(
            "auto_mapping says that a CLIPForImageClassification was adapted, whose layers have other names; train the \
             adapter on CLIPVisionModel, or merge it with PEFT's merge_and_unload and put the vision tower back into the \
             whole CLIP by docs/python.md"
                .into(),
        ),
        Some(class) => Err(format!(
            "auto_mapping says that a {class} was adapted; only adapters of CLIPModel and of its two towers can \
             be used"
        )),
    }
}

/// The configuration of an adapter that this engine trained, for PEFT to read.
pub(super) fn write(spec: &LoraSpec, base: &BaseModel) -> Value {
    json!({
        "peft_type": "LORA",
        "task_type": null,
        "auto_mapping": {
            "base_model_class": "CLIPModel",
            "parent_library": "transformers.models.clip.modeling_clip",
        },
        "base_model_name_or_path": base.name(),
        "revision": base.on_hub().and_then(|(_, revision)| revision),
        "inference_mode": true,
        "r": spec.rank,
        "lora_alpha": whole_or_fraction(spec.alpha),
        "lora_dropout": spec.dropout,
        "use_rslora": spec.rslora,
        "use_dora": false,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
        "layers_to_transform": null,
        "layers_pattern": null,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": target_modules(spec),
    })
}

/// PEFT's alpha is a whole number, usually.
fn whole_or_fraction(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

/// An expression for the adapted layers in `CLIPModel` and no others.
fn target_modules(spec: &LoraSpec) -> String {
    let either = |options: Vec<String>| match options.as_slice() {
        [one] => one.clone(),
        several => format!("({})", several.join("|")),
    };
    let towers = Tower::ALL.into_iter().filter(|tower| spec.towers.contains(tower));
    let towers = either(towers.map(|tower| format!("{tower}_model")).collect());
    let mut modules: Vec<String> = Vec::new();
    for module in ["self_attn", "mlp"] {
        let targets = Target::ALL.into_iter().filter(|t| t.module() == module && spec.targets.contains(t));
        let targets: Vec<String> = targets.map(|target| target.name().to_string()).collect();
        if !targets.is_empty() {
            modules.push(format!(r"{module}\.{}", either(targets)));
        }
    }
    format!(r"{towers}\.encoder\.layers\.\d+\.{}", either(modules))
}
