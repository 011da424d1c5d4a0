//! Every name vector at both levels, each with a name of its own: `headless/zone`, `headless/server`.
//!
//! `cargo test -p vmap-proxy-conformance --test name_vectors headless` runs one vector.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use vmap_proxy_conformance::name_dir;
use vmap_proxy_conformance::names::run::{Failure, against_server, against_zone};
use vmap_proxy_conformance::names::schema::{Expected, load_file};
use vmap_proxy_conformance::schema;

fn main() -> ExitCode {
    let files = match schema::files(&name_dir()) {
        Ok(files) => files,
        Err(error) => {
            eprintln!("Error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut trials: Vec<Trial> = files.iter().flat_map(|file| [trial(file, false), trial(file, true)]).collect();
    trials.extend(files.iter().map(|file| wrong(file)));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(file: &Path, with_server: bool) -> Trial {
    let level = if with_server { "server" } else { "zone" };
    let file = file.to_owned();
    Trial::test(format!("{}/{level}", stem(&file)), move || {
        let vector = load_file(&file)?;
        judge(&if with_server { against_server(&vector)? } else { against_zone(&vector)? })
    })
}

/// The runner itself: every wrong expectation has to be reported.
fn wrong(file: &Path) -> Trial {
    let file: PathBuf = file.to_owned();
    Trial::test(format!("{}/wrong-expectations", stem(&file)), move || {
        let mut vector = load_file(&file)?;
        let mut count = 0;
        let steps = vector.steps.iter_mut().flat_map(|step| &mut step.questions);
        for question in vector.questions.iter_mut().chain(steps) {
            match &mut question.answer {
                Expected::Records(records) => drop(records.pop_first()),
                absent => *absent = Expected::Records(["192.0.2.1".to_owned()].into()),
            }
            count += 1;
        }
        let found = against_zone(&vector)?.len();
        if found == count { Ok(()) } else { Err(Failed::from(format!("{found} of {count} wrong expectations found"))) }
    })
}

fn stem(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn judge(failures: &[Failure]) -> Result<(), Failed> {
    if failures.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = failures.iter().map(ToString::to_string).collect();
    Err(Failed::from(lines.join("\n")))
}
