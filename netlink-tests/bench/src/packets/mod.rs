//! Measures the cost of a new connection on its way through the rules, against
//! the number of Services: the first packet of a UDP flow, and TCP connections
//! a second.
//!
//! | file | what |
//! |---|---|
//! | [`stage`] | client, node and pods, with one shape of rules on the node |
//! | [`shapes`] | the rules: ours, kube-proxy's shape, none |
//! | [`load`] | the load generator: new flows, timed one by one |
//! | [`report`] | figures as JSON and Markdown |
//! | [`established`] | packets of an established flow, with and without the flow table |
//!
//! All stages of a run exist side by side, and take turns: what else the
//! machine does meanwhile meets all of them alike.

pub mod established;
pub mod load;
pub mod report;
pub mod shapes;
pub mod stage;
