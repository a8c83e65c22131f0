//! Entry points of the kernel programs: one a hook, and one a stage, family and kind of hook. No decisions here; see `hook.rs`.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    feature(asm_experimental_arch, core_intrinsics, adt_const_params)
)]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "the only way to a compare-and-swap on this target")
)]
#![expect(unsafe_code, reason = "program sections and exported names")]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the macros hand a program's context over by value"
)]

mod globals;
mod hook;
mod hops;
mod kernel;
mod maps;
mod packet;
mod sets;
mod stages;
mod tables;

use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::access::Packet as _;
use lb_common::family::{Family as _, V4, V6};
use lb_common::pipeline::{Hook, Stage};
use lb_common::steps::forward;

use crate::hook::{ETHERNET, Hooked, answering, first, later};
use crate::packet::{Frame, Skb};
use crate::tables::KernelTables;

/// Runs the first stage of one tc hook.
#[inline(always)]
fn tc<const HOOK: u8>(ctx: &TcContext, l3: usize) -> i32 {
    let skb = Skb::of(ctx);
    // It is the business of the VLAN's own device, where the tag is off.
    if skb.is_of_vlan() {
        return Skb::NEXT;
    }
    let protocol = u16::from_be(skb.protocol());
    if protocol == V4::ETHERTYPE {
        first::<Skb, V4, HOOK>(ctx, skb, l3)
    } else if protocol == V6::ETHERTYPE {
        first::<Skb, V6, HOOK>(ctx, skb, l3)
    } else {
        Skb::NEXT
    }
}

/// An uplink before the kernel has made a socket buffer of the frame. One with a VLAN's tag goes on, as at tc.
#[xdp(frags)]
fn uplink_xdp(ctx: XdpContext) -> u32 {
    let frame = Frame::of(&ctx);
    let protocol = frame.half(ETHERNET - 2).map_or(0, u16::from_be);
    if protocol == V4::ETHERTYPE {
        first::<Frame, V4, { Hook::UPLINK_IN }>(&ctx, frame, ETHERNET)
    } else if protocol == V6::ETHERTYPE {
        first::<Frame, V6, { Hook::UPLINK_IN }>(&ctx, frame, ETHERNET)
    } else {
        Frame::NEXT
    }
}

/// Ingress of an uplink or tunnel. What XDP has translated goes on.
#[classifier]
fn uplink_in(ctx: TcContext) -> i32 {
    let skb = Skb::of(&ctx);
    if skb.is_marked(|| forward::mark(&KernelTables::ANYWHERE, skb.ifindex())) {
        return Skb::NEXT;
    }
    tc::<{ Hook::UPLINK_IN }>(&ctx, ETHERNET)
}

/// Egress of an uplink or tunnel.
#[classifier]
fn uplink_out(ctx: TcContext) -> i32 {
    tc::<{ Hook::UPLINK_OUT }>(&ctx, ETHERNET)
}

/// Ingress of an uplink or tunnel without an Ethernet header.
#[classifier]
fn l3_in(ctx: TcContext) -> i32 {
    tc::<{ Hook::UPLINK_IN }>(&ctx, 0)
}

/// Egress of an uplink or tunnel without an Ethernet header.
#[classifier]
fn l3_out(ctx: TcContext) -> i32 {
    tc::<{ Hook::UPLINK_OUT }>(&ctx, 0)
}

/// Ingress of a pod's host-side device.
#[classifier]
fn pod_in(ctx: TcContext) -> i32 {
    tc::<{ Hook::POD_IN }>(&ctx, ETHERNET)
}

/// Egress of a pod's host-side device.
#[classifier]
fn pod_out(ctx: TcContext) -> i32 {
    tc::<{ Hook::POD_OUT }>(&ctx, ETHERNET)
}

/// Egress of steer0.
#[classifier]
fn steer_out(ctx: TcContext) -> i32 {
    tc::<{ Hook::STEER_OUT }>(&ctx, ETHERNET)
}

/// Egress of the loopback.
#[classifier]
fn lo_out(ctx: TcContext) -> i32 {
    tc::<{ Hook::LO_OUT }>(&ctx, ETHERNET)
}

/// The programs of one stage: at tc and at XDP, of either family.
macro_rules! stage {
    ($stage:ident: $v4:ident, $v6:ident, $xdp_v4:ident, $xdp_v6:ident) => {
        stage!(classifier, TcContext, i32, Skb, V4, $stage, $v4);
        stage!(classifier, TcContext, i32, Skb, V6, $stage, $v6);
        stage!(xdp(frags), XdpContext, u32, Frame, V4, $stage, $xdp_v4);
        stage!(xdp(frags), XdpContext, u32, Frame, V6, $stage, $xdp_v6);
    };
    ($kind:meta, $context:ty, $result:ty, $packet:ty, $family:ty, Answer, $name:ident) => {
        #[doc = "Answers."]
        #[$kind]
        fn $name(ctx: $context) -> $result {
            answering::<$packet, $family>(&ctx)
        }
    };
    ($kind:meta, $context:ty, $result:ty, $packet:ty, $family:ty, $stage:ident, $name:ident) => {
        #[doc = concat!("Stage [`Stage::", stringify!($stage), "`].")]
        #[$kind]
        fn $name(ctx: $context) -> $result {
            later::<$packet, $family>(&ctx, Stage::$stage)
        }
    };
}

stage!(Note: note_v4, note_v6, note_xdp_v4, note_xdp_v6);
stage!(Begin: begin_v4, begin_v6, begin_xdp_v4, begin_xdp_v6);
stage!(Enter: enter_v4, enter_v6, enter_xdp_v4, enter_xdp_v6);
stage!(Translate: translate_v4, translate_v6, translate_xdp_v4, translate_xdp_v6);
stage!(Control: control_v4, control_v6, control_xdp_v4, control_xdp_v6);
stage!(Answer: answer_v4, answer_v6, answer_xdp_v4, answer_xdp_v6);

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence that the kernel asks for.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
