//! What a user asked of the API server, from its audit log.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// One kind of request: the verb, the group and the resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// As in a Role: `list`, `watch` and so on.
    pub verb: String,
    /// Group and resource: `discovery.k8s.io/endpointslices`; a core one has no group.
    pub resource: String,
    /// Whether the server answered with a status below 400.
    pub allowed: bool,
}

/// How often `user` did what.
pub(super) fn uses(log: &Path, user: &str) -> BTreeMap<Use, usize> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let mut uses = BTreeMap::new();
    for line in text.lines() {
        // The last line may be half written.
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        if event["user"]["username"] != user {
            continue;
        }
        let told = |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let (group, resource) = (told("/objectRef/apiGroup"), told("/objectRef/resource"));
        let resource = if group.is_empty() {
            resource.to_owned()
        } else {
            format!("{group}/{resource}")
        };
        let code = event.pointer("/responseStatus/code").and_then(Value::as_u64);
        let one = Use {
            verb: told("/verb").to_owned(),
            resource,
            allowed: code.is_some_and(|code| code < 400),
        };
        *uses.entry(one).or_default() += 1;
    }
    uses
}
