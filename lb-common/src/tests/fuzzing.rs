//! The fuzzer's body on a corpus, on mutations of it and on any bytes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;

use super::packet::Packet;
use crate::layout::config;
use crate::testing::{Outcome, fuzz};
use crate::verdict::Reason;

/// First bytes of an input: hook and family, configuration, and what it spoils (nothing).
const SPOILS_NOTHING: u8 = 0;
const IPV6: u8 = 8;
/// Answers without limit, ping answered.
const FLAGS: u8 = 0x70 | config::FLAG_ECHO as u8;
/// Six answers, and host routing by BPF.
const HOST_ROUTING: u8 = 0x60 | config::FLAG_ECHO as u8;

/// Positions in the fuzzer's list of hooks.
const POD_IN: u8 = 0;
const POD_OUT: u8 = 1;
const UPLINK_IN: u8 = 2;

/// Addresses as in the fuzzer's tables, of one family.
struct Ends {
    flag: u8,
    client: IpAddr,
    vip: IpAddr,
    local: IpAddr,
    stranger: IpAddr,
}

impl Ends {
    fn of(v6: bool) -> Self {
        let [client, vip, local, stranger] = if v6 {
            ["2001:db8:1::10", "fd00:96::10", "fd00:1::20", "2001:db8:9::9"]
        } else {
            ["192.0.2.10", "10.96.0.10", "10.1.0.20", "192.0.2.99"]
        }
        .map(|text| text.parse().expect("an address"));
        Self {
            flag: if v6 { IPV6 } else { 0 },
            client,
            vip,
            local,
            stranger,
        }
    }

    fn input(&self, hook: u8, flags: u8, packet: &Packet) -> Vec<u8> {
        [&[hook | self.flag, flags, SPOILS_NOTHING][..], &packet.build()].concat()
    }
}

/// Inputs, and the reason that the pipeline gives for each.
fn corpus() -> Vec<(Reason, Vec<u8>)> {
    let mut corpus = Vec::new();
    for ends in [false, true].map(Ends::of) {
        let Ends {
            client,
            vip,
            local,
            stranger,
            ..
        } = ends;
        let v6 = ends.flag != 0;
        let sent = Packet::new(client, local).bare().tcp(40_000, 8080, "S").build();
        let (unreachable, code) = if v6 { (1, 4) } else { (3, 3) };
        let error = Packet::new(local, client).icmp_error(unreachable, code, [0; 4], &sent);
        let stray = Packet::new(local, client).icmp_error(unreachable, code, [0; 4], &{
            Packet::new(client, local).bare().tcp(40_001, 8080, "S").build()
        });
        let mut add = |reason, hook, flags, packet: Packet| corpus.push((reason, ends.input(hook, flags, &packet)));
        let to_vip = || Packet::new(client, vip);
        add(
            Reason::NotOurs,
            UPLINK_IN,
            FLAGS,
            Packet::new(client, stranger).tcp(1, 2, "S"),
        );
        add(Reason::Forward, POD_IN, FLAGS, to_vip().tcp(40_005, 80, "S"));
        add(
            Reason::Forward,
            UPLINK_IN,
            FLAGS,
            to_vip().udp(40_000, 81).payload(b"datagram"),
        );
        add(Reason::Forward, UPLINK_IN, FLAGS, to_vip().udp_unsummed(40_006, 80));
        add(Reason::Forward, POD_IN, FLAGS, to_vip().udp(40_000, 82));
        add(
            Reason::Reply,
            POD_OUT,
            FLAGS,
            Packet::new(local, client).tcp(8080, 40_000, "SA"),
        );
        add(
            Reason::OtherHook,
            POD_IN,
            FLAGS,
            Packet::new(local, client).tcp(8080, 40_000, "SA"),
        );
        for (reason, hook, packet) in [
            (Reason::Forward, POD_IN, to_vip().tcp(40_005, 80, "S")),
            (
                Reason::Reply,
                POD_IN,
                Packet::new(local, client).tcp(8080, 40_000, "SA"),
            ),
            (
                Reason::Reply,
                POD_OUT,
                Packet::new(local, client).tcp(8080, 40_000, "SA"),
            ),
        ] {
            add(reason, hook, HOST_ROUTING, packet);
        }
        add(Reason::UnknownPort, POD_IN, FLAGS, to_vip().tcp(40_000, 79, "S"));
        add(Reason::UnknownPort, POD_IN, FLAGS, to_vip().udp(40_000, 79));
        add(Reason::NoEndpoints, POD_IN, FLAGS, to_vip().tcp(40_000, 83, "S"));
        add(
            Reason::RateLimited,
            POD_IN,
            config::FLAG_ECHO as u8,
            to_vip().udp(40_000, 79),
        );
        add(Reason::Silent, POD_IN, FLAGS, to_vip().tcp(40_000, 79, "R"));
        add(Reason::Echo, POD_IN, FLAGS, to_vip().echo_request(1, 2));
        add(Reason::EchoDropped, POD_IN, 0x70, to_vip().echo_request(1, 2));
        add(Reason::IcmpError, POD_OUT, FLAGS, error);
        add(Reason::IcmpErrorPassed, POD_OUT, FLAGS, stray);
        add(
            Reason::UnknownProtocol,
            POD_IN,
            FLAGS,
            to_vip().protocol(132).payload(&[1; 12]),
        );
        add(Reason::TimeExceeded, UPLINK_IN, FLAGS, to_vip().udp(40_000, 81).ttl(1));
        add(
            Reason::TooBig,
            UPLINK_IN,
            FLAGS,
            to_vip().udp(40_000, 81).payload(&[0; 1500]),
        );
        // Only a service of IPv4 is half published.
        let half = if v6 { Reason::Forward } else { Reason::TablesChanged };
        add(half, POD_IN, FLAGS | 0x80, to_vip().tcp(40_007, 80, "S"));
    }
    corpus
}

#[test]
fn each_input_of_the_corpus_gets_its_reason() {
    let mut reached = BTreeSet::new();
    for (reason, input) in corpus() {
        let outcome = fuzz(&input).unwrap_or_else(|| panic!("the input for {reason:?} chooses nothing"));
        assert_eq!(outcome.reason, reason, "{outcome:?} for {input:02x?}");
        reached.insert(outcome.reason);
    }
    assert!(reached.len() >= 15, "the corpus is small: {reached:?}");
}

#[test]
fn every_prefix_of_the_corpus_is_taken() {
    for (_, input) in corpus() {
        for length in 0..input.len() {
            fuzz(&input[..length]);
        }
    }
}

/// A change of an input: where, and what the byte becomes.
fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)
}

fn mutated(input: &[u8], changes: &[(prop::sample::Index, u8)]) -> Option<Outcome> {
    let mut input = input.to_vec();
    for (at, byte) in changes {
        let at = at.index(input.len());
        input[at] = *byte;
    }
    fuzz(&input)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_change_of_an_input_breaks_a_promise(which in any::<prop::sample::Index>(), changes in changes()) {
        let corpus = corpus();
        mutated(&corpus[which.index(corpus.len())].1, &changes);
    }

    #[test]
    fn no_words_in_the_tables_break_a_promise(
        which in any::<prop::sample::Index>(), words in prop::collection::vec(any::<(u8, u16, u64)>(), 1..8),
    ) {
        let corpus = corpus();
        let input = &corpus[which.index(corpus.len())].1;
        let mut spoiled = input[..3].to_vec();
        spoiled[2] = spoiled[2] & !7 | words.len() as u8;
        for (table, index, value) in words {
            spoiled.push(table);
            spoiled.extend(index.to_le_bytes());
            spoiled.extend(value.to_le_bytes());
        }
        spoiled.extend(&input[3 + usize::from(input[2] & 7) * 11..]);
        prop_assert!(fuzz(&spoiled).is_some());
    }

    #[test]
    fn no_bytes_break_a_promise(input in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzz(&input);
    }
}
