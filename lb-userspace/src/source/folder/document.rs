//! From the text of a file to its objects: YAML or JSON, several documents a file, lists of objects.
//!
//! An object is reduced as soon as it has been read, so that a list of ten thousand never exists in full. What makes
//! text no list of Kubernetes objects is an error of the whole file; what is wrong within an object is the object's.
//! A YAML document begins at a line `---` (YAML 1.2 section 9.1.2: at the start of a line these mean nothing else).

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::decode::{Entry, entry};
use crate::model::Names;

/// Why a file is not a list of objects.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ParseError {
    /// From 1.
    pub(super) line: Option<u64>,
    pub(super) reason: String,
}

/// Reads a JSON file: any number of values one after the other.
pub(super) fn parse_json(text: &str, names: &mut Names) -> Result<Vec<Entry>, ParseError> {
    let mut entries = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    while deserializer.end().is_err() {
        let document = Document {
            entries: &mut entries,
            names,
        };
        document.deserialize(&mut deserializer).map_err(|error| ParseError {
            line: Some(error.line() as u64),
            reason: error.to_string(),
        })?;
    }
    Ok(entries)
}

/// Reads a YAML file.
pub(super) fn parse_yaml(text: &str, names: &mut Names) -> Result<Vec<Entry>, ParseError> {
    let mut entries = Vec::new();
    for (lines_before, first_line, text) in documents(text) {
        let document = Document {
            entries: &mut entries,
            names,
        };
        serde_saphyr::with_deserializer_from_str_with_options(text, yaml_options(), |yaml| document.deserialize(yaml))
            .map_err(|error| ParseError {
                line: Some(
                    error
                        .location()
                        .map_or(first_line, |location| lines_before + location.line()),
                ),
                reason: error.render_with_options(serde_saphyr::render_options! {
                    snippets: serde_saphyr::SnippetMode::Off,
                    line_offset: lines_before,
                }),
            })?;
    }
    Ok(entries)
}

/// The size of a file is limited before; depth and the expansion of aliases stay limited here.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        emit_comments: false,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
        },
    }
}

/// Splits YAML into documents, each with the number of lines before it and its first line of content, from 1. Those
/// without content are left out.
fn documents(text: &str) -> impl Iterator<Item = (u64, u64, &str)> {
    let mut rest = text.trim_start_matches('\u{feff}');
    let mut lines_before = 0;
    let next = move || {
        if rest.is_empty() {
            return None;
        }
        let mut lines = rest.split_inclusive('\n');
        // The first line is the marker of this document, or its first.
        let mut length = lines.next().map_or(0, str::len);
        let mut count = 1;
        for line in lines.take_while(|line| !is_marker(line)) {
            length += line.len();
            count += 1;
        }
        let (document, tail) = rest.split_at(length);
        let before = lines_before;
        rest = tail;
        lines_before += count;
        Some((before, document))
    };
    std::iter::from_fn(next).filter_map(|(before, document)| {
        let content = first_content(document)? as u64;
        Some((before, before + content + 1, document))
    })
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// The first line, from 0, that is more than marker, comment or directive.
fn first_content(document: &str) -> Option<usize> {
    document.lines().position(|line| {
        let text = if is_marker(line) {
            line[3..].trim_start()
        } else {
            line.trim_start()
        };
        !text.is_empty() && !text.starts_with('#') && !line.starts_with('%')
    })
}

/// Reads one document into entries.
struct Document<'a> {
    entries: &'a mut Vec<Entry>,
    names: &'a mut Names,
}

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kubernetes object with apiVersion and kind")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { entries, names } = self;
        let mut fields = Map::new();
        let mut items = Items {
            entries: Vec::new(),
            nameless: Vec::new(),
            names,
        };
        while let Some(field) = map.next_key::<String>()? {
            if field == "items" {
                map.next_value_seed(&mut items)?;
            } else {
                fields.insert(field, map.next_value()?);
            }
        }
        let text = |field: &str| fields.get(field).and_then(Value::as_str).map(str::to_owned);
        let missing = || de::Error::custom("a Kubernetes object needs apiVersion and kind");
        let api_version = text("apiVersion").ok_or_else(missing)?;
        let kind = text("kind").ok_or_else(missing)?;
        if let Some(item_kind) = kind.strip_suffix("List") {
            entries.append(&mut items.entries);
            let nameless = std::mem::take(&mut items.nameless).into_iter();
            entries.extend(nameless.filter_map(|item| entry(item, &api_version, item_kind, items.names)));
        } else {
            entries.extend(entry(Value::Object(fields), &api_version, &kind, items.names));
        }
        Ok(())
    }
}

/// Reads the items of a list. One that names no kind waits for the kind of the list.
struct Items<'a> {
    entries: Vec<Entry>,
    nameless: Vec<Value>,
    names: &'a mut Names,
}

impl<'de> DeserializeSeed<'de> for &mut Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element::<Value>()? {
            if !item.is_object() {
                return Err(de::Error::custom("an item of the list is no object"));
            }
            let own = |field: &str| item[field].as_str().map(str::to_owned);
            match (own("apiVersion"), own("kind")) {
                (Some(api_version), Some(kind)) => self.entries.extend(entry(item, &api_version, &kind, self.names)),
                _ => self.nameless.push(item),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The objects of a text, or where and why it is wrong.
    fn parsed(
        parse: fn(&str, &mut Names) -> Result<Vec<Entry>, ParseError>,
        text: &str,
    ) -> Result<Vec<String>, (u64, String)> {
        let entries = parse(text, &mut Names::default());
        let shown = |entries: Vec<Entry>| entries.iter().map(|entry| entry.object.to_string()).collect();
        entries
            .map(shown)
            .map_err(|error| (error.line.unwrap_or_default(), error.reason))
    }

    fn yaml(text: &str) -> Result<Vec<String>, (u64, String)> {
        parsed(parse_yaml, text)
    }

    fn json(text: &str) -> Result<Vec<String>, (u64, String)> {
        parsed(parse_json, text)
    }

    #[track_caller]
    fn assert_error(found: Result<Vec<String>, (u64, String)>, line: u64, reason: &str) {
        let error = found.expect_err("the text is wrong");
        assert!(error.0 == line && error.1.contains(reason), "{error:?}");
    }

    const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n";
    const API: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: prod}\n";

    #[test]
    fn documents_are_read_whatever_surrounds_them() {
        let both = Ok(vec!["Service default/web".to_owned(), "Service prod/api".to_owned()]);
        assert_eq!(yaml(&format!("{WEB}---\n{API}")), both);
        assert_eq!(
            yaml(&format!(
                "\u{feff}# head\n---\n{WEB}--- # next\n{API}---\n# tail\n---\n"
            )),
            both
        );
        assert_eq!(yaml(&format!("%YAML 1.2\n---\n{WEB}...\n---\n{API}...\n")), both);
        assert_eq!(yaml(&format!("{WEB}---\n{API}").replace('\n', "\r\n")), both);
        assert_eq!(
            yaml("--- {apiVersion: v1, kind: Service, metadata: {name: web}}"),
            Ok(vec!["Service default/web".into()])
        );
        assert_eq!(yaml(""), Ok(Vec::new()));
        assert_eq!(yaml("# nothing\n---\nnull\n"), Ok(Vec::new()));
    }

    #[test]
    fn json_values_follow_each_other() {
        let web = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"}}"#;
        assert_eq!(json(&format!("{web}\n{web}\n")).map(|all| all.len()), Ok(2));
        assert_eq!(json(" \n"), Ok(Vec::new()));
        assert_error(json(&format!("{web}\n{{")), 2, "EOF");
    }

    #[test]
    fn lists_are_read_with_the_kind_before_or_after_the_items() {
        let slice = "{\"metadata\":{\"name\":\"web-1\",\"labels\":{\"kubernetes.io/service-name\":\"web\"}},\"addressType\":\"IPv4\"}";
        let head = "\"apiVersion\":\"discovery.k8s.io/v1\",\"kind\":\"EndpointSliceList\"";
        let expected = Ok(vec!["EndpointSlice default/web-1".to_owned()]);
        for text in [
            format!("{{{head},\"items\":[{slice}]}}"),
            format!("{{\"items\":[{slice}],{head}}}"),
        ] {
            assert_eq!(json(&text), expected);
            assert_eq!(yaml(&text), expected);
        }
        let mixed = format!(
            "apiVersion: v1\nitems:\n- {}\n- {{apiVersion: v1, kind: Secret}}\nkind: List\n",
            WEB.trim_end().replace('\n', "\n  ")
        );
        assert_eq!(yaml(&mixed), Ok(vec!["Service default/web".to_owned()]));
        assert_eq!(
            json(r#"{"apiVersion":"v1","kind":"List","items":null}"#),
            Ok(Vec::new())
        );
    }

    #[test]
    fn other_kinds_are_ignored_even_with_the_same_name_or_with_items() {
        for text in [
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: web}\n",
            "apiVersion: v1\nkind: ConfigMap\nitems: [{apiVersion: v1, kind: Service, metadata: {name: web}}]\n",
        ] {
            assert_eq!(yaml(text), Ok(Vec::new()));
        }
    }

    #[test]
    fn error_names_the_line_of_the_file() {
        assert_error(yaml(&format!("{WEB}---\n{WEB}  bad: [\n")), 8, "line 8");
        assert_error(yaml(&format!("{WEB}---\nkind: Service\n")), 5, "apiVersion and kind");
        assert_error(yaml("- a\n"), 1, "a Kubernetes object");
        assert_error(yaml("just text\n"), 1, "a Kubernetes object");
        assert_error(yaml("apiVersion: v1\nkind: List\nitems: [1]\n"), 3, "no object");
        assert_error(yaml("apiVersion: v1\nkind: Service\nkind: Service\n"), 3, "duplicate");
        assert_error(json("{\"apiVersion\": \"v1\",\n  bad}"), 2, "key");
    }

    #[test]
    fn object_with_a_field_of_the_wrong_type_is_rejected_by_field() {
        let text = format!(
            "{WEB}---\napiVersion: v1\nkind: Service\nmetadata: {{name: api}}\nspec: {{ports: [{{port: eighty}}]}}\n"
        );
        let entries = parse_yaml(&text, &mut Names::default()).unwrap();
        assert!(!entries[0].undecodable && entries[1].undecodable);
        let rejection = &entries[1].rejections[0];
        assert_eq!(
            (rejection.object.to_string(), &*rejection.field),
            ("Service default/api".into(), "spec.ports[0].port")
        );
    }

    #[test]
    fn nested_text_cannot_exhaust_the_stack_or_memory() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(yaml(&deep).is_err() && json(&deep).is_err());
        let deep = format!("apiVersion: v1\nkind: Service\nspec: {deep}\n");
        assert!(yaml(&deep).is_err());
        let mut bomb = "a: &a x\n".to_owned();
        for (name, next) in ('a'..='x').zip('b'..='y') {
            let nine = [format!("*{name}").as_str(); 9].join(",");
            bomb += &[
                next.to_string(),
                ": &".into(),
                next.into(),
                " [".into(),
                nine,
                "]\n".into(),
            ]
            .concat();
        }
        assert!(yaml(&bomb).is_err());
    }

    #[test]
    fn unnamed_slice_port_gets_the_default_of_the_api_server() {
        let text = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.0.0.1]}]\n";
        let entries = parse_yaml(text, &mut Names::default()).unwrap();
        assert!(entries[0].rejections.is_empty(), "{:?}", entries[0].rejections);
    }
}
