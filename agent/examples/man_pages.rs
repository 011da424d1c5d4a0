//! Writes the man pages of vmap-proxy and its subcommands into a folder:
//! `cargo run -p vmap-proxy --example man_pages -- man/`.

use std::error::Error;
use std::path::PathBuf;

use clap::CommandFactory;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: man_pages FOLDER")?);
    std::fs::create_dir_all(&folder)?;
    let command = vmap_proxy_agent::cli::Cli::command().disable_version_flag(true).version(env!("CARGO_PKG_VERSION"));
    clap_mangen::generate_to(command, folder)?;
    Ok(())
}
