//! `engine prep`

use super::bars::Bars;
use super::flags::SourceFlags;
use super::{common, table};
use crate::commands::open;
use crate::commands::open::{Judged, open_cache};
use crate::data::{Preprocess, Split};
use crate::fetch::settled_data;
use crate::settings::{CacheType, Key, Recipe, Settings, parse_word};
use anyhow::Result;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, help = Key::data.setting().help(), value_name = Key::data.setting().value_name)]
    data: PathBuf,
    /// The CLIP directory, or the CLIP model on the hub, whose image size and preprocessing to use [default:
    /// those of openai/clip-vit-base-patch32, 224 pixels, without fetching it].
    #[arg(long, value_name = "DIR|OWNER/NAME[@REVISION]")]
    model: Option<PathBuf>,
    /// Where to keep the cache [default: the user's cache folder].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Element type of the cache.
    #[arg(long, value_parser = parse_word::<CacheType>, value_name = Key::dtype.setting().value_name, default_value = "u8")]
    dtype: CacheType,
    /// Seed of the split, for a folder of class folders.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    #[command(flatten)]
    source: SourceFlags,
}

pub fn run(args: Args) -> Result<()> {
    let monitor = Bars::new();
    let preprocess = match &args.model {
        Some(name) => open::open_model(name, &monitor)?.preprocess,
        None => Preprocess::clip(224),
    };
    let mut settings = Settings {
        data: Some(settled_data(&args.data)),
        cache: args.cache,
        dtype: args.dtype,
        seed: args.seed,
        ..Settings::of(Recipe::Lora)
    };
    args.source.apply(&mut settings)?;
    let cache = open_cache(&settings, &Judged::default(), &preprocess, &monitor)?;
    let mut table = table::table(&["split", "images", "classes"]);
    for split in Split::ALL {
        let view = cache.split(split);
        let mut classes = view.labels().to_vec();
        classes.sort_unstable();
        classes.dedup();
        table.add_row([split.to_string(), view.len().to_string(), classes.len().to_string()]);
    }
    common::say(table)?;
    common::say(format!(
        "{} images of {} {}, {}",
        cache.len(),
        cache.image_shape(),
        cache.dtype(),
        table::mib(cache.bytes() as u64)
    ))
}
