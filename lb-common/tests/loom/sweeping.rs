//! User space's sweep beside packets: it frees by one compare-and-swap a half and then leaves the slot, and may be killed anywhere.
//!
//! The sweep here is that of the agent's `flows/sweep.rs`, cut to one flow: the forward half first, then its twin.

use lb_common::access::{SetRef as _, Slots as _, Tables as _};
use lb_common::family::V4;
use lb_common::flow::search::{self, Found};
use lb_common::flow::state::{Control, GONE, REPLY_HALF};
use lb_common::flow::table::{self, Spot};
use lb_common::flow::{Entry, Key};
use lb_common::testing::Entered;
use loom::thread;

use crate::model::{
    LONG_AGO, Model, NOW, Prepared, Standing, assert_whole_pairs, enter, explore, flow, known, reply_of, standing,
    standing_beside_abandoned,
};

fn is_old(control: Control) -> bool {
    control.age(NOW) > 500
}

/// The spot of a key, if its entry has timed out.
fn timed_out(model: &Model, key: &Key<V4>) -> Option<Spot> {
    let spot = search::locate(&model, key);
    (spot.found == Found::Entry && is_old(spot.control)).then_some(spot)
}

/// The sweep of one flow, killed after so many steps that change anything.
fn sweep(model: &Model, forward: &Entry<V4>, steps: usize) {
    let reply = reply_of(forward);
    let Some(first) = timed_out(model, &forward.key) else {
        return;
    };
    let Some(twin) = timed_out(model, &reply.key) else {
        return;
    };
    for (half, steps) in [(first, steps), (twin, steps.saturating_sub(3))] {
        let base = half.base as usize;
        let set = model.flows::<V4>().set(half.set).expect("a set");
        if steps == 0 || !table::free::<V4, _>(set, base, half.control) || steps == 1 {
            break;
        }
        if steps == 2 {
            // The first step of leaving.
            set.cas(base, half.control.in_phase(GONE).word(), 0);
            break;
        }
        model.leave::<V4>(half.set, base, half.home::<V4, _>(&model));
    }
}

/// Steps of a sweep that nobody kills.
const ALL: usize = 6;

/// A table with one old flow and room for another.
fn old_flow() -> Prepared {
    let old = flow(1, 20_000);
    Prepared::new()
        .place(0, 1, &old, 0, LONG_AGO)
        .place(1, 2, &reply_of(&old), REPLY_HALF, LONG_AGO)
        .full_but(&[(0, 3), (1, 0)])
}

fn find(known: &[Standing], entry: &Entry<V4>) -> Option<Control> {
    known.iter().find(|one| one.entry == *entry).map(|one| one.control)
}

#[test]
fn a_sweep_and_a_clients_packet_leave_both_halves_or_none() {
    explore(3, || {
        let model = old_flow().model();
        let other = model.clone();
        let thread = thread::spawn(move || sweep(&other, &flow(1, 20_000), ALL));
        // A packet that found the entry refreshes both halves.
        let (forward, mut spare) = (flow(1, 20_000), Entry::empty());
        let spot = search::locate(&&*model, &forward.key);
        if spot.found == Found::Entry {
            table::touch::<V4, _>(&&*model, &spot, 0, NOW);
            table::touch_twin(&&*model, &forward, &mut spare, 0, NOW);
        }
        thread.join().expect("the sweep");
        let known = known(standing(&model));
        match (find(&known, &forward), find(&known, &reply_of(&forward))) {
            (Some(control), Some(twin)) => assert!(!is_old(control) && !is_old(twin), "a packet left no trace"),
            (None, None) => {}
            // The packet came between the sweep's two steps: the reply half alone lives on, until the next sweep.
            (None, Some(twin)) => assert!(!is_old(twin)),
            (Some(_), None) => panic!("a forward half lost its reply half to a sweep"),
        }
    });
}

#[test]
fn a_sweep_killed_anywhere_leaves_at_most_a_slot_taken_and_a_new_flow_finds_room() {
    for steps in 0..=ALL {
        explore(2, move || {
            let model = old_flow().model();
            let other = model.clone();
            let thread = thread::spawn(move || sweep(&other, &flow(1, 20_000), steps));
            let entered = enter(&model, flow(2, 20_001), 0);
            thread.join().expect("the sweep");
            assert_eq!(entered, Entered::Pair);
            let (standing, abandoned) = standing_beside_abandoned(&model);
            assert!(abandoned <= usize::from(steps % 3 != 0), "{standing:?}");
            let known = known(standing);
            let new: Vec<Standing> = known
                .iter()
                .filter(|one| one.entry != flow(1, 20_000))
                .copied()
                .collect();
            let new: Vec<Standing> = new
                .into_iter()
                .filter(|one| one.entry != reply_of(&flow(1, 20_000)))
                .collect();
            assert_whole_pairs(&new);
            assert_eq!(new.len(), 2);
        });
    }
}

#[test]
fn a_packet_of_a_flow_that_a_sweep_frees_begins_it_anew_as_one_pair() {
    explore(2, || {
        let model = old_flow().model();
        let other = model.clone();
        let thread = thread::spawn(move || sweep(&other, &flow(1, 20_000), ALL));
        // What the pipeline does with a flow that is over: both halves are freed, and the flow is entered again.
        let (forward, mut spare) = (flow(1, 20_000), Entry::empty());
        let spot = search::locate(&&*model, &forward.key);
        if spot.found == Found::Entry {
            table::free_twin(&&*model, &forward, &mut spare, &mut Spot::none(Found::Nothing));
            spot.free::<V4, _>(&&*model);
        }
        let mut entered = enter(&model, forward, 0);
        thread.join().expect("the sweep");
        if entered == Entered::Busy {
            // It came between the sweep's steps; the packet is sent again.
            entered = enter(&model, forward, 0);
        }
        assert_eq!(entered, Entered::Pair);
        let known = known(standing(&model));
        assert_whole_pairs(&known);
        assert_eq!(known.len(), 2);
        assert!(
            known.iter().all(|one| !is_old(one.control)),
            "the sweep took what had just begun"
        );
    });
}
