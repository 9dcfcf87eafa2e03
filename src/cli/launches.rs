//! `engine bench step --launches`

use super::bars::Bars;
use super::device::DeviceArgs;
use super::{common, table};
use crate::backend::Memory;
use crate::backend::cuda::driver::Command;
use crate::backend::cuda::{Cuda, LoraForm};
use crate::dev::bench::launches::{Peaks, Resources, Row, Shape, Sum, resources};
use crate::dev::listing::Listing;
use crate::progress::Monitor;
use anyhow::{Result, bail};
use comfy_table::{CellAlignment, Table};
use serde_json::json;
use std::path::Path;

/// Lists the launches that `step`, a training step of `batch` images, is captured as: in each form of the adapted
/// layers where the device is not there to choose one.
pub fn run(
    device: &DeviceArgs,
    batch: u32,
    step: impl Fn(Cuda) -> Result<()>,
    json: Option<&Path>,
) -> Result<()> {
    let (cuda, is_there) = device.open_to_list()?;
    let forms: &[(&str, LoraForm)] = match is_there {
        true => &[("as measured", LoraForm::Auto)],
        false => &[("folded", LoraForm::Folded), ("product", LoraForm::Gemm), ("fused", LoraForm::Fused)],
    };
    let list = |&(name, form)| Ok((name, commands(&cuda.with_lora_form(form)?, &step)?));
    let lists = forms.iter().map(list).collect::<Result<Vec<(&str, Vec<Command>)>>>()?;
    let (peaks, resources) = (Peaks::H100_SXM, resources_of(&cuda, &lists));
    let (mut sums, mut entries) = (Vec::new(), Vec::new());
    for (form, commands) in &lists {
        let rows: Vec<Row> = commands.iter().map(|command| Row::new(command, &peaks, &resources)).collect();
        let title = format!("form of the adapted layers: {form}; {}, batch {batch}", cuda.describe());
        common::say(format!("{title}\n\n{}\n", table_of_rows(&rows)))?;
        let (by_name, all) = Sum::of_rows(&rows);
        sums.push(format!("{title}\n\n{}", table_of_sums(&by_name, &all)));
        entries.push(json!({ "form": form, "launches": rows, "by_name": by_name, "all": all }));
    }
    common::say(sums.join("\n\n"))?;
    let Some(path) = json else { return Ok(()) };
    let report = json!({
        "commit": common::commit(), "version": env!("CARGO_PKG_VERSION"), "device": cuda.describe(),
        "batch_size": batch, "floors_of": { "device": "H100 SXM", "per_s": peaks }, "forms": entries,
    });
    common::write_json(path, &report)
}

/// Lists the commands that a step is captured as.
fn commands(cuda: &Cuda, step: impl Fn(Cuda) -> Result<()>) -> Result<Vec<Command>> {
    let (cuda, listing) = Listing::around(cuda)?;
    step(cuda)?;
    let commands = listing.last_graph();
    if commands.is_empty() {
        bail!("the training step was not recorded");
    }
    Ok(commands)
}

/// Compiles the kernels for the resources that they take; none, with a warning, where no compiler tells them.
fn resources_of(cuda: &Cuda, lists: &[(&str, Vec<Command>)]) -> Resources {
    let commands = lists.iter().flat_map(|(_, commands)| commands);
    let capability = cuda.driver().info().compute_capability;
    resources(commands, capability, cuda.compute_dtype()).unwrap_or_else(|problem| {
        Bars::new().warn(&format!("registers are left out: {problem}"));
        Resources::new()
    })
}

fn table_of_rows(rows: &[Row]) -> Table {
    let header = ["#", "kernel", "file", "grid", "block", "shared", "registers", "MB", "GFLOP", "floor, µs"];
    let mut table = table::table(&header);
    for column in table.column_iter_mut().skip(1).take(2) {
        column.set_cell_alignment(CellAlignment::Left);
    }
    for (number, row) in (1..).zip(rows) {
        let of_shape = |text: &dyn Fn(Shape) -> String| row.shape.map(text).unwrap_or_default();
        table.add_row([
            i32::to_string(&number),
            row.name.clone(),
            row.file.unwrap_or_default().to_owned(),
            of_shape(&|shape| extents(shape.grid)),
            of_shape(&|shape| extents(shape.block)),
            of_shape(&|shape| shape.shared.to_string()),
            row.registers.map(|n| n.to_string()).unwrap_or_default(),
            millions(row.bytes),
            billions(row.flop),
            microseconds(row.floor_s),
        ]);
    }
    table
}

fn table_of_sums(sums: &[Sum], all: &Sum) -> Table {
    let mut table = table::table(&["kernel", "launches", "MB", "GFLOP", "floor, µs"]);
    for sum in sums.iter().chain([all]) {
        table.add_row([
            sum.name.clone(),
            sum.launches.to_string(),
            millions(sum.bytes),
            billions(sum.flop),
            microseconds(sum.floor_s),
        ]);
    }
    table
}

/// "150x3": without the ones at the end.
fn extents([x, y, z]: [u32; 3]) -> String {
    match (y, z) {
        (1, 1) => format!("{x}"),
        (_, 1) => format!("{x}x{y}"),
        _ => format!("{x}x{y}x{z}"),
    }
}

fn millions(bytes: usize) -> String {
    format!("{:.3}", bytes as f64 / 1e6)
}

/// Nothing where there are no products.
fn billions(flop: usize) -> String {
    if flop == 0 { String::new() } else { format!("{:.3}", flop as f64 / 1e9) }
}

fn microseconds(seconds: f64) -> String {
    format!("{:.2}", seconds * 1e6)
}
