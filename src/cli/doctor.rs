//! `engine doctor`

use super::table::mib;
use super::{common, table};
use crate::backend::Memory;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::gpu::{Loaded, Probe, probe};
use crate::backend::cuda::kernel_sources::{OVERRIDE, Sources};
use crate::commands::open;
use crate::fetch::{FLOWERS102, FetchError, Hub, flowers102};
use anyhow::{Result, anyhow};
use serde_json::{Value, json};

#[derive(clap::Args)]
pub struct Args {
    /// Print what was found as JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Fail unless there is a GPU that can be used.
    #[arg(long)]
    gpu: bool,
}

pub fn run(args: Args) -> Result<()> {
    let cuda = probe();
    let verdict = verdict(&cuda, args.gpu);
    let line = match &verdict {
        Ok(device) => format!("Ready: training on {device}"),
        Err(problem) => format!("Not ready: {problem}"),
    };
    say_all(&args, &cuda, verdict.is_ok(), &line)?;
    verdict.map(|_| ()).map_err(|problem| anyhow!(problem))
}

/// Names the device that a run would train on, or says why there can be none.
fn verdict(cuda: &Probe, needs_gpu: bool) -> Result<String, String> {
    open::cache_dir(None).map_err(|problem| problem.to_string())?;
    Hub::from_env().map_err(|problem| problem.to_string())?;
    let problems = cuda.problems();
    match cuda.devices.first() {
        Some(device) if problems.is_empty() => Ok(format!("cuda:{}, {}, f16", device.index, device.name)),
        _ if needs_gpu => Err(format!("no GPU can be used: {}", problems.join("; "))),
        _ => Ok(format!("the CPU, {}", crate::backend::cpu::vector_instructions())),
    }
}

fn say_all(args: &Args, cuda: &Probe, ready: bool, verdict: &str) -> Result<()> {
    let cpu = Cpu::<f32>::new().describe();
    if args.json {
        let caches = json!({ "engine": open::cache_dir(None).ok(), "hub": hub_json() });
        let report = json!({ "ready": ready, "verdict": verdict, "version": env!("CARGO_PKG_VERSION"), "cpu": cpu,
                    "cuda": cuda, "caches": caches });
        return common::say(format!("{report:#}"));
    }
    let mut rows: Vec<(String, String)> = vec![
        ("version".into(), env!("CARGO_PKG_VERSION").into()),
        ("CPU".into(), cpu),
        ("vector instructions".into(), crate::backend::cpu::vector_instructions().into()),
    ];
    cuda_rows(cuda, &mut rows);
    rows.push(("kernel sources".into(), sources()));
    rows.push(("image caches".into(), image_caches().unwrap_or_else(|problem| problem.to_string())));
    rows.push(("Flowers-102".into(), flowers102().unwrap_or_else(|problem| problem.to_string())));
    rows.push(("hub cache".into(), hub().unwrap_or_else(|problem| problem.to_string())));
    let mut table = table::table(&["", "found"]);
    for (name, found) in rows {
        table.add_row([name, found]);
    }
    table.column_iter_mut().for_each(|c| c.set_cell_alignment(comfy_table::CellAlignment::Left));
    // On a terminal what was found is broken into its width.
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    common::say(table)?;
    common::say(verdict)
}

fn cuda_rows(cuda: &Probe, rows: &mut Vec<(String, String)>) {
    for library in &cuda.libraries {
        let found = match (&library.found, &library.problem) {
            (Some(found), _) => describe(found),
            (None, problem) => problem.clone().unwrap_or_else(|| "not found".into()),
        };
        rows.push((library.name.into(), found));
    }
    if let Some(version) = &cuda.kernel_driver {
        rows.push(("NVIDIA driver".into(), version.clone()));
    }
    for device in &cuda.devices {
        let gib = device.memory as f64 / f64::from(1 << 30);
        rows.push((
            format!("cuda:{}", device.index),
            format!(
                "{}, compute capability {}, {} multiprocessors, {gib:.1} GiB",
                device.name, device.compute_capability, device.multiprocessors
            ),
        ));
    }
    if let Some(problem) = &cuda.problem {
        rows.push(("GPU".into(), problem.clone()));
    }
    let cache = &cuda.cache;
    let mut kept = match &cache.folder {
        Some(folder) => format!("{}: {} files, {}", folder.display(), cache.kernel_files, mib(cache.bytes)),
        None => "nowhere".into(),
    };
    if let Some(problem) = &cache.problem {
        kept = format!("{kept} ({problem})");
    }
    rows.push(("compiled kernels".into(), kept));
}

fn describe(library: &Loaded) -> String {
    let path = library.path.as_ref().map_or(String::new(), |path| format!(" {}", path.display()));
    format!("{}{path} ({})", library.version, library.found_by)
}

/// Where the kernels' source text comes from.
fn sources() -> String {
    match Sources::load() {
        Ok(Sources { folder: Some(folder), .. }) => format!("{} ({OVERRIDE})", folder.display()),
        Ok(_) => "embedded".into(),
        Err(problem) => problem.to_string(),
    }
}

fn image_caches() -> Result<String> {
    let cache = open::cache_dir(None)?;
    if !cache.is_dir() {
        return Ok(format!("{}: not made yet", cache.display()));
    }
    let files = std::fs::read_dir(&cache)?.filter_map(|e| e.ok()?.metadata().ok()).filter(|m| m.is_file());
    let (count, bytes) = files.fold((0, 0), |(count, bytes), m| (count + 1, bytes + m.len()));
    Ok(format!("{}: {count} files, {}", cache.display(), mib(bytes)))
}

/// Whether `--data flowers102` would fetch anything.
fn flowers102() -> Result<String> {
    let folder = flowers102::folder(&open::cache_dir(None)?.join(FLOWERS102));
    let lacks: Vec<&str> = ["imagelabels.mat", "setid.mat", "jpg"]
        .into_iter()
        .filter(|name| !folder.join(name).exists())
        .collect();
    Ok(match lacks.len() {
        0 => folder.display().to_string(),
        3 => format!("{}: not fetched yet", folder.display()),
        _ => format!("{}: lacks {}", folder.display(), lacks.join(", ")),
    })
}

/// Where models by hub id come from and are kept.
fn hub() -> Result<String, FetchError> {
    let hub = Hub::from_env()?;
    let from = if hub.is_offline() {
        "offline by the environment".into()
    } else {
        format!("from {}", hub.endpoint())
    };
    let kept = match hub.models().len() {
        0 => "no models yet".into(),
        1 => "1 model".into(),
        count => format!("{count} models"),
    };
    Ok(format!("{}: {kept} ({from})", hub.cache().display()))
}

fn hub_json() -> Value {
    match Hub::from_env() {
        Ok(hub) => json!({
            "folder": hub.cache(), "endpoint": hub.endpoint(), "offline": hub.is_offline(), "models": hub.models(),
        }),
        Err(problem) => json!({ "problem": problem.to_string() }),
    }
}
