//! What an operator must know of this node and of single objects, for events: from what the loop tells of itself.
//!
//! Pure. One text for each object and reason: rejections on the object that has them, the rest on the Node.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::watch;

use crate::health::FailedChecks;
use crate::model::{ObjectKind, ObjectRef};
use crate::source::kubernetes::{Notices, Topic};
use crate::status::State;
use crate::status::report::Cause;

/// Something of an object is not programmed.
const REJECTED: &str = "NotProgrammed";
/// kube-proxy's word for a health check node port that cannot be served.
const NO_HEALTH_CHECK: &str = "FailedToStartServiceHealthcheck";
/// How many faults of one object are named.
const NAMED: usize = 5;

/// Keeps notices up to date with the loop's state and the health check servers, until one of them ends.
pub(super) async fn tell(
    node_name: String,
    mut state: watch::Receiver<State>,
    mut failed: watch::Receiver<FailedChecks>,
    notices: watch::Sender<Notices>,
) {
    loop {
        let new = of(&node_name, &state.borrow_and_update(), &failed.borrow_and_update());
        notices.send_if_modified(|known| {
            let news = *known != new;
            *known = new;
            news
        });
        let ended = tokio::select! {
            changed = state.changed() => changed.is_err(),
            changed = failed.changed() => changed.is_err(),
        };
        if ended {
            return;
        }
    }
}

fn of(node_name: &str, state: &State, failed: &FailedChecks) -> Notices {
    let mut notices = Notices::new();
    let mut faults: BTreeMap<&ObjectRef, Vec<String>> = BTreeMap::new();
    for rejection in state.rejections.iter() {
        let fault = format!("{}: {}", rejection.field, rejection.reason);
        faults.entry(&rejection.object).or_default().push(fault);
    }
    // An object without a name can have no event.
    for (object, faults) in faults.into_iter().filter(|(object, _)| !object.name.is_empty()) {
        let mut note = faults.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
        if let Some(more @ 1..) = faults.len().checked_sub(NAMED) {
            note = format!("{note}; and {more} more");
        }
        notices.insert((object.clone(), REJECTED), note);
    }
    for (address, check) in failed {
        let service = ObjectRef {
            kind: ObjectKind::Service,
            namespace: check.namespace.clone(),
            name: check.name.clone(),
        };
        let note = format!(
            "node {node_name} cannot serve the health check node port at {address}: {}",
            check.reason
        );
        notices.entry((service, NO_HEALTH_CHECK)).or_insert(note);
    }
    let node = |reason: &'static str| -> Topic {
        let object = ObjectRef {
            kind: ObjectKind::Node,
            namespace: String::new(),
            name: node_name.to_owned(),
        };
        (object, reason)
    };
    // Causes that pass by themselves, or that mean that there is no Node, are none of an operator's.
    let told = BTreeSet::from([
        Cause::NoNodeAddress,
        Cause::NoUplink,
        Cause::WriteFailed,
        Cause::AttachFailed,
    ]);
    for cause in state.not_ready.iter().filter(|cause| told.contains(&cause.cause)) {
        let note = notices.entry(node(cause.cause.name())).or_default();
        let joint = if note.is_empty() { "" } else { "; " };
        note.push_str(joint);
        note.push_str(&cause.message);
    }
    if !state.warnings.is_empty() {
        notices.insert(node("Degraded"), state.warnings.join("; "));
    }
    notices
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::FailedCheck;
    use crate::model::Rejection;
    use crate::status::report::NotReady;

    fn rejection(name: &str, field: &str) -> Rejection {
        Rejection {
            object: ObjectRef {
                kind: ObjectKind::Service,
                namespace: "default".to_owned(),
                name: name.to_owned(),
            },
            field: field.to_owned(),
            reason: "is wrong".to_owned(),
        }
    }

    #[test]
    fn each_object_has_one_text_for_each_reason() {
        let many = (0..7).map(|number| rejection("many", &format!("f{number}")));
        let cause = |cause, message: &str| NotReady {
            cause,
            message: message.to_owned(),
        };
        let state = State {
            rejections: many.chain([rejection("one", "f"), rejection("", "f")]).collect(),
            not_ready: vec![
                cause(Cause::AttachFailed, "eth0"),
                cause(Cause::AttachFailed, "eth1"),
                cause(Cause::Starting, "soon"),
            ],
            warnings: vec!["uplinks are down: eth1".to_owned()],
            ..State::default()
        };
        let failed = FailedChecks::from([(
            "192.0.2.1:32000".parse().unwrap(),
            FailedCheck {
                namespace: "default".to_owned(),
                name: "one".to_owned(),
                reason: "taken".to_owned(),
            },
        )]);
        let notices = of("n1", &state, &failed);
        let shown: Vec<String> = notices
            .iter()
            .map(|((object, reason), note)| format!("{object} {reason}: {note}"))
            .collect();
        assert_eq!(
            shown,
            [
                "Service default/many NotProgrammed: f0: is wrong; f1: is wrong; f2: is wrong; f3: is wrong; f4: is wrong; and 2 more",
                "Service default/one FailedToStartServiceHealthcheck: node n1 cannot serve the health check node port at 192.0.2.1:32000: taken",
                "Service default/one NotProgrammed: f: is wrong",
                "Node n1 AttachFailed: eth0; eth1",
                "Node n1 Degraded: uplinks are down: eth1",
            ]
        );
    }
}
