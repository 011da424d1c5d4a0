//! The settings of the flow table, read from the section `nftables.flowTable`.

use std::fmt;

use super::InvalidField;
use super::kube_proxy_configuration::FlowTable;

/// Packets of both directions after which a connection gets into the flow table.
pub const DEFAULT_AFTER_PACKETS: u32 = 20;

/// The longest name of an interface in bytes: `IFNAMSIZ` less the zero.
const LONGEST_NAME: usize = 15;

/// The settings of the flow table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowTableOptions {
    /// The interfaces in it.
    pub interfaces: Vec<InterfacePattern>,
    /// Packets of both directions after which a connection gets into it.
    pub after_packets: u32,
}

impl FlowTableOptions {
    /// Returns whether an interface belongs into the flow table.
    pub fn has(&self, interface: &str) -> bool {
        self.interfaces.iter().any(|pattern| pattern.matches(interface))
    }

    /// The patterns, for people.
    pub fn patterns(&self) -> String {
        self.interfaces.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// A rule for names of interfaces: one name, or with `*` at the end all that
/// begin with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfacePattern {
    name: String,
    is_prefix: bool,
}

impl InterfacePattern {
    /// Reads `eth0`, `eth*` or `*`. `None` if no interface could have such a
    /// name.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, is_prefix) = text.strip_suffix('*').map_or((text, false), |prefix| (prefix, true));
        let is_usable = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'"' | b'*');
        let is_named = is_prefix || !name.is_empty();
        (is_named && name.len() <= LONGEST_NAME && name.bytes().all(is_usable))
            .then(|| Self { name: name.to_owned(), is_prefix })
    }

    /// Returns whether an interface has such a name.
    pub fn matches(&self, interface: &str) -> bool {
        if self.is_prefix { interface.starts_with(&self.name) } else { interface == self.name }
    }
}

impl fmt::Display for InterfacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name, if self.is_prefix { "*" } else { "" })
    }
}

impl FlowTable {
    /// Returns the settings, or `None` without interfaces: then there is no flow
    /// table.
    ///
    /// # Errors
    /// Every pattern that no interface can match.
    pub fn options(&self) -> Result<Option<FlowTableOptions>, Vec<InvalidField>> {
        let mut invalid = Vec::new();
        let mut interfaces = Vec::with_capacity(self.interfaces.len());
        for (index, text) in self.interfaces.iter().enumerate() {
            match InterfacePattern::parse(text) {
                Some(pattern) => interfaces.push(pattern),
                None => invalid.push(InvalidField {
                    path: format!("nftables.flowTable.interfaces[{index}]"),
                    value: format!("{text:?}"),
                    reason: "must be the name of a network interface, or the beginning of names and an asterisk, such \
                             as eth*"
                        .to_owned(),
                }),
            }
        }
        if !invalid.is_empty() {
            return Err(invalid);
        }
        let after_packets = self.after_packets;
        Ok((!interfaces.is_empty()).then_some(FlowTableOptions { interfaces, after_packets }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    fn options(interfaces: &[&str]) -> Result<Option<FlowTableOptions>, Vec<InvalidField>> {
        let interfaces = interfaces.iter().map(|&text| text.to_owned()).collect();
        FlowTable { interfaces, ..FlowTable::default() }.options()
    }

    #[test]
    fn there_is_none_without_interfaces() {
        assert_eq!(options(&[]).unwrap(), None);
        assert_eq!(options(&["eth0"]).unwrap().unwrap().after_packets, 20);
    }

    #[test]
    fn a_pattern_is_a_name_or_a_prefix() {
        let options = options(&["eth*", "cali*", "wlan0"]).unwrap().unwrap();
        for (interface, expected) in
            [("eth0", true), ("eth", true), ("cali12ab", true), ("wlan0", true), ("wlan01", false), ("veth1", false)]
        {
            assert_eq!(options.has(interface), expected, "{interface}");
        }
        assert!(self::options(&["*"]).unwrap().unwrap().has("anything"));
        assert_eq!(options.patterns(), "eth*, cali*, wlan0");
    }

    #[test]
    fn a_name_that_no_interface_can_have_is_refused() {
        for text in ["", "eth 0", "a/b", "e*h", "**", "\"", "abcdefghijklmnop"] {
            let invalid = options(&["eth0", text]).unwrap_err();
            assert_eq!(invalid[0].path, "nftables.flowTable.interfaces[1]", "{text}");
        }
        assert!(options(&["abcdefghijklmno", "abcdefghijklmno*"]).is_ok());
    }
}
