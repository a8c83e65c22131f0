//! The requests that are made of the API server, and its answers as lines of text.
//!
//! Two ways to a whole list: a watch that begins with all objects (streaming list, KEP-3157), read object by object, and
//! pages. Both are consistent reads: what was written before the request is in them. Every wait has a limit, so that a
//! connection that died without a word is noticed.

use std::borrow::Cow;
use std::pin::Pin;
use std::time::Duration;

use futures_util::io::{AsyncBufRead, AsyncBufReadExt as _};
use kube::Client;
use kube::core::params::{ListParams, WatchParams};
use kube::core::request::Request;
use kube::core::response::Status;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::access::AccessError;
use super::kinds::Kind;

/// How long the server may take to begin an answer, and to go on with one that it has begun.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a watch may be silent: the server sends a bookmark about every minute.
const SILENCE: Duration = Duration::from_secs(150);
/// The longest event or page, in bytes; the API server keeps no object beyond a few megabytes.
const LONGEST: usize = 64 << 20;

/// What went wrong with a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("{0}")]
    Refused(Box<Status>),
    #[error("the API server cannot be reached")]
    Unreachable(#[source] Box<kube::Error>),
    #[error("the connection broke")]
    Broken(#[from] std::io::Error),
    #[error("no answer in {} s", .0.as_secs())]
    Silent(Duration),
    #[error("an answer is longer than {} MiB", LONGEST >> 20)]
    TooLong,
    #[error("the answer is not the API's")]
    Garbled(#[source] serde_json::Error),
    #[error("the watch ended before the whole list was there")]
    Incomplete,
}

impl RequestError {
    /// The HTTP status, where the server answered with one.
    pub(super) fn code(&self) -> Option<u16> {
        self.status().map(|status| status.code)
    }

    /// How long the server wants to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let details = self.status()?.details.as_ref()?;
        Some(Duration::from_secs(details.retry_after_seconds.into()))
    }

    fn status(&self) -> Option<&Status> {
        if let Self::Refused(status) = self {
            Some(status)
        } else {
            None
        }
    }
}

impl From<kube::Error> for RequestError {
    fn from(error: kube::Error) -> Self {
        if let kube::Error::Api(status) = error {
            Self::Refused(status)
        } else {
            Self::Unreachable(Box::new(error))
        }
    }
}

/// Asks for one kind of objects.
pub(super) struct Requests {
    client: Client,
    request: Request,
    fields: Option<String>,
    labels: Option<&'static str>,
}

impl Requests {
    /// Requests for objects of kind `K` that a field selector chooses.
    pub(super) fn new<K: Kind>(client: Client, fields: Option<String>) -> Self {
        Self {
            client,
            request: Request::new(K::PATH),
            fields,
            labels: K::LABELS,
        }
    }

    /// Starts a watch from `version`, or one that begins with all objects.
    pub(super) async fn watch(&self, version: Option<&str>, seconds: u32) -> Result<Lines, RequestError> {
        let params = WatchParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            timeout: Some(seconds),
            bookmarks: true,
            send_initial_events: version.is_none(),
        };
        let request = self.request.watch(&params, version.unwrap_or_default());
        self.send(request.map_err(kube::Error::BuildRequest)?).await
    }

    /// One page of a list.
    pub(super) async fn page(&self, limit: u32, go_on: Option<&str>) -> Result<Page, RequestError> {
        let params = ListParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            limit: Some(limit),
            continue_token: go_on.map(str::to_owned),
            ..ListParams::default()
        };
        let request = self.request.list(&params);
        let mut lines = self.send(request.map_err(kube::Error::BuildRequest)?).await?;
        lines.rest().await.map(Page)
    }

    async fn send(&self, request: http::Request<Vec<u8>>) -> Result<Lines, RequestError> {
        let reader = timeout(ANSWER, self.client.request_stream(request))
            .await
            .map_err(|_| RequestError::Silent(ANSWER))??;
        Ok(Lines {
            reader: Box::pin(reader),
            line: Vec::new(),
            silence: ANSWER,
        })
    }
}

/// An answer, line by line.
pub(super) struct Lines {
    reader: Pin<Box<dyn AsyncBufRead + Send>>,
    line: Vec<u8>,
    silence: Duration,
}

impl Lines {
    /// From now on the server sends when something happens, and a bookmark now and then.
    pub(super) fn expect_bookmarks(&mut self) {
        self.silence = SILENCE;
    }

    /// The next event; `None` when the server has ended the watch. A future that is dropped may lose a part of a line.
    pub(super) async fn event(&mut self) -> Result<Option<Event<'_>>, RequestError> {
        // A large object shall not keep its room for as long as the watch lasts.
        const KEPT: usize = 64 << 10;
        self.line.clear();
        self.line.shrink_to(KEPT);
        loop {
            let chunk = timeout(self.silence, self.reader.fill_buf())
                .await
                .map_err(|_| RequestError::Silent(self.silence))??;
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(chunk.len(), |end| end + 1);
            if taken == 0 {
                return Ok(None);
            }
            self.line.extend_from_slice(&chunk[..taken]);
            self.reader.consume_unpin(taken);
            if self.line.len() > LONGEST {
                return Err(RequestError::TooLong);
            }
            if end.is_some() {
                return serde_json::from_slice(&self.line)
                    .map(Some)
                    .map_err(RequestError::Garbled);
            }
        }
    }

    /// All that is left.
    async fn rest(&mut self) -> Result<Vec<u8>, RequestError> {
        let mut rest = Vec::new();
        loop {
            let chunk = timeout(self.silence, self.reader.fill_buf())
                .await
                .map_err(|_| RequestError::Silent(self.silence))??;
            if chunk.is_empty() {
                return Ok(rest);
            }
            let taken = chunk.len();
            rest.extend_from_slice(chunk);
            self.reader.consume_unpin(taken);
            if rest.len() > LONGEST {
                return Err(RequestError::TooLong);
            }
        }
    }
}

/// One line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Event<'a> {
    /// ADDED, MODIFIED, DELETED, BOOKMARK or ERROR.
    #[serde(rename = "type", borrow)]
    pub(super) what: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

impl Event<'_> {
    /// The JSON of the object.
    pub(super) fn object(&self) -> &str {
        self.object.get()
    }

    /// The error that the object is.
    pub(super) fn error(&self) -> RequestError {
        serde_json::from_str(self.object())
            .map_or_else(RequestError::Garbled, |status| RequestError::Refused(Box::new(status)))
    }

    /// Whether this bookmark ends the objects that a streaming list begins with.
    pub(super) fn ends_list(&self) -> bool {
        #[derive(Default, Deserialize)]
        struct Bookmark<'a> {
            #[serde(borrow)]
            metadata: Option<Annotated<'a>>,
        }
        #[derive(Deserialize)]
        struct Annotated<'a> {
            #[serde(borrow)]
            annotations: Option<std::collections::BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
        }
        let bookmark: Bookmark<'_> = serde_json::from_str(self.object()).unwrap_or_default();
        let annotations = bookmark.metadata.and_then(|metadata| metadata.annotations);
        annotations.is_some_and(|all| {
            all.get("k8s.io/initial-events-end")
                .is_some_and(|value| value == "true")
        })
    }
}

/// The text of a page.
pub(super) struct Page(Vec<u8>);

/// A page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct List<'a> {
    #[serde(default)]
    pub(super) metadata: ListMetadata,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

/// Metadata of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMetadata {
    pub(super) resource_version: Option<String>,
    #[serde(rename = "continue")]
    pub(super) go_on: Option<String>,
}

impl Page {
    /// Decodes the list; its objects stay text.
    pub(super) fn list(&self) -> Result<List<'_>, RequestError> {
        serde_json::from_slice(&self.0).map_err(RequestError::Garbled)
    }
}

impl List<'_> {
    /// The JSON of each object.
    pub(super) fn items(&self) -> impl Iterator<Item = &str> {
        self.items.iter().flatten().map(|item| item.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static str) -> Lines {
        Lines {
            reader: Box::pin(futures_util::io::Cursor::new(text)),
            line: Vec::new(),
            silence: ANSWER,
        }
    }

    #[tokio::test]
    async fn events_are_lines_and_a_cut_line_is_the_end() {
        let mut lines = lines(
            "{\"type\":\"ADDED\",\"object\":{\"a\":1}}\n{\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{\"annotations\":{\"k8s.io/initial-events-end\":\"true\"}}}}\n{\"type\":\"ADD",
        );
        let event = lines.event().await.unwrap().unwrap();
        assert_eq!((&*event.what, event.object()), ("ADDED", "{\"a\":1}"));
        assert!(!event.ends_list());
        assert!(lines.event().await.unwrap().unwrap().ends_list());
        assert!(lines.event().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_error_event_carries_its_code_and_wish() {
        let mut lines = lines(
            "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"status\":\"Failure\",\"code\":410,\"details\":{\"retryAfterSeconds\":3}}}\nhtml\n",
        );
        let error = lines.event().await.unwrap().unwrap().error();
        assert_eq!(
            (error.code(), error.retry_after()),
            (Some(410), Some(Duration::from_secs(3)))
        );
        assert!(matches!(lines.event().await, Err(RequestError::Garbled(_))));
    }

    #[test]
    fn a_page_has_items_a_version_and_perhaps_more() {
        let page = Page(br#"{"metadata":{"resourceVersion":"9","continue":"x"},"items":[{"a":1},{"b":2}]}"#.to_vec());
        let list = page.list().unwrap();
        assert_eq!(list.metadata.go_on.as_deref(), Some("x"));
        assert_eq!(list.items().collect::<Vec<_>>(), ["{\"a\":1}", "{\"b\":2}"]);
        let empty = Page(br#"{"metadata":{"resourceVersion":"9"},"items":null}"#.to_vec());
        assert_eq!(empty.list().unwrap().items().count(), 0);
    }
}
