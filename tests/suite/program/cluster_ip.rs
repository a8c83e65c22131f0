//! Pods that use a Service: forward, established, reply, for a backend of each kind.

use lb_common::verdict::Reason::{Forward, NewFlow, OtherHook, Reply};
use lb_tests::packet::Packet;
use steerway::datapath::load::ProgramName::{PodIn, PodOut, UplinkIn};

use super::case::{Case, at};
use super::node::Addresses;
use super::objects::{BACKEND_PORT, Backend, PORT, web_on};
use super::run_cases;

const CLIENT_PORT: u16 = 40_000;

fn cases(family: Addresses) -> Vec<Case> {
    let (pod, vip) = (family.pod(), family.vip());
    let kinds = [
        ("a pod of this node", Backend::Local, family.local_pod(), PodIn),
        ("a pod of another node", Backend::Remote, family.remote_pod(), UplinkIn),
    ];
    let mut cases = Vec::new();
    for (name, backend, address, enters) in kinds {
        let tcp = |flags| Packet::new(pod, vip).tcp(CLIENT_PORT, PORT, flags).payload(b"ping");
        let sent = |flags| Packet::new(pod, address).tcp(CLIENT_PORT, BACKEND_PORT, flags).payload(b"ping");
        let answer = |flags| Packet::new(address, pod).tcp(BACKEND_PORT, CLIENT_PORT, flags).payload(b"pong");
        let seen = |flags| Packet::new(vip, pod).tcp(PORT, CLIENT_PORT, flags).payload(b"pong");
        cases.push(Case::new(
            &format!("a connection from a pod to {name}"),
            web_on(family, &[backend]),
            vec![
                at(PodIn, &tcp("S")).passes_as(&sent("S"), &[NewFlow, Forward]),
                at(enters, &answer("SA")).passes(&[OtherHook]),
                at(PodOut, &answer("SA")).passes_as(&seen("SA"), &[Reply]),
                at(PodIn, &tcp("A")).passes_as(&sent("A"), &[Forward]),
                at(PodIn, &tcp("PA")).passes_as(&sent("PA"), &[Forward]),
                at(PodOut, &answer("PA")).passes_as(&seen("PA"), &[Reply]),
                at(PodIn, &tcp("FA")).passes_as(&sent("FA"), &[Forward]),
                at(PodOut, &answer("FA")).passes_as(&seen("FA"), &[Reply]),
                at(PodIn, &tcp("A")).passes_as(&sent("A"), &[Forward]),
            ],
        ));
        let ask = Packet::new(pod, vip).udp(CLIENT_PORT, PORT).payload(b"odd");
        let asked = Packet::new(pod, address).udp(CLIENT_PORT, BACKEND_PORT).payload(b"odd");
        let answer = Packet::new(address, pod).udp(BACKEND_PORT, CLIENT_PORT).payload(b"even");
        let seen = Packet::new(vip, pod).udp(PORT, CLIENT_PORT).payload(b"even");
        cases.push(Case::new(
            &format!("datagrams from a pod to {name}"),
            web_on(family, &[backend]),
            vec![
                at(PodIn, &ask).passes_as(&asked, &[NewFlow, Forward]),
                at(PodIn, &ask).passes_as(&asked, &[Forward]),
                at(PodOut, &answer).passes_as(&seen, &[Reply]),
                at(PodIn, &ask).passes_as(&asked, &[Forward]),
            ],
        ));
    }
    cases
}

#[test]
fn a_pod_reaches_every_backend_by_the_cluster_ip() {
    run_cases("cluster-ip", cases);
}
