//! Real sockets through real agents: one file a feature. Each test has a world of its own.

mod cluster_ip;
mod from_outside;
mod from_the_node;
mod hairpin;
mod icmp;
mod refusal;
mod restart;
mod scene;
mod session_affinity;
