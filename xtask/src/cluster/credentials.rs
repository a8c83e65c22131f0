//! Certificates, tokens and kubeconfigs of the cluster, made once by openssl.
//!
//! Out: `pki/` and `USER.kubeconfig` in the state folder. Tokens are random, and die with the cluster.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::layout::{API_SERVER, CONTROL_PLANE, FIRST_CLUSTER_IPS, Folders, MAX_WORKERS, Worker, lan};
use crate::exec;

/// Makes what is missing; the last file that is written says that all is there.
pub(super) fn make(folders: &Folders) -> Result<()> {
    let pki = folders.state("pki");
    let complete = pki.join("complete");
    if complete.is_file() {
        return Ok(());
    }
    fs::create_dir_all(&pki).with_context(|| format!("cannot create {}", pki.display()))?;
    let issuer = Issuer { pki: pki.clone() };
    issuer.authority()?;
    let addresses = FIRST_CLUSTER_IPS
        .map(str::to_owned)
        .into_iter()
        .chain(lan(CONTROL_PLANE))
        .chain(["127.0.0.1".to_owned()]);
    let mut names = "subjectAltName=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
                     DNS:kubernetes.default.svc.cluster.local"
        .to_owned();
    for address in addresses {
        write!(names, ",IP:{address}")?;
    }
    issuer.certificate("apiserver", "/CN=kube-apiserver", &names)?;
    let client = "extendedKeyUsage=clientAuth";
    issuer.certificate(
        "kubelet-client",
        "/O=system:masters/CN=apiserver-kubelet-client",
        client,
    )?;
    issuer.certificate("front-proxy", "/CN=front-proxy", client)?;
    openssl(&["genrsa", "-out", &text(&pki.join("service-account.key")), "2048"])?;
    let users = [
        ("admin".to_owned(), "admin".to_owned(), "system:masters"),
        (
            "controllers".to_owned(),
            "system:kube-controller-manager".to_owned(),
            "",
        ),
        ("scheduler".to_owned(), "system:kube-scheduler".to_owned(), ""),
    ];
    let kubelets = Worker::all(MAX_WORKERS).into_iter().map(|worker| {
        let name = worker.name();
        (format!("kubelet-{name}"), format!("system:node:{name}"), "system:nodes")
    });
    let mut tokens = String::new();
    for (file, user, group) in users.into_iter().chain(kubelets) {
        let token = exec::output(Command::new("openssl").args(["rand", "-hex", "16"]))?;
        let token = token.trim();
        writeln!(tokens, "{token},{user},{user},\"{group}\"")?;
        write(&folders.kubeconfig(&file), &kubeconfig(&pki, token))?;
    }
    write(&pki.join("tokens.csv"), &tokens)?;
    write(&complete, "")
}

fn kubeconfig(pki: &Path, token: &str) -> String {
    json!({ "apiVersion": "v1", "kind": "Config", "current-context": "cluster",
        "clusters": [{ "name": "cluster", "cluster": { "server": API_SERVER, "certificate-authority": pki.join("ca.crt") } }],
        "users": [{ "name": "user", "user": { "token": token } }],
        "contexts": [{ "name": "cluster", "context": { "cluster": "cluster", "user": "user" } }] })
    .to_string()
}

struct Issuer {
    pki: PathBuf,
}

impl Issuer {
    fn file(&self, name: &str, kind: &str) -> String {
        text(&self.pki.join(format!("{name}.{kind}")))
    }

    fn authority(&self) -> Result<()> {
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "365",
            "-subj",
            "/CN=steerway-cluster",
            "-keyout",
            &self.file("ca", "key"),
            "-out",
            &self.file("ca", "crt"),
        ])
    }

    fn certificate(&self, name: &str, subject: &str, extension: &str) -> Result<()> {
        openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            subject,
            "-keyout",
            &self.file(name, "key"),
            "-out",
            &self.file(name, "csr"),
        ])?;
        write(Path::new(&self.file(name, "ext")), extension)?;
        openssl(&[
            "x509",
            "-req",
            "-days",
            "365",
            "-CAcreateserial",
            "-in",
            &self.file(name, "csr"),
            "-CA",
            &self.file("ca", "crt"),
            "-CAkey",
            &self.file("ca", "key"),
            "-extfile",
            &self.file(name, "ext"),
            "-out",
            &self.file(name, "crt"),
        ])
    }
}

fn openssl(arguments: &[&str]) -> Result<()> {
    exec::output(Command::new("openssl").args(arguments)).map(drop)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn write(file: &Path, content: &str) -> Result<()> {
    fs::write(file, content).with_context(|| format!("cannot write {}", file.display()))
}
