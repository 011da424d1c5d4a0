//! Go's conventions for flags, where they differ from clap's.

use std::ffi::OsString;

/// Reads a boolean as Go's `strconv.ParseBool` does.
///
/// # Errors
/// If the text is no boolean.
pub(super) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

/// Returns the arguments as clap expects them. kube-proxy accepts `_` for `-`
/// in names of flags, so `--cluster_cidr=10.0.0.0/8` is
/// `--cluster-cidr=10.0.0.0/8`.
pub(super) fn normalized(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut only_values = false;
    arguments
        .into_iter()
        .map(|argument| {
            only_values |= argument == "--";
            match argument.to_str() {
                Some(text) if text.starts_with("--") && !only_values => with_dashes(text).into(),
                _ => argument,
            }
        })
        .collect()
}

fn with_dashes(argument: &str) -> String {
    match argument.split_once('=') {
        Some((name, value)) => format!("{}={value}", name.replace('_', "-")),
        None => argument.replace('_', "-"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn underscores_in_names_become_dashes() {
        let arguments = ["vmap-proxy", "--cluster_cidr=a_b", "a_b", "--x_y", "--", "--z_z"].map(OsString::from);
        let expected = ["vmap-proxy", "--cluster-cidr=a_b", "a_b", "--x-y", "--", "--z_z"].map(OsString::from);
        assert_eq!(normalized(arguments), expected);
    }
}
