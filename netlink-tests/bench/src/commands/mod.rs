//! The subcommands of `vmap-proxy-bench`.

pub mod cluster;
pub mod compare;
pub mod established;
pub mod fleet;
pub mod localhost;
pub mod packets;
pub mod plots;
pub mod scale;

use std::process::ExitCode;

use crate::scale::Failure;

/// Prints what a command found out, or why it could not.
#[allow(clippy::print_stdout, reason = "a command line program prints its results")]
fn print(found: Result<String, Failure>) -> ExitCode {
    match found {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}
