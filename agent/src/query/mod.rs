//! Questions about the state, and their answers.
//!
//! * [`protocol`]: the questions and answers, as JSON lines;
//! * [`answer`](mod@answer): an answer from the store and the planner: the same
//!   function answers for an agent and for files;
//! * [`offline`]: the state that files make.

pub mod answer;
pub mod offline;
pub mod protocol;
