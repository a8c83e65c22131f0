//! The folder source against real folders. Every wait is for a condition, with a deadline.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;
use tokio::time::advance;

use super::*;
use crate::model::ObjectKey;

const NODE: &str = "node-a";
/// Far longer than any wait should take, so that only a defect reaches it.
const DEADLINE: Duration = Duration::from_secs(20);

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: {port}}}]}}\n"
    )
}

/// A folder and a source on it.
struct World {
    root: TempDir,
    source: Source,
}

impl World {
    /// A source on a folder that exists and is empty.
    async fn new() -> Self {
        let mut world = Self::missing("services");
        fs::create_dir(world.folder()).unwrap();
        world.until(|state| state.synced && state.not_ready.is_none()).await;
        world
    }

    /// A source on a folder that does not exist.
    fn missing(folder: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let source = start(root.path().join(folder), NODE.into());
        Self { root, source }
    }

    fn folder(&self) -> PathBuf {
        self.root.path().join("services")
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.folder().join(file), text).unwrap();
    }

    async fn until(&mut self, reached: impl Fn(&SourceState) -> bool) -> Arc<SourceState> {
        until(&mut self.source, reached).await
    }

    async fn refresh(&self) -> Arc<SourceState> {
        timeout(DEADLINE, self.source.handle().refresh())
            .await
            .expect("the source answers")
            .unwrap()
    }
}

async fn until(source: &mut Source, reached: impl Fn(&SourceState) -> bool) -> Arc<SourceState> {
    let wait = async {
        let mut state = source.state();
        while !reached(&state) {
            state = source.changed().await.unwrap();
        }
        state
    };
    let reached = timeout(DEADLINE, wait).await;
    reached.unwrap_or_else(|late| panic!("{late}, the state is {:#?}", source.state()))
}

/// The Services as `NAME:PORT`.
fn services(state: &SourceState) -> Vec<String> {
    let shown = |(key, service): (&ObjectKey, &Arc<crate::model::ServiceObject>)| {
        format!("{}:{}", key.name, service.ports[0].port)
    };
    state.snapshot.services.iter().map(shown).collect()
}

#[tokio::test]
async fn all_kinds_of_files_are_read_and_others_ignored() {
    let world = World::new().await;
    world.write("a.yaml", &format!("{}---\n{}", service("a1", 1), service("a2", 2)));
    world.write("b.yml", &service("b", 3));
    world.write("c.json", r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"c"},"spec":{"clusterIP":"10.96.0.4","ports":[{"port":4}]}}"#);
    world.write(".hidden.yaml", &service("hidden", 5));
    world.write("..yaml", &service("hidden", 5));
    world.write("notes.txt", "no YAML: [");
    world.write("d.yaml~", "no YAML: [");
    fs::create_dir(world.folder().join("e.yaml")).unwrap();
    nix::unistd::mkfifo(&world.folder().join("f.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let state = world.refresh().await;
    assert_eq!(services(&state), ["a1:1", "a2:2", "b:3", "c:4"]);
    assert_eq!((&state.file_errors, &state.rejections), (&Vec::new(), &Vec::new()));
}

#[tokio::test]
async fn node_cidrs_slices_and_endpoints_are_read() {
    let world = World::new().await;
    world.write(
        "cluster.yaml",
        "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: node-b}}
- {apiVersion: v1, kind: Node, metadata: {name: node-a, labels: {topology.kubernetes.io/zone: z}}}
- {apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: kubernetes}, spec: {cidrs: [10.96.0.0/16]}}
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
  addressType: IPv4
  ports: [{port: 8080}]
  endpoints: [{addresses: [10.0.0.1]}]
- apiVersion: v1
  kind: Endpoints
  metadata: {name: db}
  subsets: [{addresses: [{ip: 10.0.0.2}], ports: [{port: 5432}]}]
",
    );
    let state = world.refresh().await;
    assert_eq!(
        state.snapshot.node.as_ref().and_then(|node| node.zone.as_deref()),
        Some("z")
    );
    assert_eq!(state.snapshot.service_cidrs, ["10.96.0.0/16".parse().unwrap()]);
    let slices: Vec<_> = state
        .snapshot
        .slices
        .values()
        .map(|slice| (&*slice.service, slice.ports[0].port))
        .collect();
    assert_eq!(slices, [("db", 5432), ("web", 8080)]);
}

#[tokio::test]
async fn changes_and_removals_are_noticed_without_asking() {
    let mut world = World::new().await;
    world.write("a.yaml", &service("a", 1));
    world.write("b.yaml", &service("b", 1));
    world.until(|state| services(state) == ["a:1", "b:1"]).await;
    world.write("a.yaml", &service("a", 2));
    world.until(|state| services(state) == ["a:2", "b:1"]).await;
    fs::remove_file(world.folder().join("b.yaml")).unwrap();
    world.until(|state| services(state) == ["a:2"]).await;
    fs::rename(world.folder().join("a.yaml"), world.folder().join("a.off")).unwrap();
    world.until(|state| services(state).is_empty()).await;
}

#[tokio::test]
async fn refresh_returns_everything_written_before_it_was_called() {
    let world = World::new().await;
    let mut last = world.refresh().await.generation;
    for port in 1..=50 {
        world.write("a.yaml", &service("a", port));
        let state = world.refresh().await;
        assert_eq!(services(&state), [format!("a:{port}")]);
        assert!(state.generation > last);
        last = state.generation;
        assert_eq!(world.refresh().await.generation, last, "nothing changed");
    }
}

#[tokio::test]
async fn file_that_is_touched_or_reformatted_is_no_new_generation() {
    let world = World::new().await;
    world.write("a.yaml", &service("a", 1));
    let before = world.refresh().await;
    world.write("a.yaml", &format!("# comment\n{}", service("a", 1)));
    assert_eq!(world.refresh().await, before);
}

#[tokio::test]
async fn mounted_config_map_is_followed_when_data_is_swapped() {
    let mut world = World::missing("services");
    let folder = world.folder();
    let version = |name: &str, files: &[(&str, String)]| {
        fs::create_dir_all(folder.join(name)).unwrap();
        for (file, text) in files {
            fs::write(folder.join(name).join(file), text).unwrap();
        }
        // As kubelet does: a new link beside the old one, renamed over it, then the links of the keys.
        symlink(name, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        for (file, _) in files {
            let link = folder.join(file);
            if fs::symlink_metadata(&link).is_err() {
                symlink(Path::new("..data").join(file), link).unwrap();
            }
        }
    };
    version("..2026_01", &[("a.yaml", service("a", 1)), ("b.yaml", service("b", 1))]);
    world.until(|state| services(state) == ["a:1", "b:1"]).await;
    version("..2026_02", &[("a.yaml", service("a", 2))]);
    fs::remove_dir_all(folder.join("..2026_01")).unwrap();
    // The link of the key that is gone leads nowhere.
    world.until(|state| services(state) == ["a:2"]).await;
    fs::remove_file(folder.join("b.yaml")).unwrap();
    version("..2026_03", &[("a.yaml", service("a", 3)), ("c.yaml", service("c", 3))]);
    let state = world.until(|state| services(state) == ["a:3", "c:3"]).await;
    assert_eq!(state.file_errors, []);
}

#[tokio::test]
async fn file_that_cannot_be_parsed_keeps_its_last_good_objects_and_others_apply() {
    let world = World::new().await;
    world.write("a.yaml", &service("a", 1));
    world.write("b.yaml", &service("b", 1));
    world.refresh().await;
    world.write(
        "a.yaml",
        &format!("{}---\n{}  bad: [\n", service("a", 2), service("a3", 2)),
    );
    world.write("b.yaml", &service("b", 2));
    let state = world.refresh().await;
    assert_eq!(services(&state), ["a:1", "b:2"]);
    let [error] = &state.file_errors[..] else {
        panic!("{:?}", state.file_errors)
    };
    assert_eq!((&*error.file, error.line), ("a.yaml", Some(10)));
    world.write("a.yaml", &service("a", 3));
    let state = world.refresh().await;
    assert_eq!(
        (services(&state), state.file_errors.len()),
        (vec!["a:3".to_owned(), "b:2".to_owned()], 0)
    );
}

#[tokio::test]
async fn file_that_was_never_good_is_an_error_until_it_is_removed() {
    let world = World::new().await;
    fs::write(world.folder().join("a.yaml"), b"\xff\xfe\x00").unwrap();
    let state = world.refresh().await;
    assert!(state.synced && state.file_errors.len() == 1 && state.file_errors[0].line.is_none());
    fs::remove_file(world.folder().join("a.yaml")).unwrap();
    assert_eq!(world.refresh().await.file_errors, []);
}

#[tokio::test]
async fn file_that_is_too_large_is_an_error_and_never_read() {
    let world = World::new().await;
    let sparse = File::create(world.folder().join("a.yaml")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    drop(sparse);
    let state = world.refresh().await;
    assert!(
        state.file_errors[0].reason.contains("larger than 128 MiB"),
        "{:?}",
        state.file_errors
    );
}

#[tokio::test]
async fn object_of_the_wrong_types_is_rejected_alone_and_keeps_its_last_good_form() {
    let world = World::new().await;
    let both = |port: &str| {
        format!(
            "{}---\n{}",
            service("a", 1).replace("port: 1", &format!("port: {port}")),
            service("b", 1)
        )
    };
    world.write("a.yaml", &both("1"));
    world.refresh().await;
    for wrong in ["eighty", "[80]"] {
        world.write("a.yaml", &both(wrong).replace("b}", "c}"));
        let state = world.refresh().await;
        assert_eq!(services(&state), ["a:1", "c:1"]);
        let rejection = &state.rejections[0];
        assert_eq!(
            (&*rejection.object.name, &*rejection.field),
            ("a", "spec.ports[0].port")
        );
        assert!(rejection.reason.ends_with("stays in force"), "{rejection}");
        assert_eq!(state.file_errors, []);
    }
    world.write("a.yaml", &both("2"));
    let state = world.refresh().await;
    assert_eq!(
        (services(&state), state.rejections.len()),
        (vec!["a:2".to_owned(), "b:1".to_owned()], 0)
    );
}

#[tokio::test]
async fn object_in_two_files_is_that_of_the_first_by_name() {
    let world = World::new().await;
    world.write("2.yaml", &service("a", 2));
    world.write("1.yaml", &service("a", 1));
    let state = world.refresh().await;
    assert_eq!(services(&state), ["a:1"]);
    assert_eq!(state.rejections.len(), 1);
    assert_eq!(state.rejections[0].object.to_string(), "Service default/a");
    assert!(state.rejections[0].reason.contains("1.yaml") && state.rejections[0].reason.contains("2.yaml"));
    fs::remove_file(world.folder().join("1.yaml")).unwrap();
    let state = world.refresh().await;
    assert_eq!((services(&state), state.rejections.len()), (vec!["a:2".to_owned()], 0));
}

#[tokio::test]
async fn object_twice_in_one_file_is_the_first() {
    let world = World::new().await;
    world.write("1.yaml", &format!("{}---\n{}", service("a", 1), service("a", 2)));
    let state = world.refresh().await;
    assert_eq!((services(&state), state.rejections.len()), (vec!["a:1".to_owned()], 1));
}

#[tokio::test]
async fn missing_folder_is_reported_and_read_once_it_is_there() {
    let mut world = World::missing("deep/er/services");
    let state = world.refresh().await;
    assert!(
        !state.synced
            && state
                .not_ready
                .as_ref()
                .is_some_and(|reason| reason.contains("deep/er/services"))
    );
    let folder = world.root.path().join("deep/er/services");
    fs::create_dir_all(&folder).unwrap();
    world.until(|state| state.synced && state.not_ready.is_none()).await;
    fs::write(folder.join("a.yaml"), service("a", 1)).unwrap();
    world.until(|state| services(state) == ["a:1"]).await;
}

#[tokio::test]
async fn removed_folder_keeps_the_last_good_state_until_it_is_back() {
    let mut world = World::new().await;
    world.write("a.yaml", &service("a", 1));
    world.until(|state| services(state) == ["a:1"]).await;
    fs::rename(world.folder(), world.root.path().join("old")).unwrap();
    let state = world.until(|state| state.not_ready.is_some()).await;
    assert!(state.synced);
    assert_eq!(services(&state), ["a:1"]);
    // What happens to the folder under its old name is no more of interest.
    fs::write(world.root.path().join("old/b.yaml"), service("b", 1)).unwrap();
    assert_eq!(services(&*world.refresh().await), ["a:1"]);

    let staged = world.root.path().join("staged");
    fs::create_dir(&staged).unwrap();
    fs::write(staged.join("c.yaml"), service("c", 1)).unwrap();
    fs::rename(&staged, world.folder()).unwrap();
    world
        .until(|state| state.not_ready.is_none() && services(state) == ["c:1"])
        .await;
    world.write("c.yaml", &service("c", 2));
    world.until(|state| services(state) == ["c:2"]).await;
}

#[tokio::test]
async fn folder_that_is_a_symbolic_link_is_followed_when_it_is_swapped() {
    let mut world = World::missing("services");
    for (version, port) in [("v1", 1), ("v2", 2)] {
        fs::create_dir(world.root.path().join(version)).unwrap();
        fs::write(world.root.path().join(version).join("a.yaml"), service("a", port)).unwrap();
        symlink(version, world.root.path().join("new")).unwrap();
        fs::rename(world.root.path().join("new"), world.folder()).unwrap();
        world.until(|state| services(state) == [format!("a:{port}")]).await;
    }
}

#[tokio::test]
async fn file_that_is_being_written_keeps_its_objects_until_it_is_closed() {
    let mut world = World::new().await;
    world.write("a.yaml", &service("a", 1));
    world.until(|state| services(state) == ["a:1"]).await;
    // Truncates, as a shell does for `generate > a.yaml`.
    let mut file = File::create(world.folder().join("a.yaml")).unwrap();
    world.write("b.yaml", &service("b", 1));
    assert_eq!(services(&*world.refresh().await), ["a:1", "b:1"]);
    file.write_all(service("a", 2).as_bytes()).unwrap();
    assert_eq!(services(&*world.refresh().await), ["a:1", "b:1"]);
    drop(file);
    assert_eq!(services(&*world.refresh().await), ["a:2", "b:1"]);
}

#[tokio::test(start_paused = true)]
async fn file_that_is_kept_open_counts_as_written_after_a_while() {
    let world = World::new().await;
    let mut file = File::create(world.folder().join("a.yaml")).unwrap();
    file.write_all(service("a", 1).as_bytes()).unwrap();
    assert_eq!(services(&*world.refresh().await), [""; 0]);
    advance(Duration::from_secs(6)).await;
    assert_eq!(services(&*world.refresh().await), ["a:1"]);
}

#[tokio::test(start_paused = true)]
async fn without_inotify_the_folder_is_read_once_a_second() {
    let root = tempfile::tempdir().unwrap();
    let mut source = spawn(root.path().to_owned(), NODE.into(), None);
    until(&mut source, |state| state.synced).await;
    fs::write(root.path().join("a.yaml"), service("a", 1)).unwrap();
    let before = now();
    until(&mut source, |state| services(state) == ["a:1"]).await;
    assert!(now() - before <= Duration::from_secs(2));
}

#[tokio::test]
async fn task_ends_with_the_last_handle() {
    let World { root, source } = World::new().await;
    let handle = source.handle();
    drop(source);
    assert!(handle.refresh().await.is_ok());
    let mut states = handle.states.clone();
    drop(handle);
    let ended = timeout(DEADLINE, async { while states.changed().await.is_ok() {} }).await;
    assert_eq!(ended, Ok(()));
    drop(root);
}
