//! An API server as far as the source asks: lists in pages, watches with history, streaming lists; and all that can go wrong.
//!
//! Every connection carries one request and ends with its answer. Objects are addressed by the path of their collection.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub(super) const SERVICES: &str = "/api/v1/services";
pub(super) const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub(super) const NODES: &str = "/api/v1/nodes";
pub(super) const RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";

/// What the server holds and how it behaves.
#[derive(Default)]
pub(super) struct Model {
    pub(super) version: u64,
    pub(super) objects: BTreeMap<&'static str, BTreeMap<String, Value>>,
    /// Events: version, collection, type, object.
    pub(super) history: Vec<(u64, &'static str, &'static str, Value)>,
    /// Watches from before this version are refused.
    pub(super) oldest: u64,
    /// Whether streaming lists are offered.
    pub(super) streaming: bool,
    /// Collections that are refused, and how.
    pub(super) refused: BTreeMap<&'static str, u16>,
    /// Collections whose requests are never answered.
    pub(super) silent: BTreeSet<&'static str>,
    /// How many streaming lists break off before their end.
    pub(super) cut: usize,
    /// How often all watches were ended, each with a bookmark.
    pub(super) ended: usize,
    /// Requests so far, without their host.
    pub(super) requests: Vec<String>,
    /// When the first of them came.
    pub(super) first_request: Option<Instant>,
}

impl Model {
    /// Writes an object.
    pub(super) fn put(&mut self, path: &'static str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let before = self
            .objects
            .entry(path)
            .or_default()
            .insert(name(&object), object.clone());
        let what = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.history.push((self.version, path, what, object));
    }

    /// Deletes an object.
    pub(super) fn delete(&mut self, path: &'static str, name: &str) {
        self.version += 1;
        let mut object = self.objects.entry(path).or_default().remove(name).expect("an object");
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.history.push((self.version, path, "DELETED", object));
    }

    /// Forgets all events, as a server that starts anew.
    pub(super) fn compact(&mut self) {
        self.history.clear();
        self.oldest = self.version;
    }

    /// How many requests hold both texts.
    pub(super) fn asked(&self, path: &str, what: &str) -> usize {
        self.requests
            .iter()
            .filter(|line| line.starts_with(path) && line.contains(what))
            .count()
    }
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().expect("a name").to_owned()
}

/// A listening server; dropped, it and all its connections end.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    model: Arc<Mutex<Model>>,
    stopped: Arc<AtomicBool>,
    listening: Option<thread::JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(model: Arc<Mutex<Model>>, address: &str) -> Self {
        let listener = TcpListener::bind(address).expect("a port");
        let address = listener.local_addr().expect("an address");
        let stopped = Arc::new(AtomicBool::new(false));
        let (shared, stop) = (Arc::clone(&model), Arc::clone(&stopped));
        let listening = thread::spawn(move || {
            for connection in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (model, stop) = (Arc::clone(&shared), Arc::clone(&stop));
                // Fails when the client has gone.
                thread::spawn(move || connection.and_then(|stream| serve(stream, &model, &stop)).ok());
            }
        });
        Self {
            address,
            model,
            stopped,
            listening: Some(listening),
        }
    }

    pub(super) fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().expect("a model")
    }

    /// Ends the server; the data stays.
    pub(super) fn stop(self) -> (Arc<Mutex<Model>>, String) {
        (Arc::clone(&self.model), self.address.to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Wakes the listener; when it has ended, its port is free.
        TcpStream::connect(self.address).ok();
        self.listening.take().and_then(|thread| thread.join().ok());
    }
}

fn serve(stream: TcpStream, model: &Mutex<Model>, stop: &AtomicBool) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? <= 2 {
            break;
        }
    }
    let mut stream = reader.into_inner();
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let path = [SERVICES, SLICES, NODES, RANGES]
        .into_iter()
        .find(|known| *known == path)
        .expect("a known path");
    let query: BTreeMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    let (refused, silent) = {
        let mut model = model.lock().expect("a model");
        model.requests.push(target.clone());
        model.first_request.get_or_insert_with(Instant::now);
        (model.refused.get(path).copied(), model.silent.contains(path))
    };
    if silent {
        while !stop.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
        return Ok(());
    }
    if let Some(code) = refused {
        return refuse(&mut stream, code);
    }
    if query.contains_key("watch") {
        watch(&mut stream, path, &query, model, stop)
    } else {
        list(&mut stream, path, &query, &model.lock().expect("a model"))
    }
}

fn status(code: u16) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "Test", "message": "as told" })
}

fn refuse(stream: &mut TcpStream, code: u16) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {code} No\r\nConnection: close\r\n\r\n{}",
        status(code)
    )
}

fn begin(stream: &mut TcpStream) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
}

/// Whether a request of this node is about the object: only the selector of one Node is honoured.
fn chosen(query: &BTreeMap<&str, &str>, object: &Value) -> bool {
    query
        .get("fieldSelector")
        .and_then(|selector| selector.strip_prefix("metadata.name%3D"))
        .is_none_or(|wanted| name(object) == wanted)
}

fn list(stream: &mut TcpStream, path: &str, query: &BTreeMap<&str, &str>, model: &Model) -> std::io::Result<()> {
    let limit: usize = query
        .get("limit")
        .map_or(usize::MAX, |limit| limit.parse().expect("a number"));
    // Small pages, whatever was asked for, so that a few objects make several.
    let limit = limit.min(2);
    let first: usize = query.get("continue").map_or(0, |token| token.parse().expect("a token"));
    let objects = model.objects.get(path).into_iter().flat_map(BTreeMap::values);
    let objects: Vec<&Value> = objects.filter(|object| chosen(query, object)).collect();
    let items = &objects[first..objects.len().min(first + limit)];
    let more = first + items.len() < objects.len();
    let go_on = if more {
        (first + limit).to_string()
    } else {
        String::new()
    };
    begin(stream)?;
    let metadata = json!({ "resourceVersion": model.version.to_string(), "continue": go_on });
    write!(
        stream,
        "{}",
        json!({ "kind": "List", "metadata": metadata, "items": items })
    )
}

fn watch(
    stream: &mut TcpStream,
    path: &str,
    query: &BTreeMap<&str, &str>,
    model: &Mutex<Model>,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let mut sent: u64 = query
        .get("resourceVersion")
        .map_or(0, |version| version.parse().unwrap_or(0));
    let streaming = query.contains_key("sendInitialEvents");
    let event = |what: &str, object: &Value| format!("{}\n", json!({ "type": what, "object": object }));
    let ended = model.lock().expect("a model").ended;
    {
        let mut model = model.lock().expect("a model");
        if streaming && !model.streaming {
            return refuse(stream, 422);
        }
        begin(stream)?;
        if streaming {
            let objects = model.objects.get(path).into_iter().flat_map(BTreeMap::values);
            for object in objects.filter(|object| chosen(query, object)) {
                write!(stream, "{}", event("ADDED", object))?;
            }
            if model.cut > 0 {
                model.cut -= 1;
                return Ok(());
            }
            sent = model.version;
            let annotations = json!({ "k8s.io/initial-events-end": "true" });
            let end = json!({ "metadata": { "resourceVersion": sent.to_string(), "annotations": annotations } });
            write!(stream, "{}", event("BOOKMARK", &end))?;
        } else if sent < model.oldest {
            return write!(stream, "{}", event("ERROR", &status(410)));
        }
    }
    while !stop.load(Ordering::Relaxed) {
        {
            let model = model.lock().expect("a model");
            let news = model
                .history
                .iter()
                .filter(|(version, of, ..)| *version > sent && *of == path);
            for (_, _, what, object) in news.filter(|(.., object)| chosen(query, object)) {
                write!(stream, "{}", event(what, object))?;
            }
            sent = model.version.max(sent);
            if model.ended > ended {
                let end = json!({ "metadata": { "resourceVersion": sent.to_string() } });
                return write!(stream, "{}", event("BOOKMARK", &end));
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
