//! Precedence of the layers, and what wrong values are answered with.

use super::*;
use std::io::Write as _;

fn layer(values: &[(&'static str, &[&str])]) -> Layer {
    let values = values.iter();
    values
        .map(|(flag, v)| (*flag, (Place::Flag(flag), v.iter().map(|s| (*s).to_owned()).collect())))
        .collect()
}

fn file(body: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "apiVersion: {API_VERSION}\nkind: {KIND}\n{body}").unwrap();
    file
}

fn no_variable(_: &str) -> Option<String> {
    None
}

fn config(values: &[(&'static str, &[&str])]) -> Result<Config, ConfigErrors> {
    let mut arguments = layer(&[("folder", &["/objects"])]);
    arguments.extend(layer(values));
    Config::validate(&gather(arguments, None, no_variable).unwrap(), Some("Node-1"))
}

#[track_caller]
fn wrong(flag: &'static str, value: &str, message: &str) {
    let errors = config(&[(flag, &[value])]).unwrap_err();
    assert_eq!(errors.to_string(), message);
}

#[test]
fn defaults_are_those_that_the_help_names() {
    let config = config(&[]).unwrap();
    assert_eq!(config.source, Source::Folder("/objects".into()));
    assert_eq!(config.node_name, "node-1");
    assert_eq!(config.flow_entries, lb_common::layout::FLOW_SETS);
    assert_eq!(config.snat_ports, 1024..=29999);
    assert_eq!(config.nodeport_addresses, NodePortAddresses::Primary);
    assert_eq!(config.timeouts.tcp_established, Duration::from_hours(24));
    assert!(config.ping && !config.takeover);
    assert_eq!(config.places.pin_dir, Path::new("/sys/fs/bpf/steerway"));
    assert_eq!(config.select_seed, u64::from_be_bytes(*b"Steerway"));
}

#[test]
fn arguments_win_over_environment_over_file_over_default() {
    let file = file("nodeName: from-file\nanswerRate: 7\ntakeover: true\nfolder: /file\n");
    let variable = |name: &str| match name {
        "STEERWAY_CONFIG" => Some(file.path().to_str().unwrap().to_owned()),
        "STEERWAY_NODE_NAME" => Some("from-env".to_owned()),
        "STEERWAY_ANSWER_RATE" => Some("8".to_owned()),
        _ => None,
    };
    let settings = gather(layer(&[("node-name", &["from-args"])]), None, variable).unwrap();
    let config = Config::validate(&settings, None).unwrap();
    assert_eq!(config.node_name, "from-args");
    assert_eq!(config.answer_rate, 8);
    assert!(config.takeover);
    assert_eq!(config.source, Source::Folder("/file".into()));
    assert_eq!(config.flow_entries, 1 << 18);
}

#[test]
fn a_list_of_a_stronger_layer_replaces_the_weaker_whole() {
    let file = file("folder: /f\nuplink: [eth0, eth1]\n");
    let arguments = layer(&[("uplink", &["en*,bond0", "wan"])]);
    let settings = gather(arguments, Some(file.path()), no_variable).unwrap();
    let found = Config::validate(&settings, Some("n")).unwrap().interfaces.uplink;
    assert_eq!(found, ["en*", "bond0", "wan"]);
}

#[test]
fn false_on_the_command_line_overrides_true_in_the_file() {
    let file = file("folder: /f\ntakeover: true\n");
    let settings = gather(layer(&[("takeover", &["false"])]), Some(file.path()), no_variable).unwrap();
    assert!(!Config::validate(&settings, Some("n")).unwrap().takeover);
}

#[test]
fn wrong_values_name_place_value_and_fix() {
    wrong(
        "flow-entries",
        "1000000",
        "--flow-entries: \"1000000\" is wrong: use a power of two from 1024 to 16777216, for example 1048576",
    );
    wrong(
        "cluster-cidr",
        "10.0.0.1/8",
        "--cluster-cidr: \"10.0.0.1/8\" is wrong: bits are set behind the prefix; use 10.0.0.0/8",
    );
    wrong(
        "xdp",
        "yes",
        "--xdp: \"yes\" is wrong: use auto or native or generic or off",
    );
    wrong("attach", "xdp", "--attach: \"xdp\" is wrong: use auto or tcx or clsact");
    wrong(
        "udp-replied-timeout",
        "2 min",
        "--udp-replied-timeout: \"2 min\" is wrong: use a time from 1s to 20d, for example 30s, 2m, 24h",
    );
    wrong(
        "snat-ports",
        "30000-20000",
        "--snat-ports: \"30000-20000\" is wrong: use FIRST-LAST with at least 64 ports between 1024 and 65535, for example 1024-29999",
    );
    wrong(
        "nodeport-addresses",
        "primary,::/0",
        "--nodeport-addresses: \"primary,::/0\" is wrong: use either primary alone or prefixes",
    );
    wrong(
        "healthz-bind-address",
        "10256",
        "--healthz-bind-address: \"10256\" is wrong: use ADDRESS:PORT, for example 0.0.0.0:10256 or [::]:10256, or none",
    );
    wrong("takeover", "yes", "--takeover: \"yes\" is wrong: use true or false");
}

#[test]
fn pod_ranges_are_told_to_have_no_effect_wherever_they_stand() {
    let told = |settings: &Settings| {
        let config = Config::validate(settings, Some("n")).unwrap();
        let told = config
            .unused
            .iter()
            .map(|one| (one.place.to_string(), one.value.clone()));
        told.collect::<Vec<_>>()
    };
    let ours = file("folder: /f\nclusterCidr: [10.0.0.0/8, fd00::/48]\n");
    let of_file = gather(Layer::new(), Some(ours.path()), no_variable).unwrap();
    let place = format!("field clusterCidr in {}", ours.path().display());
    assert_eq!(told(&of_file), [(place, "10.0.0.0/8,fd00::/48".to_owned())]);
    let flag = layer(&[("cluster-cidr", &["10.0.0.0/8"])]);
    let of_flag = gather(flag, Some(ours.path()), no_variable).unwrap();
    assert_eq!(told(&of_flag), [("--cluster-cidr".to_owned(), "10.0.0.0/8".to_owned())]);
    let mut theirs = tempfile::NamedTempFile::new().unwrap();
    write!(theirs, "apiVersion: {}\nkind: {}\nclusterCIDR: 10.0.0.0/8\ndetectLocalMode: NodeCIDR\nclientConnection: {{kubeconfig: /k}}\n", kube_proxy::API_VERSION, kube_proxy::KIND).unwrap();
    let of_theirs = gather(Layer::new(), Some(theirs.path()), no_variable).unwrap();
    let place = |field: &str| format!("field {field} in {}", theirs.path().display());
    assert_eq!(
        told(&of_theirs),
        [
            (place("detectLocalMode"), "NodeCIDR".to_owned()),
            (place("clusterCIDR"), "10.0.0.0/8".to_owned()),
        ]
    );
}

#[test]
fn a_wrong_value_of_environment_and_file_names_its_place() {
    let file = file("folder: /f\nanswerRate: many\n");
    let variable = |name: &str| (name == "STEERWAY_LOG_LEVEL").then(|| "loud".to_owned());
    let settings = gather(Layer::new(), Some(file.path()), variable).unwrap();
    let text = Config::validate(&settings, Some("n")).unwrap_err().to_string();
    let path = file.path().display();
    assert_eq!(
        text,
        format!(
            "field answerRate in {path}: \"many\" is wrong: use a number from 1 to 1000000\n\
             environment variable STEERWAY_LOG_LEVEL: \"loud\" is wrong: use error or warn or info or debug or trace"
        )
    );
}

#[test]
fn all_missing_settings_are_named_at_once() {
    let settings = gather(Layer::new(), None, no_variable).unwrap();
    let text = Config::validate(&settings, Some("no name")).unwrap_err().to_string();
    assert!(text.contains("--folder is missing"), "{text}");
    assert!(text.contains("--node-name is missing"), "{text}");
}

#[test]
fn the_api_server_is_named_by_a_kubeconfig_or_by_its_own_address() {
    let source = |flags: &[(&'static str, &[&str])]| {
        let mut all = vec![("source", &["kubernetes"][..])];
        all.extend_from_slice(flags);
        config(&all).map(|config| config.source)
    };
    let server = "https://192.0.2.1:6443".to_owned();
    assert_eq!(
        source(&[("kubeconfig", &["/k"]), ("api-server", &[&server])]).unwrap(),
        Source::Kubernetes(Access::Kubeconfig {
            file: "/k".into(),
            server: Some(server.clone())
        })
    );
    assert_eq!(
        source(&[("api-server", &[&server])]).unwrap(),
        Source::Kubernetes(Access::ServiceAccount { server })
    );
    let text = source(&[]).unwrap_err().to_string();
    assert!(
        text.starts_with("--api-server is missing: ") && text.contains("ClusterIP"),
        "{text}"
    );
    wrong(
        "api-server",
        "192.0.2.1:6443",
        "--api-server: \"192.0.2.1:6443\" is wrong: use a URL with the server's own address, for example https://192.0.2.1:6443",
    );
}

#[test]
fn an_unreadable_file_is_named() {
    let text = gather(Layer::new(), Some(Path::new("/nonexistent/c.yaml")), no_variable)
        .unwrap_err()
        .to_string();
    assert_eq!(
        text,
        "--config /nonexistent/c.yaml: cannot read the file: No such file or directory (os error 2)"
    );
}

#[test]
fn every_pin_folder_has_a_run_folder_of_its_own() {
    assert_eq!(
        default_run_dir(Path::new("/sys/fs/bpf/steerway")),
        Path::new("/run/steerway/sys-fs-bpf-steerway")
    );
    assert_ne!(default_run_dir(Path::new("/a/b")), default_run_dir(Path::new("/a/c")));
}
