//! The flags of settings, made from the table in [`crate::config`], so that help, environment and file cannot drift apart; and
//! kube-proxy's flags, which are taken and not shown.

use std::fs;
use std::path::PathBuf;

use clap::builder::{PathBufValueParser, StyledStr};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::config::{
    self, Arguments, Config, ConfigErrors, Place, SETTINGS, Section, Setting, Settings, Shape, process_variable,
};

/// The settings that commands need which only read.
const PLACES: [&str; 2] = ["pin-dir", "run-dir"];

/// What the command line gave of settings: of all of them, or of the folders alone.
#[derive(Clone, Debug, Default)]
pub(super) struct Given<const ALL: bool> {
    config: Option<PathBuf>,
    given: Arguments,
}

impl<const ALL: bool> Given<ALL> {
    fn settings() -> impl Iterator<Item = &'static Setting> {
        SETTINGS.iter().filter(|s| ALL || PLACES.contains(&s.flag))
    }

    fn kube_proxy_flags() -> impl Iterator<Item = (&'static str, bool)> {
        config::kube_proxy_flags().filter(|_| ALL)
    }

    /// Joins the flags with environment, file and what is mounted.
    pub(super) fn gather(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Settings, ConfigErrors> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        config::gather(self.given.clone(), self.config.as_deref(), variable).map(|settings| settings.on_mounts(&mounts))
    }
}

impl Given<true> {
    /// The settings of `run`, for commands that need less of them: where objects come from and the node's name may be missing.
    pub(super) fn of_the_node(&self) -> Result<Config, ConfigErrors> {
        let settings = self.gather(process_variable)?;
        Config::validate(&settings.or("folder", "/").or("node-name", "node"), None)
    }
}

/// A flag of kube-proxy's; `bare` ones mean true without a value.
fn kube_proxy_arg(flag: &'static str, bare: bool) -> Arg {
    let arg = Arg::new(flag).long(flag).hide(true).action(ArgAction::Append);
    let arg = if flag == "v" { arg.short('v') } else { arg };
    if bare {
        arg.num_args(0..=1).require_equals(true).default_missing_value("true")
    } else {
        arg.allow_negative_numbers(true)
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

const CONFIG_HELP: &str = "Read settings from a file of kind SteerwayConfiguration, or from kube-proxy's of kind KubeProxyConfiguration; flags and environment win [env: STEERWAY_CONFIG]";

impl<const ALL: bool> Args for Given<ALL> {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(PathBufValueParser::new())
            .help(CONFIG_HELP)
            .help_heading(Section::Agent.heading());
        let command = Self::settings().fold(command, |command, setting| command.arg(arg(setting)));
        Self::kube_proxy_flags()
            .fold(command, |command, (flag, bare)| command.arg(kube_proxy_arg(flag, bare)))
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
            given: Arguments::default(),
        };
        for setting in Self::settings() {
            let values = matches
                .try_get_many::<String>(setting.flag)
                .map_err(|e| clap::Error::raw(ErrorKind::UnknownArgument, e.to_string()))?;
            if let Some(values) = values {
                let values = (Place::Flag(setting.flag), values.cloned().collect());
                given.given.layer.insert(setting.flag, values);
            }
        }
        for (flag, _) in Self::kube_proxy_flags() {
            if let Ok(Some(values)) = matches.try_get_many::<String>(flag) {
                given.given.kube_proxy.insert(flag, values.cloned().collect());
            }
        }
        Ok(given)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
