//! Flows: what packets remember of a translated connection.
//!
//! A flow is two entries of one table, *forward* (client to backend, keyed as the client sends) and *reply* (backend to client,
//! keyed as the backend sends), each other's twin. Both or none exist; a twin is found by its key, which the entry's rewrite
//! gives. [`slot`] is the layout of an entry, [`state`] its state and time-outs, [`roll`] which slots of a set are taken, [`search`]
//! finding, [`table`] entering and freeing, [`contend`] making room.

pub mod contend;
pub mod roll;
pub mod search;
pub mod slot;
pub mod state;
pub mod table;

pub use slot::{Entry, Key, Place, Rewrite};
