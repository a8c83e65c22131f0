//! The command line's end of the agent's socket: blocking, bounded, with a time limit for each line.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::protocol::{Item, Line, MAX_LINE, Request, SOCKET, to_line};

/// How long an answer may take between two of its lines, beyond what was asked to wait.
const LINE_LIMIT: Duration = Duration::from_secs(10);

/// Why a request failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No agent listens there.
    #[error("no agent runs for this pin folder (nothing listens at {})", socket.display())]
    NoAgent {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket is there, but the caller may not use it.
    #[error("no access to {}; run the command as root", socket.display())]
    Denied {
        /// The socket.
        socket: PathBuf,
    },
    /// The connection broke or took too long.
    #[error("the agent at {} does not answer", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The agent sent what this program cannot read.
    #[error("the agent's answer cannot be read; is it of another version?")]
    Answer(#[source] serde_json::Error),
    /// The agent refused.
    #[error("{0}")]
    Refused(String),
}

/// Sends a request and hands each item of the answer to `each`.
///
/// # Errors
/// [`ClientError::NoAgent`] when nothing listens; otherwise what broke.
pub fn ask(run_dir: &Path, request: &Request, mut each: impl FnMut(Item)) -> Result<(), ClientError> {
    let socket = run_dir.join(SOCKET);
    let broken = |source| ClientError::Broken {
        socket: socket.clone(),
        source,
    };
    let refused = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
    let mut stream = connect(run_dir).map_err(|source| {
        let kind = source.kind();
        if refused.contains(&kind) {
            ClientError::NoAgent { socket: socket.clone() }
        } else if kind == io::ErrorKind::PermissionDenied {
            ClientError::Denied { socket: socket.clone() }
        } else {
            broken(source)
        }
    })?;
    let asked = match request {
        Request::Wait { seconds } => Duration::from_secs(*seconds),
        Request::Status | Request::Services(_) => Duration::ZERO,
    };
    stream.set_read_timeout(Some(asked + LINE_LIMIT)).map_err(broken)?;
    stream.set_write_timeout(Some(LINE_LIMIT)).map_err(broken)?;
    stream
        .write_all(&to_line(request).map_err(ClientError::Answer)?)
        .map_err(broken)?;
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader
            .by_ref()
            .take(MAX_LINE as u64)
            .read_until(b'\n', &mut line)
            .map_err(broken)?;
        if read == 0 || line.last() != Some(&b'\n') {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
        match serde_json::from_slice(&line).map_err(ClientError::Answer)? {
            Line::Item(item) => each(item),
            Line::End => return Ok(()),
            Line::Error(message) => return Err(ClientError::Refused(message)),
        }
    }
}

/// Connects by way of the folder's descriptor, because a socket's path may have 107 bytes only.
fn connect(run_dir: &Path) -> io::Result<UnixStream> {
    let folder = File::open(run_dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))
}
