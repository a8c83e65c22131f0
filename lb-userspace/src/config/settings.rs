//! What a setting is, and how the layers of settings are merged; the table of all settings is in `table`.
//!
//! In: values as text from arguments, environment, file and defaults. Out: for each setting the values of the strongest
//! layer that has it, with their place, so that an error can name where a wrong value stands. Nothing is interpreted here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::table::SETTINGS;
use super::watch::ReadFile;

/// How a setting is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One value.
    Value,
    /// Several values, separated by commas or given repeatedly.
    List,
    /// True or false; the bare flag means true.
    Switch,
}

/// The section of the help text that a setting stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Where the Services come from and who this node is.
    Cluster,
    /// What happens to packets.
    Traffic,
    /// Which interfaces are hooked, and how.
    Interfaces,
    /// How long flows live and how much memory they have.
    Flows,
    /// What netfilter's own connection tracking is set to.
    Conntrack,
    /// Folders and logs.
    Agent,
}

impl Section {
    /// The heading in the help text.
    pub const fn heading(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Traffic => "Traffic",
            Self::Interfaces => "Interfaces",
            Self::Flows => "Flows",
            Self::Conntrack => "Netfilter's conntrack",
            Self::Agent => "Agent",
        }
    }
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Name of the flag without its dashes; the names of variable and field follow from it.
    pub flag: &'static str,
    /// How it is written.
    pub shape: Shape,
    /// What stands for its value in the help text.
    pub value_name: &'static str,
    /// Value where no layer has one; empty where the default depends on the machine or there is none.
    pub default: &'static str,
    /// Its section in the help text.
    pub section: Section,
    /// One or two sentences for the help text.
    pub help: &'static str,
}

impl Setting {
    /// The environment variable: `STEERWAY_` and the flag in capitals.
    pub fn variable(&self) -> String {
        format!("STEERWAY_{}", self.flag.replace('-', "_").to_uppercase())
    }

    /// The field of the configuration file: the flag in camel case.
    pub fn field(&self) -> String {
        let mut field = String::with_capacity(self.flag.len());
        for (i, word) in self.flag.split('-').enumerate() {
            match word.chars().next() {
                Some(first) if i > 0 => {
                    field.extend(first.to_uppercase());
                    field.push_str(&word[first.len_utf8()..]);
                }
                _ => field.push_str(word),
            }
        }
        field
    }

    /// The setting with this flag.
    pub fn by_flag(flag: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|s| s.flag == flag)
    }

    /// The setting with this field name.
    pub fn by_field(field: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|s| s.field() == field)
    }
}

/// Where a value was given; prints as a user would name the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A flag of the command line.
    Flag(&'static str),
    /// An environment variable.
    Variable(String),
    /// A field of a configuration file.
    Field {
        /// The field.
        field: String,
        /// The file.
        file: PathBuf,
    },
    /// Nowhere: the setting's default, named by its flag.
    Default(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "--{flag}"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Field { field, file } => write!(f, "field {field} in {}", file.display()),
            Self::Default(flag) => write!(f, "default of --{flag}"),
        }
    }
}

/// Values of one layer by flag.
pub type Layer = BTreeMap<&'static str, (Place, Vec<String>)>;

/// A value that has no effect here; told once, never an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unused {
    /// Where it was given.
    pub place: Place,
    /// As it was given.
    pub value: String,
    /// Why it has none, or what to do about it.
    pub reason: String,
    /// Whether it should be corrected: nobody knows such a field.
    pub wrong: bool,
}

/// The setting whose default depends on what is mounted.
const PIN_DIR: &str = "pin-dir";

/// The merged values of all layers.
#[derive(Clone, Debug)]
pub struct Settings {
    values: Layer,
    /// Values without effect.
    pub unused: Vec<Unused>,
    /// The file of kube-proxy's kind that was read.
    pub file: Option<ReadFile>,
}

impl Settings {
    /// Merges arguments over environment over file over the defaults of [`SETTINGS`]. A setting's values are never mixed from
    /// two layers.
    pub fn merge(arguments: Layer, environment: Layer, file: Layer) -> Self {
        let mut values: Layer = SETTINGS
            .iter()
            .filter(|s| !s.default.is_empty())
            .map(|s| (s.flag, (Place::Default(s.flag), vec![s.default.to_owned()])))
            .collect();
        values.extend(file);
        values.extend(environment);
        values.extend(arguments);
        Self {
            values,
            unused: Vec::new(),
            file: None,
        }
    }

    /// Gives a value to a setting that no layer has and that has no default.
    #[must_use]
    pub fn or(mut self, flag: &'static str, value: &str) -> Self {
        self.values
            .entry(flag)
            .or_insert_with(|| (Place::Default(flag), vec![value.to_owned()]));
        self
    }

    /// Puts the pin folder onto the first BPF file system of `mounts` (/proc/self/mounts), where no layer has the setting and none is at the
    /// usual place. Without any, the agent mounts one there.
    #[must_use]
    pub fn on_mounts(mut self, mounts: &str) -> Self {
        let usual = Setting::by_flag(PIN_DIR).map_or("", |setting| setting.default);
        let points = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (point, kind) = (fields.next()?, fields.next()?);
            // A point with a space or the like is written in octal, and is no place to choose by oneself.
            (kind == "bpf" && !point.contains('\\')).then_some(point)
        });
        let points: Vec<&str> = points.collect();
        let is_usual = points
            .iter()
            .any(|point| Path::new(usual).parent() == Some(Path::new(point)));
        if let (Some(first), false, Some((Place::Default(_), values))) =
            (points.first(), is_usual, self.values.get_mut(PIN_DIR))
        {
            *values = vec![format!("{}/steerway", first.trim_end_matches('/'))];
        }
        self
    }

    /// Place and values of a setting, `None` where nobody gave one and there is no default.
    pub(super) fn get(&self, flag: &str) -> Option<&(Place, Vec<String>)> {
        self.values.get(flag)
    }
}

/// The layer of the environment. A variable that is set but empty counts as unset, so that a manifest may blank it.
pub fn environment(read: impl Fn(&str) -> Option<String>) -> Layer {
    SETTINGS
        .iter()
        .filter_map(|s| {
            let name = s.variable();
            let value = read(&name).filter(|v| !v.is_empty())?;
            Some((s.flag, (Place::Variable(name), vec![value])))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_the_flag() {
        let setting = Setting::by_flag("nodeport-addresses").unwrap();
        assert_eq!(setting.variable(), "STEERWAY_NODEPORT_ADDRESSES");
        assert_eq!(setting.field(), "nodeportAddresses");
        assert_eq!(
            Setting::by_field("nodeportAddresses").unwrap().flag,
            "nodeport-addresses"
        );
    }

    #[test]
    fn every_flag_variable_and_field_is_unique() {
        let mut flags = std::collections::BTreeSet::new();
        for s in SETTINGS {
            assert!(flags.insert(s.flag), "--{} twice", s.flag);
            assert!(
                flags.insert(Box::leak(s.variable().into_boxed_str())),
                "{} twice",
                s.variable()
            );
        }
    }

    #[test]
    fn the_pin_folder_is_where_a_bpf_file_system_is() {
        const USUAL: &str = "bpf /sys/fs/bpf bpf rw,nosuid,mode=700 0 0\n";
        const OTHER: &str = "none /run/other/bpf bpf rw 0 0\n";
        let folder = |mounts: &str, given: Layer| {
            let settings = Settings::merge(given, Layer::new(), Layer::new()).on_mounts(mounts);
            settings.get(PIN_DIR).unwrap().1.concat()
        };
        let rest = "proc /proc proc rw 0 0\nbpf /a\\040b bpf rw 0 0\nx\n";
        for (mounts, wanted) in [
            (rest.to_owned(), "/sys/fs/bpf/steerway"),
            (format!("{rest}{OTHER}{USUAL}"), "/sys/fs/bpf/steerway"),
            (format!("{rest}{OTHER}none /b bpf rw 0 0\n"), "/run/other/bpf/steerway"),
        ] {
            assert_eq!(folder(&mounts, Layer::new()), wanted, "{mounts}");
        }
        let given = Layer::from([(PIN_DIR, (Place::Flag(PIN_DIR), vec!["/p".to_owned()]))]);
        assert_eq!(folder(OTHER, given), "/p");
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let layer = environment(|name| match name {
            "STEERWAY_FOLDER" => Some(String::new()),
            "STEERWAY_NODE_NAME" => Some("n1".to_owned()),
            _ => None,
        });
        assert_eq!(layer.keys().copied().collect::<Vec<_>>(), ["node-name"]);
    }
}
