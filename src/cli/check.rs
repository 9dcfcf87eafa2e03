//! `engine check`

use super::{common, table};
use anyhow::{Result, bail};
use clip_engine::check::{self, Row};
use clip_engine::progress::Silent;
use clip_engine::train::settings::Precision;
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// Where to compute.
    #[arg(long, value_name = "auto|cpu", default_value = "auto")]
    device: String,
    /// Compare with a file from tools/reference.py instead of finite differences.
    #[arg(long, value_name = "FILE", requires = "model")]
    reference: Option<PathBuf>,
    /// The model directory that the reference was made with.
    #[arg(long, value_name = "DIR", requires = "reference")]
    model: Option<PathBuf>,
    /// Also write the table as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<()> {
    let backend = common::device(&args.device, Precision::F32, &Silent)?;
    let rows = match (&args.reference, &args.model) {
        (Some(reference), Some(model)) => check::reference::check(&backend, model, reference)?,
        _ => {
            let mut rows = check::ops::check()?;
            rows.extend(check::step::check()?);
            rows
        }
    };
    print(&rows)?;
    if let Some(path) = &args.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({"name": row.name, "at": row.at, "error": row.error, "bound": row.bound,
                       "passed": row.passed(), "pytorch_f32_error": row.peer})
            })
            .collect();
        common::write_json(path, &json!({ "rows": rows }))?;
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
