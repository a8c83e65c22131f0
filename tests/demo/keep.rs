//! A cluster that stays up: commands to try on it.

use std::env;
use std::fmt::Write as _;
use std::process;

use lb_tests::netns::Netns;

use crate::stage::{SHOP, Stage};

/// The commands, each with what it shows.
pub(crate) fn commands(stage: &Stage) -> String {
    let agent = env::var("STEERWAY_BIN").unwrap_or_else(|_| "target/release/steerway".to_owned());
    let enter = |netns: &Netns| format!("nsenter --net={}", netns.path().display());
    let client = enter(&stage.world.client().ns);
    let shop = enter(&stage.world.pod(SHOP).ns);
    let node1 = enter(&stage.world.node(1).ns);
    let pins = stage.agents[0].pin_dir().display();
    let folder = stage.examples.path().display();
    let mut text = "The cluster stays up. As root, try:\n".to_owned();
    let mut show = |what: &str, command: String| _ = write!(text, "\n  # {what}\n  {command}\n");
    show(
        "from outside: LoadBalancer address, NodePort, IPv6 with externalTrafficPolicy Local",
        format!("{client} curl -s http://203.0.113.10/ http://172.31.0.11:30080/ 'http://[2001:db8:113::20]/'"),
    );
    show(
        "from a pod: ClusterIP of both families, and session affinity",
        format!(
            "{shop} curl -s http://10.96.0.10/ 'http://[fd00:10:96::10]/'\n  \
             {shop} bash -c 'for i in 1 2 3; do curl -s http://10.96.0.20/; done'"
        ),
    );
    show(
        "UDP",
        format!("{shop} timeout 2 bash -c 'exec 3<>/dev/udp/10.96.0.53/53; echo hello >&3; head -n 2 <&3'"),
    );
    show(
        "what node1's agent and its pins tell",
        format!(
            "{agent} status --pin-dir {pins}\n  {agent} services --pin-dir {pins} -o wide\n  {agent} flows --pin-dir {pins}"
        ),
    );
    show(
        "no rule of netfilter does this: there is none",
        format!("{node1} nft list ruleset"),
    );
    show(
        "change something: the agents follow at once",
        format!("sed -i 's/timeoutSeconds: .*/timeoutSeconds: 60/' {folder}/session-affinity.yaml"),
    );
    if let Some(pid) = stage.agents[0].pid() {
        show(
            "kill node1's agent: its node goes on forwarding",
            format!("kill -9 {pid}"),
        );
    }
    show("take it all down", format!("kill {}", process::id()));
    text
}
