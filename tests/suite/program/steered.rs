//! Packets of others that no hook saw before steer0: a pod that started while the agent was down.

use lb_common::verdict::Reason::{Forward, NewFlow, Reply};
use steerway::datapath::load::ProgramName::{SteerOut, UplinkIn};

use super::case::{Case, at};
use super::flow::{CLIENT_PORT, Flow, Transport};
use super::node::{CLIENT_VETH, SNAT_PORT, UPLINK};
use super::objects::{BACKEND_PORT, Backend, PORT, web_on};
use super::run_cases;

#[test]
fn a_packet_of_another_that_only_steer0_met_is_routed_and_its_reply_as_well() {
    run_cases(|family| {
        let flow = Flow {
            transport: Transport::Tcp,
            client: (family.pod(), CLIENT_PORT),
            frontend: (family.vip(), PORT),
            source: (family.node(), SNAT_PORT),
            backend: (family.remote_pod(), BACKEND_PORT),
        };
        vec![Case::new(
            "a pod without a hook",
            web_on(family, &[Backend::Remote]),
            vec![
                at(SteerOut, &flow.ask("S")).received_by(CLIENT_VETH).redirected_as(
                    UPLINK,
                    &flow.asked("S").ttl(63),
                    &[NewFlow, Forward],
                ),
                at(UplinkIn, &flow.answer("SA"))
                    .redirected_as(CLIENT_VETH, &flow.answered("SA").ttl(63), &[Reply])
                    .handed_over(),
            ],
        )]
    });
}
