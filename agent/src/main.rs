//! The binary `vmap-proxy`: reads the command line and starts what is asked.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use agent::cli::{self, Action, Invocation};
use agent::config::load;
use agent::{cleanup, compile, demo, logging, run};

fn main() -> ExitCode {
    let invocation = match cli::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        // Prints itself; 0 for --help, 2 for wrong usage.
        Err(error) => error.exit(),
    };
    match act(invocation) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed; there is nobody left to tell then.
            let _ = writeln!(io::stderr(), "Error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn act(invocation: Invocation) -> Result<(), Box<dyn Error>> {
    let resolved = invocation.resolve()?;
    logging::init(&resolved.logging);
    for warning in &resolved.warnings {
        tracing::warn!("{warning}");
    }
    match resolved.action {
        Action::Run(options) => run::run(*options)?,
        Action::Compile(options) => compile::compile(*options)?,
        Action::Demo(options) => demo::demo(options)?,
        Action::Cleanup(options) => cleanup::cleanup(options)?,
        Action::WriteConfiguration { path, configuration } => {
            load::write_file(&configuration, &path)?;
            tracing::info!("the configuration was written to {}", path.display());
        }
        Action::PrintVersion => writeln!(io::stdout(), "vmap-proxy {}", env!("CARGO_PKG_VERSION"))?,
    }
    Ok(())
}
