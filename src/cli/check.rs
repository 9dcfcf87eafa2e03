//! `engine check`

use super::common::parse_serde;
use super::device::{self, Device, on_device};
use super::{common, table};
use anyhow::{Result, bail};
use clip_engine::backend::Backend;
use clip_engine::check::device::Scope;
use clip_engine::check::{self, Row};
use clip_engine::progress::Silent;
use clip_engine::train::settings::Precision;
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// Where to compute. On the CPU every gradient is compared with finite differences; on a GPU every
    /// operation and whole steps are compared with the CPU's in f64.
    #[arg(long, value_name = "auto|cpu|cuda[:N]", default_value = "auto")]
    device: String,
    /// Number type of activations and frozen weights [default: f16 on a GPU, f32 on the CPU].
    #[arg(long, value_parser = parse_serde::<Precision>, value_name = "f32|f16|bf16")]
    precision: Option<Precision>,
    /// On a GPU: small sizes only.
    #[arg(long)]
    quick: bool,
    /// Compare with a file from tools/reference.py instead.
    #[arg(long, value_name = "FILE", requires = "model")]
    reference: Option<PathBuf>,
    /// The model directory, or the id of the model on the hub, that the reference was made with.
    #[arg(long, value_name = "DIR|OWNER/NAME[@REVISION]", requires = "reference")]
    model: Option<PathBuf>,
    /// Also write the table as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<()> {
    let device = device::open(&args.device, args.precision, &Silent)?;
    let rows = match (&args.reference, &args.model, &device) {
        (Some(reference), Some(model), device) => {
            let model = common::named_model_dir(model)?;
            on_device!(device, backend => check::reference::check(backend, &model, reference))?
        }
        (_, _, Device::Cpu(_)) => {
            let mut rows = check::ops::check()?;
            rows.extend(check::step::check()?);
            rows
        }
        (_, _, Device::Cuda(cuda)) => {
            let scope = if args.quick { Scope::Quick } else { Scope::Full };
            check::device::check(cuda, scope)?
        }
    };
    print(&rows)?;
    let described = on_device!(&device, backend => backend.describe());
    common::say(format!("{} checks on {described}", rows.len()))?;
    if let Some(path) = &args.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({"name": row.name, "at": row.at, "error": row.error, "bound": row.bound,
                       "passed": row.passed(), "pytorch_f32_error": row.peer})
            })
            .collect();
        let report = json!({ "device": described, "commit": common::commit(), "rows": rows });
        common::write_json(path, &report)?;
    }
    match rows.iter().filter(|row| !row.passed()).count() {
        0 => Ok(()),
        failed => bail!("{failed} of {} checks are above their bounds", rows.len()),
    }
}

fn print(rows: &[Row]) -> Result<()> {
    let mut table = table::table(&["check", "at", "error", "bound", "PyTorch f32", ""]);
    for row in rows {
        table.add_row([
            row.name.clone(),
            row.at.clone(),
            format!("{:.1e}", row.error),
            format!("{:.0e}", row.bound),
            row.peer.map_or(String::new(), |peer| format!("{peer:.1e}")),
            if row.passed() { "ok" } else { "FAILED" }.to_string(),
        ]);
    }
    common::say(table)
}
