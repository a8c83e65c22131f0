//! The objects of `deploy/examples`, in a folder of their own where the show changes them.
//!
//! At first the files are copied as they are. Afterwards every EndpointSlice in them is written anew with the backends
//! as they are then; all else in the files stays (comments do not).

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use lb_tests::objects::Folder;
use serde_json::{Value, json};

/// Where the objects come from.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples");

/// A backend of all example Services: a pod that answers HTTP and UDP.
#[derive(Clone, Debug)]
pub(crate) struct Backend {
    pub(crate) name: String,
    /// Number of its node.
    pub(crate) node: usize,
    pub(crate) addresses: [IpAddr; 2],
    pub(crate) state: State,
}

/// What its entry in the EndpointSlices says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Ready.
    Serving,
    /// Terminating, and serving what it has.
    Draining,
    /// There is no entry.
    Removed,
}

/// The folder that the agents read.
#[derive(Debug)]
pub(crate) struct Examples {
    folder: Folder,
    files: Vec<(String, Vec<Value>)>,
}

impl Examples {
    /// Copies the files.
    pub(crate) fn copy() -> Result<Self> {
        let folder = Folder::new();
        let mut files = Vec::new();
        for entry in fs::read_dir(SOURCE).with_context(|| format!("cannot list {SOURCE}"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if Path::new(&name).extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let text =
                fs::read_to_string(Path::new(SOURCE).join(&name)).with_context(|| format!("cannot read {name}"))?;
            folder.write(&name, &text);
            let documents = serde_saphyr::from_multiple(&text).with_context(|| format!("{name} is no YAML"))?;
            files.push((name, documents));
        }
        ensure!(!files.is_empty(), "{SOURCE} holds no objects");
        files.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(Self { folder, files })
    }

    /// Number of Services.
    pub(crate) fn services(&self) -> usize {
        let documents = self.files.iter().flat_map(|(_, documents)| documents);
        documents.filter(|object| object["kind"] == "Service").count()
    }

    /// Where the agents find them.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes every EndpointSlice with these backends.
    pub(crate) fn set_backends(&self, backends: &[Backend]) {
        for (name, documents) in &self.files {
            if documents.iter().all(|object| object["kind"] != "EndpointSlice") {
                continue;
            }
            let written: Vec<String> = documents
                .iter()
                .map(|object| {
                    let object = with_backends(object, backends);
                    serde_saphyr::to_string(&object).expect("an object that was read from YAML")
                })
                .collect();
            self.folder.write(name, &written.join("---\n"));
        }
    }
}

/// An EndpointSlice with these backends; another object unchanged.
fn with_backends(object: &Value, backends: &[Backend]) -> Value {
    let mut object = object.clone();
    if object["kind"] == "EndpointSlice" {
        let family = usize::from(object["addressType"] == "IPv6");
        let present = backends.iter().filter(|backend| backend.state != State::Removed);
        object["endpoints"] = present.map(|backend| endpoint(backend, family)).collect();
    }
    object
}

fn endpoint(backend: &Backend, family: usize) -> Value {
    let draining = backend.state == State::Draining;
    json!({
        "addresses": [backend.addresses[family]],
        "nodeName": format!("node{}", backend.node),
        "conditions": { "ready": !draining, "serving": true, "terminating": draining },
        "targetRef": { "kind": "Pod", "namespace": "demo", "name": backend.name },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(name: &str, node: usize, host: u8, state: State) -> Backend {
        let addresses = [format!("10.244.{node}.{host}"), format!("fd00:10:244:{node}::{host}")];
        Backend {
            name: name.to_owned(),
            node,
            addresses: addresses.map(|address| address.parse().unwrap()),
            state,
        }
    }

    #[test]
    fn the_committed_slices_hold_the_backends_of_the_first_phase() {
        let backends = [
            backend("web-1", 1, 10, State::Serving),
            backend("web-2", 1, 11, State::Serving),
            backend("web-3", 2, 10, State::Serving),
        ];
        let examples = Examples::copy().unwrap();
        let objects = examples.files.iter().flat_map(|(_, documents)| documents);
        let slices: Vec<_> = objects.filter(|object| object["kind"] == "EndpointSlice").collect();
        assert_eq!(slices.len(), 2 * examples.services());
        for slice in slices {
            assert_eq!(with_backends(slice, &backends), *slice);
        }
    }

    #[test]
    fn a_draining_backend_is_terminating_and_a_removed_one_is_not_there() {
        let slice = json!({ "kind": "EndpointSlice", "addressType": "IPv6" });
        let backends = [backend("a", 1, 1, State::Draining), backend("b", 1, 2, State::Removed)];
        let endpoints = &with_backends(&slice, &backends)["endpoints"];
        assert_eq!(endpoints.as_array().unwrap().len(), 1);
        assert_eq!(endpoints[0]["addresses"], json!(["fd00:10:244:1::1"]));
        assert_eq!(
            endpoints[0]["conditions"],
            json!({ "ready": false, "serving": true, "terminating": true })
        );
    }
}
