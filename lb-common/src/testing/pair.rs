//! Entering a flow in a table by itself, as the pipeline does once its port is chosen, or half of one.
//!
//! In: both halves, or one. Out: what came of them. Slots for both are taken before either half is written; where one cannot be had, the other is left.

use crate::access::{TableFamily, Tables};
use crate::flow::Entry;
use crate::flow::search::{self, Found};
use crate::flow::slot::Seen;
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
    let mut spots = [reply, forward, forward].map(|half| Spot::of_key(tables, &half.key));
    let same = |spot: &Spot, half: &Entry<F>| {
        search::translates(tables, spot, &half.rewrite.src, &half.rewrite.dst) == Seen::Same
    };
    let [answer, own, room] = &mut spots;
    let claimed = tables.claim(&forward.key, &mut spare, own, answer, room);
    if claimed == Claimed::Entry && same(own, forward) {
        return Entered::Known;
    }
    if claimed != Claimed::Slot {
        return refusal(claimed);
    }
    let mut claimed = tables.claim(&reply.key, &mut spare, answer, own, room);
    if claimed == Claimed::Entry && same(answer, reply) && tables.free_pair(answer, &mut spare, room, own) {
        answer.found = Found::Nothing;
        claimed = tables.claim(&reply.key, &mut spare, answer, own, room);
    }
    if claimed != Claimed::Slot {
        table::unclaim::<F, T>(tables, own);
        return refusal(claimed);
    }
    table::publish_pair(tables, reply, forward, state, &mut spots);
    Entered::Pair
}

/// Enters one entry alone with a state.
pub fn enter_half<F: TableFamily, T: Tables>(tables: &T, entry: &Entry<F>, state: u16) -> Claimed {
    let mut spot = Spot::of_key(tables, &entry.key);
    let [nowhere, mut room] = [Spot::none(Found::Nothing); 2];
    let claimed = tables.claim(&entry.key, &mut Entry::empty(), &mut spot, &nowhere, &mut room);
    if claimed == Claimed::Slot {
        table::publish(tables, entry, state, &mut spot);
    }
    claimed
}

fn refusal(claimed: Claimed) -> Entered {
    match claimed {
        Claimed::Slot | Claimed::Entry => Entered::Conflict,
        Claimed::Full => Entered::Full,
        Claimed::Busy | Claimed::Again | Claimed::Crowded => Entered::Busy,
    }
}
