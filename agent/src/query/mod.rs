//! Questions about the state, and their answers.
//!
//! * [`protocol`]: the questions and answers, as JSON lines;
//! * [`answer`](mod@answer): an answer from the store and the planner: the same
//!   function answers for an agent and for files;
//! * [`offline`]: the state that files make;
//! * [`server`]: the Unix socket of an agent; [`client`]: asks it;
//! * [`elements`]: programmed elements in pages;
//! * [`lines`]: lists, line by line;
//! * [`kernel`]: the elements of one frontend as the kernel has them;
//! * [`owners`]: the Services of frontends, from the kernel;
//! * [`journal`]: the last syncs with their causes.

pub mod answer;
pub mod client;
pub mod elements;
pub mod journal;
pub mod kernel;
pub mod lines;
pub mod offline;
pub mod owners;
pub mod protocol;
pub mod server;
