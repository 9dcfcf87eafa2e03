//! Adapters in PEFT's format, prompts, and heads with their class names, as files.
//!
//! An adapter is two files: the configuration, which says what layers are adapted and how, and the tensors.
//! The two are read apart and then held against each other and against the model.

mod config;
mod head;
mod pattern;
mod prompts;

pub use head::{HeadFile, stage_head};
pub use prompts::{load_prompts, prompt_spec, stage_prompts};

use super::base_model::BaseModel;
use super::provenance::Stamp;
use super::tensor_files::{TensorFile, stage_tensors};
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::clip::config::{ClipConfig, TowerConfig};
use crate::files::Staged;
use crate::tensor::{DType, Shape, Tensor};
use crate::tune::{BlockLayers, LoraSpec, Site, Target, Tower, lora::LoraInit};
use config::PeftConfig;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// What PEFT calls the files of an adapter.
pub(crate) const WEIGHTS_FILE: &str = "adapter_model.safetensors";
pub(crate) const CONFIG_FILE: &str = "adapter_config.json";

/// Prefix that PEFT puts in front of the names of the model it wraps.
const PREFIX: &str = "base_model.model.";

/// The names of the blocks in a tower that was wrapped without the model around it.
const BARE_LAYERS: &str = "encoder.layers";

/// Layers beside those of the blocks that PEFT can adapt and this engine cannot.
const OTHER_MODULES: [(Tower, &str); 6] = [
    (Tower::Vision, "visual_projection"),
    (Tower::Vision, "vision_model.embeddings.patch_embedding"),
    (Tower::Vision, "vision_model.embeddings.position_embedding"),
    (Tower::Text, "text_projection"),
    (Tower::Text, "text_model.embeddings.token_embedding"),
    (Tower::Text, "text_model.embeddings.position_embedding"),
];

/// The trained tensors of each adapted layer: A \[r, in\] and B \[out, r\].
pub(crate) type AdapterTensors = BTreeMap<Site, (Tensor, Tensor)>;

/// Splits the stacked adapters of a tower into one A and one B per layer.
pub fn tensors<B: Backend>(backend: &B, tower: Tower, lora: &[BlockLayers<B>]) -> Result<AdapterTensors> {
    let mut tensors = AdapterTensors::new();
    for (l, block) in lora.iter().enumerate() {
        for layer in block.adapters() {
            let (a, b) = (backend.download(&layer.a.value)?, backend.download(&layer.b.value)?);
            let rank = a.shape().rows() / layer.targets.len();
            let outputs = b.shape().row_elements() / rank;
            for (i, &target) in layer.targets.iter().enumerate() {
                let part_a = a.view().rows(i * rank, rank)?.to_tensor(a.dtype())?;
                let part_b = b.view().rows(i, 1)?.to_tensor(b.dtype())?.reshape([outputs, rank])?;
                tensors.insert(Site { tower, layer: l, target }, (part_a, part_b));
            }
        }
    }
    Ok(tensors)
}

/// Prepares `dir`/adapter_model.safetensors and `dir`/adapter_config.json.
pub fn stage(
    dir: &Path,
    tensors: &AdapterTensors,
    spec: &LoraSpec,
    base: &BaseModel,
    stamp: Option<&Stamp>,
) -> Result<[Staged; 2]> {
    std::fs::create_dir_all(dir).map_err(TrainError::io(dir, "create the folder"))?;
    let config = config::write(spec, base);
    let mut named = BTreeMap::new();
    for (site, (a, b)) in tensors {
        let name = format!("{PREFIX}{site}");
        named.insert(format!("{name}.lora_A.weight"), a.clone());
        named.insert(format!("{name}.lora_B.weight"), b.clone());
    }
    let mut metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    Stamp::put(stamp, &mut metadata);
    let tensors = stage_tensors(&dir.join(WEIGHTS_FILE), &named, metadata)?;
    Ok([tensors, Staged::new(&dir.join(CONFIG_FILE), format!("{config:#}\n").as_bytes())?])
}

/// Returns a warning where the adapter that `dir` holds has options that are left out: see
/// [`Adapter::ignored_options`].
///
/// # Errors
/// Errors of [`adapter_in`] and [`Adapter::load`].
pub fn doubts_about(dir: &Path) -> Result<Option<String>> {
    let Some(dir) = adapter_in(dir)? else { return Ok(None) };
    let adapter = Adapter::load(&dir)?;
    let ignored = adapter.ignored_options();
    Ok((!ignored.is_empty()).then(|| {
        format!(
            "{}: options of a later PEFT that this engine does not know are left out: {}; compare its features with \
             PEFT's, or save the adapter without them",
            dir.join(CONFIG_FILE).display(),
            ignored.join(", "),
        )
    }))
}

/// The folder of the adapter that `dir` holds, if any: `dir`/adapter as runs have it, or `dir` itself as PEFT's
/// `save_pretrained` writes it.
///
/// # Errors
/// Both of them, as nothing says which is meant.
pub fn adapter_in(dir: &Path) -> Result<Option<PathBuf>> {
    let inner = dir.join("adapter");
    match (inner.is_dir(), dir.join(CONFIG_FILE).is_file()) {
        (true, true) => {
            let problem =
                "holds adapter_config.json and adapter/, which are two adapters; move one of them away";
            Err(TrainError::file(dir, problem))
        }
        (true, false) => Ok(Some(inner)),
        (false, true) => Ok(Some(dir.to_path_buf())),
        (false, false) => Ok(None),
    }
}

/// An adapter read from files, ready to start training or inference from.
///
/// It may leave out layers that its specification covers: some blocks, or a kind of layer in one of two
/// towers. There A and B are zero, which changes nothing and has no gradient.
#[derive(Debug)]
pub struct Adapter {
    /// Rank, scale and dropout as the configuration has them; layers and towers are those that have tensors,
    /// sorted.
    pub spec: LoraSpec,
    path: PathBuf,
    config_path: PathBuf,
    config: PeftConfig,
    wrapped: Wrapped,
    tensors: AdapterTensors,
}

/// Model class, or single tower, that PEFT wrapped.
#[derive(Debug)]
struct Wrapped {
    towers: Vec<Tower>,
    /// One tower without the model around it, so that names do not say which.
    bare: bool,
}

impl Wrapped {
    /// The name of a layer in the model that was wrapped.
    fn module(&self, site: Site) -> String {
        let name = site.name();
        match name.strip_prefix(site.tower.layers()) {
            Some(rest) if self.bare => format!("{BARE_LAYERS}{rest}"),
            _ => name,
        }
    }

    fn of(config: &PeftConfig, file: &TensorFile) -> Result<Self, String> {
        let within = |layers: &str| {
            let start = format!("{PREFIX}{layers}.");
            file.tensors.keys().any(|name| name.starts_with(&start))
        };
        let bare = within(BARE_LAYERS);
        match (&config.towers, bare) {
            (Some(towers), false) => Ok(Wrapped { towers: towers.clone(), bare }),
            // A class that is not named may have had any towers: those that were adapted count.
            (None, false) => {
                let towers = Tower::ALL.into_iter().filter(|tower| within(tower.layers())).collect();
                Ok(Wrapped { towers, bare })
            }
            (Some(towers), true) if towers.len() == 1 => Ok(Wrapped { towers: towers.clone(), bare }),
            (_, true) => Err(format!(
                "names layers {PREFIX}{BARE_LAYERS}, of the vision tower or of the text tower; say which by \
                 base_model_class CLIPVisionModel or CLIPTextModel in the auto_mapping of adapter_config.json"
            )),
        }
    }
}

impl Adapter {
    /// Reads `dir`, in PEFT's format.
    ///
    /// # Errors
    /// Files that cannot be read, options that are not supported, and tensors of other layers than a tower's,
    /// of another rank than the configuration says, or with values that are not finite.
    pub fn load(dir: &Path) -> Result<Self> {
        let (config_path, path) = (dir.join(CONFIG_FILE), dir.join(WEIGHTS_FILE));
        let text =
            std::fs::read_to_string(&config_path).map_err(TrainError::io(&config_path, "read the file"))?;
        let wrong_config = |problem: String| TrainError::file(&config_path, problem);
        let config = PeftConfig::read(&text).map_err(wrong_config)?;
        let pickled = dir.join("adapter_model.bin");
        if !path.exists() && pickled.exists() {
            let problem = "a pickled adapter, which is not read; save it with safe_serialization=True";
            return Err(TrainError::file(&pickled, problem));
        }
        let file = TensorFile::read(&path)?;
        let wrapped = Wrapped::of(&config, &file).map_err(|problem| TrainError::file(&path, problem))?;
        let tensors = read_tensors(&path, file, &wrapped)?;
        let (rank, alpha) = common_rank(&config, &wrapped, &tensors).map_err(wrong_config)?;
        let spec = LoraSpec {
            rank,
            alpha,
            rslora: config.rslora,
            targets: distinct(tensors.keys().map(|site| site.target)),
            towers: distinct(tensors.keys().map(|site| site.tower)),
            dropout: config.dropout,
        };
        Ok(Adapter { spec, path, config_path, config, wrapped, tensors })
    }

    /// Options of a release of PEFT that is not known here, with their values: numbers and words that were passed
    /// over, as nothing says what they do.
    pub fn ignored_options(&self) -> &[String] {
        &self.config.ignored
    }

    /// Makes sure that the adapter has exactly the layers that its configuration names in the model, in their
    /// shapes.
    pub fn check(&self, config: &ClipConfig) -> Result<()> {
        self.check_other_modules()?;
        let sizes = |tower| tower_config(config, tower);
        if let Some(site) = self.tensors.keys().find(|site| site.layer >= sizes(site.tower).layers) {
            let layers = sizes(site.tower).layers;
            return Err(self.wrong(format!(
                "has an adapter for {site}, the model has {layers} layers there; it belongs to another model"
            )));
        }
        if let Some(site) = self.tensors.keys().find(|site| !self.wrapped.towers.contains(&site.tower)) {
            return Err(self.wrong(format!(
                "has an adapter for {site}, which the model class in adapter_config.json does not have; save the \
                 adapter again"
            )));
        }
        for &tower in &self.wrapped.towers {
            for site in sites(tower, sizes(tower).layers, &Target::ALL) {
                self.check_site(site, sizes(tower))?;
            }
        }
        Ok(())
    }

    /// A layer that the specification covers and the adapter leaves out.
    pub fn first_gap(&self, config: &ClipConfig) -> Option<Site> {
        let layers = |tower| tower_config(config, tower).layers;
        let covered = self.spec.towers.iter().flat_map(|&t| sites(t, layers(t), &self.spec.targets));
        covered.into_iter().find(|site| !self.tensors.contains_key(site))
    }

    /// A \[r, in\] and B \[out, r\] of each adapted layer, f32.
    pub fn tensors(&self) -> &AdapterTensors {
        &self.tensors
    }

    fn wrong(&self, problem: String) -> TrainError {
        TrainError::file(&self.path, problem)
    }

    /// Whether the configuration names this layer.
    fn names(&self, module: &str) -> Result<bool> {
        let named = self.config.adapts(module);
        named.map_err(|why| TrainError::file(&self.config_path, format!("target_modules: {why}")))
    }

    /// Refuses a configuration that names layers beside those of the blocks.
    fn check_other_modules(&self) -> Result<()> {
        for (tower, module) in OTHER_MODULES {
            let module = match module.split_once('.') {
                Some((_, inner)) if self.wrapped.bare => inner,
                // A tower alone has no projection.
                None if self.wrapped.bare => continue,
                _ => module,
            };
            if self.wrapped.towers.contains(&tower) && self.names(module)? {
                let problem = format!(
                    "target_modules names {module}, and only layers of the blocks can be adapted; train the \
                     adapter without it"
                );
                return Err(TrainError::file(&self.config_path, problem));
            }
        }
        Ok(())
    }

    /// Holds configuration, tensors and model against each other in one layer.
    fn check_site(&self, site: Site, sizes: &TowerConfig) -> Result<()> {
        let module = self.wrapped.module(site);
        let (a, b) = match (self.names(&module)?, self.tensors.get(&site)) {
            (false, None) => return Ok(()),
            (true, None) => {
                return Err(self.wrong(format!(
                    "has no tensor {PREFIX}{module}.lora_A.weight, which adapter_config.json asks for; save the \
                     adapter again"
                )));
            }
            (false, Some(_)) => {
                return Err(self.wrong(format!(
                    "has a tensor {PREFIX}{module}.lora_A.weight, which adapter_config.json does not name; save \
                     the adapter again"
                )));
            }
            (true, Some(pair)) => pair,
        };
        let (inputs, outputs) = site.target.sizes(sizes.width, sizes.mlp);
        let r = self.spec.rank;
        for (tensor, half, expected) in
            [(a, "lora_A", Shape::from([r, inputs])), (b, "lora_B", Shape::from([outputs, r]))]
        {
            let found = tensor.shape();
            if found != expected {
                return Err(self.wrong(format!(
                    "tensor {PREFIX}{module}.{half}.weight has shape {found} where {expected} is needed; it \
                     belongs to another model"
                )));
            }
        }
        Ok(())
    }
}

fn tower_config(config: &ClipConfig, tower: Tower) -> &TowerConfig {
    match tower {
        Tower::Vision => &config.vision.tower,
        Tower::Text => &config.text.tower,
    }
}

/// The layers of these kinds in a tower.
fn sites(tower: Tower, layers: usize, targets: &[Target]) -> impl Iterator<Item = Site> {
    (0..layers).flat_map(move |layer| targets.iter().map(move |&target| Site { tower, layer, target }))
}

fn distinct<T: Ord>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// Rank and alpha, which must be the same in all layers, and the rank that of the tensors.
fn common_rank(
    config: &PeftConfig,
    wrapped: &Wrapped,
    tensors: &AdapterTensors,
) -> Result<(usize, f64), String> {
    let mut common: Option<(Site, (usize, f64))> = None;
    for (&site, (a, b)) in tensors {
        let module = wrapped.module(site);
        let found = config.rank_and_alpha(&module)?;
        for (half, rank) in [("lora_A", a.shape().rows()), ("lora_B", b.shape().columns())] {
            if rank != found.0 {
                return Err(format!(
                    "asks for rank {} in {module}, whose {half} has rank {rank}; save the adapter again",
                    found.0
                ));
            }
        }
        let (first, expected) = *common.get_or_insert((site, found));
        if found != expected {
            return Err(format!(
                "rank_pattern or alpha_pattern gives {module} rank {} and alpha {}, and {} rank {} and alpha {}; \
                 train the adapter with the same in all layers, or merge it into the model with PEFT's \
                 merge_and_unload",
                found.0,
                found.1,
                wrapped.module(first),
                expected.0,
                expected.1,
            ));
        }
    }
    common.map(|(_, found)| found).ok_or_else(|| "its adapter has no tensors; save it again".into())
}

fn read_tensors(path: &Path, file: TensorFile, wrapped: &Wrapped) -> Result<AdapterTensors> {
    let wrong = |problem: String| TrainError::file(path, problem);
    let mut of: Option<String> = None;
    let mut halves: BTreeMap<Site, [Option<Tensor>; 2]> = BTreeMap::new();
    for (name, tensor) in file.tensors {
        let (site, half, adapter) = parse_name(&name, wrapped).ok_or_else(|| {
            wrong(format!(
                "tensor {name} belongs to no linear layer of a block; train the adapter without it"
            ))
        })?;
        let first = of.get_or_insert_with(|| adapter.to_owned());
        if first != adapter {
            let names =
                [first, adapter].map(|name| if name.is_empty() { "one without a name" } else { name });
            return Err(wrong(format!(
                "holds several adapters, {} and {}; save one of them alone",
                names[0], names[1]
            )));
        }
        if tensor.shape().dims().len() != 2 {
            let shape = tensor.shape();
            return Err(wrong(format!(
                "tensor {name} has shape {shape}, it should be a matrix; save it again"
            )));
        }
        let tensor = tensor.view().to_tensor(DType::F32)?;
        if !tensor.typed::<f32>()?.iter().all(|value| value.is_finite()) {
            return Err(wrong(format!(
                "tensor {name} has values that are not finite; train the adapter again"
            )));
        }
        halves.entry(site).or_default()[half] = Some(tensor);
    }
    if halves.is_empty() {
        return Err(wrong("holds no adapter; save it again".into()));
    }
    halves
        .into_iter()
        .map(|(site, halves)| match halves {
            [Some(a), Some(b)] => Ok((site, (a, b))),
            [a, _] => {
                let (module, half) = (wrapped.module(site), if a.is_none() { "lora_A" } else { "lora_B" });
                Err(wrong(format!("has no tensor {PREFIX}{module}.{half}.weight; save the adapter again")))
            }
        })
        .collect()
}

/// The layer, 0 for A or 1 for B, and the adapter's name: PEFT leaves it out of what it saves, and a state dict of the
/// whole model has it.
fn parse_name<'a>(name: &'a str, wrapped: &Wrapped) -> Option<(Site, usize, &'a str)> {
    let name = name.strip_prefix(PREFIX)?;
    let (tower, rest) = Tower::ALL.into_iter().find_map(|tower| {
        let layers = match wrapped.bare {
            true => wrapped.towers.contains(&tower).then_some(BARE_LAYERS)?,
            false => tower.layers(),
        };
        Some((tower, name.strip_prefix(layers)?.strip_prefix('.')?))
    })?;
    let (layer, rest) = rest.split_once('.')?;
    let (module, rest) = rest.split_once('.')?;
    let (target, part) = rest.split_once('.')?;
    let target: Target = target.parse().ok().filter(|target: &Target| target.module() == module)?;
    let (half, adapter) = match part.split('.').collect::<Vec<_>>()[..] {
        ["lora_A", "weight"] => (0, ""),
        ["lora_B", "weight"] => (1, ""),
        ["lora_A", adapter, "weight"] => (0, adapter),
        ["lora_B", adapter, "weight"] => (1, adapter),
        _ => return None,
    };
    let number: usize = layer.parse().ok()?;
    // One layer has one name.
    (number.to_string() == layer).then_some((Site { tower, layer: number, target }, half, adapter))
}

impl LoraInit for Adapter {
    fn start(&mut self, site: Site, inputs: usize, outputs: usize) -> (Tensor, Tensor) {
        let zeros = |shape| Tensor::zeros(shape, DType::F32);
        self.tensors
            .get(&site)
            .cloned()
            .unwrap_or_else(|| (zeros([self.spec.rank, inputs]), zeros([outputs, self.spec.rank])))
    }
}
