//! The real kubectl, as an administrator: create, change and delete objects, and wait for the controllers.

use std::io::Write as _;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::{ControlPlane, asset};
use crate::assert::eventually;
use crate::objects::Manifest;

/// How long controllers may take.
const CONTROLLERS: Duration = Duration::from_secs(30);

impl ControlPlane {
    /// Runs kubectl as one of the users, with `input`.
    #[track_caller]
    pub(super) fn kubectl_as(&self, user: &str, arguments: &[&str], input: &str) -> Output {
        let mut child = self
            .netns
            .command(asset("kubectl"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig(user))
            .arg("--cache-dir")
            .arg(self.folder.path().join("kubectl-cache"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start kubectl: {error}"));
        // One that stops reading early has failed, and says why itself.
        child
            .stdin
            .take()
            .and_then(|mut stdin| stdin.write_all(input.as_bytes()).ok());
        child
            .wait_with_output()
            .unwrap_or_else(|error| panic!("wait for kubectl: {error}"))
    }

    /// Runs kubectl, which must succeed, and returns what it printed.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> String {
        let user = if self.second.is_some() { "second" } else { "admin" };
        let output = self.kubectl_as(user, arguments, input);
        assert!(
            output.status.success(),
            "kubectl {arguments:?}: {}\n{input}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Creates an object, with its status.
    #[track_caller]
    pub fn create(&self, object: &impl Manifest) {
        self.create_json(&object.to_json());
    }

    /// Creates an object, with its status.
    #[track_caller]
    pub fn create_json(&self, object: &Value) {
        self.kubectl(&["create", "--validate=false", "-f", "-"], &object.to_string());
        let status = &object["status"];
        if !status.is_null() {
            self.patch_status(object, &json!({ "status": status }));
        }
    }

    /// Creates many objects, with their status, by several kubectl at once: each is held to 50 requests a second.
    #[track_caller]
    pub fn create_all(&self, objects: &[Value]) {
        const AT_ONCE: usize = 4;
        let with_status: Vec<Value> = objects
            .iter()
            .filter(|object| !object["status"].is_null())
            .cloned()
            .collect();
        let send = |objects: &[Value], arguments: &[&str]| {
            let share = objects.len().div_ceil(AT_ONCE).max(1);
            std::thread::scope(|scope| {
                for part in objects.chunks(share) {
                    let list = json!({ "apiVersion": "v1", "kind": "List", "items": part }).to_string();
                    scope.spawn(move || self.kubectl(arguments, &list));
                }
            });
        };
        send(objects, &["create", "--validate=false", "-f", "-"]);
        send(
            &with_status,
            &["replace", "--validate=false", "--subresource=status", "-f", "-"],
        );
    }

    /// Changes the status of an object by a merge patch.
    #[track_caller]
    pub fn patch_status(&self, object: &Value, patch: &Value) {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or("default");
        let (kind, name, namespace) = (text("/kind"), text("/metadata/name"), text("/metadata/namespace"));
        let patch = patch.to_string();
        self.kubectl(
            &[
                "patch",
                kind,
                name,
                "-n",
                namespace,
                "--subresource=status",
                "--type=merge",
                "-p",
                &patch,
            ],
            "",
        );
    }

    /// Replaces an object, its status left alone.
    #[track_caller]
    pub fn replace(&self, object: &impl Manifest) {
        self.kubectl(&["replace", "--validate=false", "-f", "-"], &object.to_yaml());
    }

    /// Changes an object of the namespace `default` by a merge patch.
    #[track_caller]
    pub fn patch(&self, kind: &str, name: &str, patch: &Value) {
        self.kubectl(&["patch", kind, name, "--type=merge", "-p", &patch.to_string()], "");
    }

    /// Deletes an object of the namespace `default`.
    #[track_caller]
    pub fn delete(&self, kind: &str, name: &str) {
        self.kubectl(&["delete", kind, name, "--wait=false"], "");
    }

    /// Reads an object of the namespace `default`.
    #[track_caller]
    pub fn get(&self, kind: &str, name: &str) -> Value {
        let text = self.kubectl(&["get", kind, name, "-o", "json"], "");
        serde_json::from_str(&text).expect("JSON of kubectl")
    }

    /// Waits until the controllers' slices of a Service of the namespace `default` have exactly these addresses.
    #[track_caller]
    pub fn await_slices(&self, service: &str, addresses: &[String]) {
        let selector = format!("kubernetes.io/service-name={service}");
        let mut expected = addresses.to_vec();
        expected.sort();
        eventually(CONTROLLERS, &format!("slices of {service} hold {expected:?}"), || {
            let text = self.kubectl(&["get", "endpointslices", "-l", &selector, "-o", "json"], "");
            let list: Value = serde_json::from_str(&text).expect("JSON of kubectl");
            let slices = list["items"].as_array().into_iter().flatten();
            let mut found: Vec<String> = slices
                .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten())
                .filter_map(|endpoint| endpoint["addresses"][0].as_str().map(str::to_owned))
                .collect();
            found.sort();
            if found == expected {
                Ok(())
            } else {
                Err(format!("they hold {found:?}"))
            }
        });
    }
}
