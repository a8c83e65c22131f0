//! `hold`: connections that stay open and are asked for the server's name once a second, until standard input ends.
//!
//! In: an address at which agnhost's `netexec` serves HTTP, and how many connections. Out: `open` on standard output once all are
//! there; at the end the number that stayed, and why each of the others did not. Success only if all stayed with their server.

use std::{
    io::{Read, Write as _},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Where the server is.
    address: SocketAddr,
    /// How many connections.
    #[arg(long)]
    count: usize,
}

/// Longest wait for a connection and for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two rounds of questions.
const PAUSE: Duration = Duration::from_secs(1);
const QUESTION: &[u8] = b"GET /hostname HTTP/1.1\r\nHost: held\r\n\r\n";

/// A connection, and the server at its other end.
struct Held {
    stream: TcpStream,
    server: String,
}

pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let mut held = Vec::with_capacity(options.count);
    for _ in 0..options.count {
        let mut stream = TcpStream::connect_timeout(&options.address, PATIENCE)
            .with_context(|| format!("cannot connect to {}", options.address))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let server = ask(&mut stream)?;
        held.push(Held { stream, server });
    }
    println!("open");
    let ended = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&ended);
    thread::spawn(move || {
        // An error is an end, too.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        told.store(true, Ordering::Relaxed);
    });
    let mut lost = Vec::new();
    let mut rounds = 0;
    loop {
        let last = ended.load(Ordering::Relaxed);
        held.retain_mut(|held| match still(held) {
            Ok(()) => true,
            Err(error) => {
                lost.push(format!("in round {rounds}, {}: {error:#}", held.server));
                false
            }
        });
        rounds += 1;
        if last {
            break;
        }
        thread::sleep(PAUSE);
    }
    println!(
        "{} of {} connections to {} stayed over {rounds} rounds",
        held.len(),
        options.count,
        options.address
    );
    for line in &lost {
        println!("lost {line}");
    }
    Ok(if lost.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn still(held: &mut Held) -> Result<()> {
    let server = ask(&mut held.stream)?;
    ensure!(server == held.server, "answered by {server}");
    Ok(())
}

/// Asks once; the server's name.
fn ask(stream: &mut TcpStream) -> Result<String> {
    stream.write_all(QUESTION)?;
    answer(stream)
}

/// Reads one answer: the body of as many bytes as its header says.
fn answer(stream: &mut impl Read) -> Result<String> {
    const END: &[u8] = b"\r\n\r\n";
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(END) {
        stream.read_exact(&mut byte)?;
        text.push(byte[0]);
        ensure!(text.len() < 4096, "no end of the answer's header");
    }
    let header = String::from_utf8_lossy(&text).to_ascii_lowercase();
    ensure!(header.starts_with("http/1.1 200 "), "answered {header:?}");
    let length = header.lines().find_map(|line| line.strip_prefix("content-length:"));
    let Some(length) = length else {
        bail!("an answer without a length: {header:?}");
    };
    let mut body = vec![0; length.trim().parse().context("the answer's length")?];
    stream.read_exact(&mut body)?;
    String::from_utf8(body).context("the server's name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_to_its_end_and_no_further() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 500 No\r\n\r\n";
        let mut stream = &text[..];
        assert_eq!(answer(&mut stream).unwrap(), "abc");
        assert!(answer(&mut stream).unwrap_err().to_string().contains("500"));
        assert!(answer(&mut &b"HTTP/1.1 200 OK\r\n\r\nabc"[..]).is_err());
        assert!(answer(&mut &b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc"[..]).is_err());
    }
}
