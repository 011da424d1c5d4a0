//! Prints operations as the nft commands that are equivalent to the agent's
//! netlink messages. For log messages, examples and golden files.

use std::fmt;

use super::{Action, Operation, Transaction};
use crate::render;
use crate::ruleset::{LAYOUT, TABLE};

impl fmt::Display for Operation {
    /// One command, without the line's end:
    /// `add element ip vmap-proxy cluster-ips { 10.96.0.10 }`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = format!("{} {TABLE}", self.family.keyword());
        match &self.action {
            Action::AddTable => write!(f, "add table {table} {{ comment \"{LAYOUT}\"; }}"),
            Action::AddMap(map) => {
                write!(f, "add {} {table} {map} {{ {}; ", render::kind(*map), render::declaration(self.family, *map))?;
                render::properties(*map).iter().try_for_each(|property| write!(f, "{property}; "))?;
                f.write_str("}")
            }
            Action::AddChain(chain) => match render::base(*chain) {
                Some(base) => write!(f, "add chain {table} {chain} {{ {base} }}"),
                None => write!(f, "add chain {table} {chain}"),
            },
            Action::FlushChain(chain) => write!(f, "flush chain {table} {chain}"),
            Action::AddRule(chain, rule) => write!(f, "add rule {table} {chain} {}", render::rule(self.family, rule)),
            Action::DeleteChain(chain) => write!(f, "delete chain {table} {chain}"),
            Action::DeleteMap(map) => write!(f, "delete {} {table} {map}", render::kind(*map)),
            Action::AddElement(element) => {
                write!(f, "add element {table} {} {{ {} }}", element.map, render::element(element))
            }
            Action::DeleteElement(element) => {
                write!(f, "delete element {table} {} {{ {} }}", element.map, render::element(element))
            }
        }
    }
}

impl fmt::Display for Transaction {
    /// One command a line, in order.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.operations.iter().try_for_each(|operation| writeln!(f, "{operation}"))
    }
}
