//! How arguments are read, and what is said of wrong ones.

use crate::commands::refused_value as refused_value_in_words;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, CommandFactory, Error, FromArgMatches};
use std::any::TypeId;
use std::error::Error as _;
use std::ffi::OsString;

/// Reads the arguments, or ends the process: with status 0 after help, 2 after wrong usage.
pub fn parse<C: CommandFactory + FromArgMatches>(arguments: &[OsString]) -> C {
    let mut command = C::command().mut_subcommands(|below| below.mut_args(with_negative_numbers));
    let matches = command.try_get_matches_from_mut(arguments);
    let parsed = matches.and_then(|matches| C::from_arg_matches(&matches));
    parsed.unwrap_or_else(|error| {
        match refused_value(&error) {
            Some(text) => eprintln!("error: {text}"),
            None => {
                let example = example(&command, arguments);
                // Nothing can be done about a terminal that has gone away.
                let _ = error.print();
                if let (ErrorKind::MissingRequiredArgument, Some(example)) = (error.kind(), example) {
                    eprintln!("\n{example}");
                }
            }
        }
        std::process::exit(error.exit_code())
    })
}

/// Lets the argument take "-1" where it takes numbers, so that it can say itself what is wrong with it.
fn with_negative_numbers(arg: Arg) -> Arg {
    let value = arg.get_value_parser().type_id();
    let numbers = [TypeId::of::<f64>(), TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<usize>()];
    if numbers.iter().any(|&number| value == number) { arg.allow_negative_numbers(true) } else { arg }
}

/// Finds the text that the help of the called command ends with.
fn example(command: &Command, arguments: &[OsString]) -> Option<String> {
    let called = arguments.iter().skip(1).find_map(|argument| command.find_subcommand(argument))?;
    called.get_after_help().map(ToString::to_string)
}

/// "--rank: -1 is not a number of at least 0", for a value that its flag does not take.
fn refused_value(error: &Error) -> Option<String> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let (arg, value) = (context(ContextKind::InvalidArg)?, context(ContextKind::InvalidValue)?);
    let reason = match error.kind() {
        ErrorKind::ValueValidation => error.source()?.to_string(),
        _ => return None,
    };
    let flag = arg.split_whitespace().next()?;
    Some(format!("{flag}: {}", refused_value_in_words(value, &reason)))
}
