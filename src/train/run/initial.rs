//! What is trained, as a run starts with it: at random, or from the files of another run.

use crate::backend::Backend;
use crate::clip::config::ClipConfig;
use crate::clip::text::{TextClassifier, TextTower};
use crate::clip::vision::VisionTower;
use crate::random;
use crate::settings::{ClassifierKind, HeadInit, Key, Settings};
use crate::tensor::{DType, Shape, Tensor};
use crate::train::adapter::{Adapter, HeadFile, adapter_in, load_prompts};
use crate::train::learner::LearnerSpec;
use crate::train::{Result, TrainError};
use crate::tune::{
    BlockLayers, Head, LoraSpec, Prompts, Tower, Trained,
    head::initial_head,
    lora::{KaimingInit, LoraInit},
    prompts::initial_prompts,
};
use std::path::Path;

/// The towers that a run works on, and their sizes.
pub(crate) struct Towers<'a, B: Backend> {
    pub backend: &'a B,
    pub vision: &'a VisionTower<B>,
    /// Where it is trained.
    pub text: Option<&'a TextTower<B>>,
    pub config: &'a ClipConfig,
}

/// Adapters of the vision and of the text tower.
type Adapters<B> = [Vec<BlockLayers<B>>; 2];

impl<B: Backend> Towers<'_, B> {
    /// Adapters, prompts and head as the run starts with them.
    pub fn trained_parts(
        &self,
        settings: &Settings,
        init_from: Option<&Path>,
        class_names: &[String],
        text: &TextClassifier,
    ) -> Result<Trained<B>> {
        let Towers { backend, vision: tower, .. } = *self;
        let mut rng = random::stream(settings.seed, 0);
        let (classes, width) = (class_names.len(), tower.features());
        let scale = settings.head_scale.value(width);
        // Drawn whatever the head starts from, so that what is drawn after it stays the same.
        let drawn = initial_head(classes, width, &mut rng);
        let zeros = |shape: Shape| Tensor::zeros(shape, DType::F32);
        let (weight, bias) = match settings.head_init {
            HeadInit::Zero => (zeros([classes, width].into()), zeros([classes].into())),
            HeadInit::Random => (times(scale, &drawn.0)?, drawn.1),
            HeadInit::Text => (times(text.scale, &text.features)?, zeros([classes].into())),
        };
        let mut head = Head::new(backend, weight.view(), bias.view())?.scaled(scale);
        head.trained = settings.classifier == ClassifierKind::Head;
        let [lora, text_lora] = match settings.lora() {
            Some(spec) => {
                let mut init = KaimingInit { rank: spec.rank, rng: &mut rng };
                self.adapters(&spec, &mut init)?
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
            self.replace_parts(settings, class_names, from, &mut trained)?;
        }
        trained.prepare_to_train(backend)?;
        Ok(trained)
    }

    /// Adapters as `spec` describes them, starting where `init` says.
    fn adapters(&self, spec: &LoraSpec, init: &mut dyn LoraInit) -> Result<Adapters<B>> {
        let vision = self.vision.adapters(self.backend, spec, init)?;
        match self.text {
            Some(text) => Ok([vision, text.adapters(self.backend, spec, init)?]),
            None if spec.towers.contains(&Tower::Text) => {
                let flag = Key::towers;
                let text = format!("{flag}: the text tower is to be trained and was not prepared for it");
                Err(TrainError::Setting(text))
            }
            None => Ok([vision, Vec::new()]),
        }
    }

    /// Replaces what `from` has files for.
    fn replace_parts(
        &self,
        settings: &Settings,
        class_names: &[String],
        from: &Path,
        trained: &mut Trained<B>,
    ) -> Result<()> {
        use Key::{init_from, method, with_lora};

        let (adapter, head_path) = (adapter_in(from)?, from.join("head.safetensors"));
        let prompts_path = from.join("prompts.safetensors");
        let Towers { backend, vision: tower, .. } = *self;
        let sizes = &tower.config().tower;
        let found = [adapter.is_some(), prompts_path.is_file(), head_path.is_file()];
        if found == [false; 3] {
            let problem = format!(
                "none of adapter/, adapter_config.json, head.safetensors and prompts.safetensors is here; check {init_from}"
            );
            return Err(TrainError::file(from, problem));
        }
        let unused = |what: &str, remedy: String| {
            let text =
                format!("{init_from}: {} has {what}, which this run leaves out; {remedy}", from.display());
            Err(TrainError::Setting(text))
        };
        match (adapter, settings.lora()) {
            (Some(_), None) => {
                return unused("an adapter", format!("use {method} lora, or {with_lora} beside prompts"));
            }
            (Some(dir), Some(spec)) => {
                [trained.lora, trained.text_lora] = self.adapters_from(&dir, &spec)?;
            }
            (None, _) => {}
        }
        match (found[1], settings.prompt_spec()) {
            (true, None) => return unused("prompts", format!("use {method} vpt")),
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
            let scale = trained.head.weight.scale;
            trained.head = Head::new(backend, file.weight.view(), file.bias.view())?.scaled(scale);
        }
        Ok(())
    }

    /// Reads adapters, which must be those that `spec` describes.
    fn adapters_from(&self, dir: &Path, spec: &LoraSpec) -> Result<Adapters<B>> {
        let mut adapter = Adapter::load(dir)?;
        // Dropout is a matter of each run.
        let mut wanted = LoraSpec { dropout: adapter.spec.dropout, ..spec.clone() };
        wanted.targets.sort_unstable();
        wanted.towers.sort_unstable();
        let differences = differences(&adapter.spec, &wanted);
        if !differences.is_empty() {
            let [what, flags] = [0, 1].map(|i| differences.iter().map(|d| d[i].as_str()).collect::<Vec<_>>());
            let problem = format!("was trained with {}; {}", what.join(", "), flags.join(", "));
            return Err(TrainError::file(dir, problem));
        }
        adapter.check(self.config)?;
        if let Some(site) = adapter.first_gap(self.config) {
            let problem = format!(
                "leaves out {site}, which would never learn; start from an adapter of all layers of its kind"
            );
            return Err(TrainError::file(dir, problem));
        }
        self.adapters(spec, &mut adapter)
    }
}

/// Specifies the learner of a run: for batches of up to `batch` images of shape `image`, cut out of larger ones of side
/// `crops_of` if there are any.
pub(in crate::train) fn learner_spec<B: Backend>(
    backend: &B,
    settings: &Settings,
    batch: usize,
    (image, image_dtype): (Shape, DType),
    crops_of: Option<usize>,
) -> LearnerSpec {
    LearnerSpec {
        mix: settings.mix(),
        crops_of,
        dropout: settings.dropout_spec(),
        clip: settings.clip_grad_norm,
        accumulate: settings.accumulate > 1,
        ..LearnerSpec::new(backend, batch, image, image_dtype, settings.objective())
    }
}

/// `values` times `factor`, f32.
fn times(factor: f64, values: &Tensor) -> Result<Tensor> {
    let wide = values.view().to_tensor(DType::F64)?;
    let scaled: Vec<f64> = wide.typed::<f64>()?.iter().map(|v| factor * v).collect();
    Ok(Tensor::from_slice(values.shape(), &scaled)?.view().to_tensor(DType::F32)?)
}

/// Lists what an adapter and the one that a run asks for differ in: the difference in words, and the remedy.
fn differences(found: &LoraSpec, wanted: &LoraSpec) -> Vec<[String; 2]> {
    let mut all = Vec::new();
    let mut compare = |key: Key, found: String, wanted: String| {
        if found != wanted {
            let name = key.setting().name;
            all.push([format!("{name} {found}, not {wanted}"), format!("set {key} {found}")]);
        }
    };
    let targets = |spec: &LoraSpec| spec.targets.iter().map(|t| t.name()).collect::<Vec<_>>().join(",");
    let towers = |spec: &LoraSpec| spec.towers.iter().map(|t| t.name()).collect::<Vec<_>>().join(",");
    compare(Key::rank, found.rank.to_string(), wanted.rank.to_string());
    compare(Key::alpha, found.alpha.to_string(), wanted.alpha.to_string());
    compare(Key::targets, targets(found), targets(wanted));
    compare(Key::towers, towers(found), towers(wanted));
    match (found.rslora, wanted.rslora) {
        (true, false) => all.push(["rslora".into(), format!("set {}", Key::rslora)]),
        (false, true) => all.push(["no rslora".into(), format!("leave out {}", Key::rslora)]),
        _ => {}
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::Target::{self, Query};

    #[test]
    fn every_difference_between_adapters_is_named_with_its_flag() {
        let run = LoraSpec::new(8, 16.0, &[Query]);
        assert_eq!(differences(&run, &run), [[""; 2]; 0]);
        let lora = |change: fn(&mut LoraSpec)| {
            let mut spec = run.clone();
            change(&mut spec);
            let found = differences(&spec, &run);
            assert_ne!(spec, run);
            assert_eq!(found.len(), 1, "{found:?}");
            found[0].join("; ")
        };
        assert_eq!(lora(|spec| spec.rank = 4), "rank 4, not 8; set --rank 4");
        assert_eq!(lora(|spec| spec.alpha = 0.5), "alpha 0.5, not 16; set --alpha 0.5");
        let targets = lora(|spec| spec.targets = vec![Query, Target::Key]);
        assert_eq!(targets, "targets q_proj,k_proj, not q_proj; set --targets q_proj,k_proj");
        let towers = lora(|spec| spec.towers = Tower::ALL.to_vec());
        assert_eq!(towers, "towers vision,text, not vision; set --towers vision,text");
        assert_eq!(lora(|spec| spec.rslora = true), "rslora; set --rslora");
        let with = LoraSpec { rslora: true, ..run.clone() };
        assert_eq!(differences(&run, &with), [["no rslora", "leave out --rslora"]]);
    }
}
