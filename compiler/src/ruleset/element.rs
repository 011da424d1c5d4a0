//! Typed elements of the sets and maps.

use std::borrow::Cow;
use std::net::IpAddr;

use arcstr::ArcStr;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::chains::Chain;
use super::maps::Map;
use super::target::{FrontendKey, Target};
use crate::model::digest::Digest;
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
    pub comment: Option<ArcStr>,
}

/// The longest comment that the kernel takes on an element, in bytes: nft and
/// libnftnl refuse more than 128 including the terminating zero.
pub const MAX_COMMENT: usize = 127;

/// The end of a shortened text: dots, and a digest of the whole text in 8
/// hexadecimal digits, so that two texts with the same beginning stay apart.
const CUT_END: usize = 3 + 8;

/// Shortens a comment to the kernel's limit, at a character boundary, with `...`
/// and a digest of the whole text at the end. Characters that would end the comment
/// in a listing, or harm a terminal, are replaced; no name that the API server
/// accepts contains them.
pub fn fit_comment(text: &str) -> Cow<'_, str> {
    cut(harmless(text), MAX_COMMENT)
}

/// `name:port`, or without the port if it has no name; each part is shortened as in
/// [`fit_comment`] if both don't fit, the port first.
pub(super) fn port_comment(name: &str, port: &str) -> String {
    if port.is_empty() {
        return fit_comment(name).into_owned();
    }
    let port = harmless(port);
    let name = cut(harmless(name), MAX_COMMENT - 1 - port.len().min(CUT_END));
    let port = cut(port, MAX_COMMENT - 1 - name.len());
    format!("{name}:{port}")
}

/// Returns whether a part of a comment stands for this text, which may be shortened
/// there.
pub fn is_comment_of(part: &str, text: &str) -> bool {
    let text = harmless(text);
    let is_cut = |split: usize| {
        part.is_char_boundary(split)
            && text.starts_with(&part[..split])
            && text.len() > part.len()
            && part[split..] == cut_end(&text)
    };
    part == text || part.len().checked_sub(CUT_END).is_some_and(is_cut)
}

/// Returns whether a part of a comment looks shortened.
pub fn is_cut(part: &str) -> bool {
    let end = part.rsplit_once("...").map(|(_, digest)| digest);
    end.is_some_and(|digest| digest.len() == 8 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn harmless(text: &str) -> Cow<'_, str> {
    let is_harmful = |character: char| character.is_control() || character == '"';
    if text.contains(is_harmful) { Cow::Owned(text.replace(is_harmful, "?")) } else { Cow::Borrowed(text) }
}

fn cut(text: Cow<'_, str>, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text;
    }
    let mut end = most.saturating_sub(CUT_END);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(format!("{}{}", &text[..end], cut_end(&text)))
}

fn cut_end(text: &str) -> String {
    let digest = Digest::default().bytes(text.as_bytes()).finish();
    format!("...{:08x}", digest >> 32)
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
        assert!(long.len() <= MAX_COMMENT && long.contains("é..."), "{long}");
        assert!(is_comment_of(&long, &text) && !is_comment_of(&long, &"é".repeat(101)), "{long}");
    }

    #[test]
    fn long_names_with_the_same_beginning_stay_apart() {
        let beginning = format!("shop/{}", "a".repeat(200));
        let [one, other] = ["b", "c"].map(|end| format!("{beginning}{end}"));
        for port in ["", "http", &"p".repeat(63)] {
            let [first, second] = [&one, &other].map(|name| port_comment(name, port));
            assert!(first.len() <= MAX_COMMENT && first != second, "{first} {second}");
            let name = first.split_once(':').map_or(&*first, |(name, _)| name);
            assert!(is_comment_of(name, &one) && !is_comment_of(name, &other), "{name}");
        }
        // What fits exactly is not cut.
        let longest = format!("{}/{}", "n".repeat(58), "s".repeat(63));
        assert_eq!(port_comment(&longest, "http"), format!("{longest}:http"));
        let [http, https] = ["0", "1"].map(|end| port_comment(&longest, &format!("{}{end}", "p".repeat(62))));
        assert!(http != https && http.len() <= MAX_COMMENT, "{http} {https}");
    }
}
