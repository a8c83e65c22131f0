//! kube-proxy's configuration, read as ours: a file of `kind: KubeProxyConfiguration` (what kubeadm keeps in the ConfigMap `kube-proxy`, as it
//! is) and kube-proxy's flags.
//!
//! In: the file's fields, or flags with their texts. Out: a [`Layer`] of our settings, and what has no effect here with its
//! reason, each value once. Empty values (null, 0, "", false) of fields without effect say nothing and are not told. A
//! field that nobody knows is told as wrong and passed over, as kube-proxy's lenient decoding does; a value of the wrong
//! form is an error. How the fields of `detectLocal` and of the modes join is decided here and nowhere else.

mod fields;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::PODS;
use super::error::{ConfigError, nearest};
use super::settings::{Layer, Place, Setting, Unused};
use super::watch::ReadFile;
use fields::{FIELDS, FLAG_ONLY, Field, Form, GATE, GATE_EXTERNAL_IPS, Meaning};

/// `apiVersion` of the file.
pub(super) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// `kind` of the file.
pub(super) const KIND: &str = "KubeProxyConfiguration";
/// The mode that is ours, as `/configz` shows it.
pub(super) const MODE: &str = "steerway";

/// What a file or the flags came to.
#[derive(Debug, Default)]
pub(super) struct Translated {
    pub(super) layer: Layer,
    pub(super) unused: Vec<Unused>,
    pub(super) errors: Vec<ConfigError>,
    /// The file, where it is of kube-proxy's kind.
    pub(super) read: Option<ReadFile>,
}

/// kube-proxy's flags that are no settings of ours, and whether each may stand without a value.
pub fn flags() -> impl Iterator<Item = (&'static str, bool)> {
    let flags = FIELDS
        .iter()
        .filter(|f| !f.flag.is_empty() && Setting::by_flag(f.flag).is_none());
    flags.map(|f| (f.flag, f.form == Form::Truth))
}

/// Translates the fields of a file, `apiVersion` and `kind` taken out.
pub(super) fn of_file(file: &Path, fields: Map<String, Value>) -> Translated {
    let mut given = Given::default();
    // What kube-proxy reads is an API server.
    let place = |field: &str| Place::Field {
        field: field.to_owned(),
        file: file.to_path_buf(),
    };
    given
        .out
        .layer
        .insert("source", (place("kind"), vec!["kubernetes".to_owned()]));
    given.walk(&place, "", fields);
    given.translate()
}

/// Translates flags.
pub(super) fn of_flags(flags: &BTreeMap<&'static str, Vec<String>>) -> Translated {
    let mut given = Given::default();
    for (flag, texts) in flags {
        let Some(field) = FIELDS.iter().find(|f| f.flag == *flag) else {
            continue;
        };
        let texts = match field.form {
            Form::Texts | Form::Gates => texts
                .iter()
                .flat_map(|text| text.split(','))
                .map(str::to_owned)
                .collect(),
            Form::Text | Form::Number | Form::Truth | Form::Time | Form::Any => {
                texts.last().cloned().into_iter().collect()
            }
        };
        given.values.insert(field.path, (Place::Flag(field.flag), texts));
    }
    given.translate()
}

/// Values by path.
#[derive(Default)]
struct Given {
    values: BTreeMap<&'static str, (Place, Vec<String>)>,
    out: Translated,
}

impl Given {
    fn walk(&mut self, place: &impl Fn(&str) -> Place, above: &str, fields: Map<String, Value>) {
        for (name, value) in fields {
            let path = if above.is_empty() {
                name
            } else {
                format!("{above}.{name}")
            };
            if let Some(field) = FIELDS.iter().find(|f| f.path == path) {
                match texts(&value, field.form) {
                    Ok(texts) if texts.is_empty() => {}
                    Ok(texts) => {
                        self.values.insert(field.path, (place(&path), texts));
                    }
                    Err(fix) => self.out.errors.push(ConfigError::Value {
                        place: place(&path),
                        value: value.to_string(),
                        fix: fix.to_owned(),
                    }),
                }
                continue;
            }
            let inner = format!("{path}.");
            let is_section = FIELDS.iter().any(|f| f.path.starts_with(&inner));
            if let (true, Value::Object(fields)) = (is_section, &value) {
                self.walk(place, &path, fields.clone());
            } else if !(is_section && value.is_null()) {
                let known = FIELDS.iter().filter(|f| !f.path.starts_with(FLAG_ONLY));
                let hint = nearest(&path, known.map(|f| f.path.to_owned()));
                let hint = hint.map_or_else(|| "remove it".to_owned(), |near| format!("did you mean {near}?"));
                self.out.unused.push(Unused {
                    place: place(&path),
                    value: value.to_string(),
                    reason: format!("{API_VERSION} has no such field; {hint}"),
                    wrong: true,
                });
            }
        }
    }

    fn translate(mut self) -> Translated {
        self.modes();
        self.local_traffic();
        self.gates();
        self.verbosity();
        self.old_ports();
        for (path, (place, texts)) in std::mem::take(&mut self.values) {
            let Some(field) = FIELDS.iter().find(|f| f.path == path) else {
                continue;
            };
            match field.meaning {
                Meaning::Is("nodeport-addresses") => self.set("nodeport-addresses", place, without_host_bits(&texts)),
                Meaning::Is(setting) => self.set(setting, place, texts),
                Meaning::Nothing(reason) if !is_empty(field, &texts) => self.without_effect(place, &texts, reason),
                Meaning::Nothing(_) | Meaning::Joint => {}
            }
        }
        self.out
    }

    fn set(&mut self, setting: &'static str, place: Place, texts: Vec<String>) {
        // An empty text is kube-proxy's word for the default, except where it was given on purpose.
        let on_purpose = matches!(place, Place::Flag(_)) && setting.ends_with("-bind-address");
        if on_purpose || texts.iter().any(|text| !text.is_empty()) {
            self.out.layer.insert(setting, (place, texts));
        }
    }

    fn without_effect(&mut self, place: Place, texts: &[String], reason: &str) {
        self.out.unused.push(Unused {
            place,
            value: texts.join(","),
            reason: reason.to_owned(),
            wrong: false,
        });
    }

    fn take(&mut self, path: &str) -> Option<(Place, Vec<String>)> {
        let found = self.values.remove(path)?;
        (!found.1.iter().all(String::is_empty)).then_some(found)
    }

    fn take_one(&mut self, path: &str) -> Option<(Place, String)> {
        let (place, texts) = self.take(path)?;
        Some((place, texts.into_iter().next_back().unwrap_or_default()))
    }

    fn wrong(&mut self, place: Place, value: &str, fix: &str) {
        self.out.errors.push(ConfigError::Value {
            place,
            value: format!("{value:?}"),
            fix: fix.to_owned(),
        });
    }

    /// The mode decides which of the sections says how often rules are written, and nothing else.
    fn modes(&mut self) {
        let mode = self.take_one("mode");
        let section = match mode.as_ref().map_or("", |(_, mode)| mode.as_str()) {
            "nftables" | MODE => "nftables",
            "ipvs" => "ipvs",
            _ => "iptables",
        };
        if let Some((place, mode)) = mode.filter(|(_, mode)| mode != MODE) {
            let all = if mode == "nftables" || self.values.contains_key("nodePortAddresses") {
                ""
            } else {
                "; NodePorts answer at the Node's primary addresses, as in its nftables mode: nodePortAddresses [0.0.0.0/0, ::/0] makes them answer at all"
            };
            let reason = format!("the mode is Steerway's own, programs of BPF{all}");
            self.without_effect(place, &[mode], &reason);
        }
        for name in ["iptables", "ipvs", "nftables"] {
            for (field, setting) in [("syncPeriod", "sync-period"), ("minSyncPeriod", "min-sync-period")] {
                let Some((place, text)) = self.take_one(&format!("{name}.{field}")) else {
                    continue;
                };
                // kube-proxy's flags of iptables count for its nftables mode, too.
                let counts =
                    name == section || (name == "iptables" && section == "nftables" && matches!(place, Place::Flag(_)));
                match (is_zero(&text), counts) {
                    (true, _) => {}
                    (false, true) => self.set(setting, place, vec![text]),
                    (false, false) => {
                        self.without_effect(place, &[text], "it is of another mode than the configuration's");
                    }
                }
            }
        }
    }

    /// Which sources count as pods.
    fn local_traffic(&mut self) {
        const OTHER: &str = "detectLocalMode says something else";
        let mode = self.take_one("detectLocalMode");
        let cluster = self.take("clusterCIDR");
        let bridge = self.take_one("detectLocal.bridgeInterface");
        let prefix = self.take_one("detectLocal.interfaceNamePrefix");
        let word = mode.as_ref().map_or("ClusterCIDR", |(_, mode)| mode.as_str());
        let known = ["ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"];
        if let (Some((place, mode)), false) = (&mode, known.contains(&word)) {
            self.wrong(place.clone(), mode, &format!("use {}", known.join(" or ")));
            return;
        }
        if let (Some((place, mode)), false) = (mode.clone(), word == "InterfaceNamePrefix" && prefix.is_some()) {
            self.without_effect(place, &[mode], PODS);
        }
        // Its reason is the setting's.
        if let Some((place, texts)) = cluster {
            let texts: Vec<String> = texts
                .iter()
                .flat_map(|text| text.split(','))
                .map(str::to_owned)
                .collect();
            self.set("cluster-cidr", place, without_host_bits(&texts));
        }
        if let Some((place, name)) = prefix {
            if word == "InterfaceNamePrefix" {
                self.set("pod", place, vec![format!("{name}*")]);
            } else {
                self.without_effect(place, &[name], OTHER);
            }
        }
        if let Some((place, name)) = bridge {
            let reason = if word == "BridgeInterface" {
                "pods behind a bridge are known by their own interfaces, its ports"
            } else {
                OTHER
            };
            self.without_effect(place, &[name], reason);
        }
    }

    fn gates(&mut self) {
        let Some((place, gates)) = self.take("featureGates") else {
            return;
        };
        for gate in gates.iter().filter(|gate| !gate.is_empty()) {
            match gate.split_once('=') {
                Some((GATE_EXTERNAL_IPS, truth)) => self.set("external-ips", place.clone(), vec![truth.to_owned()]),
                Some((_, "true" | "false")) => self.without_effect(place.clone(), std::slice::from_ref(gate), GATE),
                _ => self.wrong(place.clone(), gate, "use NAME=true or NAME=false"),
            }
        }
    }

    fn verbosity(&mut self) {
        let Some((place, text)) = self.take_one("logging.verbosity") else {
            return;
        };
        let level = match text.parse::<u32>() {
            // Our info says what an operator asks about; kube-proxy's levels up to 3 are for operators.
            Ok(0..=3) => return,
            Ok(4 | 5) => "debug",
            Ok(_) => "trace",
            Err(_) => return self.wrong(place, &text, "use a number from 0"),
        };
        self.set("log-level", place, vec![level.to_owned()]);
    }

    /// The ports that once were flags of their own.
    fn old_ports(&mut self) {
        for (path, field, setting, any) in [
            ("-healthz-port", "healthzBindAddress", "healthz-bind-address", "0.0.0.0"),
            (
                "-metrics-port",
                "metricsBindAddress",
                "metrics-bind-address",
                "127.0.0.1",
            ),
        ] {
            let Some((place, port)) = self.take_one(path) else {
                continue;
            };
            if self.values.contains_key(field) {
                self.without_effect(place, &[port], &format!("--{setting} says more"));
                continue;
            }
            let text = if port == "0" {
                "none".to_owned()
            } else {
                format!("{any}:{port}")
            };
            self.set(setting, place, vec![text]);
        }
    }
}

/// The value as texts; none for null and an empty list or mapping.
fn texts(value: &Value, form: Form) -> Result<Vec<String>, &'static str> {
    let plain = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    match (form, value) {
        (_, Value::Null) => Ok(Vec::new()),
        (Form::Any, Value::Array(items)) if items.is_empty() => Ok(Vec::new()),
        (Form::Any, Value::Object(fields)) if fields.values().all(is_nothing) => Ok(Vec::new()),
        (Form::Any, value) => Ok(vec![plain(value).unwrap_or_else(|| value.to_string())]),
        (Form::Text | Form::Time, Value::String(text)) => Ok(vec![text.clone()]),
        (Form::Number, Value::Number(number)) => Ok(vec![number.to_string()]),
        (Form::Truth, Value::Bool(truth)) => Ok(vec![truth.to_string()]),
        (Form::Texts, Value::Array(items)) => {
            let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
            texts.collect::<Option<_>>().ok_or("write a list of texts")
        }
        (Form::Gates, Value::Object(gates)) => gates
            .iter()
            .map(|(gate, truth)| truth.as_bool().map(|truth| format!("{gate}={truth}")))
            .collect::<Option<_>>()
            .ok_or("write NAME: true or NAME: false for each gate"),
        (Form::Text, _) => Err("write a text"),
        (Form::Time, _) => Err("write a time as a text, for example 30s, 1h30m"),
        (Form::Number, _) => Err("write a number"),
        (Form::Truth, _) => Err("write true or false"),
        (Form::Texts, _) => Err("write a list of texts"),
        (Form::Gates, _) => Err("write a mapping of gates, for example AllowServiceExternalIPs: true"),
    }
}

/// Whether a value inside of a mapping that is not read says nothing.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(truth) => !truth,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || is_zero(text),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_nothing),
    }
}

/// Whether texts are the empty value of their form, which stands for kube-proxy's default.
fn is_empty(field: &Field, texts: &[String]) -> bool {
    texts.iter().all(|text| match field.form {
        Form::Truth => text == "false",
        Form::Number | Form::Time | Form::Any => text.is_empty() || is_zero(text),
        Form::Text | Form::Texts | Form::Gates => text.is_empty(),
    })
}

/// A number or time of zero.
fn is_zero(text: &str) -> bool {
    text.starts_with('0') && !text.contains(|c: char| ('1'..='9').contains(&c))
}

/// kube-proxy takes ranges with bits behind the prefix; they mean the range around.
fn without_host_bits(texts: &[String]) -> Vec<String> {
    let one = |text: &String| {
        let text = text.trim();
        text.parse::<IpNet>()
            .map_or_else(|_| text.to_owned(), |range| range.trunc().to_string())
    };
    texts.iter().map(one).filter(|text| !text.is_empty()).collect()
}
