//! The flags of settings, made from the table in [`crate::config`], so that help, environment and file cannot drift apart.

use std::path::PathBuf;

use clap::builder::{PathBufValueParser, StyledStr};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::config::{self, ConfigErrors, Layer, Place, SETTINGS, Section, Setting, Settings, Shape};

/// The settings that commands need which only read.
const PLACES: [&str; 2] = ["pin-dir", "run-dir"];

/// What the command line gave of settings: of all of them, or of the folders alone.
#[derive(Clone, Debug, Default)]
pub(super) struct Given<const ALL: bool> {
    config: Option<PathBuf>,
    layer: Layer,
}

impl<const ALL: bool> Given<ALL> {
    fn settings() -> impl Iterator<Item = &'static Setting> {
        SETTINGS.iter().filter(|s| ALL || PLACES.contains(&s.flag))
    }

    /// Joins the flags with environment and file.
    pub(super) fn gather(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Settings, ConfigErrors> {
        config::gather(self.layer.clone(), self.config.as_deref(), variable)
    }
}

fn arg(setting: &'static Setting) -> Arg {
    let default = match setting.default {
        "" => String::new(),
        default => format!(" [default: {default}]"),
    };
    let help = format!("{} [env: {}]{default}", setting.help, setting.variable());
    let arg = Arg::new(setting.flag)
        .long(setting.flag)
        .value_name(setting.value_name)
        .help(StyledStr::from(help))
        .help_heading(setting.section.heading());
    match setting.shape {
        Shape::Value => arg.action(ArgAction::Set),
        Shape::List => arg.action(ArgAction::Append),
        Shape::Switch => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
    }
}

const CONFIG_HELP: &str =
    "Read settings from a file of kind SteerwayConfiguration; flags and environment win [env: STEERWAY_CONFIG]";

impl<const ALL: bool> Args for Given<ALL> {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(PathBufValueParser::new())
            .help(CONFIG_HELP)
            .help_heading(Section::Agent.heading());
        Self::settings()
            .fold(command, |command, setting| command.arg(arg(setting)))
            .arg(config)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const ALL: bool> FromArgMatches for Given<ALL> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Self {
            config: matches.get_one("config").cloned(),
            layer: Layer::new(),
        };
        for setting in Self::settings() {
            let values = matches
                .try_get_many::<String>(setting.flag)
                .map_err(|e| clap::Error::raw(ErrorKind::UnknownArgument, e.to_string()))?;
            if let Some(values) = values {
                given
                    .layer
                    .insert(setting.flag, (Place::Flag(setting.flag), values.cloned().collect()));
            }
        }
        Ok(given)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
