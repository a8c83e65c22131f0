//! Many changes of objects in a short time: plain HTTP to kubectl's proxy, which adds address, encryption and credentials.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;

use serde_json::Value;

use super::process::Process;
use super::{ControlPlane, await_port};
use crate::netns::Netns;

/// Where the proxy listens.
const PROXY: &str = "127.0.0.1:8001";
/// Connections of [`Requests::create_all`].
const CONNECTIONS: usize = 16;

/// A running proxy with an administrator's rights; dropping it ends it.
#[derive(Debug)]
pub struct Requests {
    netns: Netns,
    _proxy: Process,
}

impl ControlPlane {
    /// Starts the proxy.
    #[track_caller]
    pub fn requests(&self) -> Requests {
        let address: SocketAddr = PROXY.parse().expect("an address");
        let flags = [
            "proxy".to_owned(),
            format!("--kubeconfig={}", self.kubeconfig("admin").display()),
            format!("--port={}", address.port()),
        ];
        let proxy = Process::start_as(&self.netns, "kubectl", "proxy", self.folder.path(), &flags);
        await_port(&self.netns, PROXY, "kubectl's proxy");
        Requests {
            netns: self.netns.clone(),
            _proxy: proxy,
        }
    }
}

impl Requests {
    /// Creates Services and EndpointSlices, many at once.
    #[track_caller]
    pub fn create_all(&self, objects: &[Value]) {
        Connection::spread(&self.netns, PROXY, CONNECTIONS, objects, Connection::create);
    }

    /// Opens one more connection, on which one request follows another.
    #[track_caller]
    pub fn connect(&self) -> Connection {
        Connection::open(&self.netns, PROXY)
    }
}

/// One HTTP connection: to the proxy, or to etcd.
#[derive(Debug)]
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    #[track_caller]
    pub(super) fn open(netns: &Netns, address: &str) -> Self {
        let stream = netns.run(|| TcpStream::connect(address));
        let stream = stream.unwrap_or_else(|error| panic!("{address}: {error}"));
        stream.set_nodelay(true).expect("a TCP socket");
        Self(BufReader::new(stream))
    }

    /// Deals objects out to several connections at once; `each` sends one.
    #[track_caller]
    pub(super) fn spread(
        netns: &Netns,
        address: &str,
        connections: usize,
        objects: &[Value],
        each: impl Fn(&mut Self, &Value) + Copy + Send,
    ) {
        let part = objects.len().div_ceil(connections).max(1);
        thread::scope(|scope| {
            for objects in objects.chunks(part) {
                scope.spawn(move || {
                    let mut connection = Self::open(netns, address);
                    for object in objects {
                        each(&mut connection, object);
                    }
                });
            }
        });
    }

    /// Creates a Service or an EndpointSlice.
    #[track_caller]
    pub fn create(&mut self, object: &Value) {
        self.must("POST", &collection(object), object);
    }

    /// Replaces one.
    #[track_caller]
    pub fn replace(&mut self, object: &Value) {
        let name = object["metadata"]["name"].as_str().expect("a name");
        self.must("PUT", &format!("{}/{name}", collection(object)), object);
    }

    #[track_caller]
    fn must(&mut self, method: &str, path: &str, object: &Value) {
        let (status, body) = self.ask(method, path, object).expect("kubectl's proxy");
        assert!(
            (200..300).contains(&status),
            "{method} {path}: {status} {}",
            String::from_utf8_lossy(&body)
        );
    }

    /// Status and body of the answer.
    pub(super) fn ask(&mut self, method: &str, path: &str, object: &Value) -> io::Result<(u16, Vec<u8>)> {
        let body = object.to_string();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.0.get_mut().write_all((head + &body).as_bytes())?;
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let mut length = None;
        loop {
            let line = self.line()?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(count) = line.strip_prefix("content-length:") {
                length = count.trim().parse().ok();
            }
        }
        let mut body = Vec::new();
        if let Some(length) = length {
            body.resize(length, 0);
            self.0.read_exact(&mut body)?;
        } else {
            self.chunks(&mut body)?;
        }
        Ok((status.ok_or(io::ErrorKind::InvalidData)?, body))
    }

    /// A body in chunks (RFC 9112 section 7.1).
    fn chunks(&mut self, body: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let size = usize::from_str_radix(&self.line()?, 16).map_err(io::Error::other)?;
            let mut chunk = vec![0; size];
            self.0.read_exact(&mut chunk)?;
            self.line()?;
            if size == 0 {
                return Ok(());
            }
            body.append(&mut chunk);
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

/// The path that a kind's objects are created at.
#[track_caller]
fn collection(object: &Value) -> String {
    let namespace = object["metadata"]["namespace"].as_str().expect("a namespace");
    match object["kind"].as_str() {
        Some("Service") => format!("/api/v1/namespaces/{namespace}/services"),
        Some("EndpointSlice") => format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"),
        kind => panic!("{kind:?} is not sent this way"),
    }
}
