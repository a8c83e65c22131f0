//! Real sockets through real agents: one file a feature. Each test has a world of its own.

mod cluster_ip;
mod foreign_programs;
mod from_outside;
mod from_the_node;
mod hairpin;
mod icmp;
mod ip_mode;
mod local_policy;
mod network_policy;
mod node_port_addresses;
mod node_subnet;
mod one_client_port;
mod outcome;
mod path_mtu;
mod ports;
mod refusal;
mod restart;
mod scene;
mod session_affinity;
mod takeover;
mod tcp_flows;
mod termination;
mod topology;
mod udp_flows;
