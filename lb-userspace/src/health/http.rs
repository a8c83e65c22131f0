//! As much HTTP/1.1 (RFC 9112) as a probe needs: reads a request's head, writes one answer, keeps the connection on request.
//!
//! In: a listener and a function from request to answer. Nothing that a client sends is kept; heads, connections and waits
//! are bounded, so that a port that is open to the network costs the agent little. Request bodies are not read: a request
//! that has one is answered and its connection closed.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Most connections of one listener.
const CONNECTIONS: usize = 64;
/// Largest head of a request, in bytes.
const HEAD: u64 = 8 << 10;
/// How long a client may take for its head or to take in its answer, and how long an idle connection is kept.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    method: String,
    /// The path without query.
    pub(super) path: String,
    keep: bool,
}

/// What it gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    /// Further headers.
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: String,
}

impl Answer {
    /// Plain text.
    pub(super) fn text(status: u16, body: &str) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            headers: Vec::new(),
            body: body.to_owned(),
        }
    }

    /// JSON, marked as such beyond doubt.
    pub(super) fn json(status: u16, body: String) -> Self {
        Self {
            status,
            content_type: "application/json",
            headers: vec![("X-Content-Type-Options", "nosniff".to_owned())],
            body,
        }
    }
}

/// Answers until dropped.
pub(super) async fn serve(listener: TcpListener, answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) {
    let (places, answer) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(answer));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, say: others may be closed meanwhile.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let answer = Arc::clone(&answer);
        tokio::spawn(async move {
            // A client that went away is of no interest.
            let _served = talk(stream, answer.as_ref()).await;
            drop(place);
        });
    }
}

async fn talk(stream: TcpStream, answer: &(impl Fn(&Asked) -> Answer + Send + Sync)) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut head = String::new();
        let mut bounded = (&mut reader).take(HEAD);
        let whole = timeout(PATIENCE, async {
            loop {
                let line = bounded.read_line(&mut head).await?;
                if line <= 2 {
                    return io::Result::Ok(line > 0);
                }
            }
        });
        if !whole.await?? {
            return Ok(());
        }
        let Some(asked) = parse(&head) else {
            let answer = Answer::text(400, "bad request\n");
            return timeout(PATIENCE, writer.write_all(&bytes(&answer, true, false))).await?;
        };
        let answer = match asked.method.as_str() {
            "CONNECT" => Answer::text(405, "method not allowed\n"),
            _ => answer(&asked),
        };
        let bytes = bytes(&answer, asked.method != "HEAD", asked.keep);
        timeout(PATIENCE, writer.write_all(&bytes)).await??;
        if !asked.keep {
            return Ok(());
        }
    }
}

/// Reads a head: request line and headers.
fn parse(head: &str) -> Option<Asked> {
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    if method.is_empty() || !version.starts_with("HTTP/1.") || words.next().is_some() {
        return None;
    }
    let mut keep = version != "HTTP/1.0";
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        keep &= !(name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close"));
        keep &= !(name.eq_ignore_ascii_case("content-length") && value != "0");
        keep &= !name.eq_ignore_ascii_case("transfer-encoding");
    }
    Some(Asked {
        method: method.to_owned(),
        path: target.split('?').next().unwrap_or_default().to_owned(),
        keep,
    })
}

fn bytes(answer: &Answer, with_body: bool, keep: bool) -> Vec<u8> {
    let reason = match answer.status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        _ => "Service Unavailable",
    };
    let mut text = format!(
        "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: {}\r\n",
        answer.status,
        answer.content_type,
        answer.body.len(),
        if keep { "keep-alive" } else { "close" },
    );
    for (name, value) in &answer.headers {
        // Writing to a String cannot fail.
        let _written = write!(text, "{name}: {value}\r\n");
    }
    text.push_str("\r\n");
    if with_body {
        text.push_str(&answer.body);
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_tells_method_path_and_whether_the_connection_stays() {
        let asked = |head: &str| parse(head).map(|asked| (asked.method, asked.path, asked.keep));
        let get = |path: &str, keep| Some(("GET".to_owned(), path.to_owned(), keep));
        assert_eq!(
            asked("GET /healthz?verbose HTTP/1.1\r\nHost: x\r\n\r\n"),
            get("/healthz", true)
        );
        assert_eq!(asked("GET / HTTP/1.0\r\n\r\n"), get("/", false));
        assert_eq!(asked("GET / HTTP/1.1\r\nconnection: Close\r\n\r\n"), get("/", false));
        assert_eq!(asked("GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\n"), get("/", false));
        for wrong in [
            "",
            "GET /\r\n",
            "GET / HTTP/2\r\n",
            "GET / x HTTP/1.1\r\n",
            "\u{16}\u{3}\u{1}",
        ] {
            assert_eq!(asked(wrong), None, "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn requests_follow_each_other_on_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, |asked| Answer::text(200, &asked.path)));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let requests = "GET /a HTTP/1.1\r\n\r\nHEAD /b HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\nConnection: close\r\n\r\n";
        stream.write_all(requests.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
        assert!(
            text.contains("\r\n\r\n/aHTTP") && text.ends_with("\r\n\r\n/c") && !text.contains("/b"),
            "{text}"
        );
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&[b'x'; 9000]).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok();
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 400"), "{text}");
    }
}
