//! The launches of a training step on a device that is not there are those that the host twin runs, and move what
//! they are said to move.

use clip_engine::backend::LossScaling;
use clip_engine::backend::cuda::driver::{Command, Driver};
use clip_engine::backend::cuda::{Cuda, LoraForm};
use clip_engine::dev::absent::Absent;
use clip_engine::dev::bench::launches::{Peaks, Resources, Row};
use clip_engine::dev::check::step::{TinySizes, TinyStep};
use clip_engine::dev::listing::Listing;
use clip_engine::dev::twin::Twin;
use clip_engine::optim::{Rate, Rates};
use clip_engine::tensor::{DType, Shape};
use clip_engine::train::learner::{Batch, Learner};
use std::sync::Arc;

/// A tiny model whose next step is a replay, and what was captured of the ones before.
struct Tiny {
    step: TinyStep,
    learner: Learner<Cuda>,
    listing: Arc<Listing>,
}

impl Tiny {
    fn new(driver: Arc<dyn Driver>, dtype: DType, form: LoraForm) -> Self {
        let (cuda, listing) = Listing::around(&Cuda::new(driver, dtype, form).unwrap()).unwrap();
        let step = TinyStep::new(TinySizes::EVEN, 2);
        let image = Shape::from([step.sizes.side, step.sizes.side, 3]);
        let scaling = (dtype == DType::F16).then_some(LossScaling { start: 256.0, ..Default::default() });
        let learner = step.learner_on(cuda, image, DType::U8, scaling).unwrap();
        let mut tiny = Tiny { step, learner, listing };
        tiny.train();
        tiny.train();
        tiny
    }

    fn train(&mut self) {
        let (images, labels) = self.step.pixels(30).unwrap();
        let rate = Rate { learning_rate: 1e-3, weight_decay: 1e-2 };
        let rates = Rates::all(rate);
        self.learner.train_step(Batch::new(images.view(), &labels), &rates, 1.0).unwrap();
    }

    fn rows(&self) -> Vec<Row> {
        let row = |command: &Command| Row::new(command, &Peaks::H100_SXM, &Resources::new());
        self.listing.last_graph().iter().map(row).collect()
    }
}

/// Returns the names of the kernels and products.
fn assert_the_twin_runs_the_list(dtype: DType, form: LoraForm) -> Vec<String> {
    let twin = Arc::new(Twin::new(dtype, 90).unwrap());
    let absent = Tiny::new(Arc::new(Absent::new(twin.info().clone())), dtype, form);
    let mut there = Tiny::new(twin.clone(), dtype, form);
    let (listed, ran) = (absent.rows(), there.rows());
    assert!(ran.len() > 25, "{} launches", ran.len());
    for (number, (listed, ran)) in listed.iter().zip(&ran).enumerate() {
        assert_eq!(listed, ran, "launch {number}");
    }
    assert_eq!(listed.len(), ran.len());
    let before = twin.moved();
    there.train();
    let moved = twin.moved() - before;
    let of_kernels: usize = ran.iter().filter(|row| row.file.is_some()).map(|row| row.bytes).sum();
    // Counters by which the last block finds itself, and numbers of the optimizer.
    let slack = 16 * ran.len() as u64;
    assert!(moved.abs_diff(of_kernels as u64) < slack, "{moved} bytes were moved, {of_kernels} are listed");
    listed.into_iter().map(|row| row.name).collect()
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_step_in_the_folded_form_is_listed_as_it_runs() {
    let names = assert_the_twin_runs_the_list(DType::F16, LoraForm::Folded);
    let count = |part: &str| names.iter().filter(|name| name.contains(part)).count();
    assert_eq!((count("lora_fold"), count("lora_gradients"), count("lora_linear")), (1, 2, 0), "{names:?}");
    assert_eq!((count("class_tail"), count("l2_norm")), (2, 0), "{names:?}");
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_step_in_the_product_form_is_listed_as_it_runs() {
    let names = assert_the_twin_runs_the_list(DType::F16, LoraForm::Gemm);
    let count = |part: &str| names.iter().filter(|name| name.contains(part)).count();
    assert_eq!((count("lora_linear_start"), count("fused"), count("class_tail")), (5, 0, 0), "{names:?}");
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_step_in_the_fused_form_is_listed_as_it_runs() {
    let names = assert_the_twin_runs_the_list(DType::F16, LoraForm::Fused);
    let count = |part: &str| names.iter().filter(|name| name.contains(part)).count();
    assert_eq!((count("lora_linear_fused"), count("lora_linear_start")), (5, 0), "{names:?}");
}
