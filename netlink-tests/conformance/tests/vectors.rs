//! Every vector of this repository at each of the four levels, each with a name of its own: `hairpin-several/packets`.
//!
//! `cargo test -p vmap-proxy-conformance hairpin-several` runs one vector, and the filter `/compiled` one level.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use vmap_proxy_conformance::command::Level;
use vmap_proxy_conformance::library_proxy::LibraryProxy;
use vmap_proxy_conformance::schema::{self, Vector, VectorError};
use vmap_proxy_conformance::{own_dir, repository_dir, run_compiled, run_explained, run_model, run_packets};

/// The default number of vectors at a time: they mostly wait for answers that must not come, so more than there are processors.
const PARALLEL: usize = 4;

const LEVELS: [Level; 4] = [Level::Model, Level::Compiled, Level::Explained, Level::Packets];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(PARALLEL);
    // Namespaces must be entered before any thread exists.
    let permitted = vmap_proxy_lab::enter_user_namespace().map_err(|error| error.to_string());
    if let Err(error) = &permitted {
        eprintln!("SKIPPED, no vector is run with packets: {error}");
    }
    match files() {
        Ok(files) => {
            let trials = files.iter().flat_map(|file| LEVELS.map(|level| trial(file, level, permitted.clone())));
            libtest_mimic::run(&arguments, trials.collect()).exit_code()
        }
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn files() -> Result<Vec<PathBuf>, VectorError> {
    Ok([schema::files(&repository_dir())?, schema::files(&own_dir())?].concat())
}

fn trial(file: &Path, level: Level, permitted: Result<(), String>) -> Trial {
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    let file = file.to_owned();
    Trial::ignorable_test(format!("{name}/{level}"), move || {
        let vector = schema::load_file(&file)?;
        match (level, permitted) {
            (Level::Model, _) => judge(&run_model::run(&vector)),
            (Level::Compiled, _) => judge(&run_compiled::run(&vector)?),
            (Level::Explained, _) => judge(&run_explained::run(&vector)?),
            (Level::Packets, Ok(())) => judge(&packets(&vector)),
            (Level::Packets, Err(error)) if std::env::var_os("CI").is_some() => Err(Failed::from(error)),
            (Level::Packets, Err(error)) => Ok(Completion::ignored_with(error)),
        }
    })
}

fn packets(vector: &Vector) -> Vec<run_packets::Failure> {
    run_packets::run(vector, &mut LibraryProxy::default()).failures
}

fn judge(failures: &[impl Display]) -> Result<Completion, Failed> {
    if failures.is_empty() {
        return Ok(Completion::Completed);
    }
    let lines: Vec<String> = failures.iter().map(ToString::to_string).collect();
    Err(Failed::from(lines.join("\n")))
}
