//! The kinds of hooks, tc and XDP, and the way of a packet through the stages at either: runs a stage, counts the reason, and
//! turns the verdict into the hook's return value. No decisions here.
//!
//! A pass at tc is always "go on to the next program" (`TCX_NEXT`), so that other programs on the device run as before. A stage
//! that is missing drops at tc; at XDP the packet, untouched until then, goes on to tc.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::access::{Packet, TableFamily, Tables as _};
use lb_common::layout::stage;
use lb_common::pipeline::{self, Stage, Step};
use lb_common::verdict::{Action, Answer, Reason, Verdict};

use crate::kernel;
use crate::packet::{Frame, Skb};
use crate::stages::{self, Handover, work};
use crate::tables::KernelTables;

/// Length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Go on to the next program (`TC_ACT_UNSPEC`, `TCX_NEXT`).
const TC_NEXT: i32 = -1;
/// Drop (`TC_ACT_SHOT`).
const TC_SHOT: i32 = 2;

/// A kind of hook, by its packets.
pub(crate) trait Hooked: Packet {
    /// The context of its programs.
    type Context: EbpfContext;
    /// What its programs return.
    type Code;
    /// Return value for a packet that goes on.
    const NEXT: Self::Code;
    /// Return value where the next stage's program is not in place.
    const MISSING: Self::Code;
    /// The packet of a context.
    fn of(ctx: &Self::Context) -> Self;
    /// Jumps to another stage; returns only if it is not in place.
    fn jump<const INDEX: u32>(ctx: &Self::Context);
    /// The return value for a verdict on a packet whose IP header starts at `l3`.
    fn act<F: TableFamily>(ctx: &Self::Context, verdict: &Verdict<F::Addr>, l3: usize) -> Self::Code;
}

impl Hooked for Skb {
    type Context = TcContext;
    type Code = i32;
    const NEXT: i32 = TC_NEXT;
    const MISSING: i32 = TC_SHOT;

    #[inline(always)]
    fn of(ctx: &TcContext) -> Self {
        Self(ctx.skb.skb)
    }

    #[inline(always)]
    fn jump<const INDEX: u32>(ctx: &TcContext) {
        stages::jump::<INDEX>(ctx);
    }

    #[inline(always)]
    fn act<F: TableFamily>(ctx: &TcContext, verdict: &Verdict<F::Addr>, l3: usize) -> i32 {
        if l3 == 0 && verdict.action == Action::Neighbour && !kernel::prepend_link(ctx.as_ptr(), ETHERNET) {
            KernelTables::ANYWHERE.count(Reason::RewriteFailed);
            return TC_SHOT;
        }
        match verdict.action {
            Action::Pass => TC_NEXT,
            Action::Drop | Action::Answer => TC_SHOT,
            Action::Transmit => kernel::transmit(verdict.ifindex),
            Action::Receive => kernel::receive(verdict.ifindex),
            Action::Deliver => kernel::deliver(verdict.ifindex),
            Action::Neighbour => kernel::neighbour::<F>(verdict.ifindex, verdict.next_hop),
        }
    }
}

impl Hooked for Frame {
    type Context = XdpContext;
    type Code = u32;
    const NEXT: u32 = XDP_PASS;
    const MISSING: u32 = XDP_PASS;

    #[inline(always)]
    fn of(ctx: &XdpContext) -> Self {
        Self(ctx.ctx)
    }

    #[inline(always)]
    fn jump<const INDEX: u32>(ctx: &XdpContext) {
        stages::jump_xdp::<INDEX>(ctx);
    }

    #[inline(always)]
    fn act<F: TableFamily>(_ctx: &XdpContext, verdict: &Verdict<F::Addr>, _l3: usize) -> u32 {
        match verdict.action {
            Action::Pass => XDP_PASS,
            // What leaves an early hook leaves by the device that it came in by.
            Action::Transmit => XDP_TX,
            // The latter three are never decided there.
            Action::Drop | Action::Answer | Action::Receive | Action::Deliver | Action::Neighbour => XDP_DROP,
        }
    }
}

/// The tables, as a program of this kind of hook sees them.
#[inline(always)]
fn tables<H: Hooked>(ctx: &H::Context) -> Option<KernelTables> {
    KernelTables::of(ctx.as_ptr(), H::EARLY)
}

/// The first stage for one family.
#[inline(always)]
pub(crate) fn first<H: Hooked, F: TableFamily, const HOOK: u8>(ctx: &H::Context, mut packet: H, l3: usize) -> H::Code {
    let Some(tables) = tables::<H>(ctx) else {
        return missing::<H>();
    };
    let step = pipeline::fast::<F, _, _, HOOK>(&mut packet, &tables, l3);
    if step.next != Stage::Done {
        Handover {
            hook: HOOK,
            l3,
            answer: Answer::Reset,
            mtu: 0,
        }
        .put::<F>();
    }
    go_on::<H, F>(ctx, &tables, step, HOOK, l3)
}

/// A later stage for one family.
#[inline(always)]
pub(crate) fn later<H: Hooked, F: TableFamily>(ctx: &H::Context, this: Stage) -> H::Code {
    let (Some(tables), Some((Handover { hook, l3, .. }, work))) = (tables::<H>(ctx), work::<F>()) else {
        return missing::<H>();
    };
    let mut packet = H::of(ctx);
    let step = match this {
        Stage::Done => return missing::<H>(),
        Stage::Note => pipeline::note(&mut packet, &tables, work, l3, hook),
        Stage::Begin => pipeline::begin(&mut packet, &tables, work, l3, hook),
        Stage::Enter => pipeline::enter(&tables, work),
        Stage::Translate => Step::done(pipeline::translate_known(&mut packet, &tables, work, hook)),
        Stage::Control => pipeline::control(&mut packet, &tables, work, l3, hook),
    };
    go_on::<H, F>(ctx, &tables, step, hook, l3)
}

/// The answering stage for one family.
#[inline(always)]
pub(crate) fn answering<H: Hooked, F: TableFamily>(ctx: &H::Context) -> H::Code {
    let (Some(tables), Some((Handover { hook, l3, answer, mtu }, work))) = (tables::<H>(ctx), work::<F>()) else {
        return missing::<H>();
    };
    let verdict = pipeline::reply_in_place(&mut H::of(ctx), &tables, work, l3, hook, answer, mtu);
    if verdict.action == Action::Drop {
        tables.count(verdict.reason);
    }
    H::act::<F>(ctx, &verdict, l3)
}

/// Jumps to a stage of a family; goes on only if it is not in place.
macro_rules! jump {
    ($hook:ty, $family:ty, $ctx:ident, $stage:ident) => {
        if <$family>::V6 {
            <$hook>::jump::<{ stage::$stage + 1 }>($ctx)
        } else {
            <$hook>::jump::<{ stage::$stage }>($ctx)
        }
    };
}

/// Concludes or jumps to the next stage.
#[inline(always)]
fn go_on<H: Hooked, F: TableFamily>(
    ctx: &H::Context,
    tables: &KernelTables,
    step: Step<F::Addr>,
    hook: u8,
    l3: usize,
) -> H::Code {
    if step.next == Stage::Done {
        return conclude::<H, F>(ctx, tables, &step.verdict, hook, l3);
    }
    match step.next {
        Stage::Done => {}
        Stage::Note => jump!(H, F, ctx, NOTE),
        Stage::Begin => jump!(H, F, ctx, BEGIN),
        Stage::Enter => jump!(H, F, ctx, ENTER),
        Stage::Translate => jump!(H, F, ctx, TRANSLATE),
        Stage::Control => jump!(H, F, ctx, CONTROL),
    }
    missing::<H>()
}

/// Counts a verdict and turns it into the hook's action; an answer is the next stage's work.
#[inline(always)]
fn conclude<H: Hooked, F: TableFamily>(
    ctx: &H::Context,
    tables: &KernelTables,
    verdict: &Verdict<F::Addr>,
    hook: u8,
    l3: usize,
) -> H::Code {
    tables.count(verdict.reason);
    if verdict.action == Action::Answer {
        Handover {
            hook,
            l3,
            answer: verdict.answer,
            mtu: verdict.mtu,
        }
        .put::<F>();
        jump!(H, F, ctx, ANSWER);
        return missing::<H>();
    }
    H::act::<F>(ctx, verdict, l3)
}

/// The next stage is not in place, or what the stages need is not.
#[inline(always)]
fn missing<H: Hooked>() -> H::Code {
    KernelTables::ANYWHERE.count(Reason::StageMissing);
    H::MISSING
}
