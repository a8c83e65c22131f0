//! Log lines on standard error: one an event, fields not sentences, as text or JSON.
//!
//! Levels: error = not forwarding as desired; warn = works, but look; info = a change that an operator would ask about;
//! debug = branches taken. Nothing is logged per packet.

use std::io::{self, IsTerminal as _};

use thiserror::Error;
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Layer as _, Registry, registry};

use crate::config::{Log, LogFormat};

/// Logs were set up before.
#[derive(Debug, Error)]
#[error("logs are set up already")]
pub struct LogsSetUp(#[source] tracing::subscriber::SetGlobalDefaultError);

/// Sends the process's events to standard error from now on.
///
/// # Errors
/// Another subscriber is there.
pub fn start(log: Log) -> Result<(), LogsSetUp> {
    tracing::subscriber::set_global_default(subscriber(log, io::stderr, io::stderr().is_terminal())).map_err(LogsSetUp)
}

fn subscriber<W>(log: Log, writer: W, colours: bool) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = fmt::layer::<Registry>()
        .with_writer(writer)
        .with_ansi(colours)
        .with_target(false);
    let level = filter(log.level);
    match log.format {
        LogFormat::Text => Box::new(registry().with(layer.with_filter(level))),
        LogFormat::Json => Box::new(registry().with(layer.json().flatten_event(true).with_filter(level))),
    }
}

/// Lines up to a level. kube's client logs each failed request as an error of its own, which the source tells once and by kind.
fn filter(level: Level) -> Targets {
    let of_client = if level > Level::INFO {
        LevelFilter::from_level(level)
    } else {
        LevelFilter::OFF
    };
    Targets::new().with_default(level).with_target("kube_client", of_client)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(format: LogFormat) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let log = Log {
            format,
            level: Level::INFO,
        };
        tracing::subscriber::with_default(subscriber(log, move || writer.clone(), false), || {
            tracing::info!(iface = "eth0", ops = 3, "attached");
            tracing::debug!("not told");
            tracing::error!(target: "kube_client::client::builder", "told by the source");
        });
        String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn json_lines_have_their_fields_at_the_top() {
        let text = lines(LogFormat::Json);
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(
            (&line["message"], &line["iface"], &line["ops"]),
            (&"attached".into(), &"eth0".into(), &3.into())
        );
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn text_lines_are_one_an_event_at_the_chosen_level() {
        let text = lines(LogFormat::Text);
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains("INFO attached iface=\"eth0\" ops=3"), "{text}");
    }
}
