//! What the subcommands of the program do, for it and for programs in other languages: data and models are opened by their
//! names, devices by theirs, runs are trained, judged and compared. Nothing here reads arguments or prints; what there is to
//! say goes to a [`Monitor`](crate::progress::Monitor).

pub mod comparison;
pub mod device;
pub mod evaluation;
pub mod open;
pub(crate) mod output;
pub(crate) mod parts;
pub mod photos;
pub(crate) mod run_set;
pub mod training;

use crate::TrainError;
use crate::data::DataError;
use crate::settings::SettingError;
use anyhow::Error;

/// What is said of an error, in one line: the error and its causes.
pub fn error_line(error: &Error) -> String {
    printable(&with_causes(error))
}

/// Whether an error is one of what was asked for, and not one of what was met.
pub fn is_wrong_usage(error: &Error) -> bool {
    let of_option = |error: &DataError| matches!(error, DataError::Option { .. });
    error.is::<SettingError>()
        || error.downcast_ref::<DataError>().is_some_and(of_option)
        || match error.downcast_ref::<TrainError>() {
            Some(TrainError::Setting(_)) => true,
            Some(TrainError::Data(error)) => of_option(error),
            _ => false,
        }
}

/// The error and what caused it, without what a message says of its cause already.
fn with_causes(error: &Error) -> String {
    error.chain().skip(1).fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { text + ": " + &cause }
    })
}

/// The text with control characters as escapes. A file may have put them into a name, and a terminal would obey.
fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { printable.extend(c.escape_default()) } else { printable.push(c) }
    }
    printable
}

/// Says what is wrong with a value, for which the standard library or clap gives this reason.
pub fn refused_value(value: &str, reason: &str) -> String {
    let negative = value.strip_prefix('-').is_some_and(|rest| rest.parse::<f64>().is_ok());
    let least = reason.split_once(" is not in ").and_then(|(_, range)| Some(range.split_once("..")?.0));
    match (reason, least) {
        (_, Some(least)) if negative => format!("{value} is not a number of at least {least}"),
        ("invalid digit found in string", _) if negative => {
            format!("{value} is not a number of at least 0")
        }
        ("invalid digit found in string", _) => format!("{value} is not a whole number"),
        ("invalid float literal", _) => format!("{value} is not a number"),
        ("number too large to fit in target type", _) => format!("{value} is too large"),
        _ => reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use std::io;
    use std::path::Path;

    #[test]
    fn an_error_says_its_causes_once() {
        let denied = || io::Error::other("the disk is on fire");
        let plain = Err::<(), _>(denied()).context("a.toml: cannot be read").context("--config");
        assert_eq!(with_causes(&plain.unwrap_err()), "--config: a.toml: cannot be read: the disk is on fire");
        let own = TrainError::io(Path::new("run"), "list the folder")(denied());
        let text = own.to_string();
        assert_eq!(with_causes(&Error::from(own)), text, "the message has its source in it");
    }

    #[test]
    fn a_terminal_has_nothing_to_obey_in_an_error() {
        let text = "tensor a\n\u{1b}[2J\u{9b}31m é 猫 is missing";
        assert_eq!(super::printable(text), "tensor a\\n\\u{1b}[2J\\u{9b}31m é 猫 is missing");
    }

    #[test]
    fn reasons_are_words() {
        for (value, reason, words) in [
            ("-3", "-3 is not in 0..=4294967295", "-3 is not a number of at least 0"),
            ("-1", "-1 is not in 1..", "-1 is not a number of at least 1"),
            ("0", "0 is not in 1..=4096", "0 is not in 1..=4096"),
            ("-1", "invalid digit found in string", "-1 is not a number of at least 0"),
            ("1.5", "invalid digit found in string", "1.5 is not a whole number"),
            ("-x", "invalid digit found in string", "-x is not a whole number"),
            ("x", "invalid float literal", "x is not a number"),
            (
                "99999999999999999999",
                "number too large to fit in target type",
                "99999999999999999999 is too large",
            ),
            ("-1", "\"-1\" is neither", "\"-1\" is neither"),
        ] {
            assert_eq!(refused_value(value, reason), words);
        }
    }
}
