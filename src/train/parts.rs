//! What is trained, as a run starts with it: at random, or from the files of another run.

use super::adapter::{Adapter, HeadFile, load_prompts};
use super::learner::TextClassifier;
use super::settings::{ClassifierKind, HeadInit, Settings};
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::clip::config::ClipConfig;
use crate::clip::text::TextTower;
use crate::clip::vision::VisionTower;
use crate::tensor::{DType, Tensor};
use crate::tune::{
    BlockLora, Head, LoraSpec, Prompts, Tower, Trained,
    head::initial_head,
    lora::{KaimingInit, LoraInit},
    prompts::initial_prompts,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::path::Path;

/// The towers that a run works on, and their sizes.
pub struct Towers<'a, B: Backend> {
    pub vision: &'a VisionTower<B>,
    /// Where it is trained.
    pub text: Option<&'a TextTower<B>>,
    pub config: &'a ClipConfig,
}

impl<B: Backend> Clone for Towers<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Towers<'_, B> {}

/// Adapters of the vision and of the text tower.
type Adapters<B> = [Vec<BlockLora<B>>; 2];

/// Adapters, prompts and head as the run starts with them.
pub fn trained_parts<B: Backend>(
    backend: &B,
    towers: Towers<'_, B>,
    settings: &Settings,
    init_from: Option<&Path>,
    class_names: &[String],
    text: &TextClassifier,
) -> Result<Trained<B>> {
    let tower = towers.vision;
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    let (weight, bias) = initial_head(class_names.len(), tower.features(), &mut rng);
    let mut head = match settings.head_init {
        HeadInit::Random => Head::new(backend, weight.view(), bias.view())?,
        HeadInit::Text => {
            let zero = Tensor::zeros([class_names.len()], DType::F32);
            Head::new(backend, text.features.view(), zero.view())?
        }
    };
    head.trained = settings.classifier == ClassifierKind::Head;
    let [lora, text_lora] = match settings.lora() {
        Some(spec) => {
            let mut init = KaimingInit { rank: spec.rank, rng: &mut rng };
            adapters(backend, towers, &spec, &mut init)?
        }
        None => [Vec::new(), Vec::new()],
    };
    let prompts = match settings.prompt_spec() {
        Some(spec) => {
            let sizes = &tower.config().tower;
            let initial = initial_prompts(&spec, sizes.layers, sizes.width, &mut rng);
            Some(Prompts::new(backend, spec.mode, initial.view())?)
        }
        None => None,
    };
    let mut trained = Trained { lora, text_lora, prompts, head };
    if let Some(from) = init_from {
        initial_parts_from(backend, towers, settings, class_names, from, &mut trained)?;
    }
    Ok(trained)
}

/// Adapters of the vision and of the text tower.
fn adapters<B: Backend>(
    backend: &B,
    towers: Towers<'_, B>,
    spec: &LoraSpec,
    init: &mut dyn LoraInit,
) -> Result<Adapters<B>> {
    let vision = towers.vision.adapters(backend, spec, init)?;
    match towers.text {
        Some(text) => Ok([vision, text.adapters(backend, spec, init)?]),
        None if spec.towers.contains(&Tower::Text) => {
            let text = "--towers: the text tower is to be trained and was not prepared for it";
            Err(TrainError::Setting(text.into()))
        }
        None => Ok([vision, Vec::new()]),
    }
}

/// Replaces what `from` has files for.
fn initial_parts_from<B: Backend>(
    backend: &B,
    towers: Towers<'_, B>,
    settings: &Settings,
    class_names: &[String],
    from: &Path,
    trained: &mut Trained<B>,
) -> Result<()> {
    let (adapter_dir, head_path) = (from.join("adapter"), from.join("head.safetensors"));
    let prompts_path = from.join("prompts.safetensors");
    let tower = towers.vision;
    let sizes = &tower.config().tower;
    let found = [adapter_dir.is_dir(), prompts_path.is_file(), head_path.is_file()];
    if found == [false; 3] {
        let problem = "none of adapter/, head.safetensors and prompts.safetensors is here; check --init-from";
        return Err(TrainError::file(from, problem));
    }
    let unused = |what: &str, remedy: &str| {
        let text = format!("--init-from: {} has {what}, which this run leaves out; {remedy}", from.display());
        Err(TrainError::Setting(text))
    };
    match (found[0], settings.lora()) {
        (true, None) => return unused("an adapter", "use --method lora, or --with-lora beside prompts"),
        (true, Some(spec)) => {
            [trained.lora, trained.text_lora] = adapters_from(backend, towers, &adapter_dir, &spec)?;
        }
        (false, _) => {}
    }
    match (found[1], settings.prompt_spec()) {
        (true, None) => return unused("prompts", "use --method vpt"),
        (true, Some(spec)) => {
            let values = load_prompts(&prompts_path, &spec, sizes.layers, sizes.width)?;
            trained.prompts = Some(Prompts::new(backend, spec.mode, values.view())?);
        }
        (false, _) => {}
    }
    // Without a head of its own a run classifies by the text tower, whatever head stands beside the adapter.
    if found[2] && trained.head.trained {
        let file = HeadFile::load(&head_path, tower.features())?;
        file.check_classes(&head_path, class_names)?;
        trained.head = Head::new(backend, file.weight.view(), file.bias.view())?;
    }
    Ok(())
}

/// Reads adapters, which must be those that `spec` describes.
fn adapters_from<B: Backend>(
    backend: &B,
    towers: Towers<'_, B>,
    dir: &Path,
    spec: &LoraSpec,
) -> Result<Adapters<B>> {
    let mut adapter = Adapter::load(dir)?;
    // Dropout is a matter of each run.
    let mut wanted = LoraSpec { dropout: adapter.spec.dropout, ..spec.clone() };
    wanted.targets.sort_unstable();
    wanted.towers.sort_unstable();
    if adapter.spec != wanted {
        let found = &adapter.spec;
        let targets: Vec<&str> = found.targets.iter().map(|t| t.name()).collect();
        let problem = format!(
            "rank {} alpha {} targets {targets:?} differ from the run's; set --rank, --alpha and --targets to these",
            found.rank, found.alpha,
        );
        return Err(TrainError::file(dir, problem));
    }
    adapter.check(towers.config)?;
    if let Some(site) = adapter.first_gap(towers.config) {
        let problem = format!(
            "leaves out {site}, which would never learn; start from an adapter of all layers of its kind"
        );
        return Err(TrainError::file(dir, problem));
    }
    adapters(backend, towers, spec, &mut adapter)
}
