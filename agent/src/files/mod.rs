//! Files that other programs write: noticing changes ([`watch`]), and reading
//! them without trusting their kind or size ([`read`]).

pub mod backoff;
pub mod read;
pub mod stamp;
pub mod watch;
