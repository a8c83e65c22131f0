//! Traffic that is no Service's: passed as it is, at every hook.

use lb_common::verdict::Reason::NotOurs;
use lb_tests::packet::Packet;
use steerway::datapath::load::ProgramName::{LoOut, PodIn, PodOut, SteerOut, UplinkIn, UplinkOut};

use super::case::{Case, at, at_frame};
use super::flow::Transport;
use super::objects::{BACKEND_PORT, Backend, PORT, web_on};
use super::run_cases;

#[test]
fn what_is_not_ours_passes_untouched_at_every_hook() {
    run_cases(|family| {
        let (pod, client, stranger) = (family.pod(), family.client(), family.stranger());
        let mut steps = Vec::new();
        for transport in Transport::BOTH {
            let packet = |from, to| transport.packet((from, 40_000), (to, PORT), "S").payload(b"not yours");
            for hook in [PodIn, PodOut, UplinkIn, UplinkOut, SteerOut, LoOut] {
                steps.push(at(hook, &packet(pod, stranger)).passes(&[NotOurs]));
                steps.push(at(hook, &packet(client, stranger)).passes(&[NotOurs]));
            }
            // From a backend, but of no flow.
            let direct = transport.packet((family.local_pod(), BACKEND_PORT), (stranger, 40_000), "A");
            steps.push(at(PodIn, &direct).passes(&[NotOurs]));
            steps.push(at(UplinkOut, &direct).passes(&[NotOurs]));
            // To a VIP, where nothing begins.
            steps.push(at(PodOut, &packet(pod, family.vip())).passes(&[NotOurs]));
            steps.push(at(UplinkOut, &packet(pod, family.vip())).passes(&[NotOurs]));
        }
        for protocol in [47, 50, 132] {
            steps.push(at(PodIn, &Packet::new(pod, stranger).protocol(protocol).payload(&[9; 32])).passes(&[NotOurs]));
        }
        vec![Case::new("plain traffic", web_on(family, &[Backend::Local]), steps)]
    });
}

#[test]
fn what_is_not_ip_passes_uncounted() {
    run_cases(|family| {
        let mut arp = vec![0xff; 6];
        arp.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        arp.resize(60, 0);
        let tagged = Packet::new(family.pod(), family.vip())
            .tcp(40_000, PORT, "S")
            .vlan(5)
            .build();
        vec![
            Case::new(
                "ARP and a VLAN tag",
                web_on(family, &[Backend::Local]),
                vec![at_frame(PodIn, arp).passes(&[]), at_frame(UplinkIn, tagged).passes(&[])],
            )
            .never_summed(),
        ]
    });
}
