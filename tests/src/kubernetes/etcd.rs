//! etcd behind the API server's back, through its HTTP gateway (JSON, keys and values in base64).
//!
//! In: objects that no API server would take, as old data or a broken controller may have left them; and the wish that history is
//! forgotten. Errors: etcd refuses, which panics.

use serde_json::{Value, json};

use super::ControlPlane;
use super::requests::Connection;

/// Where etcd listens.
pub(super) const ADDRESS: &str = "127.0.0.1:2379";
/// Connections of [`ControlPlane::store`].
const CONNECTIONS: usize = 8;

impl ControlPlane {
    /// Stores Services and EndpointSlices, whether the API server would take them or not; it hands them out as they are. That is also a
    /// quick way to have many: an API server needs many times as long to take one.
    #[track_caller]
    pub fn store(&self, objects: &[Value]) {
        Connection::spread(&self.netns, ADDRESS, CONNECTIONS, objects, |connection, object| {
            let (key, value) = (base64(key(object).as_bytes()), base64(object.to_string().as_bytes()));
            ask(connection, "put", &json!({ "key": key, "value": value }));
        });
    }

    /// Has etcd forget what was before now: nobody can follow objects from an earlier version any more.
    #[track_caller]
    pub fn compact(&self) {
        let mut connection = Connection::open(&self.netns, ADDRESS);
        let found = ask(&mut connection, "range", &json!({ "key": base64(b"/"), "limit": "1" }));
        let now = &found["header"]["revision"];
        ask(
            &mut connection,
            "compaction",
            &json!({ "revision": now, "physical": true }),
        );
    }
}

/// Where the API server looks for an object.
#[track_caller]
fn key(object: &Value) -> String {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).expect("text");
    let folder = match text("/kind") {
        "Service" => "services/specs",
        "EndpointSlice" => "endpointslices",
        kind => panic!("{kind} is not stored this way"),
    };
    let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
    format!("/registry/{folder}/{namespace}/{name}")
}

#[track_caller]
fn ask(connection: &mut Connection, what: &str, request: &Value) -> Value {
    let path = format!("/v3/kv/{what}");
    let (status, body) = connection.ask("POST", &path, request).expect("etcd");
    let body = String::from_utf8_lossy(&body).into_owned();
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error} in {body}"))
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let bits = part.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - part.len()));
        for digit in 0..4 {
            let at = (bits >> (18 - 6 * digit)) as usize & 63;
            text.push(if digit > part.len() { '=' } else { DIGITS[at].into() });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
