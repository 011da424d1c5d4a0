//! The two text formats of Prometheus.
//!
//! The library writes OpenMetrics. The older format, which kube-proxy sends
//! unless the client requests the other, differs in the parts that we use: a
//! counter's header carries `_total`, whole bounds of buckets have no `.0`, and
//! there is no end marker.

/// A text format of Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `text/plain; version=0.0.4`
    Prometheus,
    /// `application/openmetrics-text; version=1.0.0`
    OpenMetrics,
}

impl Format {
    /// The format that an `Accept` header asks for.
    pub fn accepted_by(accept: Option<&str>) -> Self {
        if accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// The `Content-Type` of replies.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    pub(super) fn convert(self, openmetrics: String) -> String {
        match self {
            Self::OpenMetrics => openmetrics,
            Self::Prometheus => to_prometheus(&openmetrics),
        }
    }
}

fn to_prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            // Its name depends on the type, which comes next.
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take() {
                push_line(&mut text, &["# HELP ", name, suffix, " ", help]);
            }
            push_line(&mut text, &["# TYPE ", name, suffix, " ", kind]);
        } else if !line.starts_with('#') {
            push_sample(&mut text, line);
        }
    }
    text
}

fn push_sample(text: &mut String, line: &str) {
    let Some((before, after)) = line.split_once("le=\"").filter(|(before, _)| before.contains("_bucket{")) else {
        return push_line(text, &[line]);
    };
    match after.split_once('"') {
        Some((bound, rest)) => {
            push_line(text, &[before, "le=\"", bound.strip_suffix(".0").unwrap_or(bound), "\"", rest]);
        }
        None => push_line(text, &[line]),
    }
}

fn push_line(text: &mut String, parts: &[&str]) {
    for part in parts {
        text.push_str(part);
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_differs_in_three_points() {
        let openmetrics = "# HELP a Help of a.\n# TYPE a counter\na_total 1\n# HELP b Help of b.\n\
                           # TYPE b histogram\nb_bucket{le=\"1.0\",x=\"2.0\"} 1\nb_bucket{le=\"0.5\"} 1\n# EOF\n";
        let prometheus = "# HELP a_total Help of a.\n# TYPE a_total counter\na_total 1\n# HELP b Help of b.\n\
                          # TYPE b histogram\nb_bucket{le=\"1\",x=\"2.0\"} 1\nb_bucket{le=\"0.5\"} 1\n";
        assert_eq!(Format::Prometheus.convert(openmetrics.to_owned()), prometheus);
        assert_eq!(Format::OpenMetrics.convert(openmetrics.to_owned()), openmetrics);
    }

    #[test]
    fn the_format_is_negotiated() {
        assert_eq!(Format::accepted_by(None), Format::Prometheus);
        assert_eq!(Format::accepted_by(Some("text/plain")), Format::Prometheus);
        assert_eq!(Format::accepted_by(Some("application/openmetrics-text;version=1.0.0")), Format::OpenMetrics);
    }
}
