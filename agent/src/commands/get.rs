//! `vmap-proxy get`: Services, frontends or endpoints as tables.

use std::io;
use std::process::ExitCode;

use thiserror::Error;
use vmap_proxy_compiler::explain::Detail;

use super::asked::{AskError, Asked};
use crate::cli::{GetFormat, GetOptions};
use crate::logging::escape::escaped;
use crate::query::lines::Lines;
use crate::query::protocol::List;
use crate::terminal::{aligned, print};

/// The reason why there is no list.
#[derive(Debug, Error)]
pub enum Error {
    /// Nobody answers.
    #[error(transparent)]
    Ask(#[from] AskError),
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
            let name = format!("{}/{name}", namespace.as_deref().unwrap_or("default"));
            let service = asked.existing_service(&name)?;
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
            let mut is_empty = true;
            asked.each_line(listed, is_wide, namespace.clone(), |page| {
                is_empty &= page.is_empty();
                lines.push_page(page);
            })?;
            if is_empty {
                // As kubectl: not an error, and not silent.
                let place = namespace.map(|namespace| format!(" in namespace {}", escaped(&namespace)));
                eprintln!("none found{}", place.unwrap_or_default());
            }
            aligned(&lines.into_text())
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
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
