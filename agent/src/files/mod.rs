//! Files that others write: which of them changed ([`watch`]), and reading them
//! without trust in what they are ([`read`]).

pub mod backoff;
pub mod read;
pub mod stamp;
pub mod watch;
