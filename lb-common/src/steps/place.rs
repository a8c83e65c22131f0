//! Where a new flow's entries apply and how its packets go on: a pure function of hook, source and backend.
//!
//! | seen at | backend | source becomes | forward goes on | reply is met at | reply goes on |
//! |---|---|---|---|---|---|
//! | pod in | the pod itself | the frontend | back | pod in | back |
//! | pod in | another pod of this node, with host routing by BPF | kept | pod | pod in or out | pod |
//! | pod in | any other | kept | stack | pod out | stack |
//! | uplink in | on this node, by policy Local | kept | stack | any out | stack |
//! | uplink in | on this node, else | kept, with a port of ours | stack | any out | stack |
//! | uplink in | elsewhere | node, port of ours | route | any in | route |
//! | steer0 out | the host | the frontend, perhaps a port of ours | steer0 | steer0 out | steer0 |
//! | steer0 out, from the host | any other | node, port of ours | route | any in | steer0 |
//! | steer0 out, forwarded | any other | node, port of ours | route | any in | route |
//! | lo out | the host | kept | stack | lo out | stack |
//! | lo out | any other | node, port of ours | route | any in | loopback |
//!
//! A port of ours beside the client's own address, because the client may be a pod that reaches the same backend through its own
//! node, or straight, from the same port: those packets do not meet this node's tables, or only once they are the backend's.

use crate::flow::slot::Way;
use crate::layout::{BACKEND_HOST, BACKEND_ON_NODE};
use crate::pipeline::Hook;
use crate::steps::select::KEEPS_PORT;

/// What becomes of the source of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSource {
    /// It stays.
    Keep,
    /// The address stays; the port becomes one of ours.
    KeepAddress,
    /// It becomes the frontend's address; the port stays.
    Frontend,
    /// It becomes the way out's preferred address with a port of ours.
    Node,
}

/// Where a new flow's entries apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// The source.
    pub source: NewSource,
    /// Hooks of the forward entry.
    pub forward_hooks: u8,
    /// Way of the forward entry.
    pub forward_way: Way,
}

/// Hooks at which packets enter from pods and wires.
const ANY_IN: u8 = Hook::POD_IN | Hook::UPLINK_IN;
/// Hooks at which packets leave to pods and wires.
const ANY_OUT: u8 = Hook::POD_OUT | Hook::UPLINK_OUT;

/// Decides for a new flow. `host_routing`: packets go from pod to pod past the host's stack.
#[inline(always)]
pub fn decide(hook: u8, sent_by_host: bool, host_routing: bool, backend_flags: u16, backend_is_client: bool) -> Places {
    let (source, way) = match hook {
        Hook::POD_IN if backend_is_client => (NewSource::Frontend, Way::Back),
        Hook::POD_IN if host_routing && backend_flags & (BACKEND_ON_NODE | BACKEND_HOST) == BACKEND_ON_NODE => {
            (NewSource::Keep, Way::Pod)
        }
        Hook::POD_IN => (NewSource::Keep, Way::Stack),
        Hook::UPLINK_IN if backend_flags & (BACKEND_ON_NODE | BACKEND_HOST) != 0 && backend_flags & KEEPS_PORT != 0 => {
            (NewSource::Keep, Way::Stack)
        }
        Hook::UPLINK_IN if backend_flags & (BACKEND_ON_NODE | BACKEND_HOST) != 0 => {
            (NewSource::KeepAddress, Way::Stack)
        }
        // The host answers to the frontend, which leads here again, wherever the client is.
        Hook::STEER_OUT if backend_flags & BACKEND_HOST != 0 => (NewSource::Frontend, Way::Steer),
        Hook::LO_OUT if backend_flags & BACKEND_HOST != 0 => (NewSource::Keep, Way::Stack),
        _ => (NewSource::Node, Way::Route),
    };
    // What steer0 forwards for others came in by a device without a hook: should that be hooked later, the flow goes on there.
    let forward_hooks = if hook == Hook::STEER_OUT && !sent_by_host {
        hook | ANY_IN
    } else {
        hook
    };
    Places {
        source,
        forward_hooks,
        forward_way: way,
    }
}

/// Hooks and way of the reply entry that belongs to a forward entry.
#[inline(always)]
pub fn reply(forward_hooks: u8, forward_way: Way) -> (u8, Way) {
    match (forward_hooks, forward_way) {
        (_, Way::Back) => (Hook::POD_IN, Way::Back),
        (_, Way::Steer) => (Hook::STEER_OUT, Way::Steer),
        (Hook::LO_OUT, Way::Stack) => (Hook::LO_OUT, Way::Stack),
        (Hook::POD_IN, Way::Stack) => (Hook::POD_OUT, Way::Stack),
        // A pod may answer by a device without a hook; its packets go by the stack then.
        (_, Way::Pod) => (Hook::POD_IN | Hook::POD_OUT, Way::Pod),
        (_, Way::Stack) => (ANY_OUT, Way::Stack),
        (Hook::STEER_OUT, _) => (ANY_IN, Way::Steer),
        (Hook::LO_OUT, _) => (ANY_IN, Way::Loopback),
        _ => (ANY_IN, Way::Route),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_this_file_holds() {
        let keep = |w| (NewSource::Keep, w);
        let keep_address = (NewSource::KeepAddress, Way::Stack);
        let node = (NewSource::Node, Way::Route);
        let rows = [
            (
                Hook::POD_IN,
                false,
                BACKEND_ON_NODE,
                true,
                (NewSource::Frontend, Way::Back),
                (Hook::POD_IN, Way::Back),
            ),
            (
                Hook::POD_IN,
                false,
                BACKEND_ON_NODE,
                false,
                keep(Way::Stack),
                (Hook::POD_OUT, Way::Stack),
            ),
            (
                Hook::POD_IN,
                false,
                0,
                false,
                keep(Way::Stack),
                (Hook::POD_OUT, Way::Stack),
            ),
            (
                Hook::UPLINK_IN,
                false,
                BACKEND_ON_NODE,
                false,
                keep_address,
                (ANY_OUT, Way::Stack),
            ),
            (
                Hook::UPLINK_IN,
                false,
                BACKEND_HOST,
                false,
                keep_address,
                (ANY_OUT, Way::Stack),
            ),
            (Hook::UPLINK_IN, false, 0, false, node, (ANY_IN, Way::Route)),
            (
                Hook::STEER_OUT,
                true,
                BACKEND_HOST,
                false,
                (NewSource::Frontend, Way::Steer),
                (Hook::STEER_OUT, Way::Steer),
            ),
            (
                Hook::STEER_OUT,
                false,
                BACKEND_HOST,
                false,
                (NewSource::Frontend, Way::Steer),
                (Hook::STEER_OUT, Way::Steer),
            ),
            (
                Hook::STEER_OUT,
                true,
                BACKEND_ON_NODE,
                false,
                node,
                (ANY_IN, Way::Steer),
            ),
            (Hook::STEER_OUT, true, 0, false, node, (ANY_IN, Way::Steer)),
            (Hook::STEER_OUT, false, 0, false, node, (ANY_IN, Way::Route)),
            (
                Hook::LO_OUT,
                true,
                BACKEND_HOST,
                false,
                keep(Way::Stack),
                (Hook::LO_OUT, Way::Stack),
            ),
            (Hook::LO_OUT, true, 0, false, node, (ANY_IN, Way::Loopback)),
        ];
        for (hook, sent_by_host, flags, own, forward, back) in rows {
            let p = decide(hook, sent_by_host, false, flags, own);
            assert_eq!(
                (p.source, p.forward_way),
                forward,
                "{hook} {sent_by_host} {flags} {own}"
            );
            assert_eq!(
                reply(p.forward_hooks, p.forward_way),
                back,
                "{hook} {sent_by_host} {flags} {own}"
            );
        }
        for flags in [BACKEND_ON_NODE, BACKEND_HOST] {
            let by_local_policy = decide(Hook::UPLINK_IN, false, false, flags | KEEPS_PORT, false);
            assert_eq!((by_local_policy.source, by_local_policy.forward_way), keep(Way::Stack));
        }
        let elsewhere = decide(Hook::UPLINK_IN, false, false, KEEPS_PORT, false);
        assert_eq!((elsewhere.source, elsewhere.forward_way), node);
    }

    #[test]
    fn host_routing_concerns_pods_of_this_node_alone() {
        let mut straight_into_a_pod = Vec::new();
        for hook in [Hook::POD_IN, Hook::UPLINK_IN, Hook::STEER_OUT, Hook::LO_OUT] {
            for flags in [
                0,
                BACKEND_HOST,
                BACKEND_HOST | BACKEND_ON_NODE,
                BACKEND_ON_NODE,
                BACKEND_ON_NODE | KEEPS_PORT,
            ] {
                for own in [false, true] {
                    let (with, without) = (
                        decide(hook, false, true, flags, own),
                        decide(hook, false, false, flags, own),
                    );
                    if with != without {
                        assert_eq!(
                            (with.source, with.forward_hooks),
                            (without.source, without.forward_hooks)
                        );
                        straight_into_a_pod.push((hook, flags, own, with.forward_way));
                    }
                }
            }
        }
        assert_eq!(
            straight_into_a_pod,
            [BACKEND_ON_NODE, BACKEND_ON_NODE | KEEPS_PORT].map(|flags| (Hook::POD_IN, flags, false, Way::Pod))
        );
        assert_eq!(reply(Hook::POD_IN, Way::Pod), (Hook::POD_IN | Hook::POD_OUT, Way::Pod));
    }
}
