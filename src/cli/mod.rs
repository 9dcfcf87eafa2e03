//! The command line: one file per subcommand, each from arguments over a library call to what is printed.

mod bars;
mod bench;
mod check;
mod common;
mod compare;
mod device;
mod doctor;
mod embed;
mod eval;
mod prep;
mod run_set;
mod seeds;
mod table;
mod train;
mod zero_shot;

use anyhow::Error;
use clap::{Parser, Subcommand};
use clip_engine::TrainError;
use std::process::ExitCode;

/// Fine-tunes CLIP image classifiers.
#[derive(Parser)]
#[command(name = "engine", version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Decode, resize and crop all photos once, into a memory-mapped cache.
    Prep(prep::Args),
    /// Fine-tune a model; `--demo` needs no files at all.
    Train(Box<train::Args>),
    /// Put finished runs beside each other and beside plain CLIP, or train several recipes to do so.
    #[command(mut_arg("recipe", |arg| arg.hide(true)), mut_arg("init_from", |arg| arg.hide(true)))]
    Compare(Box<compare::Args>),
    /// Evaluate a finished run.
    Eval(eval::Args),
    /// Evaluate plain CLIP by its text features.
    ZeroShot(zero_shot::Args),
    /// Write the normalised features of a folder of photos.
    Embed(embed::Args),
    /// Numerical gradient checks of every operation and of whole steps, or against a PyTorch reference.
    Check(check::Args),
    /// Benchmarks.
    Bench(bench::Args),
    /// Say what was found on this machine.
    Doctor(doctor::Args),
}

/// Runs the command that the arguments name. Exit status: 0 done, 2 wrong usage, 1 any other failure, with
/// one line on standard error.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !clip_engine::data::decode::decoding() {
            report(info);
        }
    }));
    let result = match cli.command {
        Command::Prep(args) => prep::run(args),
        Command::Train(args) => train::run(*args),
        Command::Compare(args) => compare::run(*args),
        Command::Eval(args) => eval::run(args),
        Command::ZeroShot(args) => zero_shot::run(args),
        Command::Embed(args) => embed::run(args),
        Command::Check(args) => check::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Doctor(args) => doctor::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", printable(&error.to_string()));
            exit_code(&error)
        }
    }
}

/// The text with control characters as escapes. A file may have put them into a name, and a terminal would obey.
fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { printable.extend(c.escape_default()) } else { printable.push(c) }
    }
    printable
}

fn exit_code(error: &Error) -> ExitCode {
    match error.downcast_ref::<TrainError>() {
        Some(TrainError::Setting(_)) => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_terminal_has_nothing_to_obey_in_an_error() {
        let text = "tensor a\n\u{1b}[2J\u{9b}31m é 猫 is missing";
        assert_eq!(super::printable(text), "tensor a\\n\\u{1b}[2J\\u{9b}31m é 猫 is missing");
    }
}
