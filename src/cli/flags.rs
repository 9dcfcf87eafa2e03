//! The flags of the settings, built from their table.

use crate::commands::evaluation::SOURCE;
use crate::settings::{Given, Key, Kind, MAX_BATCH, Setting, Settings, TABLE};
use anyhow::Result;
use clap::builder::RangedI64ValueParser;
use clap::error::{Error, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, value_parser};
use std::ffi::OsStr;
use std::path::PathBuf;

/// The flags of all settings or of those in [`SOURCE`], and what they were given.
#[derive(Debug, Clone)]
pub struct Flags<const ALL: bool>(pub Given);

pub type SettingFlags = Flags<true>;

/// How data are read, for commands that train nothing.
pub type SourceFlags = Flags<false>;

impl<const ALL: bool> Flags<ALL> {
    fn settings() -> impl Iterator<Item = &'static Setting> {
        let all = TABLE.iter().filter(|_| ALL);
        all.chain(SOURCE.iter().filter(|_| !ALL).map(|key| key.setting()))
    }
}

impl SourceFlags {
    /// Writes what was given over `settings`, which must be right then.
    pub fn apply(self, settings: &mut Settings) -> Result<()> {
        self.0.apply(settings);
        Ok(settings.validate()?)
    }
}

impl<const ALL: bool> clap::Args for Flags<ALL> {
    fn augment_args(command: Command) -> Command {
        let headed = |arg: Arg, setting: &Setting| {
            if ALL { arg.help_heading(setting.heading).hide_short_help(!setting.short) } else { arg }
        };
        command.args(Self::settings().map(|setting| headed(arg(setting), setting)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const ALL: bool> FromArgMatches for Flags<ALL> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut given = Given::default();
        Self::settings().try_for_each(|setting| read(setting, matches, &mut given))?;
        Ok(Flags(given))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The help of a setting for a command that leaves it to something else than the recipe.
pub fn like(key: Key, default: &str) -> String {
    key.setting().help_with_default(default)
}

/// Takes the images of a batch.
pub fn batch_sizes() -> RangedI64ValueParser<u32> {
    value_parser!(u32).range(1..=MAX_BATCH as i64)
}

fn arg(setting: &'static Setting) -> Arg {
    let flag = setting.flag.trim_start_matches('-');
    let arg = Arg::new(setting.name).long(flag).value_name(setting.value_name).help(setting.help());
    let parse = |text: &str| {
        setting.set(&mut Given::default(), OsStr::new(text))?;
        Ok::<_, String>(text.to_owned())
    };
    let arg = match setting.key {
        Key::steps_per_shot => arg.conflicts_with(Key::epochs.setting().name),
        _ => arg,
    };
    match setting.kind {
        Kind::Switch => arg.action(ArgAction::SetTrue),
        Kind::Truth => arg.value_parser(value_parser!(bool)),
        Kind::Path | Kind::Place => arg.value_parser(value_parser!(PathBuf)),
        Kind::Number => arg.value_parser(parse).allow_negative_numbers(true),
        Kind::Word | Kind::Text => arg.value_parser(parse),
        Kind::List => arg.value_parser(parse).action(ArgAction::Append).value_delimiter(','),
        Kind::Texts => arg.value_parser(parse).action(ArgAction::Append),
    }
}

fn read(setting: &Setting, matches: &ArgMatches, given: &mut Given) -> Result<(), Error> {
    let id = setting.name;
    let values: Vec<&OsStr> = match setting.kind {
        Kind::Switch | Kind::Truth => {
            // A switch that was not given is false.
            let given = matches.get_one(id).filter(|&&on| on || setting.kind == Kind::Truth);
            given.map(|&on| OsStr::new(if on { "true" } else { "false" })).into_iter().collect()
        }
        Kind::Path | Kind::Place => {
            matches.get_one::<PathBuf>(id).map(|path| path.as_os_str()).into_iter().collect()
        }
        _ => matches.get_many::<String>(id).into_iter().flatten().map(OsStr::new).collect(),
    };
    let refused = |text| Error::raw(ErrorKind::ValueValidation, format!("{}: {text}\n", setting.flag));
    values.into_iter().try_for_each(|value| setting.set(given, value).map_err(refused))
}
