//! The program `vmap-proxy` without its process: reads the command line and
//! runs the action.

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::cli::{self, Action, Invocation};
#[cfg(feature = "demo")]
use crate::config::kube_proxy_configuration::Logging;
use crate::config::{ConfigError, load};
use crate::logging::escape::escaped;
use crate::{commands, logging, run};

/// Runs the action of the arguments, the program's name first. Prints the cause
/// of a failure on standard error.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    logging::panic::install();
    let invocation = match cli::parse(arguments) {
        Ok(invocation) => invocation,
        // Prints itself; 0 for --help, 2 for wrong usage.
        Err(error) => error.exit(),
    };
    let outcome = act(invocation);
    logging::limit::flush();
    match outcome {
        Ok(status) => status,
        Err(error) => {
            let lines: Vec<_> = error.to_string().lines().map(|line| escaped(line).into_owned()).collect();
            // Standard error may be closed; then nobody can be informed.
            let _ = writeln!(io::stderr(), "Error: {}", lines.join("\n"));
            let is_usage = error.downcast_ref::<ConfigError>().is_some_and(ConfigError::is_wrong_usage);
            if is_usage { ExitCode::from(cli::WRONG_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

fn act(invocation: Invocation) -> Result<ExitCode, Box<dyn Error>> {
    let resolved = invocation.resolve()?;
    logging::init(&resolved.logging);
    for warning in &resolved.warnings {
        tracing::warn!("{warning}");
    }
    match resolved.action {
        Action::Run(options) => run::run(*options)?,
        Action::Compile(options) => commands::compile::compile(*options)?,
        Action::Get(options) => return Ok(commands::get::get(*options)?),
        Action::GetConnections(options) => return Ok(commands::connections::connections(&options)?),
        Action::CheckMigration(options) => {
            return Ok(commands::check_migration::check_migration(*options)?);
        }
        Action::Plan(options) => return Ok(commands::plan::plan(*options)?),
        Action::Trace(options) => return Ok(commands::trace::trace(&options)?),
        Action::Journal(options) => return Ok(commands::journal::journal(&options)?),
        Action::Version(options) => return Ok(commands::version::version(&options)?),
        Action::Status(options) => return Ok(commands::status::status(&options)?),
        Action::Verify(options) => return Ok(commands::verify::verify(&options)?),
        Action::Explain(options) => return Ok(commands::explain::explain(*options)?),
        Action::Doctor(options) => return Ok(commands::doctor::doctor(options)?),
        Action::PrintCompletion(shell) => commands::completion::completion(shell)?,
        #[cfg(feature = "demo")]
        Action::Demo { keep } => {
            let Logging { verbosity, format, .. } = resolved.logging;
            let log_format = Some(format).filter(|format| !format.is_empty());
            vmap_proxy_demo::demo(&vmap_proxy_demo::Options { keep, verbosity, log_format })?;
        }
        Action::Cleanup(options) => commands::cleanup::cleanup(options)?,
        Action::WriteConfiguration { path, configuration } => {
            load::write_file(&configuration, &path)?;
            tracing::info!("the configuration was written to {}", path.display());
        }
        // The reader may be gone.
        Action::PrintVersion => _ = writeln!(io::stdout(), "vmap-proxy {}", env!("CARGO_PKG_VERSION")),
    }
    Ok(ExitCode::SUCCESS)
}
