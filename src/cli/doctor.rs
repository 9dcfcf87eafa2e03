//! `engine doctor`

use super::{common, table};
use anyhow::Result;
use clip_engine::backend::Backend;
use clip_engine::backend::cpu::Cpu;

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_: Args) -> Result<()> {
    let mut table = table::table(&["", "found"]);
    table.add_row(["version", env!("CARGO_PKG_VERSION")]);
    table.add_row(["device", &Cpu::<f32>::new().describe()]);
    table.add_row(["vector instructions", clip_engine::backend::cpu::vector_instructions()]);
    let cache = common::cache_dir(None)?;
    let state = if cache.is_dir() {
        let files = std::fs::read_dir(&cache)?.filter_map(|e| e.ok()?.metadata().ok());
        let (count, bytes) = files.fold((0, 0), |(count, bytes), m| (count + 1, bytes + m.len()));
        format!("{}: {count} files, {:.1} MiB", cache.display(), bytes as f64 / f64::from(1 << 20))
    } else {
        format!("{}: not made yet", cache.display())
    };
    table.add_row(["image caches", &state]);
    table.column_iter_mut().for_each(|c| c.set_cell_alignment(comfy_table::CellAlignment::Left));
    common::say(table)?;
    Ok(())
}
