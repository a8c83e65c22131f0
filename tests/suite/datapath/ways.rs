//! Whatever may change a way out is told to packets: one word rises with it.

use std::sync::Arc;
use std::time::Duration;

use lb_tests::netns::Netns;
use steerway::datapath::ways::WayWatch;
use steerway::maps::{MapStore, MemoryStore, Table};

use super::block_in;

const LIMIT: Duration = Duration::from_secs(5);

#[test]
fn every_change_of_links_addresses_routes_rules_and_neighbours_is_told_to_packets() {
    let netns = Netns::new("ways");
    netns.sysctls(&[
        ("net.ipv6.conf.all.disable_ipv6", "1"),
        ("net.ipv6.conf.default.disable_ipv6", "1"),
    ]);
    netns.ip_batch(
        "link add up0 type veth peer name out0\nlink set out0 up\nlink set up0 up\naddress add 192.0.2.1/24 dev up0\n",
    );
    let store: Arc<dyn MapStore> = Arc::new(MemoryStore::default());
    let changes = [
        "neighbour replace 192.0.2.9 lladdr 02:00:00:00:00:09 dev up0 nud permanent",
        "neighbour replace 192.0.2.9 lladdr 02:00:00:00:00:08 dev up0 nud permanent",
        "route add 198.51.100.0/24 via 192.0.2.9",
        "rule add from 192.0.2.1 table 77",
        "address add 192.0.2.2/24 dev up0",
        "link set up0 mtu 1400",
        "neighbour del 192.0.2.9 dev up0",
    ];
    block_in(&netns, || async {
        let _watch = WayWatch::start(Arc::clone(&store)).expect("a watcher");
        let epoch = || store.words(Table::Epoch).load(0);
        for change in changes {
            let before = epoch();
            let netns = netns.clone();
            tokio::task::spawn_blocking(move || netns.ip(change))
                .await
                .expect("a change");
            let told = async {
                while epoch() == before {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            assert!(tokio::time::timeout(LIMIT, told).await.is_ok(), "not told: {change}");
        }
    });
}
