//! Netlink, as far as vmap-proxy speaks it: bytes in, bytes out.
//!
//! This crate does no I/O, and uses no sockets and no clock. It encodes the compiler's decisions as messages to the
//! kernel, and decodes the kernel's answers. No input makes it panic or loop.
//!
//! * [`message`]: the layout of messages and attributes, written and read, for every part of netlink;
//! * [`answer`]: the kernel's answers to requests, and the end of a listing;
//! * [`nf_tables`]: our tables: rules, sets, elements, whole batches, and the kernel's listings;
//! * [`conntrack`]: tracked flows: filters for listings, their relevant fields, and their deletion;
//! * [`leftovers`]: the messages that remove the leftovers of kube-proxy's ipvs mode;
//! * [`legacy_table`]: a table of legacy iptables, without some of its chains;
//! * [`uapi`]: the kernel's numbers.
//!
//! ```
//! use vmap_proxy_compiler::ruleset::Family;
//! use vmap_proxy_wire::message::{Messages, NLM_F_DUMP, Writer};
//! use vmap_proxy_wire::{nf_tables, uapi};
//!
//! let question = nf_tables::request(uapi::NFT_MSG_GETCHAIN, Family::Ipv4, |w| {
//!     w.string(uapi::NFTA_CHAIN_TABLE, "filter");
//! });
//! let mut writer = Writer::default();
//! question.write(&mut writer, NLM_F_DUMP, 1);
//!
//! let message = Messages::new(writer.bytes()).next().unwrap();
//! let (family, attributes) = message.body().unwrap();
//! assert_eq!((message.sequence, family), (1, 2));
//! assert_eq!(attributes.string(uapi::NFTA_CHAIN_TABLE), Some("filter"));
//! ```

pub mod answer;
pub mod conntrack;
pub mod leftovers;
pub mod legacy_table;
pub mod message;
pub mod nf_tables;
pub mod uapi;
