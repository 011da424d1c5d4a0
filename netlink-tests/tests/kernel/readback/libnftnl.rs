//! The view of libnftnl: the kernel's messages as the library under nft parses
//! them. The safe crate has no readers, so this uses its C interface.

use std::ffi::{CStr, c_char, c_void};
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use nftnl::nftnl_sys as sys;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use vmap_proxy_compiler::model::Protocol;
use vmap_proxy_compiler::ruleset::maps::{DataKind, KeyField, Map};
use vmap_proxy_compiler::ruleset::{Family, TABLE};

use super::view::{ChainView, View};

/// `struct nlmsghdr` and `struct nfgenmsg`
const HEADERS: usize = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
/// The verdicts of our maps, `enum nft_verdicts`.
const NF_DROP: u32 = 0;
const NFT_GOTO: u32 = -4i32 as u32;

/// Asks the kernel for everything in our table of a family.
///
/// # Errors
///
/// A system call that failed, or a message that libnftnl refuses.
pub(crate) fn view(family: Family) -> Result<View, String> {
    let mut view = View::default();
    for message in dump(family, libc::NFT_MSG_GETCHAIN, &[(1, TABLE)])? {
        let (name, chain) = chain(&message)?;
        view.chains.insert(name, chain);
    }
    for message in dump(family, libc::NFT_MSG_GETRULE, &[(1, TABLE)])? {
        let name = rule_chain(&message)?;
        view.chains.get_mut(&name).ok_or("a rule of an unknown chain")?.rules += 1;
    }
    for message in dump(family, libc::NFT_MSG_GETSET, &[(1, TABLE)])? {
        let set = Set::parse(&message, false)?;
        let name = set.string(sys::NFTNL_SET_NAME as u16)?;
        let map = Map::parse(&name).ok_or_else(|| format!("unknown set {name}"))?;
        let mut elements = Vec::new();
        for message in dump(family, libc::NFT_MSG_GETSETELEM, &[(1, TABLE), (2, &name)])? {
            elements.extend(Set::parse(&message, true)?.elements(family, map)?);
        }
        view.sets.insert(name, elements.into_iter().collect());
    }
    Ok(view)
}

/// The messages of one listing, each with its header, in memory that is
/// aligned for the library.
fn dump(family: Family, kind: libc::c_int, names: &[(u16, &str)]) -> Result<Vec<Vec<u64>>, String> {
    let system = |errno: nix::errno::Errno| errno.to_string();
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), SockProtocol::NetlinkNetFilter)
        .map_err(system)?;
    let mut request = vec![0; HEADERS];
    request[4..6].copy_from_slice(&(10 << 8 | kind as u16).to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    request[16] = if family == Family::Ipv4 { libc::AF_INET } else { libc::AF_INET6 } as u8;
    for (attribute, name) in names {
        request.extend(((name.len() + 5) as u16).to_ne_bytes());
        request.extend(attribute.to_ne_bytes());
        request.extend(name.bytes());
        request.resize((request.len() + 1).next_multiple_of(4), 0);
    }
    let length = request.len() as u32;
    request[0..4].copy_from_slice(&length.to_ne_bytes());
    send(socket.as_raw_fd(), &request, MsgFlags::empty()).map_err(system)?;

    let mut messages = Vec::new();
    let mut buffer = vec![0; 1 << 17];
    loop {
        let received = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(system)?;
        let mut rest = &buffer[..received];
        while let [a, b, c, d, kind, subsystem, ..] = *rest {
            let length = u32::from_ne_bytes([a, b, c, d]) as usize;
            match u16::from_ne_bytes([kind, subsystem]) {
                3 => return Ok(messages),
                2 => return Err("the kernel refused a listing".to_owned()),
                _ => {}
            }
            let words = rest[..length].chunks(8).map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_ne_bytes(word)
            });
            messages.push(words.collect());
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn owned(text: *const c_char) -> Result<String, String> {
    if text.is_null() {
        return Err("libnftnl has no such string".to_owned());
    }
    // SAFETY: libnftnl returns null or a string that ends with a zero and lives as long as its object.
    Ok(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

fn chain(message: &[u64]) -> Result<(String, ChainView), String> {
    // SAFETY: the message is aligned, and as long as its header says; the object is freed at the end and not used
    // after it.
    unsafe {
        let chain = sys::nftnl_chain_alloc();
        let parsed = sys::nftnl_chain_nlmsg_parse(message.as_ptr().cast(), chain);
        let name = owned(sys::nftnl_chain_get_str(chain, sys::NFTNL_CHAIN_NAME as u16));
        let base = match sys::nftnl_chain_is_set(chain, sys::NFTNL_CHAIN_HOOKNUM as u16) {
            true => Some((
                owned(sys::nftnl_chain_get_str(chain, sys::NFTNL_CHAIN_TYPE as u16)),
                sys::nftnl_chain_get_u32(chain, sys::NFTNL_CHAIN_HOOKNUM as u16),
                sys::nftnl_chain_get_s32(chain, sys::NFTNL_CHAIN_PRIO as u16),
            )),
            false => None,
        };
        sys::nftnl_chain_free(chain);
        if parsed < 0 {
            return Err("libnftnl refuses a chain".to_owned());
        }
        let base = match base {
            Some((kind, hook, priority)) => Some((kind?, hook, priority)),
            None => None,
        };
        Ok((name?, ChainView { base, rules: 0 }))
    }
}

/// The chain of a rule, after libnftnl has parsed all its expressions.
fn rule_chain(message: &[u64]) -> Result<String, String> {
    // SAFETY: as in `chain`.
    unsafe {
        let rule = sys::nftnl_rule_alloc();
        let parsed = sys::nftnl_rule_nlmsg_parse(message.as_ptr().cast(), rule);
        let name = owned(sys::nftnl_rule_get_str(rule, sys::NFTNL_RULE_CHAIN as u16));
        sys::nftnl_rule_free(rule);
        if parsed < 0 {
            return Err("libnftnl refuses a rule".to_owned());
        }
        name
    }
}

/// A set, freed when dropped.
struct Set(*mut sys::nftnl_set);

impl Drop for Set {
    fn drop(&mut self) {
        // SAFETY: allocated by `parse`, freed once.
        unsafe { sys::nftnl_set_free(self.0) }
    }
}

impl Set {
    /// From a message about the set itself, or about its elements.
    fn parse(message: &[u64], elements: bool) -> Result<Set, String> {
        // SAFETY: the message is aligned, and as long as its header says.
        let (set, parsed) = unsafe {
            let set = Set(sys::nftnl_set_alloc());
            let parsed = match elements {
                true => sys::nftnl_set_elems_nlmsg_parse(message.as_ptr().cast(), set.0),
                false => sys::nftnl_set_nlmsg_parse(message.as_ptr().cast(), set.0),
            };
            (set, parsed)
        };
        if parsed < 0 { Err("libnftnl refuses a set".to_owned()) } else { Ok(set) }
    }

    fn string(&self, attribute: u16) -> Result<String, String> {
        // SAFETY: the set is alive.
        owned(unsafe { sys::nftnl_set_get_str(self.0, attribute) })
    }

    fn elements(&self, family: Family, map: Map) -> Result<Vec<String>, String> {
        let mut texts = Vec::new();
        // SAFETY: the iterator and what it yields live as long as the set.
        unsafe {
            let iterator = sys::nftnl_set_elems_iter_create(self.0);
            loop {
                let element = sys::nftnl_set_elems_iter_next(iterator);
                if element.is_null() {
                    break;
                }
                texts.push(element_text(element, family, map));
            }
            sys::nftnl_set_elems_iter_destroy(iterator);
        }
        texts.into_iter().collect()
    }
}

/// The bytes of an attribute; empty if it is absent.
///
/// # Safety
///
/// The element must be alive.
unsafe fn bytes(element: *mut sys::nftnl_set_elem, attribute: u32) -> Vec<u8> {
    let mut length = 0;
    // SAFETY: libnftnl returns null, or `length` bytes that live as long as the element.
    unsafe {
        let start: *const c_void = sys::nftnl_set_elem_get(element, attribute as u16, &mut length);
        match start.is_null() {
            true => Vec::new(),
            false => std::slice::from_raw_parts(start.cast::<u8>(), length as usize).to_vec(),
        }
    }
}

/// # Safety
///
/// The element must be alive.
unsafe fn element_text(element: *mut sys::nftnl_set_elem, family: Family, map: Map) -> Result<String, String> {
    // SAFETY: the caller's.
    let (key, end, data, verdict, chain) = unsafe {
        (
            bytes(element, sys::NFTNL_SET_ELEM_KEY),
            bytes(element, sys::NFTNL_SET_ELEM_KEY_END),
            bytes(element, sys::NFTNL_SET_ELEM_DATA),
            sys::nftnl_set_elem_is_set(element, sys::NFTNL_SET_ELEM_VERDICT as u16)
                .then(|| sys::nftnl_set_elem_get_u32(element, sys::NFTNL_SET_ELEM_VERDICT as u16)),
            sys::nftnl_set_elem_get_str(element, sys::NFTNL_SET_ELEM_CHAIN as u16),
        )
    };
    let mut text = fields(family, map.key(), &key)?;
    if !end.is_empty() {
        let end = fields(family, map.key(), &end)?;
        text = merge_prefix(&text, &end)?;
    }
    match verdict {
        Some(NF_DROP) => text.push_str(" : drop"),
        Some(NFT_GOTO) => text.push_str(&format!(" : goto {}", owned(chain)?)),
        Some(other) => return Err(format!("verdict {other:#x}")),
        None if data.is_empty() => {}
        None => {
            let kinds: &[KeyField] = match map.data() {
                DataKind::List => &[KeyField::List],
                _ => &[KeyField::Address, KeyField::Port],
            };
            text.push_str(&format!(" : {}", fields(family, kinds, &data)?));
        }
    }
    Ok(text)
}

fn fields(family: Family, fields: &[KeyField], mut bytes: &[u8]) -> Result<String, String> {
    let mut texts = Vec::new();
    for field in fields {
        let length = if *field == KeyField::Address { family.address_bytes() } else { 4 };
        let (field_bytes, rest) = bytes.split_at_checked(length).ok_or("a key is too short")?;
        bytes = rest;
        let four: Option<[u8; 4]> = field_bytes.try_into().ok();
        let sixteen: Option<[u8; 16]> = field_bytes.try_into().ok();
        texts.push(match (field, four, sixteen) {
            (KeyField::Address, Some(octets), _) => IpAddr::from(octets).to_string(),
            (KeyField::Address, _, Some(octets)) => IpAddr::from(octets).to_string(),
            (KeyField::Protocol, Some([number, ..]), _) => {
                Protocol::from_number(number).ok_or("not a protocol of ours")?.keyword().to_owned()
            }
            (KeyField::Port, Some([high, low, ..]), _) => u16::from_be_bytes([high, low]).to_string(),
            (KeyField::Slot, Some(slot), _) => u32::from_ne_bytes(slot).to_string(),
            // A priority of nft: two numbers in hexadecimal (`tc_handle` of nftables).
            (KeyField::List, Some(list), _) => {
                let priority = u32::from_ne_bytes(list);
                format!("{:x}:{:x}", priority >> 16, priority & 0xffff)
            }
            other => return Err(format!("{other:?}")),
        });
    }
    if bytes.is_empty() { Ok(texts.join(" . ")) } else { Err("a key is too long".to_owned()) }
}

/// Start and inclusive end differ in their last field, which spans a prefix.
fn merge_prefix(start: &str, end: &str) -> Result<String, String> {
    let (head, first) = start.rsplit_once(" . ").ok_or("no concatenation")?;
    let (_, last) = end.rsplit_once(" . ").ok_or("no concatenation")?;
    let address = |text: &str| text.parse::<IpAddr>().map_err(|error| error.to_string());
    let length = match (address(first)?, address(last)?) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a) ^ u32::from(b)).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b)).leading_zeros(),
        _ => return Err("two families".to_owned()),
    };
    Ok(if first == last { start.to_owned() } else { format!("{head} . {first}/{length}") })
}
