//! `vmap-proxy completion`: a script that completes the command line.

use std::io;

use clap::CommandFactory;
use clap_complete::generate;

use crate::cli::{Cli, Shell};
use crate::terminal::print;

/// Prints the script for a shell.
///
/// # Errors
/// If standard output can't be written.
pub fn completion(shell: Shell) -> io::Result<()> {
    let mut script = Vec::new();
    generate(shell.generator(), &mut Cli::command().disable_version_flag(true), "vmap-proxy", &mut script);
    print(&String::from_utf8_lossy(&script))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script_with_the_subcommands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            generate(shell.generator(), &mut Cli::command(), "vmap-proxy", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("doctor") && script.contains("cluster-cidr"), "{shell:?}");
        }
    }
}
