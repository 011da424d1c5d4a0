//! Typed elements of the sets and maps.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::chains::Chain;
use super::maps::Map;
use super::target::{FrontendKey, Target};
use crate::model::{Endpoint, Protocol};

/// The number of an endpoint list that clients stick to: one of the lists of a
/// service port (cluster-wide or local), shared by all frontends that serve it.
///
/// Within one hook it travels in `meta priority`, from the balancing chain to
/// the one that learns. The numbers are `7600:0001` to `76ff:ffff` as nft
/// writes them: other programs are unlikely to set one of these priorities.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListNumber(u32);

impl ListNumber {
    /// No number: the default priority of a packet. Nothing is ever learned
    /// under it.
    pub const NONE: ListNumber = ListNumber(0);
    /// The first byte of every number.
    const PREFIX: u32 = 0x7600_0000;
    /// The number of numbers.
    pub const COUNT: u32 = 0x00ff_ffff;

    /// The number at a position, from 1 to [`Self::COUNT`].
    pub fn at(position: u32) -> Option<ListNumber> {
        (1..=Self::COUNT).contains(&position).then_some(ListNumber(Self::PREFIX | position))
    }

    /// Reads a number from the kernel; `None` if it is not one of ours.
    pub fn from_priority(priority: u32) -> Option<ListNumber> {
        Self::at(priority & Self::COUNT).filter(|number| number.0 == priority)
    }

    /// The value for `meta priority`.
    pub fn priority(self) -> u32 {
        self.0
    }

    /// Its position; 0 for [`Self::NONE`].
    pub fn position(self) -> u32 {
        self.0 & Self::COUNT
    }

    /// Returns whether it is a valid number.
    pub fn is_some(self) -> bool {
        self != Self::NONE
    }
}

/// The key of an element; its shape follows from the map (see [`Map::key`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Key {
    /// `cluster-ips`, `nodeport-ips`
    Address(IpAddr),
    /// `service-cidrs`: an interval set, one element a prefix.
    Prefix(IpNet),
    /// Maps and sets of frontends, or of NodePorts.
    Target(Target),
    /// Maps of endpoints: a slot of a frontend or NodePort.
    Slot(Target, u32),
    /// `hairpin-connections`: a local endpoint against itself.
    Hairpin(Endpoint, Protocol),
    /// `source-ranges`, `source-range-markers`: a frontend and a prefix of
    /// clients, the kernel's key has its first and last address.
    SourceRange(FrontendKey, IpNet),
    /// `affinity`: a client and the list it was placed in.
    Affinity(IpAddr, ListNumber),
    /// `affinity-timeouts`
    List(ListNumber),
}

/// The verdict of a verdict map's element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// `goto CHAIN`
    Goto(Chain),
    /// `drop`
    Drop,
}

/// The data of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Data {
    /// A set's element holds nothing.
    Nothing,
    /// An element of a verdict map.
    Verdict(Verdict),
    /// An element of an endpoint map.
    Endpoint(Endpoint),
    /// An element of a map of list numbers.
    List(ListNumber),
}

/// One element of one set or map.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Element {
    /// The set or map it belongs to.
    pub map: Map,
    /// The key, in the form of [`Map::key`].
    pub key: Key,
    /// The data, of the kind [`Map::data`].
    pub data: Data,
    /// `namespace/name:port`, at most [`MAX_COMMENT`] bytes: the comment of the
    /// element for operators.
    pub comment: Option<Arc<str>>,
}

/// The longest comment that the kernel takes on an element, in bytes: nft and
/// libnftnl refuse more than 128 including the terminating zero.
pub const MAX_COMMENT: usize = 127;

/// Shortens a comment to the kernel's limit, at a character boundary, with
/// `...` at the end. Characters that would end the comment in a listing, or
/// harm a terminal, are replaced; no name that the API server accepts contains
/// them.
pub fn fit_comment(text: &str) -> Cow<'_, str> {
    let is_harmful = |character: char| character.is_control() || character == '"';
    if text.contains(is_harmful) {
        return Cow::Owned(fit_comment(&text.replace(is_harmful, "?")).into_owned());
    }
    if text.len() <= MAX_COMMENT {
        return Cow::Borrowed(text);
    }
    let mut end = MAX_COMMENT - 3;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(format!("{}...", &text[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_comments_are_shortened_at_a_character() {
        assert_eq!(fit_comment("shop/cart:http"), "shop/cart:http");
        assert_eq!(fit_comment("a\"b\n\u{1b}[2Jc"), "a?b??[2Jc");
        let text = "é".repeat(100);
        let long = fit_comment(&text);
        assert!(long.len() <= MAX_COMMENT && long.ends_with("..."), "{long}");
    }
}
