//! What a kernel lacks: the module and the option for a refused part of our rules.

use std::fmt;

use vmap_proxy_compiler::plan::{Action, Operation};
use vmap_proxy_compiler::ruleset::Family;

use crate::files::read::patiently;

/// 1 means that no module can be loaded until the next boot.
const MODULES_DISABLED: &str = "/proc/sys/kernel/modules_disabled";

/// A part of nf_tables that the kernel does not have, or has as a module that it could not load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lacking {
    /// The name of the module; `None` for an option of nf_tables itself.
    pub module: Option<&'static str>,
    /// The options that build it.
    pub options: &'static str,
}

impl fmt::Display for Lacking {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.module {
            Some(module) => write!(formatter, "{module} ({})", self.options),
            None => formatter.write_str(self.options),
        }
    }
}

impl Lacking {
    /// nf_tables itself.
    pub(super) const NF_TABLES: Self = Self {
        module: Some("nf_tables"),
        options: "CONFIG_NF_TABLES, CONFIG_NF_TABLES_IPV4 and CONFIG_NF_TABLES_IPV6",
    };

    /// Finds it for a refused operation. `expression` is the name of the part of a rule that the kernel means. The
    /// modules are those that the kernel asks for: `nft-expr-*` and `nft-chain-*` in `net/netfilter/nf_tables_api.c`.
    pub(super) fn of(operation: &Operation, expression: Option<&str>, errno: i32) -> Option<Self> {
        if !matches!(errno, libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) {
            return None;
        }
        match &operation.action {
            // `nft_supported_family` in the same file.
            Action::AddTable if errno == libc::EOPNOTSUPP => Some(of_table(operation.family)),
            Action::AddChain(chain) => chain.base().map(|base| of_chain(operation.family, base.nat)),
            // Built into nf_tables since 5.17.
            Action::AddMap(map) if map.has_counter() => of_expression(operation.family, "counter"),
            Action::AddRule(..) => of_expression(operation.family, expression?),
            _ => None,
        }
    }

    /// What to do about it, as the end of a sentence.
    pub fn remedy(&self) -> String {
        let Self { module, options } = self;
        let Some(module) = module else { return format!("boot a kernel with {options}") };
        let disabled = patiently(|| std::fs::read_to_string(MODULES_DISABLED));
        match disabled.is_ok_and(|value| value.trim() == "1") {
            true => format!(
                "kernel.modules_disabled is 1, so no module can be loaded before the next boot: list {module} in \
                 /etc/modules-load.d, which is read before that is set, and boot"
            ),
            false => format!("load the module {module} (modprobe {module}), or boot a kernel with {options}"),
        }
    }
}

fn of_chain(family: Family, nat: bool) -> Lacking {
    match nat {
        true => {
            Lacking { module: Some("nft_chain_nat"), options: "CONFIG_NFT_NAT, CONFIG_NF_NAT and CONFIG_NF_CONNTRACK" }
        }
        false => of_table(family),
    }
}

/// Tables of this family.
fn of_table(family: Family) -> Lacking {
    let options = match family {
        Family::Ipv4 => "CONFIG_NF_TABLES_IPV4",
        Family::Ipv6 => "CONFIG_NF_TABLES_IPV6",
    };
    Lacking { module: None, options }
}

fn of_expression(family: Family, name: &str) -> Option<Lacking> {
    let (module, options) = match (name, family) {
        ("ct", _) => ("nft_ct", "CONFIG_NFT_CT and CONFIG_NF_CONNTRACK"),
        ("nat", _) => ("nft_nat", "CONFIG_NFT_NAT"),
        ("masq", _) => ("nft_masq", "CONFIG_NFT_MASQ"),
        ("numgen", _) => ("nft_numgen", "CONFIG_NFT_NUMGEN"),
        ("counter", _) => ("nft_counter", "CONFIG_NFT_COUNTER"),
        ("fib", Family::Ipv4) => ("nft_fib_ipv4", "CONFIG_NFT_FIB_IPV4"),
        ("fib", Family::Ipv6) => ("nft_fib_ipv6", "CONFIG_NFT_FIB_IPV6"),
        ("reject", Family::Ipv4) => ("nft_reject_ipv4", "CONFIG_NFT_REJECT and CONFIG_NFT_REJECT_IPV4"),
        ("reject", Family::Ipv6) => ("nft_reject_ipv6", "CONFIG_NFT_REJECT and CONFIG_NFT_REJECT_IPV6"),
        // The rest is part of nf_tables.
        _ => return None,
    };
    Some(Lacking { module: Some(module), options })
}

#[cfg(test)]
mod tests {
    use vmap_proxy_compiler::model::{PerFamily, ProxyConfig, Store};
    use vmap_proxy_compiler::plan::Planner;
    use vmap_proxy_wire::nf_tables::Batch;

    use super::*;

    /// Each expression of the skeleton is part of nf_tables, or has a module of its own that is named.
    #[test]
    fn every_expression_of_the_skeleton_is_accounted_for() {
        let built_in = ["payload", "cmp", "bitwise", "meta", "lookup", "immediate", "dynset"];
        let mut store = Store::new("node");
        let mut planner = Planner::new(ProxyConfig::default(), store.node());
        let operations: Vec<Operation> =
            planner.resync(&mut store, PerFamily::default()).flat_map(|transaction| transaction.operations).collect();
        let mut batch = Batch::default();
        batch.encode(&operations, true, || 1);
        let mut seen = std::collections::BTreeSet::new();
        for message in batch.messages() {
            let operation = &operations[message.operations.start];
            if !matches!(operation.action, Action::AddRule(..)) {
                continue;
            }
            let names: Vec<&str> = (0..1000).step_by(4).filter_map(|at| batch.expression_at(message, at)).collect();
            assert!(!names.is_empty(), "{operation:?}");
            for name in names {
                let lacking = Lacking::of(operation, Some(name), libc::ENOENT);
                assert!(lacking.is_some() != built_in.contains(&name), "{name}: {lacking:?}");
                seen.insert(name.to_owned());
            }
        }
        for name in ["ct", "nat", "numgen", "masq", "fib", "reject", "lookup"] {
            assert!(seen.contains(name), "{name} not in {seen:?}");
        }
    }

    #[test]
    fn another_reason_lacks_nothing() {
        let operation = Operation { family: Family::Ipv4, owner: None, action: Action::AddTable };
        assert_eq!(Lacking::of(&operation, None, libc::ENOENT), None);
        let chain = vmap_proxy_compiler::ruleset::chains::Chain::NatPrerouting;
        let operation = Operation { action: Action::AddChain(chain), ..operation };
        assert_eq!(Lacking::of(&operation, None, libc::EEXIST), None);
        assert_eq!(
            Lacking::of(&operation, None, libc::ENOENT).and_then(|lacking| lacking.module),
            Some("nft_chain_nat")
        );
    }

    /// No module brings tables of a family: the remedy must not name one.
    #[test]
    fn a_family_without_tables_is_a_matter_of_the_kernel_alone() {
        let operation = Operation { family: Family::Ipv6, owner: None, action: Action::AddTable };
        let lacking = Lacking::of(&operation, None, libc::EOPNOTSUPP).unwrap();
        assert_eq!(lacking.to_string(), "CONFIG_NF_TABLES_IPV6");
        assert_eq!(lacking.remedy(), "boot a kernel with CONFIG_NF_TABLES_IPV6");
    }
}
