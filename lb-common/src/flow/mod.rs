//! Flows: what packets remember of a translated connection.
//!
//! A flow is two entries of one table, *forward* (client to backend, keyed as the client sends) and *reply* (backend to client,
//! keyed as the backend sends), each other's twin. Both or none exist; a twin is found by its key, which the entry's rewrite
//! gives. [`slot`] is the layout of an entry, [`state`] its state and time-outs, [`search`] finding, [`table`] inserting and
//! evicting, [`contend`] what CPUs do that want the same slot.

pub mod contend;
pub mod search;
pub mod slot;
pub mod state;
pub mod table;

pub use slot::{Entry, Key, Place, Rewrite};
