//! What is trained, as a run starts with it: at random, or from the files of another run.

use super::adapter::{Adapter, HeadFile, load_prompts};
use super::learner::TextClassifier;
use super::settings::{HeadInit, Settings};
use super::{Result, TrainError};
use crate::backend::Backend;
use crate::clip::config::ClipConfig;
use crate::clip::vision::VisionTower;
use crate::tensor::{DType, Tensor};
use crate::tune::{
    BlockLora, Head, LoraSpec, Prompts, Trained, head::initial_head, lora::KaimingInit,
    prompts::initial_prompts,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::path::Path;

/// Adapters, prompts and head as the run starts with them.
pub fn trained_parts<B: Backend>(
    backend: &B,
    tower: &VisionTower<B>,
    config: &ClipConfig,
    settings: &Settings,
    init_from: Option<&Path>,
    class_names: &[String],
    text: &TextClassifier,
) -> Result<Trained<B>> {
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    let (weight, bias) = initial_head(class_names.len(), tower.features(), &mut rng);
    let head = match settings.head_init {
        HeadInit::Random => Head::new(backend, weight.view(), bias.view())?,
        HeadInit::Text => {
            let zero = Tensor::zeros([class_names.len()], DType::F32);
            Head::new(backend, text.features.view(), zero.view())?
        }
    };
    let lora = match settings.lora() {
        Some(spec) => {
            let mut init = KaimingInit { rank: spec.rank, rng: &mut rng };
            tower.adapters(backend, &spec, &mut init)?
        }
        None => Vec::new(),
    };
    let prompts = match settings.prompt_spec() {
        Some(spec) => {
            let sizes = &tower.config().tower;
            let initial = initial_prompts(&spec, sizes.layers, sizes.width, &mut rng);
            Some(Prompts::new(backend, spec.mode, initial.view())?)
        }
        None => None,
    };
    let mut trained = Trained { lora, text_lora: Vec::new(), prompts, head };
    if let Some(from) = init_from {
        initial_parts_from(backend, tower, config, settings, class_names, from, &mut trained)?;
    }
    Ok(trained)
}

/// Replaces what `from` has files for.
fn initial_parts_from<B: Backend>(
    backend: &B,
    tower: &VisionTower<B>,
    config: &ClipConfig,
    settings: &Settings,
    class_names: &[String],
    from: &Path,
    trained: &mut Trained<B>,
) -> Result<()> {
    let (adapter_dir, head_path) = (from.join("adapter"), from.join("head.safetensors"));
    let prompts_path = from.join("prompts.safetensors");
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
        (true, Some(spec)) => trained.lora = adapters_from(backend, tower, config, &adapter_dir, &spec)?,
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
    if found[2] {
        let file = HeadFile::load(&head_path, tower.features())?;
        file.check_classes(&head_path, class_names)?;
        trained.head = Head::new(backend, file.weight.view(), file.bias.view())?;
    }
    Ok(())
}

/// Reads adapters, which must be those that `spec` describes.
fn adapters_from<B: Backend>(
    backend: &B,
    tower: &VisionTower<B>,
    config: &ClipConfig,
    dir: &Path,
    spec: &LoraSpec,
) -> Result<Vec<BlockLora<B>>> {
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
    adapter.check(config)?;
    if let Some(site) = adapter.first_gap(config) {
        let problem = format!(
            "leaves out {site}, which would never learn; start from an adapter of all layers of its kind"
        );
        return Err(TrainError::file(dir, problem));
    }
    Ok(tower.adapters(backend, spec, &mut adapter)?)
}
