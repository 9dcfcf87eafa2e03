//! `engine train --dry-run`

use super::common;
use super::table::mib;
use crate::commands::device::{self, on_device};
use crate::commands::open;
use crate::commands::open::Judged;
use crate::data::Split;
use crate::progress::Monitor;
use crate::settings::Settings;
use crate::train::demo;
use crate::train::dry_run::{Images, Plan};
use crate::train::model::Model;
use crate::tune::Group;
use anyhow::{Result, bail};

/// Prints config.toml as the run would write it, and what the run would do as comments below.
pub fn run(mut settings: Settings, monitor: &dyn Monitor) -> Result<()> {
    let device = device::open_without_cache(&settings.device, settings.precision, monitor)?;
    settings.precision = Some(device.precision());
    let (model, images) = model_and_images(&settings, monitor)?;
    let plan = on_device!(device, backend => Plan::of(&backend, &model, &images, &settings))?;
    settings.settle_epochs(plan.images, images.class_names.len());
    common::say(toml::to_string(&settings)?.trim_end())?;
    common::say("")?;
    describe(&plan, &images).iter().try_for_each(|line| common::say(format!("# {line}")))
}

/// The photos are listed and not decoded. What settings name that has yet to be fetched is fetched.
fn model_and_images(settings: &Settings, monitor: &dyn Monitor) -> Result<(Model, Images)> {
    let seed = settings.image_seed();
    if settings.demo {
        return Ok((demo::model()?, Images::of_cache(&demo::cache(seed)?)));
    }
    let Some(model) = settings.model_name() else { bail!("--data is needed, or --demo") };
    let model = open::open_settled_model(model, monitor)?;
    Ok((model, Images::of_dataset(&open::open_dataset(settings, &Judged::default(), monitor)?)))
}

fn describe(plan: &Plan, images: &Images) -> Vec<String> {
    let counts = Split::ALL.map(|split| format!("{} {split}", images.count(split)));
    let mut data = format!("{} classes, images: {}", images.class_names.len(), counts.join(", "));
    if plan.images < images.count(Split::Train) {
        data += &format!("; {} take part in training", plan.images);
    }
    let groups = plan.trained.iter().map(|&(group, count)| format!("{} {count}", name(group)));
    let [vision, text] = plan.frozen;
    let free = plan.free.map_or(String::new(), |free| format!("; {} are free", mib(free as u64)));
    let ladder = plan.ladder_flops.map(|flops| {
        format!(
            "ladder: {:.4} GFLOP besides the epochs, for plain features and crops, the learning rate and blends",
            flops / 1e9
        )
    });
    let mut lines = vec![
        data,
        format!(
            "trained parameters: {} ({})",
            plan.trained_parameters(),
            groups.collect::<Vec<_>>().join(", ")
        ),
        format!("frozen parameters: {} (vision tower {vision}, text tower {text})", vision + text),
        format!(
            "memory, estimated: {} for batches of {} images, beside {} of weights and what is trained{free}",
            mib(plan.work as u64),
            plan.batch,
            mib(plan.weights as u64),
        ),
        format!(
            "work: {:.4} GFLOP a step, {} steps and {:.4} GFLOP an epoch with its validation",
            plan.step_flops / 1e9,
            plan.steps,
            plan.epoch_flops / 1e9,
        ),
    ];
    lines.extend(ladder);
    lines
}

fn name(group: Group) -> &'static str {
    match group {
        Group::Head => "head",
        Group::Lora => "adapters",
        Group::Prompt => "prompts",
    }
}
