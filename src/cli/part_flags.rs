//! The flags of results in parts.

use crate::commands::parts::{Part, Parts, Shard};
use crate::progress::{Monitor, Within};
use crate::train::TrainError;
use anyhow::{Result, bail};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(next_help_heading = "Long lists")]
pub struct PartArgs {
    /// Write the results in parts into this folder, files of --part-size photos each, every one whole or not there.
    #[arg(long, value_name = "DIR")]
    parts: Option<PathBuf>,
    /// Photos a part.
    #[arg(long, value_name = "N", requires = "parts", default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(1..))]
    part_size: u32,
    /// Make the Ith of every N parts: N processes with the same list and folder share the work.
    #[arg(long, value_name = "I/N", requires = "parts")]
    shard: Option<Shard>,
    /// Keep the parts that are there already.
    #[arg(long, requires = "parts")]
    resume: bool,
}

impl PartArgs {
    pub fn are_given(&self) -> bool {
        self.parts.is_some()
    }

    /// Opens the folder where one is named. The parts follow from `manifest`, an object, and the photos.
    pub fn open(
        &self,
        ending: &'static str,
        manifest: impl FnOnce() -> Result<Value>,
    ) -> Result<Option<Parts>> {
        let Some(dir) = &self.parts else { return Ok(None) };
        let shard = self.shard.unwrap_or(Shard::ALL);
        Parts::open(dir, ending, self.part_size.into(), shard, self.resume, manifest()?).map(Some)
    }

    /// Makes the parts that are left, each by `make`, which says whether the user asked to stop; and says what is there.
    pub fn make<I: Iterator<Item = Result<PathBuf, TrainError>>>(
        &self,
        parts: Parts,
        photos: I,
        task: &str,
        monitor: &dyn Monitor,
        mut make: impl FnMut(&Parts, Part, &dyn Monitor) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let left = parts.left(photos);
        monitor.begin(task, left.known().unwrap_or(0));
        let mut made = left.map(|part| match monitor.stopped() {
            true => Ok(ControlFlow::Break(())),
            false => make(&parts, part?, &Within(monitor)),
        });
        let last = made.find(|made| !matches!(made, Ok(ControlFlow::Continue(()))));
        monitor.finish();
        if last.transpose()?.is_some() {
            let dir = self.parts.as_deref().unwrap_or(Path::new(".")).display();
            bail!("interrupted; the finished parts are in {dir}, and --resume goes on behind them");
        }
        super::common::say(parts.conclude()?)
    }
}
