//! The acts of the show: what is changed in each, and what a person should know about it.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::examples::State;
use crate::stage::Stage;
use crate::stop::Stop;

/// One act. `change` makes it happen, returns when it is in force, and says what there is to say.
pub(crate) struct Phase {
    pub(crate) title: &'static str,
    pub(crate) meaning: &'static str,
    pub(crate) change: fn(&mut Stage, &Stop) -> Result<String>,
}

/// All acts in order.
pub(crate) const PHASES: [Phase; 6] = [
    Phase {
        title: "three backends",
        meaning: "requests spread over web-1, web-2 (node1) and web-3 (node2)",
        change: |stage, stop| {
            stage.settle(stop)?;
            Ok("programmed on both nodes".to_owned())
        },
    },
    Phase {
        title: "web-3 removed",
        meaning: "its endpoints are gone: new requests go elsewhere, open connections live on",
        change: |stage, stop| set(stage, "web-3", State::Removed, stop),
    },
    Phase {
        title: "web-2 draining",
        meaning: "terminating, still serving: no new requests, what is open goes on",
        change: |stage, stop| set(stage, "web-2", State::Draining, stop),
    },
    Phase {
        title: "web-4 added",
        meaning: "a new pod on node2 takes its share",
        change: |stage, stop| {
            stage.add_backend("web-4", 2);
            set(stage, "web-4", State::Serving, stop)
        },
    },
    Phase {
        title: "agents killed",
        meaning: "kill -9 on both nodes: programs and tables stay in the kernel",
        change: |stage, _| Ok(kill_agents(stage)),
    },
    Phase {
        title: "agents back",
        meaning: "they take over what is pinned, and find nothing to do",
        change: restart_agents,
    },
];

fn set(stage: &mut Stage, backend: &str, state: State, stop: &Stop) -> Result<String> {
    let took = stage.set_state(backend, state, stop)?;
    Ok(format!("programmed on both nodes {}", within(took)))
}

fn kill_agents(stage: &mut Stage) -> String {
    let mut text = "killed".to_owned();
    for agent in &mut stage.agents {
        let pid = agent.pid().unwrap_or_default();
        agent.kill9();
        _ = write!(text, " process {pid},");
    }
    text + " nobody writes to the tables now"
}

fn restart_agents(stage: &mut Stage, stop: &Stop) -> Result<String> {
    stage.start_agents();
    let took = stage.settle(stop)?;
    let written: Vec<String> = stage
        .agents
        .iter()
        .map(|agent| match &agent.json(&["status"])["reconcile"]["operations"] {
            Value::Null => "?".to_owned(),
            operations => operations.to_string(),
        })
        .collect();
    Ok(format!(
        "ready again on both nodes {}, table writes since: {}",
        within(took),
        written.join(" and ")
    ))
}

fn within(time: Duration) -> String {
    format!("within {:.2} s", time.as_secs_f64())
}
