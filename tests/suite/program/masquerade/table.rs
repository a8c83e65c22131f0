//! The 27 flows with kube-proxy's answers in four settings, and where ours differ. Source: kube-proxy's
//! TestInternalExternalMasquerade, as the specification's section 3.2 has it.

use self::Differs::{KeepsLocal, KeepsRemote, MasqueradesLocal, MasqueradesRemote, OtherEndpoints};
use self::Frontend::{Balancer, ClusterIp, NodePort};
use self::Policy::{Cluster, ExternalLocal, InternalLocal};
use self::Setting::{All, Base, Both, NoDetector};
use self::Source::{Node, Outside, Pod};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Pod,
    Node,
    Outside,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Frontend {
    ClusterIp,
    NodePort,
    Balancer,
}

/// Both policies Cluster, or which one is Local.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Policy {
    Cluster,
    ExternalLocal,
    InternalLocal,
}

/// kube-proxy's settings: as it comes, without a detector of local traffic, with masqueradeAll, with both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Setting {
    Base,
    NoDetector,
    All,
    Both,
}

pub(super) const SETTINGS: [Setting; 4] = [Base, NoDetector, All, Both];

/// kube-proxy's answer: the endpoints of the whole cluster or the local ones, and whether it masquerades.
#[derive(Clone, Copy)]
pub(super) struct Expected {
    pub(super) local_only: bool,
    pub(super) masquerade: bool,
}

pub(super) const C: Expected = Expected {
    local_only: false,
    masquerade: false,
};
pub(super) const CM: Expected = Expected { masquerade: true, ..C };
pub(super) const L: Expected = Expected { local_only: true, ..C };
pub(super) const LM: Expected = Expected { masquerade: true, ..L };

pub(super) type Row = (Source, Frontend, Policy);

/// The 27 flows, with the answers in order of [`SETTINGS`].
pub(super) const TABLE: [(Row, [Expected; 4]); 27] = [
    ((Pod, ClusterIp, Cluster), [C, C, CM, CM]),
    ((Pod, NodePort, Cluster), [CM, CM, CM, CM]),
    ((Pod, Balancer, Cluster), [CM, CM, CM, CM]),
    ((Node, ClusterIp, Cluster), [CM, C, CM, CM]),
    ((Node, NodePort, Cluster), [CM, CM, CM, CM]),
    ((Node, Balancer, Cluster), [CM, CM, CM, CM]),
    ((Outside, ClusterIp, Cluster), [CM, C, CM, CM]),
    ((Outside, NodePort, Cluster), [CM, CM, CM, CM]),
    ((Outside, Balancer, Cluster), [CM, CM, CM, CM]),
    ((Pod, ClusterIp, ExternalLocal), [C, C, CM, CM]),
    ((Pod, NodePort, ExternalLocal), [C, L, C, L]),
    ((Pod, Balancer, ExternalLocal), [C, L, C, L]),
    ((Node, ClusterIp, ExternalLocal), [CM, C, CM, CM]),
    ((Node, NodePort, ExternalLocal), [CM, CM, CM, CM]),
    ((Node, Balancer, ExternalLocal), [CM, CM, CM, CM]),
    ((Outside, ClusterIp, ExternalLocal), [CM, C, CM, CM]),
    ((Outside, NodePort, ExternalLocal), [L, L, L, L]),
    ((Outside, Balancer, ExternalLocal), [L, L, L, L]),
    ((Pod, ClusterIp, InternalLocal), [L, L, LM, LM]),
    ((Pod, NodePort, InternalLocal), [CM, CM, CM, CM]),
    ((Pod, Balancer, InternalLocal), [CM, CM, CM, CM]),
    ((Node, ClusterIp, InternalLocal), [LM, L, LM, LM]),
    ((Node, NodePort, InternalLocal), [CM, CM, CM, CM]),
    ((Node, Balancer, InternalLocal), [CM, CM, CM, CM]),
    ((Outside, ClusterIp, InternalLocal), [LM, L, LM, LM]),
    ((Outside, NodePort, InternalLocal), [CM, CM, CM, CM]),
    ((Outside, Balancer, InternalLocal), [CM, CM, CM, CM]),
];

/// In what a flow differs from kube-proxy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Differs {
    /// The client's address and port stay towards the local endpoint.
    KeepsLocal,
    /// They stay towards the remote one.
    KeepsRemote,
    /// The source is translated towards the local endpoint.
    MasqueradesLocal,
    /// It is towards the remote one.
    MasqueradesRemote,
    /// Endpoints of the whole cluster instead of the local ones.
    OtherEndpoints,
}

/// Rows that differ in the same way for the same reason.
pub(super) struct Difference {
    pub(super) rows: &'static [Row],
    pub(super) settings: &'static [Setting],
    pub(super) differs: &'static [Differs],
    /// Why; for the reader.
    pub(super) reason: &'static str,
}

pub(super) const DIFFERENCES: &[Difference] = &[
    Difference {
        rows: &[
            (Pod, NodePort, Cluster),
            (Pod, Balancer, Cluster),
            (Pod, NodePort, InternalLocal),
            (Pod, Balancer, InternalLocal),
        ],
        settings: &[Base, NoDetector, All, Both],
        differs: &[KeepsLocal, KeepsRemote],
        reason: "replies to a local pod pass the pod's own device, where they are un-translated: the pod's address can stay",
    },
    Difference {
        rows: &[(Pod, ClusterIp, Cluster), (Pod, ClusterIp, ExternalLocal)],
        settings: &[All, Both],
        differs: &[KeepsLocal, KeepsRemote],
        reason: "there is no masqueradeAll: nothing needs it",
    },
    Difference {
        rows: &[(Pod, ClusterIp, InternalLocal)],
        settings: &[All, Both],
        differs: &[KeepsLocal],
        reason: "there is no masqueradeAll: nothing needs it",
    },
    Difference {
        rows: &[
            (Outside, NodePort, Cluster),
            (Outside, Balancer, Cluster),
            (Outside, NodePort, InternalLocal),
            (Outside, Balancer, InternalLocal),
        ],
        settings: &[Base, NoDetector, All, Both],
        differs: &[KeepsLocal],
        reason: "replies of a local backend leave by a hooked device, where they are un-translated: the client's address can stay",
    },
    Difference {
        rows: &[
            (Outside, ClusterIp, Cluster),
            (Outside, ClusterIp, ExternalLocal),
            (Outside, ClusterIp, InternalLocal),
        ],
        settings: &[Base, All, Both],
        differs: &[KeepsLocal],
        reason: "as for the other frontends: replies of a local backend pass this node anyway",
    },
    Difference {
        rows: &[(Outside, ClusterIp, Cluster), (Outside, ClusterIp, ExternalLocal)],
        settings: &[NoDetector],
        differs: &[MasqueradesRemote],
        reason: "replies of a remote backend would not come back here; kube-proxy trusts that the client is a pod whose do",
    },
    Difference {
        rows: &[(Node, ClusterIp, Cluster), (Node, ClusterIp, ExternalLocal)],
        settings: &[NoDetector],
        differs: &[MasqueradesLocal, MasqueradesRemote],
        reason: "a process's flows get a port of ours, which no other flow of the host to the same backend can have",
    },
    Difference {
        rows: &[(Node, ClusterIp, InternalLocal)],
        settings: &[NoDetector],
        differs: &[MasqueradesLocal],
        reason: "a process's flows get a port of ours, which no other flow of the host to the same backend can have",
    },
    Difference {
        rows: &[(Pod, NodePort, ExternalLocal), (Pod, Balancer, ExternalLocal)],
        settings: &[NoDetector, Both],
        differs: &[OtherEndpoints],
        reason: "a pod is known by its device, without a detector: it is always inside and gets the cluster's endpoints",
    },
];
