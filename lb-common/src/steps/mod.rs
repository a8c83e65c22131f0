//! The steps of the pipeline, one a file. No step calls another; [`crate::pipeline`] is the only caller.

pub mod answer;
pub mod forward;
pub mod icmp;
pub mod parse;
pub mod place;
pub mod rewrite;
pub mod select;
