//! `engine bench`

use super::bars::Bars;
use super::device::DeviceArgs;
use super::flags::batch_sizes;
use super::table::Lines;
use super::{common, launches, table};
use crate::TrainError;
use crate::backend::Backend;
use crate::backend::cpu::{Cpu, Features, InstructionRate, Isa};
use crate::backend::cuda::{BiasForm, Cuda, LoraForm};
use crate::backend::prelude::*;
use crate::clip::config::ClipConfig;
use crate::clip::random::RandomWeights;
use crate::clip::weight_source::WeightSource;
use crate::clip::weights::Weights;
use crate::commands::device::{Device, on_device};
use crate::commands::open;
use crate::dev::bench::step::{StepSizes, rates};
use crate::dev::bench::{self, Op, Percentiles, Timing, heads};
use crate::dev::check::difference::normal;
use crate::dev::ops::bench::{self as ops, Made, Sizes};
use crate::optim::Rates;
use crate::progress::Silent;
use crate::settings::Precision;
use crate::tensor::{DType, Tensor};
use crate::train::learner::{Batch, Input, Learner, Which};
use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    /// Single operations at the sizes of a step, whole training steps and evaluations, or the heads of --recipe auto on
    /// drawn features.
    #[arg(value_enum)]
    what: What,
    #[command(flatten)]
    device: DeviceArgs,
    /// A model directory, or the id of a model on the hub, for its sizes and weights.
    #[arg(long, value_name = "DIR|OWNER/NAME[@REVISION]", conflicts_with = "model_size")]
    model: Option<PathBuf>,
    /// Random weights of a model of this size.
    #[arg(long, value_enum, default_value_t = ModelSize::VitB32)]
    model_size: ModelSize,
    /// Images per step.
    #[arg(long, default_value_t = 32, value_parser = batch_sizes())]
    batch_size: u32,
    /// Classes of the head.
    #[arg(long, default_value_t = 102, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    classes: u32,
    /// Rank of the adapters on all attention layers.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    rank: u32,
    /// Lists what one training step launches on a GPU, and times nothing: on an H100 that need not be there, or with
    /// --device cuda on the one that is.
    #[arg(long, conflicts_with = "reps")]
    launches: bool,
    /// Timed repetitions, after two that are not [default: 5 on the CPU, 50 on a GPU].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    reps: Option<u32>,
    /// Of single operations these groups only, separated by commas.
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(ops::benches()), value_name = "GROUP", value_delimiter = ',')]
    only: Vec<String>,
    /// After the timing of steps, one more training step for a profiler that waits to be started, such as ncu with
    /// --profile-from-start off.
    #[arg(long)]
    profile: bool,
    /// Also write the results as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum What {
    Ops,
    Step,
    Heads,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModelSize {
    #[value(name = "vit-b-32")]
    VitB32,
}

pub fn run(mut args: Args) -> Result<()> {
    args.model = args.model.as_deref().map(|name| open::named_model_dir(name, &Bars::new())).transpose()?;
    let config = match &args.model {
        Some(dir) => ClipConfig::load(dir)?,
        None => match args.model_size {
            ModelSize::VitB32 => ClipConfig::vit_b_32(),
        },
    };
    if args.launches {
        if args.what != What::Step {
            let text = "--launches: it lists those of a training step; use it with engine bench step";
            bail!(TrainError::Setting(text.into()));
        }
        let step = |cuda: Cuda| Steps { backend: &cuda, config: &config, args: &args }.record();
        return launches::run(&args.device, args.batch_size, step, args.json.as_deref());
    }
    let device = args.device.open(&Silent)?;
    let default_reps = if matches!(device, Device::Cpu(_)) { 5 } else { 50 };
    let reps = args.reps.unwrap_or(default_reps) as usize;
    let mut report = json!({
        "machine": machine(&device),
        "commit": common::commit(),
        "version": env!("CARGO_PKG_VERSION"),
        "batch_size": args.batch_size,
        "reps": reps,
    });
    let measured = match args.what {
        What::Heads => report_heads(&config, &args, &mut report),
        What::Ops if args.profile => bail!("--profile: a profiler sees whole steps; use bench step"),
        What::Step if !args.only.is_empty() => bail!("--only: the groups are those of bench ops"),
        What::Step => report_step(&device, &config, &args, reps, &mut report),
        What::Ops => report_ops(&device, &config, &args, reps, &mut report),
    };
    report["peak_rss_mib"] = json!(peak_memory_mib());
    if let Device::Cuda(cuda) = &device {
        report["peak_device_mib"] = json!(mib(cuda.driver().allocated().1));
    }
    if let Some(path) = &args.json {
        common::write_json(path, &report)?;
    }
    // What was measured before a failure is kept.
    measured
}

/// Photos of each class that heads are fitted to: few, ten as in Flowers-102, and with 102 classes 100,000 in all.
const PHOTOS: [usize; 5] = [1, 2, 4, 10, 980];

/// The heads on the CPU, whatever the device of steps.
fn report_heads(config: &ClipConfig, args: &Args, report: &mut Value) -> Result<()> {
    let (width, classes) = (config.projection, args.classes as usize);
    let columns = [("photos a class", 14, true), ("top-1", 7, true), ("NLL", 6, true), ("s", 6, true)];
    let mut lines = Lines::begin(columns, "head");
    let mut fits = Vec::new();
    for photos in PHOTOS {
        let fit = heads::fit(width, classes, photos).map_err(TrainError::from)?;
        for head in &fit.heads {
            let numbers = [
                photos.to_string(),
                table::percent(head.top1),
                format!("{:.3}", head.nll),
                format!("{:.1}", head.seconds),
            ];
            lines.add(numbers, head.name);
        }
        lines.remark(&format!("{:.1} s in all", fit.seconds));
        fits.push(fit);
    }
    report["heads"] = json!({ "width": width, "classes": classes, "fits": fits });
    lines.end()
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Steps on `device`, and the memory that they took: the device's own where it has any.
fn report_step(
    device: &Device,
    config: &ClipConfig,
    args: &Args,
    reps: usize,
    report: &mut Value,
) -> Result<()> {
    let describe = on_device!(device, backend => {
        Steps { backend, config, args }.report(reps, report)?;
        backend.describe()
    });
    let memory = match device {
        Device::Cuda(cuda) => format!("{:.0} MiB of the GPU's", mib(cuda.driver().allocated().1)),
        _ => format!("{:.0} MiB", peak_memory_mib()),
    };
    common::say(format!("batch {}; peak memory {memory}; {describe}", args.batch_size))
}

/// Steps of a model of these sizes on `backend`.
struct Steps<'a, B: Backend> {
    backend: &'a B,
    config: &'a ClipConfig,
    args: &'a Args,
}

impl<B: Backend> Steps<'_, B> {
    /// Training steps and evaluations of random images: one at a time, and handed over without waiting.
    fn report(&self, reps: usize, report: &mut Value) -> Result<()> {
        let Steps { backend, config, args } = *self;
        let batch = args.batch_size as usize;
        let mut learner = self.learner()?;
        let side = config.vision.image_size;
        let bytes: Vec<u8> =
            normal(batch * side * side * 3, 1).iter().map(|v| (v * 50.0 + 128.0) as u8).collect();
        let images = Tensor::from_slice([batch, side, side, 3], &bytes)?;
        let labels: Vec<u32> = (0..batch).map(|i| (i * 37 % args.classes as usize) as u32).collect();
        let rates = rates();
        let train =
            self.times(reps, || Ok(learner.train_step(Batch::new(images.view(), &labels), &rates, 1.0)?))?;
        if args.profile {
            // What a step calls for itself is an error of another kind than the backend's.
            let mut failed = None;
            let step = &mut || {
                failed = learner.train_step(Batch::new(images.view(), &labels), &rates, 1.0).err();
                Ok(())
            };
            backend.profile(step)?;
            failed.map_or(Ok(()), Err)?;
        }
        let loss = learner.stats()?.loss;
        if !loss.is_finite() {
            bail!("the loss of the timed steps is {loss}");
        }
        // As in training: the adapters change before an evaluation, and folding them is part of it. It is
        // done once per split, so it belongs to the first batch only.
        let eval = self.times(reps, || {
            Ok(learner.evaluate(Input::Images(images.view().into()), &labels, Which::Tuned)?)
        })?;
        let probe = self.probe(&learner, &labels, &rates, reps)?;
        let work = sizes(args).work(backend, config)?;
        let header = ["", "p20", "p50", "p80", "in a row", "images/s", "GFLOP", "GFLOP/s"];
        let mut rows = Vec::new();
        for (name, times, work) in
            [("train", &train, work.train), ("eval", &eval, work.eval), ("probe", &probe, work.probe)]
        {
            let Percentiles { p20, p50, p80 } = times.single;
            let (in_a_row, gflop) = (times.in_a_row, work.flop as f64 / 1e9);
            let images_per_s = batch as f64 / in_a_row;
            report[name] = json!({
                "p20_s": p20, "p50_s": p50, "p80_s": p80, "in_a_row_s": in_a_row,
                "images_per_s": images_per_s, "gflop": gflop, "gflops_per_s": gflop / in_a_row,
            });
            rows.push(vec![
                name.to_string(),
                seconds(p20),
                seconds(p50),
                seconds(p80),
                seconds(in_a_row),
                format!("{images_per_s:.1}"),
                format!("{gflop:.1}"),
                format!("{:.1}", gflop / in_a_row),
            ]);
        }
        common::say(table::fitted(&header, &rows))
    }

    /// A step that is captured, where the backend can: the first of a kind only runs, the second is captured.
    fn record(&self) -> Result<()> {
        let mut learner = self.learner()?;
        let (batch, side) = (self.args.batch_size as usize, self.config.vision.image_size);
        let (images, labels) = (Tensor::zeros([batch, side, side, 3], DType::U8), vec![0; batch]);
        for _ in 0..2 {
            learner.train_step(Batch::new(images.view(), &labels), &rates(), 1.0)?;
        }
        Ok(())
    }

    /// Training steps of the head alone, on features that were computed before.
    fn probe(&self, learner: &Learner<B>, labels: &[u32], rates: &Rates, reps: usize) -> Result<StepTimes> {
        let mut learner = sizes(self.args).probe(learner)?;
        let shape = [labels.len(), learner.tower().features()];
        let features = Tensor::from_slice(shape, &normal(shape[0] * shape[1], 2))?;
        self.times(reps, || {
            Ok(learner.train_step(Batch::of_features(features.view(), labels), rates, 1.0)?)
        })
    }

    fn learner(&self) -> Result<Learner<B>> {
        let weights: Box<dyn WeightSource> = match &self.args.model {
            Some(dir) => Box::new(Weights::open(dir)?),
            None => Box::new(RandomWeights { seed: 1 }),
        };
        Ok(sizes(self.args).learner(self.backend.clone(), self.config, &*weights)?)
    }

    fn times(&self, reps: usize, mut body: impl FnMut() -> Result<()>) -> Result<StepTimes> {
        // The first step of a kind only runs, and a batch may be in either of two memories: those behind the third only
        // replay.
        for _ in 0..3 {
            body()?;
        }
        self.backend.synchronize()?;
        let mut single = Vec::with_capacity(reps);
        for _ in 0..reps {
            let start = Instant::now();
            body()?;
            self.backend.synchronize()?;
            single.push(start.elapsed().as_secs_f64());
        }
        let single = Percentiles::of(&single);
        if !self.backend.can_capture() {
            return Ok(StepTimes { single, in_a_row: single.p50 });
        }
        let start = Instant::now();
        for _ in 0..reps {
            body()?;
        }
        self.backend.synchronize()?;
        Ok(StepTimes { single, in_a_row: start.elapsed().as_secs_f64() / reps as f64 })
    }
}

/// "1.23 ms".
fn seconds(s: f64) -> String {
    match s {
        s if s < 1e-3 => format!("{:.2} µs", s * 1e6),
        s if s < 1.0 => format!("{:.3} ms", s * 1e3),
        s => format!("{s:.3} s"),
    }
}

fn sizes(args: &Args) -> StepSizes {
    StepSizes { batch: args.batch_size as usize, classes: args.classes as usize, rank: args.rank as usize }
}

/// The rates that operations are measured by.
#[derive(Clone, Copy)]
struct Best {
    dtype: DType,
    /// Operations per second of the best product.
    flop_rate: f64,
    /// Those of the instruction that products are made of, where that is known.
    instruction_rate: Option<f64>,
    /// Bytes per second of a copy within the device, read and written.
    copy_rate: Option<f64>,
}

/// The CPU in each type that it is measured in: that which was asked for, or all that it has products for.
fn types_of_cpu(cpu: &Cpu<f32>, asked: Option<Precision>) -> Result<Vec<Cpu<f32>>> {
    let isa = Isa::best(Features::found());
    Ok(match asked {
        None if isa != Isa::Plain => vec![*cpu, Cpu::in_bf16(isa)?],
        _ => vec![*cpu],
    })
}

/// Measures the rates of the CPU in one type, and says them.
fn best_of_cpu(cpu: &Cpu<f32>, reps: usize, report: &mut Value) -> Result<Best> {
    let (dtype, rate) = (cpu.compute_dtype(), cpu.instruction_rate());
    let flop_rate = best_product(cpu, 2048, reps)?;
    let of_instruction = rate.map_or(String::new(), |InstructionRate { instruction, flop_per_s }| {
        format!(", {instruction} on registers {:.1}", flop_per_s / 1e9)
    });
    common::say(format!("{dtype}: best product {:.1} GFLOP/s{of_instruction}", flop_rate / 1e9))?;
    report["types"][dtype.to_string()] = json!({
        "best_product_flop_per_s": flop_rate,
        "instruction": rate.map(|rate| rate.instruction),
        "instruction_flop_per_s": rate.map(|rate| rate.flop_per_s),
    });
    Ok(Best { dtype, flop_rate, instruction_rate: rate.map(|rate| rate.flop_per_s), copy_rate: None })
}

/// Single operations at the sizes of a step, against the best product and the copy rate of the device.
fn report_ops(
    device: &Device,
    config: &ClipConfig,
    args: &Args,
    reps: usize,
    report: &mut Value,
) -> Result<()> {
    let vision = &config.vision;
    let sizes = Sizes {
        batch: args.batch_size as usize,
        tokens: vision.tokens(),
        width: vision.tower.width,
        heads: vision.tower.heads,
        mlp: vision.tower.mlp,
        features: config.projection,
        classes: args.classes as usize,
        rank: args.rank as usize,
        side: vision.image_size,
        patch: vision.patch_size,
    };
    let wanted = |name: &&str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    let groups: Vec<&str> = ops::benches().filter(wanted).collect();
    let mut rows;
    let measured = match device {
        Device::Cpu(cpu) => {
            let types = types_of_cpu(cpu, args.device.precision())?;
            let with_best = |cpu: Cpu<f32>| Ok((cpu, best_of_cpu(&cpu, reps, report)?));
            let types = types.into_iter().map(with_best).collect::<Result<Vec<_>>>()?;
            rows = OpRows::new(false, types.len() > 1);
            measure_on_cpu(&types, &sizes, &groups, reps, &mut rows)
        }
        Device::Cuda(cuda) => {
            // Some tiles of 128 by 128 for each multiprocessor: 8192 on an H100.
            let n = (64 * cuda.driver().info().multiprocessors as usize / 256 * 256).clamp(256, 8192);
            let (dtype, flop_rate) = (cuda.compute_dtype(), best_product(cuda, n, 10)?);
            let best = Best { dtype, flop_rate, instruction_rate: None, copy_rate: Some(copy_rate(cuda)?) };
            report["best_product_flop_per_s"] = json!(best.flop_rate);
            report["copy_bytes_per_s"] = json!(best.copy_rate);
            rows = OpRows::new(true, false);
            measure_on_gpu(cuda, &best, &sizes, &groups, reps, &mut rows)
        }
    };
    report["ops"] = json!(rows.entries);
    rows.lines.end()?;
    measured?;
    match rows.failed {
        0 => Ok(()),
        failed => bail!("{failed} of {} operations failed", rows.entries.len()),
    }
}

/// A row for each operation of these groups in each type, types beside each other.
fn measure_on_cpu(
    types: &[(Cpu<f32>, Best)],
    sizes: &Sizes,
    groups: &[&str],
    reps: usize,
    rows: &mut OpRows,
) -> Result<()> {
    for group in groups {
        for (cpu, best) in types {
            let made = Made::Group(group);
            let measured = ops::each(cpu, sizes, made, &mut |op| rows.time(cpu, best, op, "", reps));
            rows.went_on(group, "", measured)?;
        }
    }
    Ok(())
}

/// A row for each operation of these groups, the linear layers with adapters or a function behind them in each form.
fn measure_on_gpu(
    cuda: &Cuda,
    best: &Best,
    sizes: &Sizes,
    groups: &[&str],
    reps: usize,
    rows: &mut OpRows,
) -> Result<()> {
    for group in groups {
        let made = Made::Group(group);
        let measured = ops::each(cuda, sizes, made, &mut |op| rows.time(cuda, best, op, "", reps));
        rows.went_on(group, "", measured)?;
    }
    if groups.contains(&"lora_linear") {
        for (form, name) in [(LoraForm::Fused, ", fused"), (LoraForm::Gemm, ", product")] {
            let cuda = cuda.with_lora_form(form)?;
            let measured =
                ops::each(&cuda, sizes, Made::Lora, &mut |op| rows.time(&cuda, best, op, name, reps));
            rows.went_on("lora_linear", name, measured)?;
        }
    }
    if let Some(group) = groups.iter().find(|group| **group == "linear_activation") {
        for (name, form) in BiasForm::BOTH {
            let (cuda, name) = (cuda.with_bias_form(form)?, format!(", {name}"));
            let made = Made::Group(group);
            let measured = ops::each(&cuda, sizes, made, &mut |op| rows.time(&cuda, best, op, &name, reps));
            rows.went_on(group, &name, measured)?;
        }
    }
    Ok(())
}

/// The rate of a square product.
fn best_product<B: Backend>(backend: &B, n: usize, reps: usize) -> Result<f64> {
    let mut rate = 0.0f64;
    ops::each(backend, &Sizes::square(n), Made::Product, &mut |mut op| {
        let timing = bench::time(backend, &mut op, reps)?;
        rate = rate.max(op.flop / timing.warm.p50);
        Ok(())
    })?;
    Ok(rate)
}

/// Bytes per second, read and written, of a copy within the device that no cache can hold.
fn copy_rate(cuda: &Cuda) -> Result<f64> {
    const BYTES: usize = 1 << 30;
    let bytes = BYTES.min(cuda.driver().info().memory / 8);
    let (from, to) = (cuda.zeros([bytes], DType::U8)?, cuda.empty([bytes], DType::U8)?);
    let mut fastest = f64::INFINITY;
    for _ in 0..10 {
        let copy = &mut || Ok(cuda.driver().copy(to.address(), from.address(), bytes)?);
        fastest = fastest.min(cuda.seconds(copy)?);
    }
    Ok(2.0 * bytes as f64 / fastest)
}

/// Timed operations, printed as they come, and for JSON.
struct OpRows {
    lines: Lines<8>,
    entries: Vec<Value>,
    failed: usize,
}

impl OpRows {
    fn new(gpu: bool, several_types: bool) -> Self {
        // On the CPU nothing is timed cold, and there is no rate of copies; on a GPU none of an instruction.
        let columns = [
            ("type", 4, several_types),
            ("p50", 9, true),
            ("cold p50", 9, gpu),
            ("GB/s", 7, true),
            ("of copy", 7, gpu),
            ("GFLOP/s", 9, true),
            ("of best", 7, true),
            ("of rate", 7, !gpu),
        ];
        let lines = Lines::begin(columns, "operation");
        OpRows { lines, entries: Vec::new(), failed: 0 }
    }

    /// Times an operation. One that fails is a row too, and an error only where nothing can follow.
    fn time<B: Backend>(
        &mut self,
        backend: &B,
        best: &Best,
        mut op: Op<'_>,
        suffix: &str,
        reps: usize,
    ) -> crate::backend::Result<()> {
        let name = format!("{}{suffix}", op.name);
        match bench::time(backend, &mut op, reps) {
            Ok(timing) => self.timed(&name, best, &op, timing),
            Err(problem) if problem.lost_device() => return Err(problem),
            Err(problem) => self.failure(&name, &op.at, &problem.to_string()),
        }
        Ok(())
    }

    /// Takes in how a group ended: a failure between its operations is a row, and the end of it all if the device is
    /// lost.
    fn went_on(&mut self, group: &str, suffix: &str, measured: crate::backend::Result<()>) -> Result<()> {
        if let Err(problem) = measured {
            self.failure(&format!("{group}{suffix}"), "", &problem.to_string());
            if problem.lost_device() {
                return Err(problem.into());
            }
        }
        Ok(())
    }

    fn failure(&mut self, name: &str, at: &str, problem: &str) {
        let mut cells = [const { String::new() }; 8];
        cells[1] = "FAILED".into();
        self.lines.add(cells, &format!("{name} {at}"));
        self.lines.remark(problem);
        self.entries.push(json!({ "op": name, "at": at, "problem": problem }));
        self.failed += 1;
    }

    fn timed(&mut self, name: &str, best: &Best, op: &Op<'_>, Timing { warm, cold }: Timing) {
        let (bytes, flop) = (op.bytes / warm.p50, op.flop / warm.p50);
        let of_copy = best.copy_rate.map(|rate| bytes / rate);
        let of_best = flop / best.flop_rate;
        let of_instruction = best.instruction_rate.map(|rate| flop / rate);
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        let of_flop = |text: Option<String>| text.filter(|_| flop > 0.0).unwrap_or_default();
        let cells = [
            best.dtype.to_string(),
            seconds(warm.p50),
            cold.map_or(String::new(), |c| seconds(c.p50)),
            format!("{:.1}", bytes / 1e9),
            of_copy.map_or(String::new(), percent),
            of_flop(Some(format!("{:.1}", flop / 1e9))),
            of_flop(Some(percent(of_best))),
            of_flop(of_instruction.map(percent)),
        ];
        self.lines.add(cells, &format!("{name} {}", op.at));
        let percentiles = |p: Percentiles| json!({ "p20_s": p.p20, "p50_s": p.p50, "p80_s": p.p80 });
        self.entries.push(json!({
            "op": name, "at": op.at, "dtype": best.dtype.to_string(),
            "warm": percentiles(warm), "cold": cold.map(percentiles),
            "bytes": op.bytes, "bytes_per_s": bytes, "of_copy": of_copy,
            "flop": op.flop, "flop_per_s": flop, "of_best_product": of_best, "of_instruction": of_instruction,
        }));
    }
}

/// Seconds of whole steps.
struct StepTimes {
    /// Seconds of a step that is waited for.
    single: Percentiles,
    /// Seconds of one step among `reps` that were handed over without waiting.
    in_a_row: f64,
}

/// Describes the machine that the timings were taken on.
fn machine(device: &Device) -> Value {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ").map(|(_, n)| n));
    let mut machine = json!({
        "cpu": model.unwrap_or("unknown"),
        "threads": rayon::current_num_threads(),
        "vector_instructions": crate::backend::cpu::vector_instructions(),
        "backend": on_device!(device, backend => backend.describe()),
        "os": std::env::consts::OS,
    });
    if let Device::Cuda(cuda) = device {
        let info = cuda.driver().info();
        machine["gpu"] = json!(info.name);
        machine["software"] = json!(info.software);
        machine["compute_capability"] = json!(info.compute_capability);
    }
    machine
}

/// The most memory this process has held, in MiB; 0 where the system does not tell.
fn peak_memory_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib: Option<f64> = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse().ok());
    kib.unwrap_or(0.0) / 1024.0
}
