//! HTTP/1.1 for probes and scrapes, by hyper: one function answers a request by its path.
//!
//! In: a listener and that function. Nothing that a client sends is kept; heads, connections and the life of a connection are
//! bounded, so that a port that is open to the network costs the agent little.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Most connections of one listener.
const CONNECTIONS: usize = 64;
/// Largest head of a request, in bytes; hyper takes no less.
const HEAD: usize = 8 << 10;
/// How long a client may take for a head, its first or a further one.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection is kept however busy: a client that takes in nothing shall not hold its place.
const LIFE: Duration = Duration::from_mins(2);

/// What a client gets.
pub(super) type Answer = Response<String>;

/// Plain text.
pub(super) fn text(status: StatusCode, body: impl Into<String>) -> Answer {
    answer(status, "text/plain; charset=utf-8", body.into())
}

/// JSON, marked as such beyond doubt.
pub(super) fn json(status: StatusCode, body: String) -> Answer {
    let mut answer = answer(status, "application/json", body);
    let headers = answer.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// Any content.
pub(super) fn answer(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// For a path that is none of ours.
pub(super) fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// Answers requests for paths until dropped.
pub(super) async fn serve(listener: TcpListener, answer: impl Fn(&str) -> Answer + Send + Sync + 'static) {
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
            let service = service_fn(|request: http::Request<Incoming>| {
                let answer = if request.method() == Method::CONNECT {
                    text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n")
                } else {
                    answer(request.uri().path())
                };
                std::future::ready(Ok::<_, Infallible>(answer))
            });
            // Header names as kube-proxy writes them, for who compares them letter by letter.
            let connection = http1::Builder::new()
                .title_case_headers(true)
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(HEAD)
                .serve_connection(TokioIo::new(stream), service);
            // A client that went away is of no interest.
            let _served = timeout(LIFE, connection).await;
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn requests_follow_each_other_on_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, |path| text(StatusCode::OK, path)));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let requests = "GET /a?verbose HTTP/1.1\r\nHost: x\r\n\r\nHEAD /b HTTP/1.1\r\nHost: x\r\n\r\n\
                        POST /c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
        stream.write_all(requests.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
        assert!(
            text.contains("\r\n\r\n/aHTTP") && text.ends_with("\r\n\r\n/c") && !text.contains("/b"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_head_without_end_and_no_head_at_all_are_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, |path| text(StatusCode::OK, path)));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&[b'x'; 9000]).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok();
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{text}");
        tokio::time::pause();
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut text = String::new();
        // Ends by the server's patience; time goes on by itself while all tasks wait.
        silent.read_to_string(&mut text).await.ok();
        assert_eq!(text, "");
    }
}
