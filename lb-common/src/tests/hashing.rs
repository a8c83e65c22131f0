//! Quality of the hashes: sets, slots, backends and bits are even for the keys that clusters have, which are anything but
//! random: one client's ports in a row, clients in a row, addresses that differ in one byte or one prefix.
//!
//! Evenness is judged by Pearson's chi-square, made a normal deviate by the cube root of Wilson and Hilferty (1931); what is
//! five standard deviations off is no chance.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::node::{TCP, UDP};
use crate::access::TableFamily;
use crate::family::{Side, V4, V6};
use crate::hash;
use crate::layout::BITS_LOG;
use crate::slots::{candidates, probe};
use crate::testing::side;

/// Keys of each pattern.
const KEYS: u32 = 1 << 14;
const SEEDS: [u64; 4] = [0, 1, 0x0123_4567_89ab_cdef, u64::MAX];

/// Standard deviations that the counts are off from even ones; far above 0 = uneven.
fn deviation(counts: &[u32]) -> f64 {
    let total: f64 = counts.iter().map(|count| f64::from(*count)).sum();
    let places = f64::from(u32::try_from(counts.len()).expect("a few places"));
    let expected = total / places;
    let statistic: f64 = counts
        .iter()
        .map(|count| (f64::from(*count) - expected).powi(2) / expected)
        .sum();
    let freedom = places - 1.0;
    let spread = 2.0 / (9.0 * freedom);
    ((statistic / freedom).cbrt() - (1.0 - spread)) / spread.sqrt()
}

#[track_caller]
fn assert_even(counts: &[u32], of_what: &str) {
    let deviation = deviation(counts);
    assert!(
        deviation < 5.0,
        "{of_what}: {deviation:.1} standard deviations from even"
    );
}

type Ends<F> = (Side<F>, Side<F>, u8);

/// A pattern's name and its key of a number.
type Pattern<F> = (&'static str, fn(u32) -> Ends<F>);

fn v4(client: u32, port: u32, vip: u32, vip_port: u32, protocol: u8) -> Ends<V4> {
    let address = |bits: u32| IpAddr::from(Ipv4Addr::from(bits));
    (
        side(address(client), port as u16),
        side(address(vip), vip_port as u16),
        protocol,
    )
}

fn v6(client: u128, port: u32, vip: u128, vip_port: u32, protocol: u8) -> Ends<V6> {
    let address = |bits: u128| IpAddr::from(Ipv6Addr::from(bits));
    (
        side(address(client), port as u16),
        side(address(vip), vip_port as u16),
        protocol,
    )
}

const CLIENT: u32 = 0x0a00_0000;
const VIP: u32 = 0x0a60_000a;
const CLIENT6: u128 = 0x2001_0db8_0001 << 80;
const VIP6: u128 = (0xfd00_0096 << 96) | 0x10;

const PATTERNS4: &[Pattern<V4>] = &[
    ("ports in a row", |n| v4(CLIENT, 1024 + n, VIP, 80, TCP)),
    ("every second port", |n| v4(CLIENT, 2 * n, VIP, 80, TCP)),
    ("clients in a row", |n| v4(CLIENT + n, 40_000, VIP, 80, TCP)),
    ("clients 256 apart", |n| v4(CLIENT + n * 256, 40_000, VIP, 80, UDP)),
    ("a few clients' ports", |n| {
        v4(CLIENT + n % 4, 32_768 + n / 4, VIP, 443, TCP)
    }),
    ("frontends in a row", |n| v4(CLIENT, 40_000, VIP + n, 80, TCP)),
    ("frontend ports in a row", |n| v4(CLIENT, 40_000, VIP, n, TCP)),
    ("client and port in step", |n| v4(CLIENT + n, n, VIP, 53, UDP)),
];

const PATTERNS6: &[Pattern<V6>] = &[
    ("ports in a row", |n| v6(CLIENT6, 1024 + n, VIP6, 80, TCP)),
    ("clients in a row", |n| {
        v6(CLIENT6 + u128::from(n), 40_000, VIP6, 80, TCP)
    }),
    ("prefixes in a row", |n| {
        v6(CLIENT6 + (u128::from(n) << 64), 40_000, VIP6, 80, TCP)
    }),
    ("nodes' pods", |n| {
        v6(
            CLIENT6 + (u128::from(n >> 6) << 64) + u128::from(n & 63),
            40_000,
            VIP6,
            80,
            UDP,
        )
    }),
    ("frontends in a row", |n| {
        v6(CLIENT6, 40_000, VIP6 + u128::from(n), 80, TCP)
    }),
    ("upper bits", |n| {
        v6(CLIENT6 ^ (u128::from(n) << 112), 40_000, VIP6, 80, TCP)
    }),
];

/// Counts of `cells` cells over all keys of a pattern.
fn counts<F: TableFamily>(pattern: &Pattern<F>, seed: u64, cells: usize, cell: impl Fn(u64) -> usize) -> Vec<u32> {
    let mut counts = vec![0; cells];
    for n in 0..KEYS {
        let (src, dst, protocol) = pattern.1(n);
        counts[cell(hash::sides(seed, src, dst, protocol))] += 1;
    }
    counts
}

fn check_sets<F: TableFamily>(patterns: &[Pattern<F>]) {
    for pattern in patterns {
        for seed in SEEDS {
            for sets in [16u32, 256, 1024] {
                for which in 0..2 {
                    let cell = |hash| candidates(hash, sets - 1)[which] as usize;
                    assert_even(
                        &counts(pattern, seed, sets as usize, cell),
                        &format!("{sets} sets, {}", pattern.0),
                    );
                }
            }
            // Which slot is probed first must not follow from the set.
            let cell = |hash| candidates(hash, 63)[0] as usize * 4 + probe(hash, 0);
            assert_even(&counts(pattern, seed, 256, cell), &format!("slots, {}", pattern.0));
            // Nor the second set from the first.
            let cell = |hash| {
                let [a, b] = candidates(hash, 15);
                (a * 16 + b) as usize
            };
            let mut pairs = counts(pattern, seed, 256, cell);
            // The two differ: what falls together goes to the neighbour.
            let even: Vec<u32> = (0..256)
                .filter(|at| at / 16 != at % 16 && (at / 16) ^ 1 != at % 16)
                .map(|at| pairs[at])
                .collect();
            assert!((0..16).all(|at| pairs[at * 17] == 0));
            pairs.truncate(0);
            assert_even(&even, &format!("pairs of sets, {}", pattern.0));
        }
    }
}

fn check_choice<F: TableFamily>(patterns: &[Pattern<F>]) {
    // What shares a choice shares a frontend.
    for pattern in patterns.iter().filter(|pattern| !pattern.0.starts_with("frontend")) {
        for seed in SEEDS {
            for length in [2u32, 3, 7, 10, 100, 251] {
                let cell = |hash| hash::scale(hash, length) as usize;
                assert_even(
                    &counts(pattern, seed, length as usize, cell),
                    &format!("{length} backends, {}", pattern.0),
                );
            }
        }
    }
}

/// The flows of one set are spread over all backends: the table's seed and the selection's are strangers.
fn check_independence<F: TableFamily>(patterns: &[Pattern<F>]) {
    for pattern in patterns {
        let mut counts = vec![0; 16 * 8];
        for n in 0..KEYS {
            let (src, dst, protocol) = pattern.1(n);
            let set = candidates(hash::sides(SEEDS[2], src, dst, protocol), 15)[0];
            let choice = hash::scale(hash::sides(!SEEDS[2], src, dst, protocol), 8);
            counts[(set * 8 + choice) as usize] += 1;
        }
        assert_even(&counts, &format!("backends of a set, {}", pattern.0));
    }
}

#[test]
fn sets_and_slots_of_the_flow_table_are_even_for_keys_in_a_row() {
    check_sets(PATTERNS4);
    check_sets(PATTERNS6);
}

#[test]
fn backends_are_chosen_evenly_for_clients_and_ports_in_a_row() {
    check_choice(PATTERNS4);
    check_choice(PATTERNS6);
}

#[test]
fn a_backend_does_not_follow_from_the_set_that_a_flow_stands_in() {
    check_independence(PATTERNS4);
    check_independence(PATTERNS6);
}

#[test]
fn a_flow_and_its_reply_stand_in_unrelated_sets() {
    let mut counts = vec![0; 256];
    for n in 0..KEYS {
        let (src, dst, protocol) = v4(CLIENT, 1024 + n, VIP, 80, TCP);
        let backend = side(Ipv4Addr::new(10, 1, 0, 20).into(), 8080);
        let set = |hash| candidates(hash, 15)[0];
        let (forward, reply) = (
            hash::sides(SEEDS[2], src, dst, protocol),
            hash::sides(SEEDS[2], backend, src, protocol),
        );
        counts[(set(forward) * 16 + set(reply)) as usize] += 1;
    }
    assert_even(&counts, "a flow's two sets");
}

#[test]
fn frontends_in_a_row_spread_over_the_sets_of_their_table() {
    for seed in SEEDS {
        let mut ports = vec![0; 256];
        let mut addresses = vec![0; 256];
        let mut addresses6 = vec![0; 256];
        for n in 0..KEYS {
            let cell = |hash| candidates(hash, 255)[0] as usize;
            let (client, _, _) = v4(VIP, n, 0, 0, 0);
            ports[cell(hash::side(seed, client, TCP))] += 1;
            let (client, _, _) = v4(VIP + n, 80, 0, 0, 0);
            addresses[cell(hash::side(seed, client, TCP))] += 1;
            let (client, _, _) = v6(VIP6 + u128::from(n), 80, 0, 0, 0);
            addresses6[cell(hash::side(seed, client, TCP))] += 1;
        }
        assert_even(&ports, "frontend ports");
        assert_even(&addresses, "frontend addresses");
        assert_even(&addresses6, "frontend addresses of IPv6");
    }
}

#[test]
fn the_bits_of_a_clusters_addresses_seldom_fall_together() {
    let v4: Vec<u32> = (0..4096)
        .map(|n| hash::bit::<V4>(v4(CLIENT + n, 0, 0, 0, 0).0.addr))
        .collect();
    let v6: Vec<u32> = (0u32..4096)
        .map(|n| {
            hash::bit::<V6>(
                v6(CLIENT6 + (u128::from(n >> 8) << 64) + u128::from(n & 255), 0, 0, 0, 0)
                    .0
                    .addr,
            )
        })
        .collect();
    for bits in [v4, v6] {
        assert!(bits.iter().all(|bit| *bit < 1 << BITS_LOG));
        let distinct = bits.iter().collect::<std::collections::BTreeSet<_>>().len();
        // By chance 4096 of 2^20 leave 4088 distinct ones.
        assert!(distinct > 4050, "{distinct} distinct bits of 4096 addresses");
    }
}

#[test]
fn one_bit_of_a_key_changes_half_of_the_bits_of_its_hash() {
    for seed in SEEDS {
        let mut flips = 0u32;
        let mut least = u32::MAX;
        let (src, dst, protocol) = v6(CLIENT6, 40_000, VIP6, 80, TCP);
        let before = hash::sides(seed, src, dst, protocol);
        for bit in 0..128 {
            let (other, dst, protocol) = v6(CLIENT6 ^ (1 << bit), 40_000, VIP6, 80, TCP);
            let changed = (before ^ hash::sides(seed, other, dst, protocol)).count_ones();
            flips += changed;
            least = least.min(changed);
        }
        assert!(
            (28..=36).contains(&(flips / 128)),
            "{} bits change on average",
            flips / 128
        );
        assert!(least >= 8, "a bit of the key changes {least} bits of the hash alone");
    }
}
