//! `engine predict`

use super::bars::Bars;
use super::device::DeviceArgs;
use super::flags::batch_sizes;
use super::predictions::{Output, Printer, UNKNOWN};
use crate::TrainError;
use crate::commands::device::on_device;
use crate::commands::open::{add_photos, model_of_run};
use crate::progress::Monitor;
use crate::train::predict::{PredictOptions, Predictor};
use crate::train::run_dir::RunDir;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A finished run.
    #[arg(long, value_name = "RUN")]
    run: PathBuf,
    /// Photos, and folders of photos, searched with their subfolders; - reads paths from standard input, one
    /// a line.
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    /// Where its model is now [default: where it was].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Classes for each photo, the most probable first.
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    top_k: u32,
    /// Call photos "unknown" whose most probable class is less probable than P, above 0 and up to 1.
    #[arg(long, value_name = "P")]
    unknown_below: Option<f64>,
    /// Print one JSON object a line for each photo, in the order of the arguments.
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print comma-separated values, one line for each class of a photo.
    #[arg(long)]
    csv: bool,
    /// Images per batch.
    #[arg(long, default_value_t = 32, value_parser = batch_sizes())]
    batch_size: u32,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: Args) -> Result<()> {
    let bars = Bars::new();
    if let Some(p) = args.unknown_below.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
        let text = format!("--unknown-below: {p} is not a probability above 0 and up to 1");
        bail!(TrainError::Setting(text));
    }
    let dir = RunDir::existing(&args.run)?;
    let settings = dir.read_settings()?;
    let paths = photos(&args.images, &bars)?;
    let device = args.device.open(&bars)?;
    let model = model_of_run(&dir, &settings, args.model.as_deref(), &bars)?;
    let form = match (args.json, args.csv) {
        (true, _) => Output::Json,
        (_, true) => Output::Csv,
        _ => Output::Table,
    };
    // Where the predictions run over the terminal, they are the sign of progress, and a bar would break them.
    let without_bar = WithoutBar(&bars);
    let monitor: &dyn Monitor = if std::io::stdout().is_terminal() { &without_bar } else { &bars };
    let options = PredictOptions { batch: args.batch_size as usize, top_k: args.top_k as usize };
    on_device!(device, backend => {
        let predictor = Predictor::open(backend, &model, &dir, &settings)?;
        // Its weights are on the device now.
        drop(model);
        let names = predictor.class_names();
        if args.unknown_below.is_some() && names.iter().any(|name| name == UNKNOWN) {
            let text = "--unknown-below: the run has a class called unknown itself; leave the flag out, and look \
                        at the probabilities that --json prints";
            bail!(TrainError::Setting(text.into()));
        }
        let mut printer = Printer::new(form, &paths, names, options.top_k, args.unknown_below, monitor);
        let tally = predictor.predict(&paths, options, monitor, |batch| printer.print(batch))?;
        printer.finish(tally, paths.len())
    })
}

/// The photos that the arguments name, in their order; those of a folder in the order of their paths.
fn photos(arguments: &[PathBuf], monitor: &dyn Monitor) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for argument in arguments {
        if argument.as_os_str() == "-" {
            for path in from_stdin()? {
                add_photos(path, &mut paths, monitor)?;
            }
        } else {
            add_photos(argument.clone(), &mut paths, monitor)?;
        }
    }
    if paths.is_empty() {
        bail!("-: standard input names no photo; write one path a line to it");
    }
    Ok(paths)
}

/// The lines of standard input as paths, in any line ending and with or without a byte order mark, without empty ones.
fn from_stdin() -> Result<Vec<PathBuf>> {
    let lines = std::io::stdin().lock().split(b'\n').collect::<std::io::Result<Vec<_>>>();
    let mut lines = lines.context("standard input")?;
    if let Some(first) = lines.first_mut()
        && first.starts_with("\u{feff}".as_bytes())
    {
        first.drain(.."\u{feff}".len());
    }
    let whole = lines.into_iter().map(|mut line| {
        // The end of a line as Windows has it, unless a file is called so.
        if line.ends_with(b"\r") && path_of(line.clone()).is_ok_and(|path| path.symlink_metadata().is_err()) {
            line.pop();
        }
        line
    });
    whole.filter(|line| !line.is_empty()).map(path_of).collect()
}

/// Whatever bytes a name has.
#[cfg(unix)]
fn path_of(line: Vec<u8>) -> Result<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    Ok(std::ffi::OsString::from_vec(line).into())
}

#[cfg(not(unix))]
fn path_of(line: Vec<u8>) -> Result<PathBuf> {
    let line =
        String::from_utf8(line).context("standard input: a path is not UTF-8; name its folder instead")?;
    Ok(line.into())
}

/// A monitor that draws no bar.
struct WithoutBar<'a>(&'a dyn Monitor);

impl Monitor for WithoutBar<'_> {
    fn begin(&self, _task: &str, _total: u64) {}
    fn advance(&self, _units: u64) {}
    fn state(&self, _text: &str) {}
    fn finish(&self) {}
    fn line(&self, text: &str) {
        self.0.line(text);
    }
    fn warn(&self, text: &str) {
        self.0.warn(text);
    }
    fn debug(&self, text: &str) {
        self.0.debug(text);
    }
    fn stopped(&self) -> bool {
        self.0.stopped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Keeps what it is told.
    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Heard {
        fn hear(&self, kind: &str, text: &str) {
            self.0.lock().unwrap().push(format!("{kind} {text}"));
        }
    }

    impl Monitor for Heard {
        fn begin(&self, task: &str, _total: u64) {
            self.hear("begin", task);
        }
        fn advance(&self, units: u64) {
            self.hear("advance", &units.to_string());
        }
        fn state(&self, text: &str) {
            self.hear("state", text);
        }
        fn finish(&self) {
            self.hear("finish", "");
        }
        fn line(&self, text: &str) {
            self.hear("line", text);
        }
        fn warn(&self, text: &str) {
            self.hear("warn", text);
        }
        fn debug(&self, text: &str) {
            self.hear("debug", text);
        }
        fn stopped(&self) -> bool {
            true
        }
    }

    #[test]
    fn without_a_bar_every_kind_of_line_comes_through() {
        let heard = Heard::default();
        let monitor = WithoutBar(&heard);
        monitor.begin("task", 2);
        monitor.warn("one");
        monitor.line("two");
        monitor.debug("three");
        monitor.advance(2);
        monitor.finish();
        assert_eq!(*heard.0.lock().unwrap(), ["warn one", "line two", "debug three"]);
        assert!(monitor.stopped());
    }
}
