//! The agent's end of the socket: a few connections at a time, each with one bounded request and a time limit.
//!
//! The socket's mode is 0600 and a peer must be root or the agent's own user. A slow or silent client costs one of
//! [`MAX_CLIENTS`] places for [`LINE_LIMIT`] at most, a waiting one until its wait ends or it goes away. Nothing here writes
//! maps or can stop the loop.

use std::fs::{self, File, Permissions};
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::debug;

use super::protocol::{Item, Line, MAX_LINE, MAX_REQUEST, MAX_WAIT_SECS, Request, SOCKET, to_line};
use super::report::{Report, ServiceFilter, ServiceItem};

/// Connections served at once; more are told to come back.
pub const MAX_CLIENTS: usize = 32;
/// Time for a request to arrive, and for a line of the answer to be taken.
pub const LINE_LIMIT: Duration = Duration::from_secs(5);

/// What the server tells. Implemented by the loop's state and by tests.
pub trait Answers: Send + Sync + 'static {
    /// The state now; may read maps.
    fn report(&self) -> Report;
    /// The service ports that pass the filter.
    fn services(&self, filter: &ServiceFilter) -> Vec<ServiceItem>;
    /// Returns when everything that the source holds at the time of the call is programmed or rejected; with its generation.
    fn programmed(&self) -> impl Future<Output = u64> + Send;
    /// Why [`Self::programmed`] has not returned yet, for a person.
    fn pending(&self) -> String;
}

/// The socket cannot be offered.
#[derive(Debug, Error)]
#[error("cannot listen at {}", socket.display())]
pub struct ListenError {
    /// The socket.
    pub socket: PathBuf,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// A socket that is bound and not served yet.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
}

impl Server {
    /// Binds the socket in `run_dir`, which must exist, and replaces what a dead agent left. The caller holds the lock of the
    /// pin folder, so no other agent listens there.
    ///
    /// # Errors
    /// The folder or the socket cannot be used.
    pub fn bind(run_dir: &Path) -> Result<Self, ListenError> {
        let failed = |source| ListenError {
            socket: run_dir.join(SOCKET),
            source,
        };
        // A socket's path may have 107 bytes only: go by way of the folder's descriptor.
        let folder = File::open(run_dir).map_err(failed)?;
        let inside = |name: &str| format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
        let fresh = inside("agent.sock.new");
        match fs::remove_file(&fresh) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh).map_err(failed)?;
        fs::set_permissions(&fresh, Permissions::from_mode(0o600)).map_err(failed)?;
        fs::rename(&fresh, inside(SOCKET)).map_err(failed)?;
        Ok(Self { listener })
    }

    /// Serves until dropped.
    pub async fn serve<A: Answers>(self, answers: Arc<A>) {
        let places = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, say: others may be closed meanwhile.
                    debug!(error = &error as &dyn std::error::Error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let place = Arc::clone(&places).try_acquire_owned();
            let answers = Arc::clone(&answers);
            tokio::spawn(async move {
                let served = match place {
                    Ok(_place) => answer(stream, answers.as_ref()).await,
                    Err(_) => refuse(stream, "too many clients; try again").await,
                };
                if let Err(error) = served {
                    debug!(error = &error as &dyn std::error::Error, "client lost");
                }
            });
        }
    }
}

async fn refuse(stream: UnixStream, message: &str) -> io::Result<()> {
    let (_, mut writer) = stream.into_split();
    send(&mut writer, &Line::Error(message.to_owned())).await
}

async fn answer<A: Answers>(stream: UnixStream, answers: &A) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer != 0 && peer != nix::unistd::geteuid().as_raw() {
        return refuse(stream, "only root may ask").await;
    }
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let mut bounded = (&mut reader).take(MAX_REQUEST as u64);
    timeout(LINE_LIMIT, bounded.read_until(b'\n', &mut line)).await??;
    if line.last() != Some(&b'\n') {
        return send(
            &mut writer,
            &Line::Error(format!("a request is one line of at most {MAX_REQUEST} bytes")),
        )
        .await;
    }
    let request: Request = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(error) => return send(&mut writer, &Line::Error(format!("request not understood: {error}"))).await,
    };
    match request {
        Request::Status => send(&mut writer, &Line::Item(Item::Report(Box::new(answers.report())))).await?,
        Request::Services(filter) => {
            for service in answers.services(&filter) {
                send(&mut writer, &Line::Item(Item::Service(Box::new(service)))).await?;
            }
        }
        Request::Wait { seconds } => {
            let limit = Duration::from_secs(seconds.min(MAX_WAIT_SECS));
            let mut gone = [0];
            let line = tokio::select! {
                generation = answers.programmed() => Line::Item(Item::Programmed { generation }),
                () = tokio::time::sleep(limit) => {
                    Line::Error(format!("not programmed after {seconds} s: {}", answers.pending()))
                }
                // A client that goes away frees its place; one that sends more is of no interest.
                _ = reader.read(&mut gone) => return Ok(()),
            };
            send(&mut writer, &line).await?;
            if let Line::Error(_) = line {
                return Ok(());
            }
        }
    }
    send(&mut writer, &Line::End).await
}

async fn send(writer: &mut OwnedWriteHalf, line: &Line) -> io::Result<()> {
    let mut bytes = to_line(line)?;
    if bytes.len() > MAX_LINE {
        bytes = to_line(&Line::Error("the answer has a line that is too long".to_owned()))?;
    }
    timeout(LINE_LIMIT, writer.write_all(&bytes)).await?
}

#[cfg(test)]
mod tests;
