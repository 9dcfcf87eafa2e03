//! `engine bench`

use super::{common, table};
use anyhow::{Result, bail};
use clap::ValueEnum;
use clip_engine::backend::cpu::product::{Matrix, MatrixMut, Threads, Write, product};
use clip_engine::backend::{
    Activation, AttentionGradient, AttentionInput, AttentionShape, Backend, LayerNorm,
};
use clip_engine::check::difference::normal;
use clip_engine::clip::config::ClipConfig;
use clip_engine::clip::flops::{Flops, StepSizes};
use clip_engine::clip::random::RandomWeights;
use clip_engine::clip::source::WeightSource;
use clip_engine::clip::vision::{Normalisation, Purpose, Savings, VisionTower};
use clip_engine::clip::weights::Weights;
use clip_engine::objective::Objective;
use clip_engine::optim::{Adamw, Rate, Rates};
use clip_engine::progress::Silent;
use clip_engine::tensor::{DType, Shape, Tensor};
use clip_engine::train::learner::{Learner, LearnerSpec, TextClassifier};
use clip_engine::train::settings::Precision;
use clip_engine::tune::{Head, LoraSpec, Target, head::initial_head, lora::KaimingInit};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    /// Single operations at the sizes of a step, or whole training steps and evaluations.
    #[arg(value_enum)]
    what: What,
    /// Where to compute.
    #[arg(long, value_name = "auto|cpu", default_value = "auto")]
    device: String,
    /// A model directory, for its sizes and weights.
    #[arg(long, value_name = "DIR", conflicts_with = "model_size")]
    model: Option<PathBuf>,
    /// Random weights of a model of this size.
    #[arg(long, value_enum, default_value_t = ModelSize::VitB32)]
    model_size: ModelSize,
    /// Images per step.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch_size: u32,
    /// Classes of the head.
    #[arg(long, default_value_t = 102, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    classes: u32,
    /// Rank of the adapters on all attention layers.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    rank: u32,
    /// Timed repetitions, after two that are not.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    reps: u32,
    /// Also write the results as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    Ops,
    Step,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModelSize {
    #[value(name = "vit-b-32")]
    VitB32,
}

pub fn run(args: Args) -> Result<()> {
    let backend = common::device(&args.device, Precision::F32, &Silent)?;
    let config = match &args.model {
        Some(dir) => ClipConfig::load(dir)?,
        None => match args.model_size {
            ModelSize::VitB32 => ClipConfig::vit_b_32(),
        },
    };
    let mut report = json!({
        "machine": machine(&backend),
        "commit": commit(),
        "version": env!("CARGO_PKG_VERSION"),
        "batch_size": args.batch_size,
        "reps": args.reps,
    });
    match args.what {
        What::Step => step(&backend, &config, &args, &mut report)?,
        What::Ops => ops(&backend, &config, &args, &mut report)?,
    }
    report["peak_rss_mib"] = json!(peak_memory_mib());
    if let Some(path) = &args.json {
        common::write_json(path, &report)?;
    }
    Ok(())
}

/// Training steps and evaluations of random images.
fn step(backend: &impl Backend, config: &ClipConfig, args: &Args, report: &mut Value) -> Result<()> {
    let batch = args.batch_size as usize;
    let mut learner = learner(backend.clone(), config, args)?;
    let side = config.vision.image_size;
    let bytes: Vec<u8> =
        normal(batch * side * side * 3, 1).iter().map(|v| (v * 50.0 + 128.0) as u8).collect();
    let images = Tensor::from_slice([batch, side, side, 3], &bytes)?;
    let labels: Vec<u32> = (0..batch).map(|i| (i * 37 % args.classes as usize) as u32).collect();
    let rate = |learning_rate| Rate { learning_rate, weight_decay: 1e-2 };
    let rates = Rates { head: rate(1e-3), lora: rate(1e-4) };
    let reps = args.reps as usize;
    let train = times(reps, || Ok(learner.train_step(images.view(), &labels, &rates, 1.0)?))?;
    let loss = learner.stats()?.loss;
    if !loss.is_finite() {
        bail!("the loss of the timed steps is {loss}");
    }
    // As in training: the adapters change before an evaluation, and folding them is part of it. It is
    // done once per split, so it belongs to the first batch only.
    let eval = times(reps, || Ok(learner.evaluate(images.view(), &labels)?))?;
    let sizes = StepSizes {
        vision: &config.vision,
        features: config.projection,
        classes: args.classes as usize,
        batch,
        rank: args.rank as usize,
        targets: &Target::ALL,
    };
    let flops = Flops::of(&sizes);
    let mut table = table::table(&["", "p20", "p50", "p80", "images/s", "GFLOP", "GFLOP/s"]);
    for (name, times, flop) in
        [("train", &train, flops.forward + flops.backward), ("eval", &eval, flops.evaluation)]
    {
        let [p20, p50, p80] = percentiles(times);
        let (images_per_s, gflop) = (batch as f64 / p50, flop / 1e9);
        report[name] = json!({
            "p20_s": p20, "p50_s": p50, "p80_s": p80, "images_per_s": images_per_s,
            "gflop": gflop, "gflops_per_s": gflop / p50,
        });
        table.add_row([
            name.to_string(),
            format!("{:.1} ms", p20 * 1e3),
            format!("{:.1} ms", p50 * 1e3),
            format!("{:.1} ms", p80 * 1e3),
            format!("{images_per_s:.1}"),
            format!("{gflop:.1}"),
            format!("{:.1}", gflop / p50),
        ]);
    }
    common::say(table)?;
    common::say(format!("batch {batch}; peak memory {:.0} MiB; {}", peak_memory_mib(), backend.describe()))
}

fn learner<B: Backend>(backend: B, config: &ClipConfig, args: &Args) -> Result<Learner<B>> {
    let weights: Box<dyn WeightSource> = match &args.model {
        Some(dir) => Box::new(Weights::open(dir)?),
        None => Box::new(RandomWeights { seed: 1 }),
    };
    let (vision, e) = (&config.vision, config.projection);
    let tower = VisionTower::load(&backend, &*weights, vision, e, Normalisation::CLIP, Savings::ALL)?;
    drop(weights);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let spec = LoraSpec { rank: args.rank as usize, alpha: 16.0, targets: Target::ALL.to_vec() };
    let mut init = KaimingInit { rank: spec.rank, rng: &mut rng };
    let lora = tower.adapters(&backend, &spec, &mut init)?;
    let classes = args.classes as usize;
    let (weight, bias) = initial_head(classes, e, &mut rng);
    let head = Head::new(&backend, weight.view(), bias.view())?;
    let text = initial_head(classes, e, &mut rng).0;
    let spec = LearnerSpec {
        batch: args.batch_size as usize,
        image: Shape::from([vision.image_size, vision.image_size, 3]),
        image_dtype: DType::U8,
        objective: Objective { head: 1.0, text: 0.3 },
        adamw: Adamw::default(),
        purpose: Purpose::Training,
        scaling: None,
    };
    let text = TextClassifier { features: text, scale: 14.3 };
    Ok(Learner::new(backend, tower, lora, head, &text, &spec)?)
}

/// Single operations at the sizes of a step: the products of a block against the best product of this
/// machine, and the passes over activations by the bytes they move.
fn ops(
    backend: &impl Backend<Tensor = Tensor>,
    config: &ClipConfig,
    args: &Args,
    report: &mut Value,
) -> Result<()> {
    let tower = &config.vision.tower;
    let (d, m, tokens) = (tower.width, tower.mlp, config.vision.tokens());
    let (batch, reps) = (args.batch_size as usize, args.reps as usize);
    let rows = batch * tokens;
    let mut table = table::table(&["operation", "at", "p50", "rate"]);
    let mut entries = Vec::new();
    let mut add = |name: &str, at: String, times: &[f64], amount: f64, unit: &str| {
        let [p20, p50, p80] = percentiles(times);
        let rate = amount / p50 / 1e9;
        table.add_row([name.into(), at.clone(), format!("{:.2} ms", p50 * 1e3), format!("{rate:.1} {unit}")]);
        entries.push(json!({
            "op": name, "at": at, "p20_s": p20, "p50_s": p50, "p80_s": p80, "rate": rate, "unit": unit,
        }));
    };
    let shapes = [(2048, 2048, 2048), (rows, d, 3 * d), (rows, d, d), (rows, d, m), (rows, m, d)];
    for (n, k, outputs) in shapes {
        let flop = 2.0 * n as f64 * k as f64 * outputs as f64;
        for transposed in [true, false] {
            let times = product_times(backend, [n, k, outputs], transposed, reps)?;
            let name = if transposed { "x·Wᵀ" } else { "dy·W" };
            add(name, format!("{n}x{k} to {outputs}"), &times, flop, "GFLOP/s");
        }
    }
    let f32s = |shape: Shape, seed| {
        Tensor::from_slice(shape, &normal(shape.elements(), seed))?.view().to_tensor(DType::F32)
    };
    let zeros = |shape: Shape| Tensor::zeros(shape, DType::F32);
    let wide = Shape::from([batch, tokens, m]);
    let (z, mut g) = (f32s(wide, 1)?, zeros(wide));
    for kind in [Activation::QuickGelu, Activation::Gelu] {
        let seconds = times(reps, || Ok(backend.activation(kind, &z, &mut g)?))?;
        add("activation", format!("{kind:?} {wide}"), &seconds, 8.0 * wide.elements() as f64, "GB/s");
        let seconds = times(reps, || Ok(backend.activation_backward(kind, &z, &mut g)?))?;
        add(
            "activation_backward",
            format!("{kind:?} {wide}"),
            &seconds,
            12.0 * wide.elements() as f64,
            "GB/s",
        );
    }
    let narrow = Shape::from([batch, tokens, d]);
    let norm = LayerNorm { weight: f32s(Shape::from([d]), 2)?, bias: f32s(Shape::from([d]), 3)?, eps: 1e-5 };
    let (x, mut y, mut stats) = (f32s(narrow, 4)?, zeros(narrow), zeros(Shape::from([batch, tokens, 2])));
    let times_forward = times(reps, || Ok(backend.layer_norm(&x, &norm, &mut y, &mut stats)?))?;
    add("layer_norm", narrow.to_string(), &times_forward, 8.0 * narrow.elements() as f64, "GB/s");
    let dy = f32s(narrow, 5)?;
    let times_back = times(reps, || Ok(backend.layer_norm_backward(&dy, &x, &norm, &stats, &mut y)?))?;
    add("layer_norm_backward", narrow.to_string(), &times_back, 16.0 * narrow.elements() as f64, "GB/s");
    attention(backend, [batch, tokens, tower.heads, d], reps, &mut add)?;
    common::say(table)?;
    report["ops"] = json!(entries);
    Ok(())
}

fn attention(
    backend: &impl Backend<Tensor = Tensor>,
    [batch, tokens, heads, d]: [usize; 4],
    reps: usize,
    add: &mut impl FnMut(&str, String, &[f64], f64, &str),
) -> Result<()> {
    let shape = AttentionShape { heads, causal: false };
    let qkv_shape = Shape::from([batch, tokens, 3 * d]);
    let qkv =
        Tensor::from_slice(qkv_shape, &normal(qkv_shape.elements(), 6))?.view().to_tensor(DType::F32)?;
    let saved_shape = backend.attention_saved(batch, heads, tokens, tokens);
    let [mut saved, mut scratch] = [(); 2].map(|()| Tensor::zeros(saved_shape, DType::F32));
    let (mut o, mut dqkv) =
        (Tensor::zeros([batch, tokens, d], DType::F32), Tensor::zeros(qkv_shape, DType::F32));
    let flop = 4.0 * (batch * tokens * tokens * d) as f64;
    let at = format!("{batch}x{tokens}, {heads} heads of {}", d / heads);
    let forward =
        times(reps, || Ok(backend.attention(AttentionInput::Packed(&qkv), shape, &mut saved, &mut o)?))?;
    add("attention", at.clone(), &forward, flop, "GFLOP/s");
    let back = times(reps, || {
        let gradient = AttentionGradient::Packed(&mut dqkv);
        Ok(backend.attention_backward(
            &o,
            &o,
            AttentionInput::Packed(&qkv),
            &saved,
            shape,
            &mut scratch,
            gradient,
        )?)
    })?;
    add("attention_backward", at, &back, 2.0 * flop, "GFLOP/s");
    Ok(())
}

/// x·Wᵀ with W \[outputs, k\] in rows as the backend wants them, or dy·W with W \[k, outputs\].
fn product_times(
    backend: &impl Backend,
    [n, k, outputs]: [usize; 3],
    transposed: bool,
    reps: usize,
) -> Result<Vec<f64>> {
    let f32s = |count, seed| normal(count, seed).into_iter().map(|v| v as f32).collect::<Vec<_>>();
    let stride = backend.weight_stride(if transposed { k } else { outputs });
    let w = f32s(stride * if transposed { outputs } else { k }, 2);
    let (x, mut y) = (f32s(n * k, 1), vec![0.0f32; n * outputs]);
    times(reps, || {
        let w = if transposed {
            Matrix::strided(&w, outputs, k, stride).transposed()
        } else {
            Matrix::strided(&w, k, outputs, stride)
        };
        let out = MatrixMut::new(&mut y, n, outputs);
        product(out, Write::Replace, 1.0, Matrix::new(&x, n, k), w, Threads::All);
        Ok(())
    })
}

/// Seconds of `reps` runs, after two that warm up.
fn times(reps: usize, mut body: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    for _ in 0..2 {
        body()?;
    }
    let mut times = Vec::with_capacity(reps);
    for _ in 0..reps {
        let start = Instant::now();
        body()?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(times)
}

/// The 20th, 50th and 80th percentile.
fn percentiles(times: &[f64]) -> [f64; 3] {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    [0.2, 0.5, 0.8].map(|p| sorted[((sorted.len() - 1) as f64 * p).round() as usize])
}

/// What the timings were taken on.
fn machine(backend: &impl Backend) -> Value {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ").map(|(_, n)| n));
    json!({
        "cpu": model.unwrap_or("unknown"),
        "threads": rayon::current_num_threads(),
        "vector_instructions": clip_engine::backend::cpu::vector_instructions(),
        "backend": backend.describe(),
        "os": std::env::consts::OS,
    })
}

/// The commit of the working directory, where it is a git checkout.
fn commit() -> Value {
    let git = |args: &[&str]| {
        let output = std::process::Command::new("git").args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]).filter(|_| Path::new("Cargo.toml").exists())
    else {
        return Value::Null;
    };
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| !s.is_empty());
    json!(if dirty { commit + "+changes" } else { commit })
}

/// The most memory this process has held, in MiB; 0 where the system does not tell.
fn peak_memory_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib: Option<f64> = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse().ok());
    kib.unwrap_or(0.0) / 1024.0
}
