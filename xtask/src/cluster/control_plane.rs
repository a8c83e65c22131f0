//! The control plane: etcd, API server, controllers and scheduler as processes of one machine of the LAN.
//!
//! In: credentials. Out: an API server that is ready. As on a real cluster: RBAC and the Node authorizer, aggregation, kubelets
//! reached by a client certificate, so that logs, exec and proxy work.

use std::time::Duration;

use anyhow::Result;

use super::{
    layout::{API_SERVER, CONTROL_PLANE, Families, Folders, lan},
    process::{self, kubectl, within},
};
use crate::exec;

/// How long it may take to be ready on a busy machine.
const START: Duration = Duration::from_mins(2);

/// Starts what does not run, and waits until the API server is ready.
pub(super) fn start(folders: &Folders, families: Families) -> Result<()> {
    let pki = |file: &str| folders.state("pki").join(file).display().to_string();
    let [address, _] = lan(CONTROL_PLANE);
    let daemon = |name: &str, flags: &[String]| {
        let mut command = within(folders, "control-plane", name);
        process::start(folders, name, command.args(flags))
    };
    daemon(
        "etcd",
        &[
            format!("--data-dir={}", folders.state("etcd").display()),
            "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ],
    )?;
    daemon(
        "kube-apiserver",
        &[
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--service-cluster-ip-range={}", families.service_ranges()),
            "--bind-address=0.0.0.0".to_owned(),
            format!("--advertise-address={address}"),
            format!("--tls-cert-file={}", pki("apiserver.crt")),
            format!("--tls-private-key-file={}", pki("apiserver.key")),
            format!("--client-ca-file={}", pki("ca.crt")),
            format!("--token-auth-file={}", pki("tokens.csv")),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={}", pki("service-account.key")),
            format!("--service-account-signing-key-file={}", pki("service-account.key")),
            format!("--kubelet-client-certificate={}", pki("kubelet-client.crt")),
            format!("--kubelet-client-key={}", pki("kubelet-client.key")),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            format!("--requestheader-client-ca-file={}", pki("ca.crt")),
            "--requestheader-allowed-names=front-proxy".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            format!("--proxy-client-cert-file={}", pki("front-proxy.crt")),
            format!("--proxy-client-key-file={}", pki("front-proxy.key")),
        ],
    )?;
    daemon(
        "kube-controller-manager",
        &[
            format!("--kubeconfig={}", folders.kubeconfig("controllers").display()),
            "--use-service-account-credentials".to_owned(),
            format!("--root-ca-file={}", pki("ca.crt")),
            format!("--service-account-private-key-file={}", pki("service-account.key")),
            format!("--cluster-signing-cert-file={}", pki("ca.crt")),
            format!("--cluster-signing-key-file={}", pki("ca.key")),
            // Each node's range is fixed: its routes and its CNI configuration are.
            "--allocate-node-cidrs=false".to_owned(),
            "--leader-elect=false".to_owned(),
        ],
    )?;
    daemon(
        "kube-scheduler",
        &[
            format!("--kubeconfig={}", folders.kubeconfig("scheduler").display()),
            "--leader-elect=false".to_owned(),
        ],
    )?;
    let log = folders.state("log/kube-apiserver");
    process::wait(START, &format!("{API_SERVER} is ready, see {}", log.display()), || {
        exec::output(kubectl(folders).args(["get", "--raw=/readyz"])).map_err(|error| format!("{error:#}"))
    })?;
    Ok(())
}
