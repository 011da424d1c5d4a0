//! The API as a source of objects: what is read, over which connection, and what a broken server costs. No kernel, and no
//! privileges.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod api_connection;
mod encodings;
mod hostile_api_server;
mod kubernetes_source;
mod random_faults;
