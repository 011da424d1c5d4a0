//! Files that other programs write: noticing changes ([`watch`], of one file
//! [`follow`]), and reading them without trusting their kind or size ([`read`]).
//! [`stamp`] tells whether a file changed; [`backoff`] spaces the attempts to
//! watch one.

pub mod backoff;
pub mod follow;
pub mod read;
pub mod stamp;
pub mod watch;
