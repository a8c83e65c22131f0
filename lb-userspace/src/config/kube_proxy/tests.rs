//! What a file and flags of kube-proxy's come to.

use super::*;

fn translated(body: &str) -> Translated {
    let Value::Object(fields) = serde_saphyr::from_str(body).unwrap() else {
        panic!("no mapping: {body}");
    };
    of_file(Path::new("c.conf"), fields)
}

#[track_caller]
fn check(found: &Translated, settings: &[(&str, &[&str])], unused: &[(&str, &str)]) {
    let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let of_layer: Vec<(&str, Vec<&str>)> = found
        .layer
        .iter()
        .filter(|(flag, _)| **flag != "source")
        .map(|(flag, (_, texts))| (*flag, texts.iter().map(String::as_str).collect()))
        .collect();
    let wanted: Vec<(&str, Vec<&str>)> = settings.iter().map(|(flag, texts)| (*flag, texts.to_vec())).collect();
    assert_eq!(of_layer, wanted);
    let told: Vec<(String, &str)> = found
        .unused
        .iter()
        .map(|one| (one.place.to_string(), one.value.as_str()))
        .collect();
    let wanted: Vec<(String, &str)> = unused
        .iter()
        .map(|(place, value)| ((*place).to_owned(), *value))
        .collect();
    assert_eq!(told, wanted);
}

/// `config.conf` of the ConfigMap `kube-proxy` that kubeadm 1.36 writes for a dual-stack cluster.
const KUBEADM: &str = r#"
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"#;

#[test]
fn kubeadms_file_is_taken_as_it_is() {
    let found = translated(KUBEADM);
    check(
        &found,
        &[
            ("bind-address", &["0.0.0.0"]),
            ("bind-address-hard-fail", &["false"]),
            ("cluster-cidr", &["10.244.0.0/16", "fd00:10:244::/56"]),
            ("conntrack-tcp-be-liberal", &["false"]),
            ("conntrack-udp-timeout", &["0s"]),
            ("conntrack-udp-timeout-stream", &["0s"]),
            ("kubeconfig", &["/var/lib/kube-proxy/kubeconfig.conf"]),
        ],
        &[],
    );
    assert_eq!(found.layer["source"].1, ["kubernetes"]);
}

#[test]
fn every_field_is_taken_or_told_once() {
    let mut told = 0;
    for field in FIELDS.iter().filter(|f| !f.path.starts_with(FLAG_ONLY)) {
        let value = match field.form {
            Form::Text if field.path == "detectLocalMode" => "NodeCIDR".into(),
            Form::Text => "x".into(),
            Form::Number => 7.into(),
            Form::Truth => true.into(),
            Form::Time | Form::Any => "7s".into(),
            Form::Texts => vec!["x"].into(),
            Form::Gates => serde_json::json!({ "G": true }),
        };
        let nested = field.path.rsplit('.').fold(value, |value, name| {
            let mut map = Map::new();
            map.insert(name.to_owned(), value);
            Value::Object(map)
        });
        let Value::Object(fields) = nested else {
            panic!("no mapping")
        };
        let found = of_file(Path::new("c.conf"), fields);
        assert!(found.errors.is_empty(), "{}: {:?}", field.path, found.errors);
        let taken = found.layer.len() - 1;
        assert_eq!(taken + found.unused.len(), 1, "{}: {found:?}", field.path);
        told += found.unused.len();
        if let Some(unused) = found.unused.first() {
            assert!(!unused.wrong && unused.reason.len() > 10, "{unused:?}");
        }
    }
    assert!(told > 20, "{told}");
}

#[test]
fn the_mode_decides_which_periods_count() {
    let periods = "iptables: {syncPeriod: 1m, minSyncPeriod: 0s}\nnftables: {syncPeriod: 20s, minSyncPeriod: 2s}\nnodePortAddresses: []\n";
    check(
        &translated(&format!("mode: nftables\n{periods}")),
        &[("min-sync-period", &["2s"]), ("sync-period", &["20s"])],
        &[
            ("field mode in c.conf", "nftables"),
            ("field iptables.syncPeriod in c.conf", "1m"),
        ],
    );
    let found = translated("mode: iptables\n");
    assert!(found.unused[0].reason.contains("[0.0.0.0/0, ::/0]"), "{found:?}");
    let found = translated("mode: iptables\nnodePortAddresses: [192.0.2.7/24, '::/0']\n");
    assert_eq!(found.layer["nodeport-addresses"].1, ["192.0.2.0/24", "::/0"]);
    assert!(!found.unused[0].reason.contains("0.0.0.0/0"), "{found:?}");
}

#[test]
fn pods_are_known_as_the_mode_says() {
    check(
        &translated("clusterCIDR: 10.244.3.1/16\ndetectLocal: {interfaceNamePrefix: cali}\n"),
        &[("cluster-cidr", &["10.244.0.0/16"])],
        &[("field detectLocal.interfaceNamePrefix in c.conf", "cali")],
    );
    check(
        &translated(
            "detectLocalMode: InterfaceNamePrefix\nclusterCIDR: 10.0.0.0/8\ndetectLocal: {interfaceNamePrefix: cali}\n",
        ),
        &[("cluster-cidr", &["10.0.0.0/8"]), ("pod", &["cali*"])],
        &[],
    );
    check(
        &translated("detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\n"),
        &[],
        &[
            ("field detectLocalMode in c.conf", "BridgeInterface"),
            ("field detectLocal.bridgeInterface in c.conf", "cni0"),
        ],
    );
    for mode in ["ClusterCIDR", "NodeCIDR", "InterfaceNamePrefix"] {
        let found = translated(&format!("detectLocalMode: {mode}\n"));
        check(&found, &[], &[("field detectLocalMode in c.conf", mode)]);
        assert!(found.unused[0].reason.contains("interface"), "{found:?}");
    }
    let errors = translated("detectLocalMode: Pods\n").errors;
    assert_eq!(
        errors[0].to_string(),
        "field detectLocalMode in c.conf: \"Pods\" is wrong: use ClusterCIDR or NodeCIDR or BridgeInterface or InterfaceNamePrefix"
    );
}

#[test]
fn gates_and_verbosity_are_settings_of_ours() {
    check(
        &translated(
            "featureGates: {AllowServiceExternalIPs: false, Other: true}\nlogging: {verbosity: 5, format: json}\n",
        ),
        &[
            ("external-ips", &["false"]),
            ("log-format", &["json"]),
            ("log-level", &["debug"]),
        ],
        &[("field featureGates in c.conf", "Other=true")],
    );
}

#[test]
fn an_unknown_field_is_named_and_passed_over() {
    let found = translated("clusterCIDRs: 10.0.0.0/8\nconntrack: {tcpTimeout: 1s}\nudpIdleTimeout: 250ms\n");
    let told: Vec<(&str, bool)> = found
        .unused
        .iter()
        .map(|one| (one.reason.as_str(), one.wrong))
        .collect();
    let none = "kubeproxy.config.k8s.io/v1alpha1 has no such field; ";
    assert_eq!(
        told,
        [
            (format!("{none}did you mean clusterCIDR?").as_str(), true),
            (format!("{none}did you mean conntrack.udpTimeout?").as_str(), true),
            (format!("{none}remove it").as_str(), true),
        ]
    );
    assert!(found.errors.is_empty());
}

#[test]
fn a_value_of_the_wrong_form_is_an_error_with_its_fix() {
    let found = translated("conntrack: {maxPerCore: many}\nnodePortAddresses: primary\nfeatureGates: {A: 1}\n");
    let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        errors,
        [
            "field conntrack.maxPerCore in c.conf: \"many\" is wrong: write a number",
            "field featureGates in c.conf: {\"A\":1} is wrong: write NAME: true or NAME: false for each gate",
            "field nodePortAddresses in c.conf: \"primary\" is wrong: write a list of texts",
        ]
    );
}

#[test]
fn flags_mean_what_their_fields_mean() {
    let flags = [
        ("master", "https://192.0.2.1:6443"),
        ("hostname-override", "n7"),
        ("proxy-mode", "nftables"),
        ("iptables-sync-period", "1m0s"),
        ("v", "2"),
        ("feature-gates", "A=true,AllowServiceExternalIPs=false"),
        ("oom-score-adj", "-998"),
        ("healthz-port", "0"),
        ("detect-local-mode", "NodeCIDR"),
    ];
    let flags = flags
        .into_iter()
        .map(|(flag, text)| (flag, vec![text.to_owned()]))
        .collect();
    check(
        &of_flags(&flags),
        &[
            ("api-server", &["https://192.0.2.1:6443"]),
            ("external-ips", &["false"]),
            ("healthz-bind-address", &["none"]),
            ("node-name", &["n7"]),
            ("sync-period", &["1m0s"]),
        ],
        &[
            ("--proxy-mode", "nftables"),
            ("--detect-local-mode", "NodeCIDR"),
            ("--feature-gates", "A=true"),
            ("--oom-score-adj", "-998"),
        ],
    );
}

#[test]
fn fields_lead_to_settings_that_exist_and_flags_are_unique() {
    let mut seen = std::collections::BTreeSet::new();
    for field in FIELDS {
        if let Meaning::Is(setting) = field.meaning {
            assert!(Setting::by_flag(setting).is_some(), "{setting}");
        }
        assert!(seen.insert(field.path), "{}", field.path);
        assert!(field.flag.is_empty() || seen.insert(field.flag), "{}", field.flag);
    }
}
