//! Entering a flow in a table by itself, as the pipeline does once its port is chosen.
//!
//! In: both halves. Out: what came of them. Slots for both are taken before either half is written; where one cannot be had, the other is left.

use crate::access::{TableFamily, Tables};
use crate::flow::Entry;
use crate::flow::search::{self, Found};
use crate::flow::slot::Seen;
use crate::flow::state::REPLY_HALF;
use crate::flow::table::{self, Claimed, Spot};

/// What came of a flow that was to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// Both halves stand.
    Pair,
    /// The forward half stood already, with the same rewrite.
    Known,
    /// One of the keys is another flow's.
    Conflict,
    /// One of the keys is being entered or freed.
    Busy,
    /// No slot could be had.
    Full,
}

/// Enters both halves of a flow with a state.
pub fn enter_pair<F: TableFamily, T: Tables>(tables: &T, forward: &Entry<F>, reply: &Entry<F>, state: u16) -> Entered {
    let mut spare = Entry::empty();
    let [mut own, mut answer] = [forward, reply].map(|half| Spot::of_key(tables, &half.key));
    let mut room = Spot::none(Found::Nothing);
    let same = |spot: &Spot, half: &Entry<F>| {
        search::translates(tables, spot, &half.rewrite.src, &half.rewrite.dst) == Seen::Same
    };
    let claimed = tables.claim(&forward.key, &mut spare, &mut own, &answer, &mut room);
    if claimed == Claimed::Entry && same(&own, forward) {
        return Entered::Known;
    }
    if claimed != Claimed::Slot {
        return refusal(claimed);
    }
    let mut claimed = tables.claim(&reply.key, &mut spare, &mut answer, &own, &mut room);
    if claimed == Claimed::Entry && same(&answer, reply) && tables.free_pair(&answer, &mut spare, &mut room) {
        answer.found = Found::Nothing;
        claimed = tables.claim(&reply.key, &mut spare, &mut answer, &own, &mut room);
    }
    if claimed != Claimed::Slot {
        table::unclaim::<F, T>(tables, &mut own);
        return refusal(claimed);
    }
    table::publish(tables, reply, state | REPLY_HALF, &mut answer);
    table::publish(tables, forward, state, &mut own);
    Entered::Pair
}

fn refusal(claimed: Claimed) -> Entered {
    match claimed {
        Claimed::Slot | Claimed::Entry => Entered::Conflict,
        Claimed::Full => Entered::Full,
        Claimed::Busy | Claimed::Again | Claimed::Crowded => Entered::Busy,
    }
}
