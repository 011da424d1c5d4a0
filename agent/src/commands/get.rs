//! `vmap-proxy get`: Services, frontends or endpoints as tables.

use std::io;
use std::process::ExitCode;

use thiserror::Error;
use vmap_proxy_compiler::explain::answer::ServiceAnswer;
use vmap_proxy_compiler::explain::{Code, Decision, Detail};

use super::asked::{AskError, Asked};
use crate::cli::{GetFormat, GetOptions};
use crate::query::lines::Lines;
use crate::query::protocol::List;
use crate::terminal::{aligned, print};

/// The reason why there is no list.
#[derive(Debug, Error)]
pub enum Error {
    /// Nobody answers.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// There is no such Service.
    #[error("there is no Service {0} here")]
    NoService(String),
    /// The list could not be printed.
    #[error("the list could not be printed: {0}")]
    Print(#[from] io::Error),
    /// The list could not be written as JSON.
    #[error("the list could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Prints the list.
///
/// # Errors
/// If there is no answer, or no such Service.
pub fn get(options: GetOptions) -> Result<ExitCode, Error> {
    let mut asked = Asked::open(options.source)?;
    let GetOptions { listed, name, namespace, output, .. } = options;
    let is_wide = output == GetFormat::Wide;
    let text = match (name, output) {
        (Some(name), output) => {
            let service = one(&mut asked, &format!("{}/{name}", namespace.as_deref().unwrap_or("default")))?;
            if output == GetFormat::Json {
                serde_json::to_string_pretty(&[service])?
            } else {
                let mut lines = Lines::with_headings(listed, is_wide);
                lines.push(listed, &service, is_wide);
                aligned(&lines.into_text())
            }
        }
        (None, GetFormat::Json) => json(&mut asked, listed, namespace.as_deref())?,
        (None, GetFormat::Text | GetFormat::Wide) => {
            let mut lines = Lines::with_headings(listed, is_wide);
            asked.each_line(listed, is_wide, namespace, |page| lines.push_page(page))?;
            aligned(&lines.into_text())
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn one(asked: &mut Asked, name: &str) -> Result<ServiceAnswer, Error> {
    let is_no_service = |reason: &Decision| reason.code == Code::NoService;
    let service = asked.service(name)?;
    let is_missing = service.ports.is_empty() && !service.programmed && service.reasons.iter().any(is_no_service);
    if is_missing { Err(Error::NoService(name.to_owned())) } else { Ok(service) }
}

/// All Services, one in each line of an array: the list may be long. Only the list
/// of endpoints has all of them.
fn json(asked: &mut Asked, listed: List, namespace: Option<&str>) -> Result<String, Error> {
    let detail = if listed == List::Endpoints { Detail::All } else { Detail::Frontends };
    let mut text = Vec::from(*b"[");
    let mut written = Ok(());
    asked.each_service(namespace, detail, |service| {
        text.extend_from_slice(if text.len() == 1 { b"\n" } else { b",\n" });
        if written.is_ok() {
            written = serde_json::to_writer(&mut text, &service);
        }
    })?;
    written?;
    text.extend_from_slice(b"\n]\n");
    Ok(String::from_utf8_lossy(&text).into_owned())
}
