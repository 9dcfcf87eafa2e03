//! `engine check`

use super::bars::Bars;
use super::common;
use super::table::Lines;
use crate::backend::Memory;
use crate::backend::cuda::{BiasForm, Cuda};
use crate::commands::device::{self, Device, on_device};
use crate::commands::open;
use crate::dev::check::{self, CheckError, Row};
use crate::dev::ops::device::{self as of_device, Scope};
use crate::dev::ops::{Group, gradients};
use crate::progress::Silent;
use crate::settings::{Key, Precision, parse_word};
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Args {
    /// Where to compute. On the CPU every gradient is compared with finite differences; on a GPU every
    /// operation and whole steps are compared with the CPU's in f64.
    #[arg(long, value_name = "auto|cpu|cuda[:N]", default_value = "auto")]
    device: String,
    /// Number type of activations and frozen weights [default: f16 on a GPU, f32 on the CPU].
    #[arg(long, value_parser = parse_word::<Precision>, value_name = Key::precision.setting().value_name)]
    precision: Option<Precision>,
    /// On a GPU: small sizes only.
    #[arg(long)]
    quick: bool,
    /// On a GPU: these groups only, separated by commas.
    #[arg(long, value_parser = Group::ALL.map(Group::name), value_name = "GROUP", value_delimiter = ',')]
    #[arg(conflicts_with = "reference")]
    only: Vec<String>,
    /// Compare with a file from tools/reference.py instead.
    #[arg(long, value_name = "FILE", requires = "model")]
    reference: Option<PathBuf>,
    /// The model directory, or the id of the model on the hub, that the reference was made with.
    #[arg(long, value_name = "DIR|OWNER/NAME[@REVISION]", requires = "reference")]
    model: Option<PathBuf>,
    /// Also write the rows as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<()> {
    let device = device::open(&args.device, args.precision, &Silent)?;
    let described = on_device!(&device, backend => backend.describe());
    let mut report = Report::new(args.json.as_deref(), &described, args.reference.is_some());
    let checked = match (&args.reference, &args.model, &device) {
        (Some(reference), Some(model), device) => {
            let model = open::named_model_dir(model, &Bars::new())?;
            let rows = on_device!(device, backend => check::reference::check(backend, &model, reference))?;
            rows.into_iter().for_each(|row| report.add(row));
            Ok(())
        }
        (_, _, Device::Cpu(_)) if !args.only.is_empty() => bail!("--only: the groups are those of a GPU"),
        (_, _, Device::Cpu(_)) => {
            gradients::check()?.into_iter().for_each(|row| report.add(row));
            check::step::check(&mut |row| report.add(row))
        }
        (_, _, Device::Cuda(cuda)) => {
            let scope = if args.quick { Scope::Quick } else { Scope::Full };
            let named: Vec<Group> = args.only.iter().filter_map(|name| Group::named(name)).collect();
            let groups = if named.is_empty() { &Group::ALL[..] } else { &named };
            of_device::check(cuda, scope, groups, &mut |row| report.add(row))
                .and_then(|()| check_bias_form(cuda, scope, groups, &mut report))
        }
    };
    report.finish(checked)
}

/// Checks the form of linear_activation that is taken only where it was faster, if that is one of these groups.
fn check_bias_form(
    cuda: &Cuda,
    scope: Scope,
    groups: &[Group],
    report: &mut Report<'_>,
) -> check::Result<()> {
    const GROUP: Group = Group::LinearActivation;
    if !groups.contains(&GROUP) {
        return Ok(());
    }
    let (name, form) = BiasForm::BOTH[1];
    let mut add = |row: Row| report.add(Row { at: format!("{}, {name}", row.at), ..row });
    of_device::check(&cuda.with_bias_form(form)?, scope, &[GROUP], &mut add)
}

/// The rows so far: printed as they come, so that what stops the program leaves them.
struct Report<'a> {
    lines: Lines<4>,
    rows: Vec<Row>,
    json: Option<&'a Path>,
    device: &'a str,
}

impl<'a> Report<'a> {
    /// `peer`: whether PyTorch's own errors are known.
    fn new(json: Option<&'a Path>, device: &'a str, peer: bool) -> Self {
        let columns = [("", 6, true), ("error", 8, true), ("bound", 6, true), ("PyTorch", 8, peer)];
        let lines = Lines::begin(columns, "check, at");
        Report { lines, rows: Vec::new(), json, device }
    }

    fn add(&mut self, row: Row) {
        self.lines.add(
            [
                if row.passed() { "ok" } else { "FAILED" }.to_string(),
                if row.problem.is_some() { String::new() } else { format!("{:.1e}", row.error) },
                if row.problem.is_some() { String::new() } else { format!("{:.0e}", row.bound) },
                row.peer.map_or(String::new(), |peer| format!("{peer:.1e}")),
            ],
            &format!("{}, {}", row.name, row.at),
        );
        row.problem.iter().for_each(|problem| self.lines.remark(problem));
        self.rows.push(row);
    }

    /// Says how it ended; an error where it did not end well.
    fn finish(self, checked: Result<(), CheckError>) -> Result<()> {
        self.lines.end()?;
        let (count, device) = (self.rows.len(), self.device);
        common::say(format!("{count} checks on {device}"))?;
        if let Some(path) = self.json {
            let rows: Vec<_> = self.rows.iter().map(as_json).collect();
            let report = json!({ "device": device, "commit": common::commit(), "rows": rows });
            common::write_json(path, &report)?;
        }
        checked?;
        match self.rows.iter().filter(|row| !row.passed()).count() {
            0 => Ok(()),
            failed => bail!("{failed} of {count} checks are above their bounds or failed"),
        }
    }
}

fn as_json(row: &Row) -> Value {
    json!({"name": row.name, "at": row.at, "error": row.error, "bound": row.bound, "passed": row.passed(),
           "pytorch_error": row.peer, "problem": row.problem})
}
