//! A transaction as one batch of netlink messages.

use std::ops::Range;

use vmap_proxy_compiler::model::PerFamily;
use vmap_proxy_compiler::plan::{Action, Operation, Transaction};
use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_compiler::ruleset::element::Element;
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::{Family, LAYOUT};

use super::elements::{MAX_ELEMENT, write_comment_entry, write_element, write_element_key};
use super::expressions::{write_chain_name, write_rule};
use super::sets::write_set;
use super::{OwnTable, POLICY_ACCEPT, family_number, message_type};
use crate::answer::Sequences;
use crate::message::{
    Attributes, MAX_ATTRIBUTE, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, Open, Request, Writer,
};
use crate::uapi::*;

/// One message of a batch and its operations.
#[derive(Debug, Clone)]
pub struct MessageSpan {
    /// Its number.
    pub sequence: u32,
    /// The offset of the message in the batch.
    pub start: usize,
    /// The operations, as indices into the transaction.
    pub operations: Range<usize>,
}

/// A batch: begin mark, messages, end mark. The memory is used again for the
/// next one.
#[derive(Debug, Default)]
pub struct Batch {
    writer: Writer,
    begin_sequence: u32,
    messages: Vec<MessageSpan>,
    /// The offset of each operation in the batch, which identifies the element
    /// that the kernel means.
    starts: Vec<usize>,
    open: Option<OpenList>,
    /// The table that operations on a family are for.
    tables: PerFamily<OwnTable>,
    /// The flags of new tables, `NFT_TABLE_F_*`.
    table_flags: u32,
}

/// A message that takes further elements.
#[derive(Debug)]
struct OpenList {
    message: Open,
    list: Open,
    list_start: usize,
    target: Target,
}

/// Elements with the same target can share a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    kind: u8,
    family: Family,
    map: Map,
}

impl Batch {
    /// Directs the operations on each family to one of our tables; the main one
    /// is the default.
    pub fn direct_to(&mut self, tables: PerFamily<OwnTable>) {
        self.tables = tables;
    }

    /// Makes new tables with these flags, `NFT_TABLE_F_*`; none is the default.
    pub fn set_table_flags(&mut self, flags: u32) {
        self.table_flags = flags;
    }

    /// Encodes all operations, in order. `destroy`: whether the kernel has
    /// `NFT_MSG_DESTROYSETELEM`.
    pub fn encode(&mut self, operations: &[Operation], destroy: bool, mut sequence: impl FnMut() -> u32) {
        self.clear();
        self.begin_sequence = sequence();
        self.mark(NFNL_MSG_BATCH_BEGIN, self.begin_sequence);
        for (index, operation) in operations.iter().enumerate() {
            self.operation(index, operation, destroy, &mut sequence);
        }
        self.close();
        self.ask_for_answers();
        let end = sequence();
        self.mark(NFNL_MSG_BATCH_END, end);
    }

    /// Encodes messages that are not operations of a transaction, with these
    /// flags besides `NLM_F_REQUEST`.
    pub fn encode_requests(&mut self, requests: &[Request], flags: u16, mut sequence: impl FnMut() -> u32) {
        self.requests(requests, flags, &mut sequence);
        let end = sequence();
        self.mark(NFNL_MSG_BATCH_END, end);
    }

    /// The same without an end mark: the kernel checks the messages, answers
    /// them, and carries none of them out, as for `nft --check`.
    pub fn encode_check(&mut self, requests: &[Request], mut sequence: impl FnMut() -> u32) {
        self.requests(requests, 0, &mut sequence);
    }

    fn requests(&mut self, requests: &[Request], flags: u16, sequence: &mut impl FnMut() -> u32) {
        self.clear();
        self.begin_sequence = sequence();
        self.mark(NFNL_MSG_BATCH_BEGIN, self.begin_sequence);
        for (index, request) in requests.iter().enumerate() {
            let sequence = sequence();
            let start = self.writer.position();
            self.messages.push(MessageSpan { sequence, start, operations: index..index + 1 });
            request.write(&mut self.writer, flags, sequence);
        }
        self.ask_for_answers();
    }

    fn clear(&mut self) {
        self.writer.clear();
        self.messages.clear();
        self.starts.clear();
    }

    /// The bytes to send.
    pub fn bytes(&self) -> &[u8] {
        self.writer.bytes()
    }

    /// The messages, without the marks around them.
    pub fn messages(&self) -> &[MessageSpan] {
        &self.messages
    }

    /// The number of the mark in front.
    pub fn begin_sequence(&self) -> u32 {
        self.begin_sequence
    }

    /// The numbers of all messages that are answered.
    pub fn sequences(&self) -> Sequences {
        let last = self.messages.last().map_or(self.begin_sequence, |message| message.sequence);
        Sequences { first: self.begin_sequence, last }
    }

    /// The last message's answer ends the batch; the first one's tells a failed
    /// commit, which is reported in its name, from its own failure.
    fn ask_for_answers(&mut self) {
        if let (Some(first), Some(last)) = (self.messages.first(), self.messages.last()) {
            self.writer.add_flags(first.start, NLM_F_ACK);
            self.writer.add_flags(last.start, NLM_F_ACK);
        }
    }

    /// The operation whose encoding covers a byte of a message.
    pub fn operation_at(&self, message: &MessageSpan, offset: usize) -> Option<usize> {
        let position = message.start + offset;
        let starts = self.starts.get(message.operations.clone())?;
        let before = starts.partition_point(|start| *start <= position);
        // Before the first element: the message's own header or names.
        Some(message.operations.start + before.checked_sub(1)?)
    }

    /// The name of the expression of a rule that begins at a byte of a message. The kernel names the byte where it
    /// refuses an expression.
    pub fn expression_at(&self, message: &MessageSpan, offset: usize) -> Option<&str> {
        let bytes = self.writer.bytes().get(message.start + offset..)?;
        let element = Attributes::new(bytes).next().filter(|element| element.kind == NFTA_LIST_ELEM)?;
        let name = element.nested().next().filter(|name| name.kind == NFTA_EXPR_NAME)?;
        name.string()
    }

    fn mark(&mut self, kind: u16, sequence: u32) {
        let open = self.writer.begin_message(kind, 0, sequence, 0, NFNL_SUBSYS_NFTABLES);
        self.writer.end_message(open);
    }

    fn operation(&mut self, index: usize, operation: &Operation, destroy: bool, sequence: &mut impl FnMut() -> u32) {
        let family = operation.family;
        match &operation.action {
            Action::AddElement(element) => {
                // nft writes boundaries of intervals without: two adjacent
                // ranges, or its own mark at 0, may share one.
                let flags = if matches!(element.map, Map::ServiceCidrs) { 0 } else { NLM_F_EXCL };
                let target = Target { kind: NFT_MSG_NEWSETELEM, family, map: element.map };
                self.element(index, target, NLM_F_CREATE | flags, sequence, element);
            }
            Action::DeleteElement(element) => {
                let kind =
                    if element.map.is_dynamic() && destroy { NFT_MSG_DESTROYSETELEM } else { NFT_MSG_DELSETELEM };
                let target = Target { kind, family, map: element.map };
                self.element(index, target, 0, sequence, element);
            }
            action => {
                self.close();
                let (kind, flags) = message_of(action);
                let open = self.begin(index, kind, flags, family, sequence());
                self.starts.push(self.writer.position());
                let id = self.messages.len() as u32;
                let table = self.tables[family].name();
                match action {
                    Action::AddTable => write_table(&mut self.writer, table, self.table_flags),
                    action => write_action(&mut self.writer, table, action, family, id),
                }
                self.writer.end_message(open);
            }
        }
    }

    fn begin(&mut self, index: usize, kind: u8, flags: u16, family: Family, sequence: u32) -> Open {
        let start = self.writer.position();
        self.messages.push(MessageSpan { sequence, start, operations: index..index + 1 });
        self.writer.begin_message(message_type(kind), flags, sequence, family_number(family), 0)
    }

    fn element(
        &mut self,
        index: usize,
        target: Target,
        flags: u16,
        sequence: &mut impl FnMut() -> u32,
        element: &Element,
    ) {
        let fits = |open: &OpenList, position: usize| {
            open.target == target && position - open.list_start + MAX_ELEMENT < MAX_ATTRIBUTE
        };
        if !self.open.as_ref().is_some_and(|open| fits(open, self.writer.position())) {
            self.close();
            let message = self.begin(index, target.kind, flags, target.family, sequence());
            let writer = &mut self.writer;
            writer.string(NFTA_SET_ELEM_LIST_TABLE, self.tables[target.family].name());
            writer.string(NFTA_SET_ELEM_LIST_SET, target.map.name());
            let list_start = writer.position();
            let list = writer.begin_nest(NFTA_SET_ELEM_LIST_ELEMENTS);
            self.open = Some(OpenList { message, list, list_start, target });
        }
        if let Some(message) = self.messages.last_mut() {
            message.operations.end = index + 1;
        }
        self.starts.push(self.writer.position());
        if target.kind == NFT_MSG_NEWSETELEM {
            write_element(&mut self.writer, element);
        } else {
            write_element_key(&mut self.writer, &element.key);
        }
    }

    /// Ends the message that takes elements, if there is one.
    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            self.writer.end(open.list);
            self.writer.end_message(open.message);
        }
    }
}

/// Returns a transaction as the bytes of one batch, numbered from 1, as the
/// agent would send it to a kernel of 6.3 or newer: for benchmarks and
/// independent checks.
pub fn encode(transaction: &Transaction) -> Vec<u8> {
    let mut batch = Batch::default();
    let mut sequence = 0;
    batch.encode(&transaction.operations, true, || {
        sequence += 1;
        sequence
    });
    batch.writer.bytes().to_vec()
}

fn message_of(action: &Action) -> (u8, u16) {
    match action {
        Action::AddTable => (NFT_MSG_NEWTABLE, NLM_F_CREATE),
        Action::AddMap(_) => (NFT_MSG_NEWSET, NLM_F_CREATE),
        Action::AddChain(_) => (NFT_MSG_NEWCHAIN, NLM_F_CREATE),
        Action::FlushChain(_) => (NFT_MSG_DELRULE, 0),
        Action::AddRule(..) => (NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND),
        Action::DeleteChain(_) => (NFT_MSG_DELCHAIN, 0),
        Action::DeleteMap(_) => (NFT_MSG_DELSET, 0),
        Action::AddElement(_) => (NFT_MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL),
        Action::DeleteElement(_) => (NFT_MSG_DELSETELEM, 0),
    }
}

/// Writes the attributes of a `NFT_MSG_NEWTABLE`. Comment and flags of a table
/// that exists can't be changed, but for some flags.
fn write_table(writer: &mut Writer, table: &str, flags: u32) {
    writer.string(NFTA_TABLE_NAME, table);
    writer.be32(NFTA_TABLE_FLAGS, flags);
    let userdata = writer.begin_attribute(NFTA_TABLE_USERDATA);
    write_comment_entry(writer, LAYOUT);
    writer.end(userdata);
}

fn write_action(writer: &mut Writer, table: &str, action: &Action, family: Family, id: u32) {
    match action {
        Action::AddMap(map) => write_set(writer, table, family, *map, id),
        Action::DeleteMap(map) => {
            writer.string(NFTA_SET_TABLE, table);
            writer.string(NFTA_SET_NAME, map.name());
        }
        Action::AddChain(chain) => write_chain(writer, table, *chain),
        Action::DeleteChain(chain) => {
            writer.string(NFTA_CHAIN_TABLE, table);
            write_chain_name(writer, NFTA_CHAIN_NAME, *chain);
        }
        // Without a handle: every rule of the chain.
        Action::FlushChain(chain) => {
            writer.string(NFTA_RULE_TABLE, table);
            write_chain_name(writer, NFTA_RULE_CHAIN, *chain);
        }
        Action::AddRule(chain, rule) => {
            writer.string(NFTA_RULE_TABLE, table);
            write_chain_name(writer, NFTA_RULE_CHAIN, *chain);
            writer.nest(NFTA_RULE_EXPRESSIONS, |w| write_rule(w, family, rule));
        }
        Action::AddTable | Action::AddElement(_) | Action::DeleteElement(_) => {}
    }
}

/// Writes the attributes of a `NFT_MSG_NEWCHAIN`.
pub fn write_chain(writer: &mut Writer, table: &str, chain: Chain) {
    writer.string(NFTA_CHAIN_TABLE, table);
    write_chain_name(writer, NFTA_CHAIN_NAME, chain);
    if let Some(base) = chain.base() {
        writer.string(NFTA_CHAIN_TYPE, if base.nat { "nat" } else { "filter" });
        writer.nest(NFTA_CHAIN_HOOK, |w| {
            w.be32(NFTA_HOOK_HOOKNUM, base.hook.number());
            w.be32(NFTA_HOOK_PRIORITY, base.priority as u32);
        });
        writer.be32(NFTA_CHAIN_POLICY, POLICY_ACCEPT);
    }
}
