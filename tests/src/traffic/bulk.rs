//! A large transfer through the echo server, compared byte by byte with what was sent.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use super::error_queue::socket_mtu;
use super::{ConnectError, ConnectErrorKind, tcp};
use crate::netns::Netns;

const CHUNK_BYTES: usize = 64 << 10;

/// A transfer that came back whole.
#[derive(Clone, Debug)]
pub struct BulkReport {
    /// Name of the server.
    pub backend: String,
    /// Bytes sent, and received again.
    pub bytes: u64,
    /// Time from the first byte sent to the last received.
    pub elapsed: Duration,
    /// The client socket's path MTU at the end.
    pub path_mtu: u32,
}

impl BulkReport {
    /// Bytes a second, in each direction.
    pub fn bytes_per_second(&self) -> u64 {
        let nanoseconds = self.elapsed.as_nanos().max(1);
        (u128::from(self.bytes) * 1_000_000_000 / nanoseconds) as u64
    }
}

/// Sends `bytes` pseudo-random bytes to a [`Server::tcp`](super::Server::tcp) and compares its echo with them.
///
/// `timeout` limits every single wait, not the whole.
pub fn bulk_transfer(
    from: &impl AsRef<Netns>,
    to: impl Into<SocketAddr>,
    bytes: u64,
    timeout: Duration,
) -> Result<BulkReport, ConnectError> {
    let to = to.into();
    from.as_ref().run(|| transfer(to, bytes, timeout))
}

fn transfer(to: SocketAddr, bytes: u64, timeout: Duration) -> Result<BulkReport, ConnectError> {
    let connected = Instant::now();
    let (mut stream, reply) = tcp::connect(to, None, timeout, connected)?;
    let started = Instant::now();
    let failed = |error: &std::io::Error| ConnectError::from_io(error, started);
    let mut writer = stream.try_clone().map_err(|error| failed(&error))?;
    thread::scope(|scope| {
        let sending = scope.spawn(move || -> std::io::Result<()> {
            let mut source = Noise::default();
            let mut chunk = vec![0; CHUNK_BYTES];
            let mut left = bytes;
            while left > 0 {
                let length = left.min(CHUNK_BYTES as u64) as usize;
                source.fill(&mut chunk);
                writer.write_all(&chunk[..length])?;
                left -= length as u64;
            }
            writer.shutdown(Shutdown::Write)
        });
        let received = compare(&mut stream, bytes, started);
        // The receiver's finding says more than a sender that was stopped by it.
        let sent = sending.join().expect("the sender of a transfer");
        received?;
        sent.map_err(|error| failed(&error))
    })?;
    let path_mtu = socket_mtu(&stream, to.is_ipv6()).map_err(|error| failed(&error))?;
    Ok(BulkReport {
        backend: reply.backend,
        bytes,
        elapsed: started.elapsed(),
        path_mtu,
    })
}

fn compare(stream: &mut std::net::TcpStream, bytes: u64, started: Instant) -> Result<(), ConnectError> {
    let mut source = Noise::default();
    let (mut expected, mut got) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut done = 0;
    while done < bytes {
        let length = (bytes - done).min(CHUNK_BYTES as u64) as usize;
        source.fill(&mut expected);
        stream.read_exact(&mut got[..length]).map_err(|error| {
            let error = ConnectError::from_io(&error, started);
            ConnectError {
                detail: format!("{} after {done} of {bytes} bytes", error.detail),
                ..error
            }
        })?;
        if got[..length] != expected[..length] {
            let wrong = (0..length)
                .find(|index| got[*index] != expected[*index])
                .unwrap_or(length);
            let detail = format!("byte {} of {bytes} differs", done + wrong as u64);
            return Err(ConnectError::new(ConnectErrorKind::Garbled, started, detail));
        }
        done += length as u64;
    }
    match stream.read(&mut got[..1]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(ConnectError::new(
            ConnectErrorKind::Garbled,
            started,
            "more came back than was sent",
        )),
        Err(error) => Err(ConnectError::from_io(&error, started)),
    }
}

/// A xorshift generator: both ends of a comparison make the same bytes.
struct Noise(u64);

impl Default for Noise {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Noise {
    fn fill(&mut self, chunk: &mut [u8]) {
        for word in chunk.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }
}
