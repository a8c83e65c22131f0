//! Events (`events.k8s.io/v1`) about what an operator must know: on the object when something of it is not programmed, changes, or is over.
//!
//! In: [`Notices`], everything that holds now, replaced as a whole. Out: one event for each notice that has stood for a while, one more when
//! its text changes and one when it is over: never one a cycle. And one at the start, as kube-proxy has it. An event's name follows from its object and text, so that of all agents
//! with the same to say one says it, and the others find it said. What is said again is counted in its series. Events
//! are few at a time, and a server that refuses or is away loses them nothing but time.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;
use kube::core::params::{Patch, PatchParams, PostParams};
use kube::core::request::Request;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{debug, info};

use super::access::Access;
use super::backoff::{Backoff, spread};
use super::reflector::{ABSENT, chain};
use super::requests::RequestError;
use crate::clock::{Instant, now, wall};
use crate::model::{ObjectKind, ObjectRef};

/// What holds now: the text for each object and reason.
pub type Notices = BTreeMap<Topic, String>;

/// What an event is about: an object, and the reason in a word.
pub type Topic = (ObjectRef, &'static str);

/// The reason of the event that says that another is over.
const OVER: &str = "Resolved";
/// The reason of the event that says that this agent has started: kube-proxy's.
const STARTING: &str = "Starting";
/// How long something must hold, or be over, before it is told: what lasts a moment is nobody's concern.
const STANDS: Duration = Duration::from_secs(2);
/// Agents that have the same to say do not say it at once.
const SPREAD: Duration = Duration::from_secs(1);
/// Events at once, and between two after that.
const BURST: u32 = 25;
const PACE: Duration = Duration::from_secs(1);
/// The longest text that the API takes.
const NOTE: usize = 1024;
/// How long the server may take.
const ANSWER: Duration = Duration::from_secs(30);
/// How many events are remembered for their series.
const REMEMBERED: usize = 1000;

/// Tells notices as events until their sender is dropped; `node_name` says who tells.
pub async fn record(access: Access, node_name: Arc<str>, mut notices: watch::Receiver<Notices>) {
    let mut recorder = Recorder {
        access,
        starting: Some(Saying::starting(&node_name, wall())),
        node_name,
        told: BTreeMap::new(),
        since: BTreeMap::new(),
        series: BTreeMap::new(),
        budget: BURST,
    };
    let mut backoff = Backoff::default();
    let wait = spread(Duration::ZERO, SPREAD);
    loop {
        let wanted = notices.borrow_and_update().clone();
        let due = match recorder.next(&wanted, now(), STANDS + wait) {
            Next::Say(saying) => match recorder.say(&saying).await {
                Ok(()) => {
                    backoff.reset();
                    recorder.said(saying);
                    recorder.pause().await;
                    continue;
                }
                Err(error) if matches!(error.code(), Some(403 | 404)) => {
                    info!(error = chain(&error), "events may not be written");
                    now() + spread(ABSENT.start, ABSENT.end)
                }
                Err(error) if matches!(error.code(), Some(400 | 413 | 422)) => {
                    info!(
                        error = chain(&error),
                        note = saying.note,
                        "the API server takes no such event"
                    );
                    recorder.said(saying);
                    continue;
                }
                Err(error) => {
                    debug!(error = chain(&error), "an event was not written");
                    let wait = backoff.next(error.retry_after());
                    sleep(wait).await;
                    continue;
                }
            },
            Next::At(due) => due,
            Next::Nothing => now() + Duration::from_hours(1),
        };
        recorder.budget = BURST;
        tokio::select! {
            changed = notices.changed() => if changed.is_err() { return },
            () = sleep_until(due) => {}
        }
    }
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Say(Saying),
    /// Nothing before this time.
    At(Instant),
    Nothing,
}

/// An event to write.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Saying {
    topic: Topic,
    note: String,
    what: What,
}

/// What an event says of its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum What {
    /// It holds.
    Holds,
    /// It is over; the note says what was.
    Over,
    /// It happened at this time; another time is another event.
    Happened(SystemTime),
}

impl Saying {
    /// That this node's agent starts.
    fn starting(node_name: &str, at: SystemTime) -> Self {
        let node = ObjectRef {
            kind: ObjectKind::Node,
            namespace: String::new(),
            name: node_name.to_owned(),
        };
        Self {
            topic: (node, STARTING),
            note: concat!("Steerway ", env!("CARGO_PKG_VERSION"), " starts").to_owned(),
            what: What::Happened(at),
        }
    }

    fn reason(&self) -> &'static str {
        if self.what == What::Over { OVER } else { self.topic.1 }
    }

    /// The name of the event, the same for all who say the same of an object.
    fn name(&self) -> String {
        // Fixed keys: the same text has the same number in every agent.
        let mut hasher = DefaultHasher::new();
        (&self.topic, &self.note, self.what).hash(&mut hasher);
        let object = &self.topic.0.name;
        let object: String = object.chars().take(200).collect();
        format!("{}.{:016x}", object.trim_end_matches(['.', '-']), hasher.finish())
    }

    /// The namespace of the event; for objects without one it is `default`, as everywhere.
    fn namespace(&self) -> &str {
        match self.topic.0.namespace.as_str() {
            "" => "default",
            namespace => namespace,
        }
    }

    fn event(&self, node_name: &str, at: SystemTime) -> Value {
        let object = &self.topic.0;
        let mut regarding =
            json!({ "apiVersion": api_version(object.kind), "kind": object.kind.as_str(), "name": object.name });
        if object.kind == ObjectKind::Node {
            // By this `kubectl describe node` finds it.
            regarding["uid"] = object.name.as_str().into();
        }
        if !object.namespace.is_empty() {
            regarding["namespace"] = object.namespace.as_str().into();
        }
        json!({ "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": { "name": self.name(), "namespace": self.namespace() },
            "eventTime": micros(at), "reportingController": "steerway.dev/agent", "reportingInstance": node_name,
            "action": "Program", "reason": self.reason(), "type": if self.what == What::Holds { "Warning" } else { "Normal" },
            "regarding": regarding, "note": cut(&self.note) })
    }
}

/// Says what is new, remembers what was said.
struct Recorder {
    access: Access,
    node_name: Arc<str>,
    /// That this agent starts, until it is told.
    starting: Option<Saying>,
    /// What was told and is not over.
    told: BTreeMap<Topic, String>,
    /// Since when something else holds than was told.
    since: BTreeMap<Topic, (Option<String>, Instant)>,
    /// How often this agent wrote each event.
    series: BTreeMap<String, u32>,
    budget: u32,
}

impl Recorder {
    /// The first thing to say: the start, then what differs from what was told, once it has stood long enough.
    fn next(&mut self, wanted: &Notices, at: Instant, stands: Duration) -> Next {
        if let Some(starting) = &self.starting {
            return Next::Say(starting.clone());
        }
        let differs = |topic: &Topic, note: Option<&String>| self.told.get(topic) != note;
        let news = wanted.iter().map(|(topic, note)| (topic, Some(note)));
        let over = self.told.keys().filter(|topic| !wanted.contains_key(*topic));
        let all: BTreeMap<Topic, Option<String>> = news
            .chain(over.map(|topic| (topic, None)))
            .filter(|(topic, note)| differs(topic, *note))
            .map(|(topic, note)| (topic.clone(), note.cloned()))
            .collect();
        self.since
            .retain(|topic, (note, _)| all.get(topic).is_some_and(|now| now == note));
        let mut first: Option<Instant> = None;
        for (topic, note) in all {
            let (_, since) = *self.since.entry(topic.clone()).or_insert((note.clone(), at));
            let due = since + stands;
            if due <= at {
                let what = if note.is_none() { What::Over } else { What::Holds };
                let was = || format!("{}: {}", topic.1, self.told.get(&topic).map_or("", String::as_str));
                let note = note.unwrap_or_else(was);
                return Next::Say(Saying { topic, note, what });
            }
            first = Some(first.map_or(due, |first| first.min(due)));
        }
        first.map_or(Next::Nothing, Next::At)
    }

    fn said(&mut self, saying: Saying) {
        self.since.remove(&saying.topic);
        match saying.what {
            What::Holds => _ = self.told.insert(saying.topic, saying.note),
            What::Over => _ = self.told.remove(&saying.topic),
            What::Happened(_) => self.starting = None,
        }
    }

    /// Writes an event: a new one, or one more in the series of one that this agent wrote.
    async fn say(&mut self, saying: &Saying) -> Result<(), RequestError> {
        let (name, at) = (saying.name(), wall());
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", saying.namespace());
        let request = Request::new(path);
        if let Some(count) = self.series.get(&name).copied() {
            let series = json!({ "series": { "count": count + 1, "lastObservedTime": micros(at) } });
            let patch = request.patch(&name, &PatchParams::default(), &Patch::Merge(series));
            match self.send(patch.map_err(kube::Error::BuildRequest)?).await {
                // It has expired meanwhile.
                Err(error) if error.code() == Some(404) => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    self.series.insert(name, count + 1);
                    return Ok(());
                }
            }
        }
        let event = saying.event(&self.node_name, at);
        let create = request.create(&PostParams::default(), event.to_string().into_bytes());
        match self.send(create.map_err(kube::Error::BuildRequest)?).await {
            // Another agent has said it, or this one before it was started anew.
            Err(error) if error.code() == Some(409) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                if self.series.len() >= REMEMBERED {
                    self.series.clear();
                }
                self.series.insert(name, 1);
                Ok(())
            }
        }
    }

    async fn send(&self, request: http::Request<Vec<u8>>) -> Result<(), RequestError> {
        let client = self.access.client().await?;
        let answer = timeout(ANSWER, client.request::<Value>(request)).await;
        answer.map_err(|_| RequestError::Silent(ANSWER))??;
        Ok(())
    }

    /// Waits after an event, so that thousands are no flood.
    async fn pause(&mut self) {
        self.budget = self.budget.saturating_sub(1);
        if self.budget == 0 {
            sleep(PACE).await;
        }
    }
}

fn api_version(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Service | ObjectKind::Endpoints | ObjectKind::Node => "v1",
        ObjectKind::EndpointSlice => "discovery.k8s.io/v1",
        ObjectKind::ServiceCIDR => "networking.k8s.io/v1",
    }
}

/// A time as the API's MicroTime.
fn micros(at: SystemTime) -> String {
    let time = Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// A text that the API takes.
fn cut(note: &str) -> String {
    const MORE: &str = " …";
    if note.len() <= NOTE {
        return note.to_owned();
    }
    let end = note.floor_char_boundary(NOTE - MORE.len());
    format!("{}{MORE}", &note[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> Topic {
        let object = ObjectRef {
            kind: ObjectKind::Service,
            namespace: "default".to_owned(),
            name: name.to_owned(),
        };
        (object, "NotProgrammed")
    }

    fn recorder() -> Recorder {
        Recorder {
            access: Access::ServiceAccount {
                server: "https://192.0.2.1".to_owned(),
            },
            node_name: "n1".into(),
            starting: None,
            told: BTreeMap::new(),
            since: BTreeMap::new(),
            series: BTreeMap::new(),
            budget: BURST,
        }
    }

    /// What is said at this time, all of it.
    fn said(recorder: &mut Recorder, wanted: &[(&str, &str)], at: Instant) -> Vec<(String, String, bool)> {
        let wanted = wanted
            .iter()
            .map(|(name, note)| (topic(name), (*note).to_owned()))
            .collect();
        let mut all = Vec::new();
        while let Next::Say(saying) = recorder.next(&wanted, at, STANDS) {
            all.push((
                saying.topic.0.name.clone(),
                saying.note.clone(),
                saying.what == What::Over,
            ));
            recorder.said(saying);
        }
        all
    }

    #[test]
    fn what_stands_is_said_once_when_it_comes_changes_and_ends() {
        let (mut recorder, start) = (recorder(), now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let said_of = |name: &str, note: &str, over| vec![(name.to_owned(), note.to_owned(), over)];
        assert_eq!(said(&mut recorder, &[("a", "full")], at(0)), []);
        assert_eq!(
            said(&mut recorder, &[("a", "full")], at(2)),
            said_of("a", "full", false)
        );
        assert_eq!(said(&mut recorder, &[("a", "full")], at(60)), []);
        assert_eq!(said(&mut recorder, &[("a", "wrong")], at(61)), []);
        assert_eq!(
            said(&mut recorder, &[("a", "wrong")], at(63)),
            said_of("a", "wrong", false)
        );
        assert_eq!(said(&mut recorder, &[], at(64)), []);
        assert_eq!(
            said(&mut recorder, &[], at(66)),
            said_of("a", "NotProgrammed: wrong", true)
        );
        assert_eq!(recorder.next(&Notices::new(), at(99), STANDS), Next::Nothing);
    }

    #[test]
    fn what_lasts_a_moment_is_not_said() {
        let (mut recorder, start) = (recorder(), now());
        for second in 0..10 {
            let wanted: &[(&str, &str)] = if second % 2 == 0 { &[("a", "full")] } else { &[] };
            assert_eq!(said(&mut recorder, wanted, start + Duration::from_secs(second)), []);
        }
    }

    #[test]
    fn a_start_is_said_first_and_once_and_each_start_is_another_event() {
        let (start, at) = (SystemTime::UNIX_EPOCH, now());
        let starting = Saying::starting("n1", start);
        let mut recorder = Recorder {
            starting: Some(starting.clone()),
            ..recorder()
        };
        assert_eq!(recorder.next(&Notices::new(), at, STANDS), Next::Say(starting.clone()));
        recorder.said(starting.clone());
        assert_eq!(recorder.next(&Notices::new(), at, STANDS), Next::Nothing);
        assert_ne!(Saying::starting("n1", start + STANDS).name(), starting.name());
        let event = starting.event("n1", start);
        assert_eq!(
            (&event["type"], &event["reason"], &event["regarding"]["uid"]),
            (&json!("Normal"), &json!("Starting"), &json!("n1"))
        );
    }

    #[test]
    fn an_events_name_follows_from_what_it_says() {
        let saying = |note: &str, over| Saying {
            topic: topic("web"),
            note: note.to_owned(),
            what: if over { What::Over } else { What::Holds },
        };
        assert_eq!(saying("x", false).name(), saying("x", false).name());
        assert_ne!(saying("x", false).name(), saying("y", false).name());
        assert_ne!(saying("x", false).name(), saying("x", true).name());
        let event = saying(&"ä".repeat(600), true).event("n1", SystemTime::UNIX_EPOCH);
        assert_eq!((&event["type"], &event["reason"]), (&json!("Normal"), &json!(OVER)));
        assert_eq!(event["eventTime"], "1970-01-01T00:00:00.000000Z");
        assert_eq!(event["regarding"]["namespace"], "default");
        let note = event["note"].as_str().unwrap();
        assert!(note.len() <= NOTE && note.ends_with("ä …"), "{note}");
    }
}
