//! The configuration file: YAML of `kind: SteerwayConfiguration`, one field a setting, or of kube-proxy's kind.
//!
//! In: the file's text. Out: a [`Layer`] of texts, and what has no effect. A list may be a YAML list or a text with commas. Fields
//! that are no setting are errors: a misspelt field would silently be a default.

use std::path::Path;

use serde_json::Value;

use super::error::{ConfigError, nearest};
use super::kube_proxy::{self, Translated};
use super::settings::{Layer, Place, Setting, Shape};
use super::table::SETTINGS;
use super::watch::ReadFile;

/// `apiVersion` of the file.
pub const API_VERSION: &str = "steerway.dev/v1alpha1";
/// `kind` of the file.
pub const KIND: &str = "SteerwayConfiguration";

/// Reads the text of the file at `path` (named in errors only).
pub(super) fn parse(path: &Path, text: &str) -> Result<Translated, Vec<ConfigError>> {
    let syntax = |reason: String| {
        vec![ConfigError::File {
            file: path.to_path_buf(),
            reason,
        }]
    };
    let document: Value = serde_saphyr::from_str(text).map_err(|e| syntax(e.to_string()))?;
    let Value::Object(mut fields) = document else {
        return Err(syntax(format!(
            "holds no mapping; it must start with `apiVersion: {API_VERSION}`"
        )));
    };
    let mut errors = Vec::new();
    let mut take = |field: &str| fields.remove(field).as_ref().and_then(Value::as_str).map(str::to_owned);
    let (version, kind) = (take("apiVersion"), take("kind"));
    let of_kube_proxy = kind.as_deref() == Some(kube_proxy::KIND);
    let (wanted_version, or) = if of_kube_proxy {
        (kube_proxy::API_VERSION, String::new())
    } else {
        (API_VERSION, format!(" (or {})", kube_proxy::KIND))
    };
    let known_kind = if of_kube_proxy { kube_proxy::KIND } else { KIND };
    for (field, found, wanted, or) in [
        ("apiVersion", version, wanted_version, ""),
        ("kind", kind, known_kind, &or),
    ] {
        if found.as_deref() != Some(wanted) {
            let found = found.map_or_else(|| "is missing".to_owned(), |f| format!("is {f:?}"));
            errors.extend(syntax(format!("{field} {found}; write `{field}: {wanted}`{or}")));
        }
    }
    if of_kube_proxy {
        let mut translated = kube_proxy::of_file(path, fields);
        errors.append(&mut translated.errors);
        translated.read = Some(ReadFile {
            path: path.to_path_buf(),
            text: text.to_owned(),
        });
        return if errors.is_empty() { Ok(translated) } else { Err(errors) };
    }
    let mut layer = Layer::new();
    for (field, value) in fields {
        let Some(setting) = Setting::by_field(&field) else {
            let known = SETTINGS.iter().map(Setting::field);
            let hint = nearest(&field, known).map_or_else(String::new, |n| format!("; did you mean {n}?"));
            errors.extend(syntax(format!("field {field} is not known{hint}")));
            continue;
        };
        let place = Place::Field {
            field,
            file: path.to_path_buf(),
        };
        match texts(&value, setting.shape) {
            Ok(Some(texts)) => {
                layer.insert(setting.flag, (place, texts));
            }
            Ok(None) => {}
            Err(fix) => errors.push(ConfigError::Value {
                place,
                value: value.to_string(),
                fix: fix.to_owned(),
            }),
        }
    }
    if errors.is_empty() {
        Ok(Translated {
            layer,
            ..Translated::default()
        })
    } else {
        Err(errors)
    }
}

/// The value as texts; `None` for null, which leaves the setting to its default.
fn texts(value: &Value, shape: Shape) -> Result<Option<Vec<String>>, &'static str> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    match (value, shape) {
        (Value::Null, _) => Ok(None),
        (Value::Array(items), Shape::List) => items
            .iter()
            .map(scalar)
            .collect::<Option<Vec<_>>>()
            .map(Some)
            .ok_or("each item must be a plain value"),
        _ => scalar(value).map(|text| Some(vec![text])).ok_or(match shape {
            Shape::List => "write a list of plain values",
            Shape::Value | Shape::Switch => "write one plain value",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(body: &str) -> Layer {
        parse(
            Path::new("c.yaml"),
            &format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{body}"),
        )
        .unwrap()
        .layer
    }

    fn errors(text: &str) -> String {
        let errors = parse(Path::new("c.yaml"), text).unwrap_err();
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn lists_numbers_and_booleans_become_texts() {
        let layer = layer("clusterCidr: [10.0.0.0/8, 'fd00::/48']\nflowEntries: 1024\ntakeover: true\nfolder: null\n");
        assert_eq!(layer["cluster-cidr"].1, ["10.0.0.0/8", "fd00::/48"]);
        assert_eq!(layer["flow-entries"].1, ["1024"]);
        assert_eq!(layer["takeover"].1, ["true"]);
        assert!(!layer.contains_key("folder"));
    }

    #[test]
    fn kind_and_version_are_required() {
        let text = errors("kind: KubeletConfiguration\n");
        assert_eq!(
            text,
            "c.yaml: apiVersion is missing; write `apiVersion: steerway.dev/v1alpha1`\n\
             c.yaml: kind is \"KubeletConfiguration\"; write `kind: SteerwayConfiguration` (or KubeProxyConfiguration)"
        );
        let text = errors("apiVersion: kubeproxy.config.k8s.io/v1beta1\nkind: KubeProxyConfiguration\n");
        assert_eq!(
            text,
            "c.yaml: apiVersion is \"kubeproxy.config.k8s.io/v1beta1\"; write `apiVersion: kubeproxy.config.k8s.io/v1alpha1`"
        );
    }

    #[test]
    fn the_kind_decides_how_the_file_is_read() {
        let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nhostnameOverride: n1\nmode: ipvs\n";
        let found = parse(Path::new("c.yaml"), text).unwrap();
        assert_eq!(found.layer["node-name"].1, ["n1"]);
        assert_eq!(found.unused.len(), 1);
    }

    #[test]
    fn an_unknown_field_is_named_with_its_nearest() {
        let text = errors(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\nclusterCIDR: x\n"));
        assert_eq!(
            text,
            "c.yaml: field clusterCIDR is not known; did you mean clusterCidr?"
        );
    }

    #[test]
    fn broken_yaml_is_an_error_with_its_line() {
        let text = errors("apiVersion: a\nkind: [\n");
        assert!(text.starts_with("c.yaml: "), "{text}");
        assert!(text.contains("line"), "{text}");
    }

    #[test]
    fn a_mapping_where_a_value_belongs_is_an_error() {
        let text = errors(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\nfolder: {{a: b}}\n"));
        assert_eq!(
            text,
            "field folder in c.yaml: {\"a\":\"b\"} is wrong: write one plain value"
        );
    }
}
