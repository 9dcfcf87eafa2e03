//! Runs of different recipes one after the other on one shared model, on the host twin: what `engine compare` does
//! on a GPU.

use clip_engine::backend::Backend;
use clip_engine::backend::cpu::Cpu;
use clip_engine::data::demo::{IMAGE_SIZE, World, demo_classes, draw};
use clip_engine::data::{Cache, MemoryImage, Preprocess, Split};
use clip_engine::dev::on_twin;
use clip_engine::progress::Silent;
use clip_engine::random;
use clip_engine::settings::{AdapterRate, Augment, Patience, Recipe, Settings};
use clip_engine::tensor::DType;
use clip_engine::train::demo;
use clip_engine::train::records::{Baseline, Summary};
use clip_engine::train::run::SharedModel;
use clip_engine::train::run_dir::RunDir;
use clip_engine::train::tensor_files::TensorFile;

/// A few pictures of two classes of the demo; the last batch of training and of validation has one image.
fn cache() -> Cache {
    let classes = &demo_classes()[..2];
    let numbers = [(Split::Train, 5), (Split::Val, 3), (Split::Test, 2)];
    let places = numbers.into_iter().flat_map(|(split, count)| (0..count).map(move |index| (split, index)));
    let images = places.zip(0..).map(|((split, index), stream)| {
        let label = index % classes.len();
        MemoryImage {
            pixels: draw(&classes[label], World::Field, &mut random::stream(1, stream), IMAGE_SIZE),
            label: label as u32,
            name: format!("{split}/{index}.png"),
            split,
        }
    });
    let names = classes.iter().map(|class| class.name()).collect();
    Cache::from_images(names, &Preprocess::clip(IMAGE_SIZE), images).unwrap()
}

fn settings(recipe: Recipe) -> Settings {
    Settings {
        demo: true,
        epochs: 2,
        batch_size: 2,
        prompt_count: 2,
        early_stop: Patience::Off,
        templates: vec!["A photo of {}.".into()],
        ..Settings::of(recipe)
    }
}

/// What a run leaves: its summary without times, and its trained tensors.
#[derive(Debug, PartialEq)]
struct Left {
    summary: Summary,
    files: Vec<Vec<u8>>,
}

fn train<B: Backend>(shared: &mut SharedModel<'_, B>, recipe: Recipe) -> Left {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDir::at(&dir.path().join("run"));
    let summary = shared.train(&settings(recipe), &run, false, &Silent).unwrap();
    let trained = [run.head(), run.prompts()];
    let files =
        trained.iter().filter(|path| path.is_file()).map(|path| std::fs::read(path).unwrap()).collect();
    let baseline = summary.baseline.map(|baseline| Baseline { seconds: 0.0, ..baseline });
    Left { summary: Summary { seconds: 0.0, images_per_s: 0.0, baseline, ..summary }, files }
}

fn shared<B: Backend>(backend: B, cache: &Cache) -> SharedModel<'_, B> {
    let templates = settings(Recipe::Linear).templates;
    SharedModel::new(backend, demo::model().unwrap(), cache, None, &templates, &[], &Silent).unwrap()
}

#[test]
#[ignore = "long: on the CPU compare_command repeats its runs"]
fn runs_of_one_model_do_not_see_each_other() {
    let cache = cache();
    let mut gpu = shared(on_twin(DType::F32, 90).unwrap(), &cache);
    let first = [Recipe::Linear, Recipe::Vpt].map(|recipe| train(&mut gpu, recipe));
    assert_eq!((first[0].files.len(), first[1].files.len()), (1, 2), "head, and head with prompts");
    let second = [Recipe::Linear, Recipe::Vpt].map(|recipe| train(&mut gpu, recipe));
    assert_eq!(first, second);

    // The later run gives the same where there was none before it, and what the CPU gives.
    let mut alone = shared(on_twin(DType::F32, 90).unwrap(), &cache);
    assert_eq!(first[1], train(&mut alone, Recipe::Vpt));
    let mut cpu = shared(Cpu::<f32>::new(), &cache);
    for (found, recipe) in first.iter().zip([Recipe::Linear, Recipe::Vpt]) {
        let (found, expected) = (&found.summary, train(&mut cpu, recipe).summary);
        let losses = |s: &Summary| [s.val.loss, s.test.as_ref().unwrap().loss, s.zero_shot.loss];
        for (found, expected) in losses(found).into_iter().zip(losses(&expected)) {
            assert!(((found - expected) / expected).abs() < 1e-4, "{recipe}: {found} and {expected}");
        }
        assert_eq!((found.val.top1, found.best_epoch), (expected.val.top1, expected.best_epoch), "{recipe}");
    }
}

/// The heads stand on features that differ by rounding, the adapters on those heads.
#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_ladder_is_that_of_the_cpu() {
    let cache = cache();
    let settings = Settings {
        epochs: 1,
        augment: Augment::Off,
        lr_lora: AdapterRate::Of(1e-3),
        ..settings(Recipe::Auto)
    };
    let dir = tempfile::tempdir().unwrap();
    let [twin, cpu] = ["twin", "cpu"].map(|name| RunDir::at(&dir.path().join(name)));
    let mut gpu = shared(on_twin(DType::F32, 90).unwrap(), &cache);
    let found = gpu.train(&settings, &twin, false, &Silent).unwrap().ladder.unwrap();
    let expected = shared(Cpu::<f32>::new(), &cache).train(&settings, &cpu, false, &Silent);
    let expected = expected.unwrap().ladder.unwrap();
    assert_eq!((found.rungs.len(), found.kept), (6, expected.kept));
    for (a, b) in found.rungs.iter().zip(&expected.rungs) {
        assert_eq!((a.kind, &a.chosen), (b.kind, &b.chosen));
        for (a, b) in [(a.val, b.val), (a.test, b.test)] {
            let (a, b) = (a.unwrap(), b.unwrap());
            assert_eq!((a.images, a.top1), (b.images, b.top1));
            assert!((a.nll - b.nll).abs() < 1e-4 * b.nll.max(1.0), "{a:?} and {b:?}");
        }
    }
    for file in ["head.safetensors", "adapter/adapter_model.safetensors"] {
        let [found, expected] =
            [&twin, &cpu].map(|run| TensorFile::read(&run.path().join(file)).unwrap().tensors);
        assert_eq!(found.len(), expected.len());
        for (name, expected) in &expected {
            let (found, expected) = (found[name].typed::<f32>().unwrap(), expected.typed::<f32>().unwrap());
            let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            for (a, b) in found.iter().zip(expected) {
                assert!((a - b).abs() <= 1e-3 * largest, "{name}: {a} and {b}, largest {largest}");
            }
        }
    }
}
