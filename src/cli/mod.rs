//! The command line: one file per subcommand, each from arguments over a library call to what is printed.

mod bars;
mod bench;
mod check;
mod common;
mod compare;
mod completions;
mod device;
mod doctor;
mod dry_run;
mod embed;
mod eval;
mod export;
mod flags;
mod launches;
mod man;
mod part_flags;
mod predict;
mod predictions;
mod prep;
mod seeds;
mod signals;
mod table;
mod time_left;
mod train;
mod usage;
mod zero_shot;

use crate::TrainError;
use crate::commands::{error_line, is_wrong_usage};
use anyhow::Error;
use bars::Level;
use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::OsString;

/// Fine-tunes CLIP image classifiers.
#[derive(Parser)]
#[command(name = "engine", version, about, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    log: Log,
    #[command(subcommand)]
    command: Command,
}

/// What is said on standard error, with every command.
#[derive(clap::Args)]
#[command(next_help_heading = "Messages")]
struct Log {
    /// Say nothing but errors and results: the same as --log-level error.
    #[arg(long, global = true)]
    quiet: bool,
    /// What to say on standard error: errors; warnings too; progress too; every step too [default: info].
    #[arg(long, global = true, value_name = "error|warn|info|debug", hide_possible_values = true)]
    log_level: Option<Level>,
}

impl Log {
    fn level(&self) -> Result<Level, TrainError> {
        match (self.quiet, self.log_level) {
            (true, Some(_)) => {
                Err(TrainError::Setting("--quiet: chooses a --log-level itself; give one of the two".into()))
            }
            (true, None) => Ok(Level::Error),
            (false, level) => Ok(level.unwrap_or(Level::Info)),
        }
    }
}

#[derive(Subcommand)]
enum Command {
    /// Decode, resize and crop all photos once, into a memory-mapped cache.
    #[command(after_help = "Example:\n  engine prep --data flowers102")]
    Prep(prep::Args),
    /// Fine-tune a model; `--demo` needs no files at all.
    #[command(
        after_help = "Examples:\n  engine train --demo\n  engine train --data flowers102\n  engine train \
                            --data DIR --recipe linear --epochs 100"
    )]
    Train(Box<train::Args>),
    /// Put finished runs beside each other and beside plain CLIP, or train several recipes to do so.
    #[command(
        after_help = "Examples:\n  engine compare runs/linear runs/lora\n  engine compare --recipes all \
                            --demo\n  engine compare --recipes linear,lora --data flowers102"
    )]
    #[command(mut_arg("recipe", |arg| arg.hide(true)), mut_arg("init_from", |arg| arg.hide(true)))]
    Compare(Box<compare::Args>),
    /// Evaluate a finished run.
    #[command(after_help = "Example:\n  engine eval --run runs/flowers102")]
    Eval(eval::Args),
    /// Evaluate plain CLIP by its text features.
    #[command(after_help = "Example:\n  engine zero-shot --data flowers102")]
    ZeroShot(zero_shot::Args),
    /// Say which classes photos belong to, by a finished run.
    #[command(after_help = "Example:\n  engine predict --run runs/flowers102 photo.jpg holiday/")]
    Predict(predict::Args),
    /// Write the normalised features of a folder of photos.
    #[command(
        after_help = "Examples:\n  engine embed --images DIR --out features.safetensors\n  engine embed --run \
                            runs/flowers102 --images DIR --out features.safetensors"
    )]
    Embed(embed::Args),
    /// Write a run for other programs: an adapter for PEFT, a whole Hugging Face directory, or an ONNX model.
    #[command(
        after_help = "Examples:\n  engine export --run runs/flowers102 --peft adapter\n  engine export --run \
                            runs/flowers102 --merged model\n  engine export --run runs/flowers102 --onnx model"
    )]
    Export(export::Args),
    /// Numerical gradient checks of every operation and of whole steps, or against a PyTorch reference.
    Check(check::Args),
    /// Benchmarks.
    #[command(after_help = "Examples:\n  engine bench step\n  engine bench ops --only attention")]
    Bench(bench::Args),
    /// Say what was found on this machine.
    Doctor(doctor::Args),
    /// Write a script that completes commands and flags in a shell.
    #[command(after_help = "Example:\n  engine completions bash > engine.bash")]
    Completions(completions::Args),
    /// Write the manual pages.
    Man(man::Args),
}

/// Runs the command `engine` with these arguments, the first being the name it was called by. Exit status: 0 done, 2 wrong
/// usage, 1 any other failure, with one line on standard error. Help and wrong usage end the process.
pub fn run(arguments: Vec<OsString>) -> u8 {
    let cli: Cli = usage::parse(&arguments);
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !crate::data::decode::decoding() {
            report(info);
        }
    }));
    match cli.log.level().map_err(Error::from).and_then(|level| cli.command.run(level)) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {}", error_line(&error));
            if is_wrong_usage(&error) { 2 } else { 1 }
        }
    }
}

impl Command {
    fn run(self, level: Level) -> Result<(), Error> {
        level.choose();
        match self {
            Command::Prep(args) => prep::run(args),
            Command::Train(args) => train::run(*args),
            Command::Compare(args) => compare::run(*args),
            Command::Eval(args) => eval::run(args),
            Command::ZeroShot(args) => zero_shot::run(args),
            Command::Predict(args) => predict::run(args),
            Command::Embed(args) => embed::run(args),
            Command::Export(args) => export::run(args),
            Command::Check(args) => check::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Doctor(args) => doctor::run(args),
            Command::Completions(args) => completions::run(args, Cli::command()),
            Command::Man(args) => man::run(args, Cli::command()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_flags_that_there_are() {
        let command = Cli::command();
        let commands = std::iter::once(&command).chain(command.get_subcommands());
        let flags: Vec<String> = commands
            .flat_map(clap::Command::get_arguments)
            .filter_map(|arg| Some(format!("--{}", arg.get_long()?)))
            .collect();
        for flag in crate::settings::flag::ALL {
            assert!(flags.iter().any(|known| known == flag), "{flag} in {flags:?}");
        }
    }
}
