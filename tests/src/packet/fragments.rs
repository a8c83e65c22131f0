//! Cutting a packet into fragments (RFC 791 section 3.2, RFC 8200 section 4.5).

use etherparse::{
    Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, SingleVlanHeader,
};

use super::{FRAGMENT, IPV4, VLAN, VLAN_OUTER};

/// Cuts a frame of IPv4 or plain IPv6 (no extension headers) into fragments with up to `room` bytes of data each, in order.
///
/// `room` is rounded down to a multiple of 8. The identification is the packet's own (IPv4) or `identification`.
#[track_caller]
pub fn fragments(frame: &[u8], room: usize, identification: u32) -> Vec<Vec<u8>> {
    let room = room / 8 * 8;
    assert!(room > 0, "a fragment carries at least 8 bytes");
    let (link, ether_type) = split_link(frame);
    let (link, packet) = frame.split_at(link);
    if ether_type == IPV4 {
        cut_v4(link, packet, room)
    } else {
        cut_v6(link, packet, room, identification)
    }
}

/// Length of the Ethernet header with its tags, and the EtherType behind them.
fn split_link(frame: &[u8]) -> (usize, u16) {
    let (header, mut rest) = Ethernet2Header::from_slice(frame).expect("an Ethernet header");
    let mut ether_type = header.ether_type.0;
    while matches!(ether_type, VLAN | VLAN_OUTER) {
        let (tag, inner) = SingleVlanHeader::from_slice(rest).expect("a VLAN tag");
        (ether_type, rest) = (tag.ether_type.0, inner);
    }
    (frame.len() - rest.len(), ether_type)
}

fn cut_v4(link: &[u8], packet: &[u8], room: usize) -> Vec<Vec<u8>> {
    let (header, data) = Ipv4Header::from_slice(packet).expect("an IPv4 header");
    let count = data.len().div_ceil(room);
    let one = |(index, piece): (usize, &[u8])| {
        let mut header = header.clone();
        header.dont_fragment = false;
        header.more_fragments = index + 1 < count;
        header.fragment_offset = offset(index * room);
        header.set_payload_len(piece.len()).expect("a piece of a packet");
        header.header_checksum = header.calc_header_checksum();
        [link, &header.to_bytes(), piece].concat()
    };
    data.chunks(room).enumerate().map(one).collect()
}

fn cut_v6(link: &[u8], packet: &[u8], room: usize, identification: u32) -> Vec<Vec<u8>> {
    let (header, data) = Ipv6Header::from_slice(packet).expect("an IPv6 header");
    let count = data.len().div_ceil(room);
    let one = |(index, piece): (usize, &[u8])| {
        let more = index + 1 < count;
        let extension = Ipv6FragmentHeader::new(header.next_header, offset(index * room), more, identification);
        let mut header = header.clone();
        header.next_header = IpNumber(FRAGMENT);
        header
            .set_payload_length(Ipv6FragmentHeader::LEN + piece.len())
            .expect("a piece of a packet");
        [link, &header.to_bytes(), &extension.to_bytes(), piece].concat()
    };
    data.chunks(room).enumerate().map(one).collect()
}

fn offset(bytes: usize) -> IpFragOffset {
    u16::try_from(bytes / 8)
        .ok()
        .and_then(|units| IpFragOffset::try_new(units).ok())
        .expect("an offset below 64 KiB")
}
