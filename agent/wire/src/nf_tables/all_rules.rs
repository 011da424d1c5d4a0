//! The verdicts in the rules of any table, regardless of its owner: whether a rule
//! drops or refuses packets, and where it leads.
//!
//! Nothing else of these rules is read: for which packets a verdict holds is between
//! a table's program and its nft.

use super::all_chains::AnyFamily;
use super::message_type;
use crate::message::{Attributes, Message, Request};
use crate::uapi::*;

/// The verdicts in a rule of any table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnyRule {
    /// The name of its table.
    pub table: String,
    /// The name of its chain.
    pub chain: String,
    /// Whether it drops or refuses the packets that it matches.
    pub drops: bool,
    /// The chains that it jumps to. Those behind a map of verdicts are not known.
    pub leads_to: Vec<String>,
}

/// Lists the rules of one chain; [`any_rule`] reads the answers. A kernel may answer
/// with rules of other chains, too.
pub fn list_rules_of(family: AnyFamily, table: &str, chain: &str) -> Request {
    Request::new(message_type(NFT_MSG_GETRULE), family.0, |w| {
        w.string(NFTA_RULE_TABLE, table);
        w.string(NFTA_RULE_CHAIN, chain);
    })
}

/// Reads one rule. `None` if the message is about something else, or has a name that
/// is no text.
pub fn any_rule(message: &Message<'_>) -> Option<AnyRule> {
    if message.kind != message_type(NFT_MSG_NEWRULE) {
        return None;
    }
    let (_, attributes) = message.body()?;
    let mut rule = AnyRule {
        table: attributes.string(NFTA_RULE_TABLE)?.to_owned(),
        chain: attributes.string(NFTA_RULE_CHAIN)?.to_owned(),
        ..AnyRule::default()
    };
    let expressions = attributes.get(NFTA_RULE_EXPRESSIONS).into_iter().flat_map(|list| list.nested());
    expressions.for_each(|expression| rule.add(expression.nested()));
    Some(rule)
}

impl AnyRule {
    fn add(&mut self, expression: Attributes<'_>) {
        let data = expression.get(NFTA_EXPR_DATA).map(|data| data.nested()).unwrap_or_default();
        match expression.string(NFTA_EXPR_NAME) {
            Some("reject") => self.drops = true,
            // A target of iptables.
            Some("target") => self.drops |= data.string(NFTA_TARGET_NAME) == Some("REJECT"),
            Some("immediate") if data.be32(NFTA_IMMEDIATE_DREG) == Some(NFT_REG_VERDICT) => {
                let value = data.get(NFTA_IMMEDIATE_DATA).map(|value| value.nested()).unwrap_or_default();
                let verdict = value.get(NFTA_DATA_VERDICT).map(|verdict| verdict.nested()).unwrap_or_default();
                self.drops |= verdict.be32(NFTA_VERDICT_CODE).map(u32::cast_signed) == Some(NF_DROP);
                self.leads_to.extend(verdict.string(NFTA_VERDICT_CHAIN).map(str::to_owned));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Messages, Writer};

    fn read(expression: &str, data: impl Fn(&mut Writer)) -> AnyRule {
        let request = Request::new(message_type(NFT_MSG_NEWRULE), 1, |w| {
            w.string(NFTA_RULE_TABLE, "wall");
            w.string(NFTA_RULE_CHAIN, "forward");
            w.nest(NFTA_RULE_EXPRESSIONS, |w| {
                w.nest(NFTA_LIST_ELEM, |w| {
                    w.string(NFTA_EXPR_NAME, expression);
                    w.nest(NFTA_EXPR_DATA, |w| data(w));
                });
            });
        });
        let mut writer = Writer::default();
        request.write(&mut writer, 0, 1);
        let bytes = writer.bytes().to_vec();
        Messages::new(&bytes).next().and_then(|message| any_rule(&message)).unwrap_or_default()
    }

    fn verdict(code: i32, chain: Option<&str>) -> AnyRule {
        read("immediate", |w| {
            w.be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
            w.nest(NFTA_IMMEDIATE_DATA, |w| {
                w.nest(NFTA_DATA_VERDICT, |w| {
                    w.be32(NFTA_VERDICT_CODE, code.cast_unsigned());
                    chain.into_iter().for_each(|chain| w.string(NFTA_VERDICT_CHAIN, chain));
                });
            });
        })
    }

    #[test]
    fn verdicts_are_found_and_nothing_else() {
        let rule = verdict(NF_DROP, None);
        assert_eq!((rule.table.as_str(), rule.chain.as_str(), rule.drops), ("wall", "forward", true));
        let jump = verdict(NFT_JUMP, Some("DOCKER"));
        assert_eq!((jump.drops, jump.leads_to), (false, vec!["DOCKER".to_owned()]));
        assert!(read("reject", |_| {}).drops);
        assert!(read("target", |w| w.string(NFTA_TARGET_NAME, "REJECT")).drops);
        assert!(!read("target", |w| w.string(NFTA_TARGET_NAME, "LOG")).drops);
        assert!(!read("counter", |_| {}).drops);
        // A constant in another register is no verdict.
        assert!(!read("immediate", |w| w.be32(NFTA_IMMEDIATE_DREG, 1)).drops);
    }
}
