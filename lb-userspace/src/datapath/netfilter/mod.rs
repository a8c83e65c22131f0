//! What kube-proxy left in netfilter, and the connections that netfilter still carries: for taking a node over from it.
//!
//! In: this network namespace. Out: kube-proxy's rules taken away in a way that keeps translating what netfilter has begun to translate.
//! Netfilter translates a connection by its entry in the connection tracker, not by rules, but only while something is hooked for
//! NAT: kube-proxy's tables are therefore emptied first ([`nftables`], one message a table) and removed once no connection
//! needs them; of the chains of iptables ([`iptables`]) the one that masquerades stays as long, unused. Nothing here is kept open, and all of it may be
//! repeated.

pub mod connections;
pub mod iptables;
pub mod nftables;
mod socket;

pub use socket::NetfilterError;
