//! How the API server is reached: by a kubeconfig, or by the ServiceAccount of the agent's pod and an address.
//!
//! The address is never the one that a pod's environment names: that is a ClusterIP, and serving it is the work of this
//! agent. Credentials are read anew for every client, and a client is dropped after any failure, so that a rotated token,
//! certificate or address is taken up; a token file is also read again every minute by the client itself.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

/// The folder with the credentials of a pod's ServiceAccount.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Where the API server is, and as whom it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// By a kubeconfig, at its server or at another URL.
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// The URL that takes the place of the file's.
        server: Option<String>,
    },
    /// As the ServiceAccount of the pod that the agent runs in.
    ServiceAccount {
        /// The URL.
        server: String,
    },
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubeconfig { file, server: None } => write!(f, "{}", file.display()),
            Self::Kubeconfig {
                server: Some(server), ..
            }
            | Self::ServiceAccount { server } => f.write_str(server),
        }
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(super) enum AccessError {
    #[error("the kubeconfig {} cannot be used", file.display())]
    Kubeconfig {
        file: PathBuf,
        #[source]
        source: Box<KubeconfigError>,
    },
    #[error("{server} is no URL of an API server")]
    Url {
        server: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("credentials cannot be used")]
    Client(#[source] Box<kube::Error>),
}

impl Access {
    /// Makes a client from what files say now; nothing is sent.
    pub(super) async fn client(&self) -> Result<Client, AccessError> {
        let mut config = match self {
            Self::Kubeconfig { file, .. } => from_kubeconfig(file).await.map_err(|source| AccessError::Kubeconfig {
                file: file.clone(),
                source: Box::new(source),
            })?,
            Self::ServiceAccount { server } => service_account(server)?,
        };
        if let Self::Kubeconfig {
            server: Some(server), ..
        } = self
        {
            config.cluster_url = parse(server)?;
        }
        config.connect_timeout = Some(CONNECT);
        // Waiting between tries is the reflector's, which knows what failed.
        config.default_retry = false;
        Client::try_from(config).map_err(|source| AccessError::Client(Box::new(source)))
    }
}

async fn from_kubeconfig(file: &Path) -> Result<Config, KubeconfigError> {
    Config::from_custom_kubeconfig(Kubeconfig::read_from(file)?, &KubeConfigOptions::default()).await
}

fn service_account(server: &str) -> Result<Config, AccessError> {
    let mut config = Config::new(parse(server)?);
    let folder = Path::new(SERVICE_ACCOUNT);
    // The file is read anew now and then. Beside it kube wants certificates to start from, which it does not use then; without any
    // it asks for the system's, and an image has none.
    config.root_cert_file = Some(folder.join("ca.crt"));
    config.root_cert = Some(Vec::new());
    config.auth_info.token_file = Some(folder.join("token").display().to_string());
    Ok(config)
}

fn parse<T: std::str::FromStr>(server: &str) -> Result<T, AccessError>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    server.parse().map_err(|source| AccessError::Url {
        server: server.to_owned(),
        source: Box::new(source),
    })
}
