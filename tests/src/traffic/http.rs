//! An HTTP/1.1 client that can keep its connection.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::{ConnectError, ConnectErrorKind, Reply, parse_identity, tcp};
use crate::netns::Netns;

/// A connection to a [`Server::http`](super::Server::http) on which one request follows another.
#[derive(Debug)]
pub struct HttpClient {
    reader: BufReader<TcpStream>,
    local: SocketAddr,
}

impl HttpClient {
    /// Connects; each later wait is limited by `timeout`.
    pub fn connect(
        from: &impl AsRef<Netns>,
        to: impl Into<SocketAddr>,
        timeout: Duration,
    ) -> Result<Self, ConnectError> {
        let (to, started) = (to.into(), Instant::now());
        let opened = from
            .as_ref()
            .run(|| tcp::open(to, None, timeout).and_then(|s| Ok((s.local_addr()?, s))));
        let (local, stream) = opened.map_err(|error| ConnectError::from_io(&error, started))?;
        Ok(Self {
            reader: BufReader::new(stream),
            local,
        })
    }

    /// Sends a GET and reads its answer.
    pub fn get(&mut self) -> Result<Reply, ConnectError> {
        let started = Instant::now();
        let body = self
            .exchange()
            .map_err(|error| ConnectError::from_io(&error, started))?;
        let (backend, client_seen, _) = parse_identity(&body)
            .ok_or_else(|| ConnectError::new(ConnectErrorKind::Garbled, started, String::from_utf8_lossy(&body)))?;
        Ok(Reply {
            backend,
            client_seen,
            local: self.local,
        })
    }

    fn exchange(&mut self) -> std::io::Result<Vec<u8>> {
        self.reader
            .get_mut()
            .write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if line == "\r\n" {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        Ok(body)
    }
}

/// One GET on a connection of its own.
pub fn http_request(
    from: &impl AsRef<Netns>,
    to: impl Into<SocketAddr>,
    timeout: Duration,
) -> Result<Reply, ConnectError> {
    HttpClient::connect(from, to, timeout)?.get()
}
