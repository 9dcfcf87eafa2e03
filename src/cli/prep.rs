//! `engine prep`

use super::bars::Bars;
use super::common::open_cache;
use super::{common, table};
use anyhow::Result;
use clip_engine::data::decode::Orientation;
use clip_engine::data::{Preprocess, Split};
use clip_engine::train::settings::CacheType;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A folder with train/, val/ and test/, a folder of class folders, a Flowers-102 root, or the word
    /// flowers102, which is fetched.
    #[arg(long, value_name = "DIR|flowers102")]
    data: PathBuf,
    /// The CLIP directory, or the CLIP model on the hub, whose image size and preprocessing to use [default:
    /// those of openai/clip-vit-base-patch32, 224 pixels, without fetching it].
    #[arg(long, value_name = "DIR|OWNER/NAME[@REVISION]")]
    model: Option<PathBuf>,
    /// Where to keep the cache [default: the user's cache folder].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Element type of the cache.
    #[arg(long, value_parser = common::parse_serde::<CacheType>, value_name = "u8|f16|f32", default_value = "u8")]
    dtype: CacheType,
    /// Seed of the split, for a folder of class folders.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Leave out images that cannot be decoded instead of stopping at the first.
    #[arg(long)]
    skip_bad_images: bool,
    /// Turn photos upright as their EXIF data say, or take them as they are stored.
    #[arg(long, value_parser = common::parse_serde::<Orientation>, value_name = "exif|ignore", default_value = "exif")]
    orientation: Orientation,
}

pub fn run(args: Args) -> Result<()> {
    let monitor = Bars::new();
    let preprocess = match &args.model {
        Some(name) => common::open_model(name, &monitor)?.preprocess,
        None => Preprocess::clip(224),
    };
    let preprocess = preprocess.with_orientation(args.orientation);
    let (dir, dtype) = (args.cache.as_deref(), args.dtype.into());
    let cache = open_cache(&args.data, args.seed, &preprocess, dtype, dir, args.skip_bad_images, &monitor)?;
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
        "{} images of {} {}, {:.1} MiB",
        cache.len(),
        cache.image_shape(),
        cache.dtype(),
        cache.bytes() as f64 / f64::from(1 << 20)
    ))
}
