//! `engine export`

use super::bars::Bars;
use super::common;
use crate::commands::open;
use crate::settings::{Key, Precision, parse_word};
use crate::train::export::{Export, OnnxInput};
use crate::train::run_dir::RunDir;
use anyhow::{Result, bail};
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("form").required(true).args(["peft", "merged", "onnx"])))]
pub struct Args {
    /// A finished run.
    #[arg(long, value_name = "RUN")]
    run: PathBuf,
    /// Where its model is now [default: where it was].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// What the export calls its model [default: its hub id, or the name of its folder without the path].
    #[arg(long, value_name = "OWNER/NAME[@REVISION]|PATH")]
    base_model: Option<String>,
    /// Write the adapter in PEFT's format, the head and the prompts to this folder.
    #[arg(long, value_name = "DIR")]
    peft: Option<PathBuf>,
    /// Write the model with the adapter merged into its weights, and the head, to this folder.
    #[arg(long, value_name = "DIR")]
    merged: Option<PathBuf>,
    /// Number type of the merged weights.
    #[arg(long, value_parser = parse_word::<Precision>, value_name = Key::precision.setting().value_name, default_value = "f32",
          conflicts_with_all = ["peft", "onnx"])]
    dtype: Precision,
    /// Write the classifier as an ONNX model, from pixels to probabilities, and its class names to this folder.
    #[arg(long, value_name = "DIR")]
    onnx: Option<PathBuf>,
    /// What the ONNX model takes: u8 [N, S, S, 3] as photos are cropped, or f32 [N, 3, S, S] normalised.
    #[arg(long, value_parser = parse_word::<OnnxInput>, value_name = "pixels|normalised", default_value = "pixels",
          conflicts_with_all = ["peft", "merged"])]
    onnx_input: OnnxInput,
    /// Replace an earlier export in the folder.
    #[arg(long)]
    overwrite: bool,
}

pub fn run(args: Args) -> Result<()> {
    let dir = RunDir::existing(&args.run)?;
    let settings = dir.read_settings()?;
    let mut model = open::model_of_run(&dir, &settings, args.model.as_deref(), &Bars::new())?;
    model.base = open::exported_base(&settings, args.base_model.as_deref(), &model);
    let export = Export::open(&dir, &settings, &model)?;
    match (&args.peft, &args.merged, &args.onnx) {
        (Some(to), ..) => {
            export.peft(to, args.overwrite)?;
            common::say(format!("adapter, head and model card in {}", to.display()))
        }
        (_, Some(to), _) => {
            export.merged(to, args.overwrite, args.dtype.into())?;
            common::say(format!("model, head and model card in {}", to.display()))
        }
        (.., Some(to)) => {
            export.onnx(to, args.overwrite, args.onnx_input)?;
            common::say(format!("ONNX model, class names and model card in {}", to.display()))
        }
        (None, None, None) => bail!("--peft, --merged or --onnx: name the folder to write"),
    }
}
