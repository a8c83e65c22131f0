//! Entry points of the kernel programs: one a hook. Each runs the pipeline for the packet's family, counts the reason, and
//! turns the verdict into the hook's action. No decisions here.
//!
//! A pass is always "go on to the next program" (`TCX_NEXT`), so that other programs on the device run as before.
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

mod kernel;
mod maps;
mod packet;
mod stages;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use lb_common::access::TableFamily;
use lb_common::access::Tables as _;
use lb_common::family::{Family as _, V4, V6};
use lb_common::layout::stage;
use lb_common::pipeline::{self, Hook, Stage, Step};
use lb_common::verdict::{Action, Answer, Reason, Verdict};

use crate::maps::KernelTables;
use crate::packet::Skb;
use crate::stages::{Handover, jump, work};

/// Go on to the next program (`TC_ACT_UNSPEC`, `TCX_NEXT`).
const NEXT: i32 = -1;
/// Drop (`TC_ACT_SHOT`).
const SHOT: i32 = 2;
/// Length of an Ethernet header.
const ETHERNET: usize = 14;

/// Runs the first stage of one hook.
#[inline(always)]
fn hook<const HOOK: u8>(ctx: &TcContext, l3: usize) -> i32 {
    let skb = Skb(ctx.skb.skb);
    // It is the business of the VLAN's own device, where the tag is off.
    if skb.is_of_vlan() {
        return NEXT;
    }
    let protocol = u16::from_be(skb.protocol());
    if protocol == V4::ETHERTYPE {
        first::<V4, HOOK>(ctx, skb, l3)
    } else if protocol == V6::ETHERTYPE {
        first::<V6, HOOK>(ctx, skb, l3)
    } else {
        NEXT
    }
}

/// The first stage for one family.
#[inline(always)]
fn first<F: TableFamily, const HOOK: u8>(ctx: &TcContext, mut skb: Skb, l3: usize) -> i32 {
    let tables = KernelTables { ctx: ctx.as_ptr() };
    skb.linearize();
    let step = pipeline::fast::<F, _, _, HOOK>(&mut skb, &tables, l3);
    go_on::<F>(ctx, &tables, step, HOOK, l3)
}

/// A later stage for one family.
#[inline(always)]
fn later<F: TableFamily>(ctx: &TcContext, this: Stage) -> i32 {
    let tables = KernelTables { ctx: ctx.as_ptr() };
    let Handover { hook, l3, .. } = Handover::take();
    let Some(work) = work::<F>() else {
        return missing(&tables);
    };
    let mut skb = Skb(ctx.skb.skb);
    let step = match this {
        Stage::Done => return missing(&tables),
        Stage::Note => pipeline::note(&mut skb, &tables, work, l3, hook),
        Stage::Begin => pipeline::begin(&mut skb, &tables, work, l3, hook),
        Stage::Enter => pipeline::enter(&tables, work),
        Stage::Translate => Step::done(pipeline::translate_known(&mut skb, &tables, work, l3)),
        Stage::Control => Step::done(pipeline::control(&mut skb, &tables, work, l3, hook)),
    };
    go_on::<F>(ctx, &tables, step, hook, l3)
}

/// Concludes or jumps to the next stage.
#[inline(always)]
fn go_on<F: TableFamily>(ctx: &TcContext, tables: &KernelTables, step: Step<F::Addr>, hook: u8, l3: usize) -> i32 {
    let next = match step.next {
        Stage::Done => return conclude::<F>(ctx, tables, &step.verdict, hook, l3),
        Stage::Note => stage::NOTE,
        Stage::Begin => stage::BEGIN,
        Stage::Enter => stage::ENTER,
        Stage::Translate => stage::TRANSLATE,
        Stage::Control => stage::CONTROL,
    };
    Handover {
        hook,
        l3,
        answer: Answer::Reset,
        mtu: 0,
    }
    .put();
    jump(ctx, next + F::V6 as u32);
    missing(tables)
}

/// The answering stage for one family.
#[inline(always)]
fn answering<F: TableFamily>(ctx: &TcContext) -> i32 {
    let tables = KernelTables { ctx: ctx.as_ptr() };
    let Handover { hook, l3, answer, mtu } = Handover::take();
    let Some(work) = work::<F>() else {
        return missing(&tables);
    };
    let verdict = pipeline::reply_in_place(&mut Skb(ctx.skb.skb), &tables, work, l3, hook, answer, mtu);
    if verdict.action == Action::Drop {
        tables.count(verdict.reason);
    }
    act::<F>(&verdict)
}

/// Counts a verdict and turns it into the hook's action; an answer is the next stage's work.
#[inline(always)]
fn conclude<F: TableFamily>(
    ctx: &TcContext,
    tables: &KernelTables,
    verdict: &Verdict<F::Addr>,
    hook: u8,
    l3: usize,
) -> i32 {
    tables.count(verdict.reason);
    if verdict.action == Action::Answer {
        Handover {
            hook,
            l3,
            answer: verdict.answer,
            mtu: verdict.mtu,
        }
        .put();
        jump(ctx, stage::ANSWER + F::V6 as u32);
        return missing(tables);
    }
    if l3 == 0 && verdict.action == Action::Neighbour && !kernel::prepend_link(ctx.as_ptr(), ETHERNET) {
        tables.count(Reason::RewriteFailed);
        return SHOT;
    }
    act::<F>(verdict)
}

/// The next stage is not in place.
#[inline(always)]
fn missing(tables: &KernelTables) -> i32 {
    tables.count(Reason::StageMissing);
    SHOT
}

/// The hook's action for a verdict.
#[inline(always)]
fn act<F: TableFamily>(verdict: &Verdict<F::Addr>) -> i32 {
    match verdict.action {
        Action::Pass => NEXT,
        Action::Drop | Action::Answer => SHOT,
        Action::Transmit => kernel::transmit(verdict.ifindex),
        Action::Receive => kernel::receive(verdict.ifindex),
        Action::Neighbour => kernel::neighbour::<F>(verdict.ifindex, verdict.next_hop),
    }
}

/// Note stage, IPv4.
#[classifier]
fn note_v4(ctx: TcContext) -> i32 {
    later::<V4>(&ctx, Stage::Note)
}

/// Note stage, IPv6.
#[classifier]
fn note_v6(ctx: TcContext) -> i32 {
    later::<V6>(&ctx, Stage::Note)
}

/// Begin stage, IPv4.
#[classifier]
fn begin_v4(ctx: TcContext) -> i32 {
    later::<V4>(&ctx, Stage::Begin)
}

/// Begin stage, IPv6.
#[classifier]
fn begin_v6(ctx: TcContext) -> i32 {
    later::<V6>(&ctx, Stage::Begin)
}

/// Enter stage, IPv4.
#[classifier]
fn enter_v4(ctx: TcContext) -> i32 {
    later::<V4>(&ctx, Stage::Enter)
}

/// Enter stage, IPv6.
#[classifier]
fn enter_v6(ctx: TcContext) -> i32 {
    later::<V6>(&ctx, Stage::Enter)
}

/// Translate stage, IPv4.
#[classifier]
fn translate_v4(ctx: TcContext) -> i32 {
    later::<V4>(&ctx, Stage::Translate)
}

/// Translate stage, IPv6.
#[classifier]
fn translate_v6(ctx: TcContext) -> i32 {
    later::<V6>(&ctx, Stage::Translate)
}

/// Control stage, IPv4.
#[classifier]
fn control_v4(ctx: TcContext) -> i32 {
    later::<V4>(&ctx, Stage::Control)
}

/// Control stage, IPv6.
#[classifier]
fn control_v6(ctx: TcContext) -> i32 {
    later::<V6>(&ctx, Stage::Control)
}

/// Answers, IPv4.
#[classifier]
fn answer_v4(ctx: TcContext) -> i32 {
    answering::<V4>(&ctx)
}

/// Answers, IPv6.
#[classifier]
fn answer_v6(ctx: TcContext) -> i32 {
    answering::<V6>(&ctx)
}

/// Ingress of a pod's host-side device.
#[classifier]
fn pod_in(ctx: TcContext) -> i32 {
    hook::<{ Hook::POD_IN }>(&ctx, ETHERNET)
}

/// Egress of a pod's host-side device.
#[classifier]
fn pod_out(ctx: TcContext) -> i32 {
    hook::<{ Hook::POD_OUT }>(&ctx, ETHERNET)
}

/// Ingress of an uplink or tunnel.
#[classifier]
fn uplink_in(ctx: TcContext) -> i32 {
    hook::<{ Hook::UPLINK_IN }>(&ctx, ETHERNET)
}

/// Egress of an uplink or tunnel.
#[classifier]
fn uplink_out(ctx: TcContext) -> i32 {
    hook::<{ Hook::UPLINK_OUT }>(&ctx, ETHERNET)
}

/// Ingress of an uplink or tunnel without an Ethernet header.
#[classifier]
fn l3_in(ctx: TcContext) -> i32 {
    hook::<{ Hook::UPLINK_IN }>(&ctx, 0)
}

/// Egress of an uplink or tunnel without an Ethernet header.
#[classifier]
fn l3_out(ctx: TcContext) -> i32 {
    hook::<{ Hook::UPLINK_OUT }>(&ctx, 0)
}

/// Egress of steer0.
#[classifier]
fn steer_out(ctx: TcContext) -> i32 {
    hook::<{ Hook::STEER_OUT }>(&ctx, ETHERNET)
}

/// Egress of the loopback.
#[classifier]
fn lo_out(ctx: TcContext) -> i32 {
    hook::<{ Hook::LO_OUT }>(&ctx, ETHERNET)
}

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
