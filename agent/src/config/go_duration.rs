//! Durations as Go writes and reads them: `30s`, `1h30m`, `24h0m0s`.
//!
//! `kube_core::Duration` would not do: it prints `90s` where Go prints `1m30s`,
//! which `/configz` and `--write-config-to` would show, and it parses through a
//! floating-point number, which loses nanoseconds.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// A duration in Go's notation (`metav1.Duration` in configuration files,
/// duration flags on the command line).
///
/// It is signed, because Go reads `-1s` too; [`crate::config::validate`]
/// refuses a negative one with the path of the field. It counts nanoseconds, up
/// to about 292 years.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration {
    nanoseconds: i64,
}

/// Text that is not a duration in Go's notation.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not a duration: write numbers with units, such as 30s, 1h30m or 100ms")]
pub struct InvalidDuration(String);

/// Units in the order in which they are tried: `ms` and `µs` before `m` and
/// `s`.
const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl GoDuration {
    /// No time at all; in many fields it stands for "not set".
    pub const ZERO: Self = Self { nanoseconds: 0 };

    /// A number of whole seconds.
    pub const fn from_seconds(seconds: i32) -> Self {
        Self { nanoseconds: seconds as i64 * 1_000_000_000 }
    }

    /// Whether it is `0s`.
    pub fn is_zero(self) -> bool {
        self.nanoseconds == 0
    }

    /// Whether it is below `0s`.
    pub fn is_negative(self) -> bool {
        self.nanoseconds < 0
    }

    /// Whole seconds, rounded towards zero.
    pub fn whole_seconds(self) -> i64 {
        self.nanoseconds / 1_000_000_000
    }

    /// Converts to the standard library's type; a negative duration becomes
    /// zero.
    pub fn to_duration(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.nanoseconds).unwrap_or(0))
    }
}

impl FromStr for GoDuration {
    type Err = InvalidDuration;

    /// Parses like Go's `time.ParseDuration`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map(|nanoseconds| Self { nanoseconds }).ok_or_else(|| InvalidDuration(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let (_, scale) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(scaled(number, scale)?)?;
        rest = tail;
    }
    Some(sign * total)
}

/// `number` (digits with at most one point) times `scale`, in nanoseconds.
fn scaled(number: &str, scale: i64) -> Option<i64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut nanoseconds = whole.checked_mul(scale)?;
    let mut place = scale;
    for digit in fraction.bytes() {
        // A fraction of a nanosecond is dropped, as in Go.
        place /= 10;
        nanoseconds = nanoseconds.checked_add(i64::from(digit - b'0') * place)?;
    }
    Some(nanoseconds)
}

impl fmt::Display for GoDuration {
    /// Prints like Go's `Duration.String`: `24h0m0s`, `1.5s`, `100ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanoseconds < 0 {
            f.write_str("-")?;
        }
        let total = self.nanoseconds.unsigned_abs();
        if total == 0 {
            return f.write_str("0s");
        }
        if total < 1_000_000_000 {
            let (scale, unit) = match total {
                1_000_000.. => (1_000_000, "ms"),
                1_000.. => (1_000, "µs"),
                _ => (1, "ns"),
            };
            return write!(f, "{}{unit}", Decimal { units: total, scale });
        }
        let (hours, minutes) = (total / 3_600_000_000_000, total / 60_000_000_000 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        write!(f, "{}s", Decimal { units: total % 60_000_000_000, scale: 1_000_000_000 })
    }
}

/// `units / scale` in decimal, without trailing zeros.
struct Decimal {
    units: u64,
    scale: u64,
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.units / self.scale)?;
        let fraction = self.units % self.scale;
        if fraction == 0 {
            return Ok(());
        }
        let digits = format!("{:0width$}", fraction, width = self.scale.ilog10() as usize);
        write!(f, ".{}", digits.trim_end_matches('0'))
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = GoDuration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 30s or 1h30m")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<GoDuration, E> {
                text.parse().map_err(E::custom)
            }

            /// `logging.flushFrequency` may be a bare number of nanoseconds,
            /// and kubeadm writes `0` there.
            fn visit_u64<E: de::Error>(self, nanoseconds: u64) -> Result<GoDuration, E> {
                i64::try_from(nanoseconds).map(|nanoseconds| GoDuration { nanoseconds }).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, nanoseconds: i64) -> Result<GoDuration, E> {
                Ok(GoDuration { nanoseconds })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_go_reads() {
        for (text, nanoseconds) in [
            ("0", 0),
            ("0s", 0),
            ("30s", 30_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("24h0m0s", 86_400_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("100ms", 100_000_000),
            ("3µs", 3_000),
            ("-1s", -1_000_000_000),
            ("+1s", 1_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(GoDuration { nanoseconds }), "{text}");
        }
    }

    #[test]
    fn refuses_what_go_refuses() {
        for text in ["", "-", "30", "s", ".s", "1.2.3s", "3 s", "1d", "9999999999h", "1s2"] {
            assert!(text.parse::<GoDuration>().is_err(), "{text}");
        }
    }

    #[test]
    fn prints_as_go_prints() {
        for (text, printed) in [
            ("0", "0s"),
            ("86400s", "24h0m0s"),
            ("90s", "1m30s"),
            ("1500ms", "1.5s"),
            ("100ms", "100ms"),
            ("1500us", "1.5ms"),
            ("7ns", "7ns"),
            ("-90s", "-1m30s"),
        ] {
            assert_eq!(text.parse::<GoDuration>().unwrap().to_string(), printed);
        }
    }
}
