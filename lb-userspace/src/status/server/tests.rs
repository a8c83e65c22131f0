//! The protocol over a real socket: answers, bounds, waits, replaced sockets.

use super::*;
use crate::status::report::{Agent, MAX_LISTED, TableFill};
use crate::status::{ClientError, ask};
use std::io::{BufRead as _, Read as _, Write as _};
use std::os::unix::net::UnixStream as Blocking;
use tokio::sync::watch;

struct Fake {
    generation: watch::Sender<u64>,
}

impl Answers for Fake {
    fn report(&self) -> Report {
        let tables = vec![TableFill {
            name: "services".to_owned(),
            used: 1,
            capacity: 2,
            bytes: 3,
        }];
        Report {
            agent: Some(Agent {
                pid: 7,
                ..Agent::default()
            }),
            ready: true,
            tables,
            ..Report::default()
        }
    }

    fn services(&self, filter: &ServiceFilter) -> Vec<ServiceItem> {
        let item = |name: &str| ServiceItem {
            namespace: "a".to_owned(),
            name: name.to_owned(),
            ..ServiceItem::default()
        };
        ["x", "y"]
            .map(item)
            .into_iter()
            .filter(|s| filter.admits(&s.namespace, &s.name))
            .collect()
    }

    async fn programmed(&self) -> u64 {
        *self
            .generation
            .subscribe()
            .wait_for(|g| *g > 0)
            .await
            .expect("sender lives")
    }

    fn pending(&self) -> String {
        "nothing came".to_owned()
    }
}

struct World {
    folder: tempfile::TempDir,
    fake: Arc<Fake>,
    runtime: tokio::runtime::Runtime,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fake = Arc::new(Fake {
            generation: watch::Sender::new(0),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let world = Self { folder, fake, runtime };
        world.serve();
        world
    }

    fn serve(&self) -> tokio::task::JoinHandle<()> {
        let _inside = self.runtime.enter();
        let server = Server::bind(self.folder.path()).unwrap();
        self.runtime.spawn(server.serve(Arc::clone(&self.fake)))
    }

    fn ask(&self, request: &Request) -> Result<Vec<Item>, ClientError> {
        let mut items = Vec::new();
        ask(self.folder.path(), request, |item| items.push(item)).map(|()| items)
    }

    fn raw(&self, request: &[u8]) -> String {
        let mut stream = Blocking::connect(self.folder.path().join(SOCKET)).unwrap();
        stream.write_all(request).unwrap();
        let mut line = String::new();
        io::BufReader::new(stream).read_line(&mut line).unwrap();
        line
    }
}

#[test]
fn the_report_arrives_as_it_was_given() {
    let world = World::new();
    assert_eq!(
        world.ask(&Request::Status).unwrap(),
        [Item::Report(Box::new(world.fake.report()))]
    );
}

#[test]
fn services_arrive_one_by_one_and_filtered() {
    let world = World::new();
    assert_eq!(
        world.ask(&Request::Services(ServiceFilter::default())).unwrap().len(),
        2
    );
    let filter = ServiceFilter {
        name: Some("y".to_owned()),
        ..ServiceFilter::default()
    };
    let items = world.ask(&Request::Services(filter)).unwrap();
    assert!(matches!(&items[..], [Item::Service(s)] if s.name == "y"), "{items:?}");
}

#[test]
fn wait_returns_when_programmed() {
    let world = World::new();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| world.ask(&Request::Wait { seconds: 60 }));
        world.fake.generation.send_replace(5);
        assert_eq!(waiter.join().unwrap().unwrap(), [Item::Programmed { generation: 5 }]);
    });
}

#[test]
fn wait_fails_at_its_time_and_says_what_is_missing() {
    let error = World::new().ask(&Request::Wait { seconds: 0 }).unwrap_err();
    assert_eq!(error.to_string(), "not programmed after 0 s: nothing came");
}

#[test]
fn only_the_owner_may_use_the_socket() {
    let world = World::new();
    let mode = fs::metadata(world.folder.path().join(SOCKET))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_request_that_is_too_long_or_unknown_is_refused() {
    let world = World::new();
    assert!(
        world
            .raw(&vec![b'x'; MAX_REQUEST])
            .contains("one line of at most 4096 bytes")
    );
    assert!(world.raw(b"{\"reboot\":{}}\n").contains("request not understood"));
    assert!(world.raw(b"\"status\"\n").contains("\"pid\":7"));
}

#[test]
fn more_clients_than_places_are_told_so_and_places_come_back() {
    let world = World::new();
    let mut waiting = Vec::new();
    for _ in 0..MAX_CLIENTS {
        let mut stream = Blocking::connect(world.folder.path().join(SOCKET)).unwrap();
        stream.write_all(b"{\"wait\":{\"seconds\":60}}\n").unwrap();
        waiting.push(stream);
    }
    assert!(matches!(world.ask(&Request::Status), Err(ClientError::Refused(m)) if m.contains("too many clients")));
    drop(waiting);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while let Err(error) = world.ask(&Request::Status) {
        assert!(std::time::Instant::now() < deadline, "{error}");
        std::thread::yield_now();
    }
}

#[test]
fn a_new_agent_takes_over_the_socket_of_a_dead_one() {
    let world = World::new();
    world.serve();
    assert!(world.ask(&Request::Status).is_ok());
}

#[test]
fn without_an_agent_the_client_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = |path: &Path| ask(path, &Request::Status, |_| {}).unwrap_err();
    assert!(matches!(nobody(folder.path()), ClientError::NoAgent { .. }));
    assert!(matches!(
        nobody(&folder.path().join("absent")),
        ClientError::NoAgent { .. }
    ));
    drop(std::os::unix::net::UnixListener::bind(folder.path().join(SOCKET)).unwrap());
    assert!(matches!(nobody(folder.path()), ClientError::NoAgent { .. }));
}

#[test]
fn a_long_run_folder_works() {
    let folder = tempfile::tempdir().unwrap();
    let long = folder.path().join("x".repeat(120));
    fs::create_dir(&long).unwrap();
    let world = World::new();
    let _inside = world.runtime.enter();
    let server = Server::bind(&long).unwrap();
    world.runtime.spawn(server.serve(Arc::clone(&world.fake)));
    assert!(ask(&long, &Request::Status, |_| {}).is_ok());
}

#[test]
fn long_lists_are_cut_and_counted() {
    let listed: crate::status::report::Listed<u32> = (0..5000).collect();
    assert_eq!((listed.total, listed.items.len()), (5000, MAX_LISTED));
}

#[test]
fn a_silent_client_loses_its_place() {
    let world = World::new();
    let mut stream = Blocking::connect(world.folder.path().join(SOCKET)).unwrap();
    stream.set_read_timeout(Some(LINE_LIMIT * 2)).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}
