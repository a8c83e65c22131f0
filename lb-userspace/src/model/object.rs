//! Names of Kubernetes objects, and the report of what is wrong with one.
//!
//! A [`Rejection`] is produced wherever a field cannot be used, by the conversions (one object alone) and by
//! [`super::build()`] (objects against each other). It names the object, the field as a JSON path and the way out, and
//! it never stops anything else: the caller leaves the smallest useful part out and goes on.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Namespace and name of a namespaced object; orders by namespace, then name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name within the namespace.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// Builds a key from plain text.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The kinds that the model reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectKind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Endpoints, read only where no mirroring controller runs.
    Endpoints,
    /// `v1` Node.
    Node,
    /// `networking.k8s.io/v1` ServiceCIDR.
    ServiceCIDR,
}

impl ObjectKind {
    /// The kind as the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Endpoints => "Endpoints",
            Self::Node => "Node",
            Self::ServiceCIDR => "ServiceCIDR",
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which object a [`Rejection`] is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectRef {
    /// The kind.
    pub kind: ObjectKind,
    /// The namespace; empty for a kind without namespaces.
    pub namespace: String,
    /// The name; empty when the object has none.
    pub name: String,
}

impl ObjectRef {
    /// A reference to the namespaced object `key`.
    pub fn namespaced(kind: ObjectKind, key: &ObjectKey) -> Self {
        Self {
            kind,
            namespace: key.namespace.as_ref().into(),
            name: key.name.as_ref().into(),
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// A part of an object that is not programmed, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rejection {
    /// The object.
    pub object: ObjectRef,
    /// JSON path of the field, such as `spec.ports[0].nodePort`.
    pub field: String,
    /// What is wrong and how to fix it, for a person.
    pub reason: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.reason)
    }
}

/// Collects the rejections of one object; the reference is only built when one is made.
pub(super) struct Report<'a> {
    kind: ObjectKind,
    namespace: &'a str,
    name: &'a str,
    rejections: &'a mut Vec<Rejection>,
}

impl<'a> Report<'a> {
    pub(super) fn new(kind: ObjectKind, namespace: &'a str, name: &'a str, rejections: &'a mut Vec<Rejection>) -> Self {
        Self {
            kind,
            namespace,
            name,
            rejections,
        }
    }

    pub(super) fn reject(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.rejections.push(Rejection {
            object: ObjectRef {
                kind: self.kind,
                namespace: self.namespace.into(),
                name: self.name.into(),
            },
            field: field.into(),
            reason: reason.into(),
        });
    }

    /// Checks `metadata.name` (and the namespace, when there is one), since both end in terminals and file names.
    pub(super) fn name_is_valid(&mut self) -> bool {
        let wrong = |text: &str| text.is_empty() || text.len() > MAX_NAME || !text.bytes().all(is_name_byte);
        if wrong(self.name) {
            let reason = format!("{} is not an object name; {NAME_RULE}", quoted(self.name));
            self.reject("metadata.name", reason);
            return false;
        }
        if self.kind_has_namespace() && wrong(self.namespace) {
            let reason = format!("{} is not a namespace; {NAME_RULE}", quoted(self.namespace));
            self.reject("metadata.namespace", reason);
            return false;
        }
        true
    }

    fn kind_has_namespace(&self) -> bool {
        !matches!(self.kind, ObjectKind::Node | ObjectKind::ServiceCIDR)
    }
}

/// The longest name that Kubernetes allows (RFC 1123 subdomain), in bytes.
const MAX_NAME: usize = 253;
const NAME_RULE: &str = "use at most 253 lower-case letters, digits, '-' and '.'";

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.'
}

/// Text of an object for a message: quoted, control characters escaped, cut to a line's length.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}
