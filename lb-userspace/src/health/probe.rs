//! `/healthz` and `/livez` as kube-proxy answers them (`pkg/proxy/healthcheck/proxy_health.go`).
//!
//! `/healthz` is for load balancers: it also says no while the node is being deleted or scaled down, or is not known yet
//! (KEP-3836). `/livez` is for liveness probes. Both families are programmed together here, so that they are told alike.

use std::time::SystemTime;

use http::StatusCode;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::facts::Facts;
use super::http::{Answer, json as json_answer};
use crate::clock::Instant;

/// The time of what never happened, as Go writes it.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// What is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// Whether load balancers should send traffic.
    Ready,
    /// Whether the agent works.
    Live,
}

/// Answers a probe; `now` and `wall` are the two clocks.
pub(super) fn answer(probe: Probe, facts: &Facts, now: Instant, wall: SystemTime) -> Answer {
    let healthy = facts.is_healthy(now);
    let good = healthy && (probe == Probe::Live || facts.node_eligible);
    let updated = facts.programmed_at.map_or_else(|| NEVER.to_owned(), shown);
    let family = json!({ "lastUpdated": updated, "healthy": healthy });
    let mut body = Map::new();
    // A good answer is as fresh as now.
    body.insert(
        "lastUpdated".to_owned(),
        if good { shown(wall) } else { updated }.into(),
    );
    body.insert("currentTime".to_owned(), shown(wall).into());
    if probe == Probe::Ready {
        body.insert("nodeEligible".to_owned(), facts.node_eligible.into());
    }
    body.insert("healthy".to_owned(), healthy.into());
    body.insert("status".to_owned(), json!({ "IPv4": family, "IPv6": family }));
    let status = if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    json_answer(status, Value::Object(body).to_string())
}

/// A time as RFC 3339 has it.
fn shown(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| NEVER.to_owned(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::clock::now;

    fn check(probe: Probe, facts: &Facts, at: Instant) -> (u16, Value) {
        let answer = answer(probe, facts, at, UNIX_EPOCH + Duration::from_secs(1_800_000_001));
        (answer.status().as_u16(), serde_json::from_str(answer.body()).unwrap())
    }

    #[test]
    fn readiness_needs_an_eligible_node_and_liveness_does_not() {
        let at = now();
        let mut facts = Facts {
            programmed_at: Some(UNIX_EPOCH + Duration::from_millis(1_700_000_000_500)),
            ..Facts::default()
        };
        let (status, body) = check(Probe::Ready, &facts, at);
        assert_eq!(
            (status, &body["nodeEligible"], &body["healthy"]),
            (503, &json!(false), &json!(true))
        );
        assert_eq!(body["lastUpdated"], "2023-11-14T22:13:20.5Z");
        let (status, body) = check(Probe::Live, &facts, at);
        assert_eq!((status, &body["nodeEligible"]), (200, &Value::Null));
        facts.node_eligible = true;
        let (status, body) = check(Probe::Ready, &facts, at);
        assert_eq!(status, 200);
        assert_eq!(body["lastUpdated"], body["currentTime"]);
        assert_eq!(body["currentTime"], "2027-01-15T08:00:01Z");
        assert_eq!(
            body["status"]["IPv6"],
            json!({ "lastUpdated": "2023-11-14T22:13:20.5Z", "healthy": true })
        );
    }

    #[test]
    fn a_stuck_change_fails_both() {
        let at = now();
        let facts = Facts {
            stuck_after: Duration::from_mins(1),
            pending_since: Some(at),
            node_eligible: true,
            ..Facts::default()
        };
        for probe in [Probe::Ready, Probe::Live] {
            let (status, body) = check(probe, &facts, at + Duration::from_secs(61));
            assert_eq!((status, &body["healthy"]), (503, &json!(false)));
            assert_eq!(body["lastUpdated"], NEVER);
        }
    }
}
